"""VTP: a visual tokenizer that is also pre-trained for understanding (arXiv 2512.13687)."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from ..checks import check_ids, check_pixel_values
from ..loading import CheckedLoadingMixin
from ..outputs import TokenizerDecoderOutput, TokenizerEncoderOutput, TokenizerOutput
from ..transformer import Attention, Rotation
from .configuration_vtp import VTPConfig
from .rotary import axial_rotation

# Weights that only compare images with texts.
NAMES_OF_TEXT = (
    r"^text_encoder\.",
    r"^text_projection\.",
    r"^image_projection\.",
    r"^logit_(scale|bias)$",
)


@dataclass
class VTPVisionOutput(ModelOutput):
    """Result of the vision encoder.

    Args:
        cls_token (`torch.FloatTensor` of shape `(B, D)`):
            The CLS token after the last norm, before the bottleneck.
        patch_tokens (`torch.FloatTensor` of shape `(B, N, D)`):
            The patches, in raster order, after the last norm, before the bottleneck.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            `(B, 1 + R + N, D)` after each block and the last norm: CLS token, registers, patches.
            Published linear probes read the CLS tokens of the last four blocks and the mean of the
            last block's patches.
    """

    cls_token: torch.FloatTensor | None = None
    patch_tokens: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VTPOutput(ModelOutput):
    """Result of `VTPModel`.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            CLIP's contrastive loss, where image i belongs to text i.
        logits_per_image (`torch.FloatTensor` of shape `(B_image, B_text)`):
            Scaled cosines of image and text embeddings.
        logits_per_text (`torch.FloatTensor` of shape `(B_text, B_image)`):
            The same, transposed.
        image_embeds (`torch.FloatTensor` of shape `(B_image, E)`), text_embeds (`(B_text, E)`):
            Unit vectors.
    """

    loss: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None


def make_norm(kind: str, size: int) -> nn.Module:
    return nn.RMSNorm(size, eps=1e-5) if kind == "rmsnorm" else nn.LayerNorm(size, eps=1e-6)


class GatedMLP(nn.Module):
    """SwiGLU: `out(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden_size: int, intermediate_size: int, multiple_of: int):
        super().__init__()
        width = int(intermediate_size * 2 / 3)
        width += -width % multiple_of
        self.gate = nn.Linear(hidden_size, width)
        self.up = nn.Linear(hidden_size, width)
        self.out = nn.Linear(width, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.silu(self.gate(x)) * self.up(x))


class MLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.mlp_in = nn.Linear(hidden_size, intermediate_size)
        self.mlp_out = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp_out(F.gelu(self.mlp_in(x)))


class VTPBlock(GradientCheckpointingLayer):
    """Pre-norm block with rotary positions and optional LayerScale; `part` is `"vision"` or
    `"decoder"`."""

    def __init__(self, config: VTPConfig, part: str):
        super().__init__()
        size = getattr(config, f"{part}_hidden_size")
        mlp, layer_scale = getattr(config, f"{part}_mlp"), getattr(config, f"{part}_layer_scale")
        intermediate_size = int(size * getattr(config, f"{part}_mlp_ratio"))
        self.attention_norm = make_norm(getattr(config, f"{part}_norm"), size)
        self.attention = Attention(
            config,
            size,
            getattr(config, f"{part}_num_attention_heads"),
            qkv_bias=True,
            qk_norm=getattr(config, f"{part}_qk_norm"),
        )
        self.mlp_norm = make_norm(getattr(config, f"{part}_norm"), size)
        if mlp == "mlp":
            self.mlp = MLP(size, intermediate_size)
        else:
            self.mlp = GatedMLP(size, intermediate_size, multiple_of=8 if mlp == "swiglu" else 64)
        self.attention_scale = self.mlp_scale = None
        if layer_scale is not None:
            self.attention_scale = nn.Parameter(torch.empty(size))
            self.mlp_scale = nn.Parameter(torch.empty(size))

    def forward(
        self, x: torch.Tensor, rope: Rotation, branch_scales: torch.Tensor | None = None
    ) -> torch.Tensor:
        attended = self.attention(self.attention_norm(x), rope)[0]  # (B, N, D)
        if self.attention_scale is not None:
            attended = attended * self.attention_scale
        if branch_scales is not None:  # (2, B)
            attended = attended * branch_scales[0, :, None, None].to(x.dtype)
        x = x + attended
        mixed = self.mlp(self.mlp_norm(x))
        if self.mlp_scale is not None:
            mixed = mixed * self.mlp_scale
        if branch_scales is not None:
            mixed = mixed * branch_scales[1, :, None, None].to(x.dtype)
        return x + mixed


class VTPVisionEncoder(nn.Module):
    """ViT over `[CLS, registers, patches]`, with a linear bottleneck after its last norm."""

    def __init__(self, config: VTPConfig):
        super().__init__()
        size = config.vision_hidden_size
        self.head_dim = size // config.vision_num_attention_heads
        self.num_registers = config.num_register_tokens or 0
        self.patch_embedding = nn.Conv2d(
            config.num_channels, size, config.patch_size, stride=config.patch_size
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, size))
        self.mask_token = nn.Parameter(torch.empty(1, size))
        if self.num_registers:
            self.register_tokens = nn.Parameter(torch.empty(1, self.num_registers, size))
        self.blocks = nn.ModuleList(
            VTPBlock(config, "vision") for _ in range(config.vision_num_hidden_layers)
        )
        self.norm = make_norm(config.vision_norm, size)
        self.bottleneck = nn.Linear(size, config.latent_dim, bias=False)

    def forward(
        self,
        pixel_values: torch.Tensor,
        patch_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        branch_scales: torch.Tensor | None = None,
    ) -> VTPVisionOutput:
        # patches
        patches = self.patch_embedding(
            pixel_values.to(self.patch_embedding.weight.dtype)
        )  # (B, D, h, w)
        rope = axial_rotation(*patches.shape[2:], self.head_dim, patches.device)
        x = patches.flatten(2).transpose(1, 2)  # (B, N, D)
        if patch_mask is not None:  # mask tokens, as in masked image modeling
            x = torch.where(patch_mask[..., None], self.mask_token.to(x.dtype), x)
        # CLS and register tokens
        prefix = [self.cls_token, self.register_tokens] if self.num_registers else [self.cls_token]
        x = torch.cat(
            [*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1
        )  # (B, 1 + R + N, D)
        # transformer
        hidden_states = []
        for number, block in enumerate(self.blocks):
            x = block(x, rope, None if branch_scales is None else branch_scales[number])
            if output_hidden_states:
                hidden_states.append(self.norm(x))
        x = self.norm(x)
        return VTPVisionOutput(
            cls_token=x[:, 0],
            patch_tokens=x[:, 1 + self.num_registers :],
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )


class VTPPixelDecoder(nn.Module):
    """ViT over latents `(B, C, h, w)`; its outputs unfold into patches of images `(B, 3, H, W)`."""

    def __init__(self, config: VTPConfig):
        super().__init__()
        size = config.decoder_hidden_size
        self.head_dim = size // config.decoder_num_attention_heads
        self.patch_size = config.patch_size
        self.proj_in = nn.Linear(config.latent_dim, size)
        self.blocks = nn.ModuleList(
            VTPBlock(config, "decoder") for _ in range(config.decoder_num_hidden_layers)
        )
        self.norm = make_norm(config.decoder_norm, size)
        self.proj_out = nn.Linear(size, config.num_channels * config.patch_size**2)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        height, width = latents.shape[2:]
        rope = axial_rotation(height, width, self.head_dim, latents.device)
        latents = latents.to(self.proj_in.weight.dtype)
        x = self.proj_in(latents.flatten(2).transpose(1, 2))  # (B, N, D)
        for block in self.blocks:
            x = block(x, rope)
        x = (
            self.proj_out(self.norm(x)).transpose(1, 2).unflatten(-1, (height, width))
        )  # (B, 3 * p * p, h, w)
        return F.pixel_shuffle(x, self.patch_size)  # (B, 3, H, W)


class VTPPreTrainedModel(CheckedLoadingMixin, PreTrainedModel):
    """Base class of VTP's models.

    Images are float `(B, 3, H, W)`, normalized by ImageNet's mean and standard deviation, with
    sides that are multiples of the patch size.
    """

    config: VTPConfig
    config_class = VTPConfig
    base_model_prefix = "vtp"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["VTPBlock", "CLIPEncoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, VTPVisionEncoder):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, std=self.config.initializer_range)
        elif isinstance(module, VTPBlock) and module.attention_scale is not None:
            part = "vision" if module in getattr(self.vision_encoder, "blocks", ()) else "decoder"
            for parameter in (module.attention_scale, module.mlp_scale):
                init.constant_(parameter, getattr(self.config, f"{part}_layer_scale"))

    def encode(self, pixel_values: torch.Tensor) -> TokenizerEncoderOutput:
        """Encodes images into deterministic latents `(B, C, H / p, W / p)`."""
        check_pixel_values(
            pixel_values, self.config.num_channels, multiple_of=self.config.patch_size
        )
        patch_tokens = self.vision_encoder(pixel_values).patch_tokens  # (B, N, D)
        height, width = (side // self.config.patch_size for side in pixel_values.shape[2:])
        return TokenizerEncoderOutput(latents=self.to_latents(patch_tokens, height, width))

    def to_latents(self, patch_tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Maps patch tokens `(B, height * width, D)` to latents `(B, C, height, width)`."""
        latents = self.vision_encoder.bottleneck(patch_tokens).transpose(1, 2)  # (B, C, N)
        return latents.unflatten(-1, (height, width))

    def decode(self, latents: torch.Tensor) -> TokenizerDecoderOutput:
        """Decodes latents `(B, C, h, w)` to normalized images `(B, 3, h * p, w * p)`, not clamped.

        Raises:
            ValueError: If the latents have another shape, or there is no decoder.
        """
        if not hasattr(self, "pixel_decoder"):
            raise ValueError(
                f"This {type(self).__name__} has no pixel decoder; see `VTPForImageReconstruction`."
            )
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_dim:
            raise ValueError(
                f"`latents` must have shape (batch, {self.config.latent_dim}, height, width), got "
                f"{tuple(latents.shape)}."
            )
        return TokenizerDecoderOutput(reconstruction=self.pixel_decoder(latents))

    def get_vision_features(
        self,
        pixel_values: torch.Tensor,
        patch_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        branch_scales: torch.Tensor | None = None,
    ) -> VTPVisionOutput:
        """Returns features before the bottleneck.

        Args:
            pixel_values: The images.
            patch_mask: `(B, N)`, true where the mask token replaces a patch.
            output_hidden_states: Whether to return those of all blocks too, after the last norm.
                The published linear probes (85.7 for VTP-L) read these; the 64 channels after the
                bottleneck give less (74.9 in the paper's ablations).
            branch_scales: `(num_layers, 2, B)`, factors of the attention and of the MLP of each block
                and image, for stochastic depth.
        """
        check_pixel_values(
            pixel_values, self.config.num_channels, multiple_of=self.config.patch_size
        )
        height, width = (side // self.config.patch_size for side in pixel_values.shape[2:])
        expected = (len(pixel_values), height * width)
        if patch_mask is not None and (
            patch_mask.dtype != torch.bool or tuple(patch_mask.shape) != expected
        ):
            raise ValueError(
                f"`patch_mask` must be a bool tensor of shape {expected}, got {patch_mask.dtype} "
                f"of {tuple(patch_mask.shape)}."
            )
        return self.vision_encoder(pixel_values, patch_mask, output_hidden_states, branch_scales)


class VTPVisionModel(VTPPreTrainedModel):
    """The vision encoder, for features and latents; loads from any VTP without its other parts."""

    _keys_to_ignore_on_load_unexpected = [r"^pixel_decoder\.", *NAMES_OF_TEXT]

    def __init__(self, config: VTPConfig):
        config = copy.deepcopy(config)
        config.has_decoder = config.has_text = False
        super().__init__(config)
        self.vision_encoder = VTPVisionEncoder(config)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        patch_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> VTPVisionOutput:
        """See `get_vision_features`."""
        return self.get_vision_features(pixel_values, patch_mask, output_hidden_states)


class VTPForImageReconstruction(VTPPreTrainedModel):
    """A 2D tokenizer with continuous latents: vision encoder and pixel decoder; loads from any VTP
    without its text encoder."""

    _keys_to_ignore_on_load_unexpected = [*NAMES_OF_TEXT]

    def __init__(self, config: VTPConfig):
        if not config.has_decoder:
            raise ValueError(
                "`VTPForImageReconstruction` needs a configuration with `has_decoder=True`."
            )
        config = copy.deepcopy(config)
        config.has_text = False
        super().__init__(config)
        self.vision_encoder = VTPVisionEncoder(config)
        self.pixel_decoder = VTPPixelDecoder(config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, return_loss: bool = True) -> TokenizerOutput:
        """Reconstructs normalized images; the loss is the mean absolute error, as in the paper."""
        latents = self.encode(pixel_values).latents  # (B, C, h, w)
        reconstruction = self.decode(latents).reconstruction  # (B, 3, H, W)
        loss = F.l1_loss(reconstruction, pixel_values) if return_loss else None
        return TokenizerOutput(loss=loss, reconstruction=reconstruction, latents=latents)


class VTPModel(VTPPreTrainedModel):
    """The whole VTP: vision encoder, pixel decoder, text encoder, and the embedding shared by
    images and texts."""

    input_modalities = ("image", "text")

    def __init__(self, config: VTPConfig):
        super().__init__(config)
        self.vision_encoder = VTPVisionEncoder(config)
        if config.has_decoder:
            self.pixel_decoder = VTPPixelDecoder(config)
        if config.has_text:
            in_features = (
                config.latent_dim if config.bottleneck_everywhere else config.vision_hidden_size
            )
            self.image_projection = nn.Linear(in_features, config.text_hidden_size, bias=False)
            self.text_encoder = CLIPTextModel._from_config(config.text_config)
            self.text_projection = nn.Linear(
                config.text_hidden_size, config.text_hidden_size, bias=config.text_projection_bias
            )
            # not scalars, because FSDP cannot shard them
            self.logit_scale = nn.Parameter(torch.empty(1))
            if config.logit_bias:
                self.logit_bias = nn.Parameter(torch.empty(1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.has_text:
            init.constant_(self.logit_scale, math.log(1 / 0.07))
            if self.config.logit_bias:
                init.constant_(self.logit_bias, -10.0)  # as in SigLIP

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns unit embeddings `(B, E)` of images."""
        self.check_has_text()
        return self.embed_vision(self.get_vision_features(pixel_values))

    def embed_vision(self, vision: VTPVisionOutput) -> torch.Tensor:
        """Returns unit embeddings `(B, E)` of images from their vision features."""
        features = (
            vision.cls_token if self.config.image_pooling == "cls" else vision.patch_tokens.mean(1)
        )  # (B, D)
        if self.config.bottleneck_everywhere:
            features = self.vision_encoder.bottleneck(features)
        return F.normalize(self.image_projection(features), dim=-1)

    def get_text_features(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns unit embeddings `(B, E)` of texts.

        Args:
            input_ids: `(B, L)` of `VTPProcessor`, with the start and the end of each text. The
                features are those of the end, the token with the largest id.
        """
        self.check_has_text()
        check_ids(input_ids, "input_ids", ("batch", "length"))
        if input_ids.shape[1] > self.config.text_context_length:
            raise ValueError(
                f"`input_ids` must have at most {self.config.text_context_length} tokens a text, "
                f"got {input_ids.shape[1]}; `VTPProcessor(..., truncation=True)` cuts longer texts."
            )
        pooled = self.text_encoder(input_ids).pooler_output  # (B, E)
        return F.normalize(self.text_projection(pooled), dim=-1)

    def check_has_text(self) -> None:
        if not self.config.has_text:
            raise ValueError(
                "This checkpoint has no text encoder: its configuration has `has_text=False`."
            )

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, return_loss: bool = True
    ) -> VTPOutput:
        """Compares images and texts.

        Args:
            pixel_values: Images `(B, 3, H, W)`.
            input_ids: Texts `(B, L)`.
            return_loss: Whether to compute the contrastive loss, if there are as many texts as
                images.
        """
        image_embeds = self.get_image_features(pixel_values)  # (B, E)
        text_embeds = self.get_text_features(input_ids)  # (T, E)
        logits = self.logit_scale.exp() * image_embeds @ text_embeds.T  # (B, T)
        if self.config.logit_bias:
            logits = logits + self.logit_bias
        loss = None
        if return_loss and len(image_embeds) == len(text_embeds):
            pairs = torch.arange(len(logits), device=logits.device)
            loss = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
        return VTPOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=logits.T,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )


__all__ = [
    "VTPForImageReconstruction",
    "VTPModel",
    "VTPOutput",
    "VTPVisionModel",
    "VTPVisionOutput",
]
