"""Configurations of the masked generators."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..loading import CheckedConfigMixin


@strict
class MaskGitConfig(CheckedConfigMixin, PreTrainedConfig):
    """Configuration of a `MaskGitModel`. The defaults are the generator of TiTok-L-32 (arXiv
    2406.07550).

    Class names are the usual `id2label`; `num_labels` counts them.

    Args:
        codebook_size: Number of codes of the tokenizer.
        num_tokens: Number of tokens per image.
        num_labels: Number of classes.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: Transformer sizes.
        hidden_dropout, attention_dropout: Dropout in training.
        label_dropout: Share of labels replaced by "no class" in training, for classifier-free
            guidance.
        label_smoothing: Label smoothing of the loss.
        unmasked_weight: Loss weight of tokens that were not masked; masked ones have weight 1.
        initializer_range: Standard deviation of the initial weights; narrow models need more than
            the default.

    Raises:
        huggingface_hub.errors.StrictDataclassError: If a field has another type, or the sizes
            contradict each other.
    """

    model_type = "maskgit"

    codebook_size: int = 4096
    num_tokens: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 3072
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    label_dropout: float | int = 0.1
    label_smoothing: float | int = 0.1
    unmasked_weight: float | int = 0.1
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1000)
        super().__post_init__(**kwargs)

    @property
    def mask_token_id(self) -> int:
        """Id of a masked token, one past the last code."""
        return self.codebook_size

    @property
    def null_label(self) -> int:
        """The label that means "no class", one past the last label."""
        return self.num_labels

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size` {self.hidden_size}, got "
                f"{self.num_attention_heads}."
            )
        if self.num_labels < 1:
            raise ValueError(f"`num_labels` must be at least 1, got {self.num_labels}.")
        for name in ("hidden_dropout", "attention_dropout", "label_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")


@strict
class MaskGitUViTConfig(MaskGitConfig):
    """Configuration of a `MaskGitUViTModel`. The defaults are the generator of TiTok-S-128 (arXiv
    2406.07550).

    Args:
        num_hidden_layers: Number of blocks before and after the middle one, together; must be even.
        hidden_dropout, attention_dropout: Must be 0, as the network has no dropout.
        See `MaskGitConfig` for the rest.
    """

    model_type = "maskgit_uvit"

    num_tokens: int = 128
    hidden_size: int = 1024
    num_hidden_layers: int = 20
    intermediate_size: int = 4096
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.num_hidden_layers % 2:
            raise ValueError(f"`num_hidden_layers` must be even, got {self.num_hidden_layers}.")
        if self.hidden_dropout or self.attention_dropout:
            raise ValueError(
                "`hidden_dropout` and `attention_dropout` must be 0, as a U-ViT has no dropout, "
                f"got {self.hidden_dropout} and {self.attention_dropout}."
            )


__all__ = ["MaskGitConfig", "MaskGitUViTConfig"]
