"""VTP configuration."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, PreTrainedConfig

from ..loading import CheckedConfigMixin


@strict
class VTPConfig(CheckedConfigMixin, PreTrainedConfig):
    """Configuration of VTP's models. The defaults are VTP-B (arXiv 2512.13687).

    Args:
        image_size: Side of the images in pre-training, in pixels. Positions are relative to the
            image, so any multiple of the patch size works, less reliably the further it is from
            this size.
        num_channels: Number of image channels.
        patch_size: Side of the square that a latent stands for, in pixels.
        vision_hidden_size, vision_num_hidden_layers, vision_num_attention_heads: Sizes of the
            vision encoder.
        vision_mlp_ratio: Width of its MLPs, in multiples of the hidden size.
        vision_mlp: `"swiglu"` (SwiGLU, its width times 2/3 rounded up to a multiple of 8),
            `"swiglu64"` (of 64), or `"mlp"` (two layers and a GELU).
        vision_norm: `"rmsnorm"` or `"layernorm"`.
        vision_layer_scale: Initial value of LayerScale; no LayerScale if None.
        vision_qk_norm: Whether queries and keys are RMS-normalized, before the rotation.
        num_register_tokens: Number of register tokens beside the CLS token.
        latent_dim: Number of channels per latent, after the linear bottleneck.
        has_decoder: Whether there is a pixel decoder.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads: Sizes of the
            pixel decoder.
        decoder_mlp_ratio, decoder_mlp, decoder_norm, decoder_layer_scale, decoder_qk_norm: Same as
            for the vision encoder.
        has_text: Whether there is a text encoder.
        text_hidden_size, text_num_hidden_layers, text_num_attention_heads, text_intermediate_size:
            Sizes of the text encoder; its hidden size is also that of the shared embedding.
        text_vocab_size: Vocabulary size of the text tokenizer.
        text_context_length: Maximum number of tokens per text.
        text_hidden_act: `"gelu"` or `"quick_gelu"`.
        text_projection_bias: Whether the text projection has a bias.
        image_pooling: Vision features projected to the shared embedding: `"cls"`, or the `"mean"`
            of the patches.
        bottleneck_everywhere: Whether the shared embedding uses the bottleneck's output; otherwise
            only reconstruction does.
        logit_bias: Whether the logits have a learned bias, as in SigLIP.
        initializer_range: Standard deviation of the initial weights.

    Raises:
        huggingface_hub.errors.StrictDataclassError: If a field has another type, or the sizes
            contradict each other.
    """

    model_type = "vtp"

    image_size: int = 256
    num_channels: int = 3
    patch_size: int = 16
    vision_hidden_size: int = 768
    vision_num_hidden_layers: int = 12
    vision_num_attention_heads: int = 12
    vision_mlp_ratio: float | int = 4.0
    vision_mlp: Literal["swiglu", "swiglu64", "mlp"] = "swiglu"
    vision_norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    vision_layer_scale: float | int | None = None
    vision_qk_norm: bool = False
    num_register_tokens: int | None = None
    latent_dim: int = 64
    has_decoder: bool = True
    decoder_hidden_size: int = 768
    decoder_num_hidden_layers: int = 12
    decoder_num_attention_heads: int = 12
    decoder_mlp_ratio: float | int = 4.0
    decoder_mlp: Literal["swiglu", "swiglu64", "mlp"] = "swiglu"
    decoder_norm: Literal["rmsnorm", "layernorm"] = "layernorm"
    decoder_layer_scale: float | int | None = None
    decoder_qk_norm: bool = False
    has_text: bool = True
    text_hidden_size: int = 768
    text_num_hidden_layers: int = 12
    text_num_attention_heads: int = 12
    text_intermediate_size: int = 3072
    text_vocab_size: int = 49408
    text_context_length: int = 77
    text_hidden_act: Literal["gelu", "quick_gelu"] = "gelu"
    text_projection_bias: bool = False
    image_pooling: Literal["cls", "mean"] = "cls"
    bottleneck_everywhere: bool = False
    logit_bias: bool = False
    initializer_range: float | int = 0.02

    @property
    def text_config(self) -> CLIPTextConfig:
        """Configuration of the text encoder as transformers' own CLIP."""
        return CLIPTextConfig(
            vocab_size=self.text_vocab_size,
            hidden_size=self.text_hidden_size,
            intermediate_size=self.text_intermediate_size,
            projection_dim=self.text_hidden_size,
            num_hidden_layers=self.text_num_hidden_layers,
            num_attention_heads=self.text_num_attention_heads,
            max_position_embeddings=self.text_context_length,
            hidden_act=self.text_hidden_act,
            bos_token_id=0,
            eos_token_id=2,  # makes CLIP pool at the largest id
            attn_implementation=self._attn_implementation,
        )

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`patch_size` must divide the image size {self.image_size}, got {self.patch_size}."
            )
        if (self.num_register_tokens or 0) < 0:
            raise ValueError(
                f"`num_register_tokens` must be at least 0, got {self.num_register_tokens}."
            )
        on_pixels = ("vision", "decoder") if self.has_decoder else ("vision",)
        for name in (f"{part}_mlp_ratio" for part in on_pixels):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        for part, divisor in (*((part, 4) for part in on_pixels), ("text", 1)):
            hidden_size = getattr(self, f"{part}_hidden_size")
            num_heads = getattr(self, f"{part}_num_attention_heads")
            if hidden_size % (divisor * num_heads):
                raise ValueError(
                    f"`{part}_hidden_size` must be a multiple of {divisor} times the {num_heads} "
                    f"`{part}_num_attention_heads`, got {hidden_size}."
                )


__all__ = ["VTPConfig"]
