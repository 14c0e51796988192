"""HF `Trainer` for objectives: an optimizer group and a gradient norm for each network, and the parts in the log."""

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..data.augmentation import Augmentation
from .objectives import Objective, ReconstructionObjective


@dataclass
class TiTokTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what a second network needs; the defaults are the reference's.

    Args:
        discriminator_learning_rate: Peak learning rate of the discriminator; it follows the same schedule.
    """

    discriminator_learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the discriminator."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the images."})
    adam_beta2: float = field(default=0.99, metadata={"help": "AdamW's second moment decay."})


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices and kernels, not to gains, biases, embeddings, tokens and codes."""
    return parameter.ndim >= 2 and not any(word in name for word in ("embedding", "token", "codebook", "norm"))


class _AfterOptimizerStep(TrainerCallback):
    def on_optimizer_step(self, *args: Any, model: Objective, **kwargs: Any) -> None:
        model.after_optimizer_step()


class TiTokTrainer(Trainer):
    """Trains an `Objective`.

    Args:
        model: The objective.
        args: `TiTokTrainingArguments`.
        augmentation: Random changes of the images, in training only.
        kwargs: Those of `transformers.Trainer`; batches of the collator are the arguments of the objective's
            `forward`. `compute_metrics` measures reconstructions, see `titok_hf.evaluation.ReconstructionMetrics`.

    Raises:
        TypeError: If there is a `compute_metrics`, and the objective makes no reconstructions.
    """

    def __init__(
        self,
        model: Objective,
        args: TiTokTrainingArguments,
        augmentation: Augmentation | None = None,
        **kwargs: Any,
    ):
        if kwargs.get("compute_metrics") is not None and not isinstance(model, ReconstructionObjective):
            raise TypeError(
                "`compute_metrics` measures reconstructions, which a ReconstructionObjective makes, got a "
                f"{type(model).__name__}."
            )
        super().__init__(model, args, **kwargs)
        self.augmentation = augmentation or Augmentation()
        self.add_callback(_AfterOptimizerStep())
        self.model_accepts_loss_kwargs = False
        self.parts: dict[str, list[torch.Tensor]] = defaultdict(list)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        groups = []
        for network, module in self.model.networks():
            parameters = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
            for decayed in (True, False):
                groups.append(
                    {
                        "network": network,
                        "params": [p for n, p in parameters if is_decayed(n, p) == decayed],
                        "lr": getattr(self.args, f"{network}_learning_rate", self.args.learning_rate),
                        "weight_decay": self.args.weight_decay if decayed else 0.0,
                    }
                )
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = optimizer_class(groups, **kwargs)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        self.accelerator.unscale_gradients()
        groups = itertools.groupby(self.optimizer.param_groups, key=lambda group: group["network"])
        norms = []
        for network, group in groups:
            parameters = [parameter for part in group for parameter in part["params"]]
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm))
            self.parts[f"grad_norm_{network}"].append(norms[-1])
        return torch.stack(norms).norm()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        if model.training:
            inputs = inputs | {"pixel_values": self.augmentation(inputs["pixel_values"])}
        output = model(**inputs, step=self.state.global_step)
        if model.training:
            for name, part in output.parts.items():
                self.parts[name].append(part.detach())
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The loss; for `compute_metrics` also what the tokenizer, the averaged one if there is an average, makes of
        the images, and the images."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
            if prediction_loss_only:
                return loss, None, None
            tokenizer, images = self.model.result, inputs["pixel_values"]
            return loss, tokenizer.decode(tokenizer.encode(images).latents).reconstruction, images

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.parts:
            means = torch.stack([torch.stack(values).mean() for values in self.parts.values()])
            means = self.accelerator.gather(means[None]).mean(0)
            logs |= dict(zip(self.parts, means.tolist(), strict=True))
            self.parts.clear()
        super().log(logs, start_time)
