"""Public names for the private methods of `Trainer` that the package overrides or calls.

They may change with any release of transformers; `tests/training/test_open_trainer.py` detects it.
"""

from typing import Any

import torch
from torch import nn
from transformers import Trainer

# Parameters of each method. `Trainer` must also call those in `OVERRIDDEN`.
PRIVATE = {
    "_clip_grad_norm": ("model",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_save_checkpoint": ("model", "trial"),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_get_output_dir": ("trial",),
    "_prepare_inputs": ("inputs",),
}
OVERRIDDEN = (
    "_clip_grad_norm",
    "_load_optimizer_and_scheduler",
    "_save_checkpoint",
    "_push_from_checkpoint",
)


class OpenTrainer(Trainer):
    """`Trainer` whose steps can be overridden under public names; by default, each does the same as
    in `Trainer`."""

    def clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clips the gradients and returns their norm."""
        return super()._clip_grad_norm(model)

    def load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads the states of optimizer and scheduler from a checkpoint, if there is one."""
        super()._load_optimizer_and_scheduler(checkpoint)

    def save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes the checkpoint of this step."""
        super()._save_checkpoint(model, trial)

    def push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publishes the model after a checkpoint, if `args.push_to_hub`."""
        super()._push_from_checkpoint(checkpoint_folder)

    def load_from_checkpoint(self, checkpoint: str) -> None:
        """Loads the weights of a checkpoint."""
        super()._load_from_checkpoint(checkpoint)

    def checkpoints_dir(self, trial: Any) -> str:
        """Returns the folder of the checkpoints."""
        return super()._get_output_dir(trial=trial)

    def prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Moves a batch to the trainer's device."""
        return super()._prepare_inputs(inputs)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        return self.clip_grad_norm(model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.load_optimizer_and_scheduler(checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.push_from_checkpoint(checkpoint_folder)
