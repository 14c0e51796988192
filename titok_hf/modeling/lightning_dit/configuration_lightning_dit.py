"""LightningDiT configuration."""

import json
import math
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..loading import CheckedConfigMixin

SIZES: dict[str, dict[str, int]] = json.loads(Path(__file__).with_name("sizes.json").read_text())


@strict
class LightningDiTConfig(CheckedConfigMixin, PreTrainedConfig):
    """Configuration of a `LightningDiTModel`. The defaults are LightningDiT-XL/1 on VA-VAE's latents
    (arXiv 2501.01423).

    Class names are the usual `id2label`; `num_labels` counts them.

    Args:
        in_channels: Number of channels of the latents.
        sample_size: Side of 2D latents, or number of 1D latents.
        dimensions: 2 for latents `(C, h, w)`, 1 for latents `(K, C)`.
        patch_size: Side of the square of 2D latents that is a token.
        hidden_size, num_hidden_layers, num_attention_heads: Transformer sizes.
        mlp_ratio: Width of the MLPs before SwiGLU's factor of 2/3, in multiples of the hidden size.
        qk_norm: Whether queries and keys are RMS-normalized, which keeps long runs in bfloat16
            stable.
        adaln_shift: Whether the condition also shifts what it scales.
        num_labels: Number of classes.
        label_dropout: Share of labels replaced by "no class" in training, for classifier-free
            guidance.
        latent_mean, latent_std: Mean and standard deviation of each channel of the tokenizer's
            latents, with which they are normalized; none if they are not known.
        initializer_range: Standard deviation of the initial embeddings.

    Raises:
        huggingface_hub.errors.StrictDataclassError: If a field has another type, or the sizes
            contradict each other.
    """

    model_type = "lightning_dit"

    in_channels: int = 32
    sample_size: int = 16
    dimensions: Literal[1, 2] = 2
    patch_size: int = 1
    hidden_size: int = 1152
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    mlp_ratio: float | int = 4.0
    qk_norm: bool = False
    adaln_shift: bool = True
    label_dropout: float | int = 0.1
    latent_mean: list[float] | None = None
    latent_std: list[float] | None = None
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1000)
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **fields: Any) -> "LightningDiTConfig":
        """Returns the configuration of a size of the paper.

        Args:
            size: `"b/1"`, `"l/2"`, `"xl/1"`, `"1p0b/1"` or `"1p6b/1"`.
            fields: Further fields.

        Raises:
            ValueError: If there is no such size.
        """
        return cls(**{**cls.size_fields(size), **fields})

    @classmethod
    def size_fields(cls, size: str) -> dict[str, int]:
        """Returns the fields that a size of the paper sets, see `from_size`."""
        if size not in SIZES:
            raise ValueError(f"`size` must be one of {', '.join(SIZES)}, got {size!r}.")
        return dict(SIZES[size])

    @property
    def null_label(self) -> int:
        """Id of "no class"."""
        return self.num_labels

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents of an image: `(C, h, w)` or `(K, C)`."""
        if self.dimensions == 1:
            return (self.sample_size, self.in_channels)
        return (self.in_channels, self.sample_size, self.sample_size)

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.dimensions == 1 and self.patch_size != 1:
            raise ValueError(f"`patch_size` of 1D latents must be 1, got {self.patch_size}.")
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"`patch_size` must divide the side {self.sample_size} of the latents, got "
                f"{self.patch_size}."
            )
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"`hidden_size` must be a multiple of 4 times the {self.num_attention_heads} "
                f"`num_attention_heads`, got {self.hidden_size}."
            )
        if self.num_labels < 1:
            raise ValueError(f"`num_labels` must be at least 1, got {self.num_labels}.")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"`label_dropout` must be in [0, 1], got {self.label_dropout}.")
        for name in ("latent_mean", "latent_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.in_channels:
                raise ValueError(
                    f"`{name}` must have a value for each of the {self.in_channels} channels, got "
                    f"{len(values)}."
                )
            if values is not None and not all(map(math.isfinite, values)):
                raise ValueError(f"`{name}` must be finite, got {values}.")
        if (self.latent_mean is None) != (self.latent_std is None):
            raise ValueError("`latent_mean` and `latent_std` go together, got one of them.")
        if self.latent_std is not None and min(self.latent_std) <= 0:
            raise ValueError(f"`latent_std` must be positive, got {min(self.latent_std)}.")


__all__ = ["LightningDiTConfig"]
