"""Snapshots of a network during its training: results of fewer steps, which later runs can use."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from .arguments import TiTokTrainingArguments
from .trainer import TiTokTrainer


class Snapshots(TrainerCallback):
    """Writes the network as the result of its stage after some numbers of steps.

    Under FSDP, all processes gather the network and the main one writes it. Writing does not affect
    training, and its time is not counted.

    Args:
        trainer: The trainer; add the callback by `trainer.add_callback(Snapshots(trainer, …))`.
        steps: The numbers of steps.
        folder: Folder of the snapshots, each named by its number of steps.
        write: Writes a network to a folder that does not exist yet.
    """

    def __init__(
        self,
        trainer: TiTokTrainer,
        steps: Sequence[int],
        folder: Path,
        write: Callable[[PreTrainedModel, Path], None],
    ):
        self.trainer = trainer
        self.steps = steps
        self.folder = folder
        self.write = write

    def on_step_end(
        self,
        args: TiTokTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        folder = self.folder / str(state.global_step)
        if state.global_step not in self.steps or folder.exists():
            return
        with self.trainer.throughput.paused():
            network = self.trainer.result()
            if state.is_world_process_zero:
                self.write(network, folder)
