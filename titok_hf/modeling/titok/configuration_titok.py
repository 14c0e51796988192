"""TiTok configuration."""

import json
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..loading import CheckedConfigMixin
from ..maskgit_vqgan.configuration_maskgit_vqgan import MaskGitVQGANConfig


@strict
class TiTokConfig(CheckedConfigMixin, PreTrainedConfig):
    """Configuration of a `TiTokModel`. The defaults are TiTok-L-32 (arXiv 2406.07550) before
    decoder fine-tuning.

    Args:
        image_size: Side of the square images, in pixels.
        num_channels: Number of image channels.
        encoder_patch_size: Side of the encoder's patches, in pixels.
        decoder_patch_size: Side of the square that one mask token of the decoder stands for, in
            pixels.
        encoder_hidden_size, encoder_num_hidden_layers, encoder_num_attention_heads: Sizes of the
            ViT encoder.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads: Sizes of the
            ViT decoder.
        mlp_ratio: Width of the MLPs, in multiples of the hidden size.
        num_latent_tokens: Number of tokens per image, K in the paper.
        representation: The encoder outputs that become tokens. `"latent_tokens"`: learned tokens
            appended to the patches, without a spatial order (TiTok). `"patch_tokens"`: the patches,
            a grid, so that `num_latent_tokens` is their number: the paper's 2D counterpart.
        latent_dim: Number of channels per token.
        quantizer: `"vq"` for codes, `"kl"` for continuous tokens with a Gaussian posterior.
        codebook_size: Number of codes, N in the paper; `"vq"` only.
        normalize_codes: Whether latents and codes are l2-normalized; `"vq"` only.
        commitment_cost: Weight of the commitment loss; `"vq"` only.
        head: Output of the decoder. `"proxy_codes"`: logits over the codes of a 2D VQGAN (warm-up).
            `"vqgan_decoder"`: pixels that the VQGAN decodes from the expected code vectors under
            these logits (decoder fine-tuning). `"pixels"`: pixels directly (single stage).
        vqgan_config: Configuration of the proxy codes' VQGAN; must be None for `"pixels"`.
        interleaved_latents: Compatibility with the official two-stage weights: the encoder's output
            `(B, K, W)` is read as `(B, W, K)`, without a transpose, before it is projected to
            `latent_dim` channels.
        initializer_range: Standard deviation of the initial weights; narrow models need more than
            the default.

    Raises:
        huggingface_hub.errors.StrictDataclassError: If a field has another type, or the sizes
            contradict each other.
    """

    model_type = "titok"
    sub_configs_defaults = {
        "vqgan_config": SubConfigSpec(config_class=MaskGitVQGANConfig, optional=True)
    }

    image_size: int = 256
    num_channels: int = 3
    encoder_patch_size: int = 16
    decoder_patch_size: int = 16
    encoder_hidden_size: int = 1024
    encoder_num_hidden_layers: int = 24
    encoder_num_attention_heads: int = 16
    decoder_hidden_size: int = 1024
    decoder_num_hidden_layers: int = 24
    decoder_num_attention_heads: int = 16
    mlp_ratio: int = 4
    num_latent_tokens: int = 32
    representation: Literal["latent_tokens", "patch_tokens"] = "latent_tokens"
    latent_dim: int = 12
    quantizer: Literal["vq", "kl"] = "vq"
    codebook_size: int = 4096
    normalize_codes: bool = True
    commitment_cost: float | int = 0.25
    head: Literal["proxy_codes", "vqgan_decoder", "pixels"] = "proxy_codes"
    vqgan_config: MaskGitVQGANConfig | dict | None = None
    interleaved_latents: bool = False
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head != "pixels" and self.vqgan_config is None:
            self.vqgan_config = MaskGitVQGANConfig(image_size=self.image_size)
        super().__post_init__(**kwargs)

    @property
    def num_tokens(self) -> int:
        """Number of tokens per image, under the name that all tokenizers share."""
        return self.num_latent_tokens

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "TiTokConfig":
        """Returns the configuration of one of the paper's sizes, such as `"titok-s-128"`.

        Args:
            size: A name in `sizes.json` beside this file.
            overrides: Fields to change.

        Raises:
            ValueError: If there is no such size.
        """
        sizes = json.loads((Path(__file__).parent / "sizes.json").read_text())
        if size not in sizes:
            raise ValueError(f"`size` must be one of {', '.join(sizes)}, got {size!r}.")
        return cls(**{**sizes[size], **overrides})

    def validate_architecture(self) -> None:
        super().validate_architecture()
        for side in ("encoder", "decoder"):
            patch_size = getattr(self, f"{side}_patch_size")
            hidden_size = getattr(self, f"{side}_hidden_size")
            num_heads = getattr(self, f"{side}_num_attention_heads")
            if self.image_size % patch_size:
                raise ValueError(
                    f"`{side}_patch_size` must divide the image size {self.image_size}, got "
                    f"{patch_size}."
                )
            if hidden_size % num_heads:
                raise ValueError(
                    f"`{side}_num_attention_heads` must divide `{side}_hidden_size` {hidden_size}, "
                    f"got {num_heads}."
                )
        num_patches = (self.image_size // self.encoder_patch_size) ** 2
        if self.representation == "patch_tokens" and self.num_latent_tokens != num_patches:
            raise ValueError(
                f"`num_latent_tokens` must be the number of the encoder's patches with "
                f'`representation="patch_tokens"`, here {num_patches}, got '
                f"{self.num_latent_tokens}."
            )
        if self.head == "pixels":
            if self.vqgan_config is not None:
                raise ValueError(
                    '`vqgan_config` must be None with `head="pixels"`, which has no proxy codes.'
                )
            return
        vqgan = self.vqgan_config
        if (vqgan.image_size, vqgan.patch_size) != (self.image_size, self.decoder_patch_size):
            raise ValueError(
                f"`vqgan_config` must have images of {self.image_size} pixels and a code for every "
                f"square of `decoder_patch_size` {self.decoder_patch_size} pixels, got images of "
                f"{vqgan.image_size} and squares of {vqgan.patch_size}."
            )


__all__ = ["TiTokConfig"]
