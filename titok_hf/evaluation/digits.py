"""How good the demo's digits are, in the eyes of a judge that never saw the networks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ..data.digits import load_digits_pixels
from .frechet import frechet_distance


class DigitsJudge:
    """Measures images of digits `(B, 3, 32, 32)`, averaged to gray and over 4x4 blocks to 8x8.

    The classifier is a support vector machine (RBF kernel, gamma 0.001 on the scale of 0 to 16, C 10) fitted to the
    8x8 training digits. Distances are to the training images, enlarged to 32x32 and averaged back like all others.

    Args:
        training_images, held_out_images: Both splits as the networks see them.
    """

    def __init__(self, training_images: torch.Tensor, held_out_images: torch.Tensor) -> None:
        from sklearn.svm import SVC

        self.training_pixels = self.pixels(training_images)
        self.held_out_pixels = self.pixels(held_out_images)
        pixels, labels = load_digits_pixels("train")
        self.classifier = SVC(gamma=0.001, C=10).fit(pixels * 16, labels)

    @staticmethod
    def pixels(images: torch.Tensor) -> np.ndarray:
        """The 64 pixels `(B, 64)` in [0, 1] of images `(B, 3, 32, 32)`."""
        gray = images.clamp(0, 1).mean(1, keepdim=True)  # (B, 1, 32, 32)
        return F.adaptive_avg_pool2d(gray, 8).flatten(1).double().numpy()

    def accuracy(self, images: torch.Tensor, labels: Sequence[int] | torch.Tensor) -> float:
        """Share of the images that the classifier gives their label."""
        return float(self.classifier.score(self.pixels(images) * 16, np.asarray(labels)))

    def frechet_distance(self, images: torch.Tensor) -> float:
        """Fréchet distance of the images to the training digits, on the 64 pixels."""
        return frechet_distance(self.pixels(images), self.training_pixels)

    def memorization(self, images: torch.Tensor) -> dict[str, float]:
        """How close images come to their nearest training digits, next to what real held-out digits do.

        Returns:
            `nearest_neighbor_ratio`: median distance of an image to its nearest training digit, divided by the same
            median of the held-out digits; `share_nearer_than_held_out`: share of the images that are nearer to one
            than the median held-out digit is. Copies would give 0 and 1, new real digits 1 and 0.5.
        """
        distances = self.nearest_distances(self.pixels(images))
        held_out_median = np.median(self.nearest_distances(self.held_out_pixels))
        return {
            "nearest_neighbor_ratio": float(np.median(distances) / held_out_median),
            "share_nearer_than_held_out": float((distances < held_out_median).mean()),
        }

    def nearest_distances(self, pixels: np.ndarray) -> np.ndarray:
        """Euclidean distance `(B,)` of rows `(B, 64)` to the nearest training digit."""
        squares = (pixels**2).sum(1)[:, None] + (self.training_pixels**2).sum(1) - 2 * pixels @ self.training_pixels.T
        return np.sqrt(squares.min(1).clip(0))
