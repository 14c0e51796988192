"""Random changes of training images."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """Flips, rotates, scales and shifts images, each in its own way; what comes in at the borders is black.

    Draws come from torch's global generator, in the training step, so that a resumed run repeats them.

    Args:
        horizontal_flip: Whether to mirror every other image.
        rotation: Largest rotation either way, in degrees.
        scale: Largest change of size either way, as a fraction.
        translation: Largest shift either way, as a fraction of the side.
    """

    horizontal_flip: bool = False
    rotation: float = 0.0
    scale: float = 0.0
    translation: float = 0.0

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Changes images `(B, 3, H, W)`."""
        batch_size, device = len(pixel_values), pixel_values.device
        if self.horizontal_flip:
            flip = torch.rand(batch_size, 1, 1, 1, device=device) < 0.5
            pixel_values = torch.where(flip, pixel_values.flip(-1), pixel_values)
        if self.rotation or self.scale or self.translation:
            draw = 2 * torch.rand(4, batch_size, device=device) - 1  # in [-1, 1)
            angle, scale = draw[0] * math.radians(self.rotation), 1 + draw[1] * self.scale
            x_shift, y_shift = 2 * self.translation * draw[2:]  # the side is [-1, 1]
            cos, sin = scale * angle.cos(), scale * angle.sin()
            matrices = torch.stack([cos, -sin, x_shift, sin, cos, y_shift], dim=-1).view(batch_size, 2, 3)
            grid = F.affine_grid(matrices, list(pixel_values.shape), align_corners=False)
            pixel_values = F.grid_sample(pixel_values, grid, align_corners=False)
        return pixel_values
