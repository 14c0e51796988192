"""Equivariance of latents: a scaled or rotated latent decodes to the scaled or rotated image (EQ-VAE,
arXiv 2502.09509; SER, arXiv 2502.14831)."""

from dataclasses import dataclass
from random import Random

import torch
from torch.nn import functional as F

SMALLEST, LARGEST = 8, 31  # scales in 32nds


@dataclass(frozen=True)
class Transformation:
    """Scales and turns the latents or the images of an optimizer step, all alike.

    Args:
        of_latents: Whether latents are transformed, and decoded to the transformed images. Otherwise
            the images are scaled before they are encoded (prior preservation).
        scale: Factor of both sides, below 1.
        turns: Quarter turns, 0 to 3.
    """

    of_latents: bool
    scale: float
    turns: int

    @classmethod
    def draw(
        cls, step: int, probability: float, prior_probability: float
    ) -> "Transformation | None":
        """Draws the transformation of a step, the same in every process; `None` for none.

        Args:
            step: Number of optimizer steps taken.
            probability: Probability that latents are transformed, by a scale of 8/32 to 31/32 and one
                to three quarter turns.
            prior_probability: Probability of scaled images otherwise.
        """
        generator = Random(step)
        scale, turns = generator.randint(SMALLEST, LARGEST) / 32, generator.randint(1, 3)
        if generator.random() < probability:
            return cls(True, scale, turns)
        return cls(False, scale, 0) if generator.random() < prior_probability else None

    def places(self, height: int, width: int) -> tuple[int, int]:
        """Returns the number of places `(h, w)` of scaled latents, before they are turned."""
        return max(1, round(self.scale * height)), max(1, round(self.scale * width))

    def apply(self, maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Resizes images or latents `(B, C, h, w)` to a size, and turns them."""
        scaled = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        return scaled.rot90(self.turns, (2, 3))


def halved(maps: torch.Tensor) -> torch.Tensor:
    """Returns images or latents `(B, C, h, w)` at half the size, for SER."""
    return F.interpolate(maps, scale_factor=0.5, mode="bilinear", align_corners=False)
