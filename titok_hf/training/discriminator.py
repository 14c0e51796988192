"""Discriminators of decoder fine-tuning: a convolutional one, and one on features of a pretrained
network."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from transformers import PreTrainedModel

from .frozen_vision import FrozenVision


class BlurDownsample(nn.Module):
    """Halves the resolution after a [1, 3, 3, 1] low-pass filter (arXiv 1904.11486)."""

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = torch.outer(kernel, kernel)
        self.register_buffer("kernel", (kernel / kernel.sum())[None, None])  # (1, 1, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels = x.shape[1]
        return F.conv2d(
            x, self.kernel.expand(channels, -1, -1, -1), stride=2, padding=1, groups=channels
        )


class PatchDiscriminator(nn.Module):
    """The convolutional discriminator of the reference's decoder fine-tuning.

    It maps images `(B, 3, H, W)` to logits `(B, 1, h, w)`, positive for real images. The reference
    is `modeling/modules/discriminator.py` of bytedance/1d-tokenizer.

    Args:
        num_channels: Channels of the images.
        hidden_channels: Channels at full resolution; each stage after the first doubles them.
        num_stages: Number of stages; each halves the resolution.
        logits_size: Side of the map of logits; larger features are max-pooled to it.
    """

    def __init__(
        self,
        num_channels: int = 3,
        hidden_channels: int = 128,
        num_stages: int = 3,
        logits_size: int = 16,
    ):
        super().__init__()
        self.logits_size = logits_size
        self.conv_in = nn.Conv2d(num_channels, hidden_channels, 5, padding=2)
        widths = [hidden_channels, *(hidden_channels * 2**stage for stage in range(num_stages))]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 3, padding=1),
                BlurDownsample(),
                nn.GroupNorm(min(32, out_channels // 4), out_channels),
                nn.LeakyReLU(0.1),
            )
            for in_channels, out_channels in itertools.pairwise(widths)
        )
        self.proj = nn.Conv2d(widths[-1], widths[-1], 1)
        self.conv_out = nn.Conv2d(widths[-1], 1, 5, padding=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.conv_in(images), 0.1)
        for stage in self.stages:
            x = stage(x)
        if x.shape[-1] > self.logits_size:
            x = F.adaptive_max_pool2d(x, self.logits_size)
        return self.conv_out(F.leaky_relu(self.proj(x), 0.1))


class FeatureDiscriminator(FrozenVision):
    """Heads on the patch features of a frozen vision transformer, such as DINO's (StyleGAN-T, arXiv
    2301.09515; RAE, arXiv 2510.11690).

    It maps images `(B, 3, H, W)` in [0, 1] to logits `(B, heads, h, w)`, positive for real images.

    Args:
        network: A vision transformer of transformers for images normalized by ImageNet's mean and
            standard deviation, such as `Dinov2Model` or `ViTModel`.
        image_size: See `FrozenVision`.
        num_heads: Number of blocks whose features are judged, evenly spaced up to the last.
        hidden_size: Channels of a head.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        image_size: int = 224,
        num_heads: int = 4,
        hidden_size: int = 128,
    ):
        super().__init__(network, image_size)
        config = network.config
        if not 1 <= num_heads <= config.num_hidden_layers:
            raise ValueError(
                f"`num_heads` must be from 1 to the {config.num_hidden_layers} blocks of the "
                f"{type(network).__name__}, got {num_heads}."
            )
        depth = config.num_hidden_layers
        self.blocks: Sequence[int] = [depth * (i + 1) // num_heads for i in range(num_heads)]
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(config.hidden_size, hidden_size, 1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(hidden_size, hidden_size, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(hidden_size, 1, 1)),
            )
            for _ in self.blocks
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden_states = self.network(self.prepared(images), output_hidden_states=True).hidden_states
        logits = [
            head(self.patch_map(hidden_states[block]))
            for block, head in zip(self.blocks, self.heads, strict=True)
        ]
        return torch.cat(logits, 1)  # (B, heads, h, w)
