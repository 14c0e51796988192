"""Progress bars of training."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..distributed import process_state


class RichProgress(TrainerCallback):
    """Shows a progress bar for each stage, with its latest loss and speed, on the main process.

    Use it as a context manager around the training.
    """

    def __init__(self, console: Console):
        self.progress = Progress(
            TextColumn("{task.description:<19}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[latest]}"),
            console=console,
            disable=not process_state().is_main_process,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> "RichProgress":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any
    ) -> None:
        stage = Path(args.output_dir).name.replace("_", " ")
        self.task = self.progress.add_task(
            stage, total=state.max_steps, completed=state.global_step, latest=""
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any
    ) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        *rest: Any,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        if "loss" in logs:
            latest = f"loss {logs['loss']:.4f}, {logs['images_per_second']:.0f} images/s"
            self.progress.update(self.task, latest=latest)
