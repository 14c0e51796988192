"""`TrainingArguments` for networks with a discriminator and for long streams of images."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

# Fields of `TrainingArguments` that would have no effect, their values without one, and why.
WITHOUT_EFFECT = {
    "neftune_noise_alpha": (None, "it adds noise to the word embeddings of language models"),
    "label_smoothing_factor": (0, "the objective defines the loss"),
    "train_sampling_strategy": ("random", "the order of the samples follows from the seed"),
    "auto_find_batch_size": (False, "the order of the samples depends on the batch size"),
}


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
        super().__post_init__()
        for name in ("logging_strategy", "eval_strategy", "save_strategy"):
            if getattr(self, name) == "epoch":
                raise ValueError(f"`{name}` must be 'no' or 'steps', got 'epoch'.")
        for name in (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
        ):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, got {number!r}.")
        for name, (neutral, reason) in WITHOUT_EFFECT.items():
            if getattr(self, name) != neutral:
                raise ValueError(
                    f"`{name}` must be left at {neutral!r}, because {reason}; got "
                    f"{getattr(self, name)!r}."
                )
        last = self.max_steps if self.max_steps > 0 else math.inf
        for step in self.snapshot_steps:
            if not isinstance(step, int) or not 1 <= step <= last:
                raise ValueError(
                    f"`snapshot_steps` must be numbers of steps from 1 to `max_steps` ({last}), got "
                    f"{step!r}."
                )
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(
                f"`max_unreadable` must be a share in [0, 1], got {self.max_unreadable}."
            )
