"""The perceptual loss: distance of two images in the eyes of a classifier."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class PerceptualLoss(nn.Module):
    """Mean squared error of a frozen classifier's logits, as in TiTok's decoder fine-tuning with ConvNeXt-S.

    Args:
        classifier: Any image classifier of transformers, taking `pixel_values` and returning `logits`.
        image_size: Side to which images are resized (bilinear, antialiased).
        image_mean, image_std: Normalization of images in [0, 1].
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        image_size: int,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
    ):
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(image_mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(image_std).view(1, -1, 1, 1))

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stays in evaluation mode, whatever the mode of what it is part of."""
        return super().train(False)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `(B, num_labels)` of images `(B, 3, H, W)` in [0, 1]."""
        if images.shape[-1] != self.image_size:
            images = F.interpolate(images, size=self.image_size, mode="bilinear", antialias=True)
        return self.classifier((images - self.mean) / self.std).logits

    def forward(self, reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.logits(pixel_values)
        return F.mse_loss(self.logits(reconstruction), target)
