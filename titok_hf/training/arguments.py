"""`TrainingArguments` for networks with a discriminator and for long streams of images."""

import math
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import get_args, get_type_hints

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

# Fields of `TrainingArguments` that would have no effect, their values without one, and why.
WITHOUT_EFFECT = {
    "neftune_noise_alpha": (None, "it adds noise to the word embeddings of language models"),
    "label_smoothing_factor": (0, "the objective defines the loss"),
    "train_sampling_strategy": ("random", "the order of the samples follows from the seed"),
    "auto_find_batch_size": (False, "the order of the samples depends on the batch size"),
}
# The least values of fields.
LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "shuffle_buffer": 1,
    "preview_steps": 0,
    "dataloader_num_workers": 0,
}
# Names of the types of fields whose values are checked.
KINDS = {int: "an integer", float: "a number", bool: "true or false", NoneType: "null"}


@dataclass
class TiTokTrainingArguments(TrainingArguments):
    """`TrainingArguments` with settings for a discriminator and for long streams of images.

    The defaults are the reference's. `torch_compile` compiles each transformer block separately;
    the first batch after a start runs uncompiled, to count its operations. `logging_strategy`,
    `eval_strategy` and `save_strategy` cannot be `"epoch"`, because an epoch may end within a step.

    Args:
        discriminator_learning_rate: Peak learning rate of the discriminator.
        shuffle_buffer: Number of samples in the shuffle buffer of a stream, per worker process.
        max_unreadable: Share of the images that may be unreadable before training stops.
        preview_steps: Number of steps between the preview pictures of a `RecipeRun`; 0 for none.
        snapshot_steps: Numbers of steps after which a `RecipeRun` writes the network as a result, to
            `work/snapshots/STAGE/STEPS`.
    """

    discriminator_learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak learning rate of the discriminator."}
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Samples in a stream's shuffle buffer."}
    )
    max_unreadable: float = field(
        default=0.01, metadata={"help": "Share of the images that may be unreadable."}
    )
    preview_steps: int = field(default=0, metadata={"help": "Steps between previews; 0 for none."})
    snapshot_steps: list[int] = field(
        default_factory=list, metadata={"help": "Numbers of steps whose network is kept."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Off, because the collator needs all columns."}
    )
    adam_beta2: float = field(default=0.99, metadata={"help": "AdamW's second moment decay."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Off, because all parameters are used."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Off, so that a non-finite loss is reported."}
    )

    def __post_init__(self) -> None:
        self.check_types()
        super().__post_init__()
        for name in ("logging_strategy", "eval_strategy", "save_strategy"):
            if getattr(self, name) == "epoch":
                raise ValueError(f"`{name}` must be 'no' or 'steps', got 'epoch'.")
        for name, (neutral, reason) in WITHOUT_EFFECT.items():
            if getattr(self, name) != neutral:
                raise ValueError(
                    f"`{name}` must be left at {neutral!r}, because {reason}; got "
                    f"{getattr(self, name)!r}."
                )
        last = self.max_steps if self.max_steps > 0 else math.inf
        steps = self.snapshot_steps
        if not isinstance(steps, list) or not all(
            isinstance(step, int) and 1 <= step <= last for step in steps
        ):
            raise ValueError(
                f"`snapshot_steps` must be a list of numbers of steps from 1 to `max_steps` ({last}), got "
                f"{steps!r}."
            )
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError(
                "Training must last: `max_steps` or `num_train_epochs` must be above 0, got "
                f"{self.max_steps} and {self.num_train_epochs}."
            )
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(
                f"`max_unreadable` must be a share in [0, 1], got {self.max_unreadable}."
            )

    def check_types(self) -> None:
        """Raises `ValueError` if a number or a truth value is of another type."""
        hints = get_type_hints(type(self))
        for name in (each.name for each in fields(self)):
            hint, value = hints[name], getattr(self, name)
            kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
            if not KINDS.keys() >= set(kinds):
                continue
            if isinstance(value, bool):
                fits = bool in kinds
            else:
                abstract = {int: Integral, float: Real}
                fits = isinstance(value, tuple(abstract.get(kind, kind) for kind in kinds))
            if not fits:
                expected = " or ".join(KINDS[kind] for kind in kinds)
                raise ValueError(f"`{name}` must be {expected}, got {value!r}.")

    def build_parts(self, model: nn.Module) -> None:
        """Builds what `Trainer` builds only once training starts: optimizer, schedule and reports. Errors are
        those of the libraries."""
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(self, model)
        optimizer = optimizer_class([nn.Parameter(torch.empty(1))], **kwargs)
        arguments = self.get_warmup_steps(100), 100, self.lr_scheduler_kwargs
        get_scheduler(self.lr_scheduler_type, optimizer, *arguments)
        for callback in get_reporting_integration_callbacks(self.report_to):
            callback()
