"""Progress of training."""

from pathlib import Path
from typing import Any

import typer
from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..progress import ProgressBar


class TrainingProgress(TrainerCallback):
    """Shows a progress bar for each stage, with its latest loss and speed. Where bars are hidden, such
    as in a log file, a line says when a stage has ended.

    Use it as a context manager around the training.
    """

    def __init__(self) -> None:
        self.bar: ProgressBar | None = None
        self.stage = self.latest = ""

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any
    ) -> None:
        self.stage = Path(args.output_dir).name.replace("_", " ")
        self.bar = ProgressBar(self.stage, state.max_steps, "steps", initial=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any
    ) -> None:
        self.bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        *rest: Any,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        if "loss" in logs:
            self.latest = f"loss {logs['loss']:.4f}, {logs['images_per_second']:.0f} images/s"
            self.bar.set_postfix_str(self.latest)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any
    ) -> None:
        hidden = self.bar.disable
        self.bar.close()
        if hidden and state.is_world_process_zero:
            ended = f"{self.stage}: {state.global_step} steps"
            typer.echo(", ".join(filter(None, (ended, self.latest))), err=True)
