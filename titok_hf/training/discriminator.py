"""The patch discriminator of decoder fine-tuning."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F


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
