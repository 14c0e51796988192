"""The callback that tells an objective and its data loader how far the training is."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from .trainer import TiTokTrainer


class Steps(TrainerCallback):
    """Informs the objective and the data loader of the trainer's progress."""

    def __init__(self, trainer: "TiTokTrainer"):
        self.trainer = trainer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.trainer.start_step = state.global_step
        self.trainer.model.num_steps = state.max_steps
        # random numbers drawn inside the networks, such as dropout, differ between processes
        torch.manual_seed(args.seed + args.process_index)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.trainer.model.before_optimizer_step(state.global_step)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.trainer.model.after_optimizer_step(state.global_step + 1)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        seen = sum(leg.samples for leg in self.trainer.current_legs())
        state.epoch = seen / self.trainer.num_samples

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        # the last steps may have been neither logged nor saved
        self.trainer.finiteness.check(state.global_step, args.output_dir, self.trainer.model)
        self.trainer.check_unreadable()
