"""LightningDiT: a class-conditional transformer that predicts the velocity of a flow on latents
(arXiv 2501.01423)."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from ..checks import check_ids, check_tensor
from ..loading import CheckedLoadingMixin
from ..transformer import Attention, Rotation
from .configuration_lightning_dit import LightningDiTConfig

NUM_FREQUENCIES = 256  # of the embedding of times, cosines and sines together


@dataclass
class LightningDiTOutput(ModelOutput):
    """Result of `LightningDiTModel`.

    Args:
        velocity (`torch.FloatTensor` of the latents' shape):
            The velocity from noise to data, `data - noise` in expectation.
    """

    velocity: torch.FloatTensor | None = None


def sincos(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """Returns the sines, then the cosines `(n, dim)` of positions `(n,)` at `dim / 2` frequencies
    from 1 down to 1e-4."""
    # as the reference, but Apple's devices have no float64
    dtype = torch.float32 if positions.device.type == "mps" else torch.float64
    exponents = torch.arange(dim // 2, device=positions.device, dtype=dtype) / (dim // 2)
    angles = positions.to(dtype)[:, None] * 1e-4**exponents  # (n, dim / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def positions(config: LightningDiTConfig, device: torch.device) -> torch.Tensor:
    """Returns the fixed embeddings of positions `(N, W)`; of 2D latents, the first half is of the
    column, the second of the row, as in DiT."""
    side, width = config.sample_size // config.patch_size, config.hidden_size
    if config.dimensions == 1:
        return sincos(torch.arange(side, device=device), width)
    axis = sincos(torch.arange(side, device=device), width // 2)  # (side, W / 2)
    columns, rows = axis.expand(side, -1, -1), axis[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


def rotation(config: LightningDiTConfig, device: torch.device) -> Rotation:
    """Returns the cosines and sines `(N, head_dim)` of the rotary positions, the same for each pair
    of neighboring channels; of 2D latents, the first half of a head rotates with the row, the second
    with the column (EVA-02, arXiv 2303.11331)."""
    side = config.sample_size // config.patch_size
    head_dim = config.hidden_size // config.num_attention_heads
    of_axis = head_dim // config.dimensions
    exponents = torch.arange(0, of_axis, 2, device=device).float() / of_axis
    places = torch.arange(side, device=device).float()
    angles = places[:, None] * 1e4**-exponents  # (side, of_axis / 2)
    if config.dimensions == 2:
        rows, columns = angles[:, None].expand(-1, side, -1), angles.expand(side, -1, -1)
        angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)  # (N, head_dim / 2)
    angles = angles.repeat_interleave(2, dim=-1)  # (N, head_dim)
    return angles.cos(), angles.sin()


def rotate_pairs(x: torch.Tensor, rope: Rotation) -> torch.Tensor:
    """Rotates pairs of neighboring channels of `x` `(B, heads, N, D)` by cosines and sines `(N, D)`,
    in their dtype."""
    cos, sin = rope
    rotated = x.to(cos.dtype)
    first, second = rotated.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return (rotated * cos + turned * sin).to(x.dtype)


class PairAttention(Attention):
    """Attention whose rotary positions turn pairs of neighboring channels."""

    rotate = staticmethod(rotate_pairs)


class LightningDiTBlock(GradientCheckpointingLayer):
    """Block whose branches are scaled, shifted and gated by the condition (adaLN-Zero, DiT)."""

    def __init__(self, config: LightningDiTConfig):
        super().__init__()
        width = config.hidden_size
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = PairAttention(
            config,
            width,
            config.num_attention_heads,
            qkv_bias=True,
            qk_norm=config.qk_norm,
            norm_eps=1e-6,
        )
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        intermediate_size = int(2 / 3 * int(width * config.mlp_ratio))
        self.mlp_in = nn.Linear(width, 2 * intermediate_size)  # gate and value
        self.mlp_out = nn.Linear(intermediate_size, width)
        self.has_shift = config.adaln_shift
        self.modulation = nn.Linear(width, (6 if self.has_shift else 4) * width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor, rope: Rotation) -> torch.Tensor:
        parts = self.modulation(F.silu(condition))[:, None]  # (B, 1, 6 W)
        if self.has_shift:
            shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts.chunk(6, dim=-1)
        else:
            scale_1, gate_1, scale_2, gate_2 = parts.chunk(4, dim=-1)
            shift_1 = shift_2 = 0.0
        normed = self.attention_norm(x) * (1 + scale_1) + shift_1
        x = x + gate_1 * self.attention(normed, rope)[0]  # (B, N, W)
        normed = self.mlp_norm(x) * (1 + scale_2) + shift_2
        gate, value = self.mlp_in(normed).chunk(2, dim=-1)
        return x + gate_2 * self.mlp_out(F.silu(gate) * value)


class LightningDiTModel(CheckedLoadingMixin, PreTrainedModel):
    """Predicts the velocity of latents on the straight path from noise to data.

    At time t in [0, 1], latents are `t * data + (1 - t) * noise`, and the velocity is `data - noise`.
    Latents are normalized: of mean 0 and standard deviation 1 in each channel.
    """

    config: LightningDiTConfig
    config_class = LightningDiTConfig
    base_model_prefix = "transformer"
    main_input_name = "latents"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["LightningDiTBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: LightningDiTConfig):
        super().__init__(config)
        width = config.hidden_size
        token_size = config.in_channels * config.patch_size**2
        if config.dimensions == 2:
            p = config.patch_size
            self.proj_in = nn.Conv2d(config.in_channels, width, p, stride=p)
        else:
            self.proj_in = nn.Linear(config.in_channels, width)
        self.time_in = nn.Linear(NUM_FREQUENCIES, width)
        self.time_out = nn.Linear(width, width)
        self.label_embedding = nn.Embedding(config.num_labels + 1, width)
        self.blocks = nn.ModuleList(
            LightningDiTBlock(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, token_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.xavier_uniform_(module.weight.flatten(1))
            init.zeros_(module.bias)
        if module in (self.time_in, self.time_out, self.label_embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        # the network begins as zero, and each block as the identity
        zeroed = [self.modulation, self.proj_out, *(block.modulation for block in self.blocks)]
        if any(module is each for each in zeroed):
            init.zeros_(module.weight)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        class_labels: torch.Tensor,
        drop_labels: torch.Tensor | None = None,
    ) -> LightningDiTOutput:
        """Predicts the velocity.

        The range of times and labels is not checked, which would synchronize with the device.

        Args:
            latents: Noisy normalized latents `(B, C, h, w)` or `(B, K, C)`.
            timesteps: Times `(B,)` in [0, 1]: 0 is noise, 1 is data.
            class_labels: `(B,)` in [0, num_labels]; `num_labels` (`config.null_label`) is "no
                class".
            drop_labels: `(B,)`, true for labels to replace by "no class"; if not given, training
                drops each label with probability `config.label_dropout`.

        Raises:
            TypeError, ValueError: If a tensor has another shape or dtype.
        """
        config = self.config
        self.check_latents(latents)
        check_ids(class_labels, "class_labels", (len(latents),))
        check_tensor(timesteps, "timesteps")
        if timesteps.shape != class_labels.shape or not torch.is_floating_point(timesteps):
            raise ValueError(
                f"`timesteps` must be float times of shape ({len(latents)},), got {timesteps.dtype} "
                f"of {tuple(timesteps.shape)}."
            )
        # drop labels, for classifier-free guidance
        if drop_labels is None and self.training:
            drop_labels = (
                torch.rand(class_labels.shape, device=class_labels.device) < config.label_dropout
            )
        if drop_labels is not None:
            class_labels = class_labels.masked_fill(drop_labels, config.null_label)
        # time and label
        dtype = self.proj_in.weight.dtype
        exponents = torch.arange(NUM_FREQUENCIES // 2, device=latents.device).float()
        frequencies = torch.exp(-math.log(10000) * exponents / (NUM_FREQUENCIES // 2))
        angles = timesteps.float()[:, None] * frequencies
        times = torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)  # (B, 256)
        condition = self.time_out(F.silu(self.time_in(times)))  # (B, W)
        condition = condition + self.label_embedding(class_labels)
        # tokens
        x = self.proj_in(latents.to(dtype))
        if config.dimensions == 2:
            x = x.flatten(2).transpose(1, 2)  # (B, N, W)
        x = x + positions(config, x.device).to(dtype)
        # transformer
        rope = rotation(config, x.device)
        for block in self.blocks:
            x = block(x, condition, rope)
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        x = self.proj_out(self.norm(x) * (1 + scale) + shift)  # (B, N, p * p * C)
        return LightningDiTOutput(velocity=self.to_latents(x))

    def check_latents(self, latents: torch.Tensor) -> None:
        """Raises `TypeError` or `ValueError` unless these are float latents of the model's shape."""
        check_tensor(latents, "latents")
        expected = self.config.latent_shape
        if not torch.is_floating_point(latents) or tuple(latents.shape[1:]) != expected:
            raise ValueError(
                f"`latents` must be float of shape (batch, {', '.join(map(str, expected))}), got "
                f"{latents.dtype} of {tuple(latents.shape)}."
            )

    def to_latents(self, tokens: torch.Tensor) -> torch.Tensor:
        """Joins patches `(B, N, p * p * C)` to latents."""
        config = self.config
        if config.dimensions == 1:
            return tokens
        p, side = config.patch_size, config.sample_size // config.patch_size
        patches = tokens.view(-1, side, side, p, p, config.in_channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, *config.latent_shape)


__all__ = ["LightningDiTModel", "LightningDiTOutput"]
