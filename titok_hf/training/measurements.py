"""Measurements of a network during its training, beside the loss on held-out images."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from .arguments import TiTokTrainingArguments
from .trainer import TiTokTrainer


class Measurements(TrainerCallback):
    """Measures the network at each evaluation, and logs the figures with the prefix `eval_`.

    The main process measures while the others continue until they need it. Measuring does not
    affect training: random states and modes of the networks are restored, and its time is not
    counted.

    Args:
        trainer: The trainer; add the callback by `trainer.add_callback(Measurements(trainer, …))`.
        measure: Maps the network, in evaluation mode, to figures by name.

    Raises:
        ValueError: If the network is sharded over processes (FSDP).
    """

    def __init__(
        self, trainer: TiTokTrainer, measure: Callable[[PreTrainedModel], dict[str, float]]
    ):
        if trainer.is_fsdp_enabled:
            raise ValueError(
                "Measurements need the whole network on the main process, but FSDP shards it: leave "
                "`representations` out, and run `titok evaluate representations` afterwards."
            )
        self.trainer = trainer
        self.measure = measure

    def on_evaluate(
        self,
        args: TiTokTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        objective = self.trainer.model
        modes = [(module, module.training) for module in objective.modules()]
        device = self.trainer.accelerator.device
        fork = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with self.trainer.throughput.paused(), fork:
            figures = self.measure(objective.result)
            for module, mode in modes:
                module.training = mode
        self.trainer.log({f"eval_{name}": value for name, value in figures.items()})


__all__ = ["Measurements"]
