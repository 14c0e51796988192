"""The perceptual loss: distance between images according to pretrained networks."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..devices import full_precision
from ..perceptual.lpips import LPIPS
from .losses import at_least_float32


class PerceptualLoss(nn.Module):
    """Distance of a frozen classifier's logits, LPIPS, or their weighted mean.

    `classifier_mse` is the mean squared error between the logits of both images; the loss is

    `(classifier_weight * classifier_mse + lpips_weight * LPIPS) / (classifier_weight +
    lpips_weight)`,

    as in `modeling/modules/perceptual_loss.py` of bytedance/1d-tokenizer. There, `convnext_s`, used
    in TiTok's decoder fine-tuning, is a ConvNeXt-S alone; `lpips-convnext_s-1.0-0.1`, used in
    single-stage training, has `lpips_weight=1.0, classifier_weight=0.1`, and enters the sum of the
    losses with weight 1.1. As there, everything is computed in float32 or
    float64, even under autocast.

    Args:
        classifier: An image classifier of transformers that takes `pixel_values` and returns
            `logits`; required if `classifier_weight` is not 0.
        image_size: Side to which images are resized for the classifier (bilinear, antialiased); if
            not given, they keep their size.
        image_mean, image_std: Normalization of images in [0, 1] for the classifier; ImageNet's if
            not given.
        lpips: Required if `lpips_weight` is not 0. It gets the images at their original size.
        classifier_weight, lpips_weight: Weights in the mean.
    """

    def __init__(
        self,
        classifier: PreTrainedModel | None = None,
        image_size: int | None = None,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        lpips: LPIPS | None = None,
        classifier_weight: float = 1.0,
        lpips_weight: float = 0.0,
    ):
        super().__init__()
        if min(classifier_weight, lpips_weight) < 0 or classifier_weight + lpips_weight == 0:
            raise ValueError(
                "`classifier_weight` and `lpips_weight` must not be negative, and one must be "
                "positive, got "
                f"{classifier_weight} and {lpips_weight}."
            )
        for name, network, weight in (
            ("classifier", classifier, classifier_weight),
            ("lpips", lpips, lpips_weight),
        ):
            if weight and network is None:
                raise ValueError(f"`{name}_weight` is {weight}, so `{name}` must be given.")
        self.classifier = classifier if classifier_weight else None
        self.lpips = lpips if lpips_weight else None
        self.image_size = image_size
        self.classifier_weight = classifier_weight
        self.lpips_weight = lpips_weight
        self.register_buffer("mean", torch.tensor(image_mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(image_std).view(1, -1, 1, 1))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stays in evaluation mode, even if the parent module is switched to training."""
        return super().train(False)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits `(B, num_labels)` of images `(B, 3, H, W)` in [0, 1]."""
        if self.image_size is not None and images.shape[-1] != self.image_size:
            images = F.interpolate(images, size=self.image_size, mode="bilinear", antialias=True)
        return self.classifier((images - self.mean) / self.std).logits

    def forward(self, reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns the loss, a scalar, of reconstructions `(B, 3, H, W)` and targets, in [0, 1].

        Only the reconstruction gets a gradient.
        """
        with full_precision(reconstruction.device):
            reconstruction = at_least_float32(reconstruction)
            pixel_values = pixel_values.detach().to(reconstruction.dtype)
            loss = reconstruction.new_zeros(())
            if self.classifier is not None:
                with torch.no_grad():
                    target = self.logits(pixel_values)
                loss = loss + self.classifier_weight * F.mse_loss(
                    self.logits(reconstruction), target
                )
            if self.lpips is not None:
                distance = self.lpips(2 * reconstruction - 1, 2 * pixel_values - 1)  # (B,)
                loss = loss + self.lpips_weight * distance.mean()
            return loss / (self.classifier_weight + self.lpips_weight)
