"""From data set rows to batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import BaseImageProcessor


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; what is drawn comes from torch's global generator.

    Args:
        random_crop: Whether to cut out a random square instead of the center.
        horizontal_flip: Whether to mirror every other image.
        rotation: Largest rotation either way, in degrees.
        scale: Largest change of size either way, as a fraction.
        translation: Largest shift either way, as a fraction of the side.
    """

    random_crop: bool = False
    horizontal_flip: bool = False
    rotation: float = 0.0
    scale: float = 0.0
    translation: float = 0.0

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Flips, rotates, scales and shifts images `(B, 3, H, W)`, each in its own way; what comes in is black."""
        batch_size = len(pixel_values)
        if self.horizontal_flip:
            flip = torch.rand(batch_size, 1, 1, 1) < 0.5
            pixel_values = torch.where(flip, pixel_values.flip(-1), pixel_values)
        if self.rotation or self.scale or self.translation:
            draw = 2 * torch.rand(4, batch_size) - 1  # in [-1, 1)
            angle, scale = draw[0] * math.radians(self.rotation), 1 + draw[1] * self.scale
            x_shift, y_shift = 2 * self.translation * draw[2:]  # the side is [-1, 1]
            cos, sin = scale * angle.cos(), scale * angle.sin()
            matrices = torch.stack([cos, -sin, x_shift, sin, cos, y_shift], dim=-1).view(batch_size, 2, 3)
            grid = F.affine_grid(matrices, list(pixel_values.shape), align_corners=False)
            pixel_values = F.grid_sample(pixel_values, grid, align_corners=False)
        return pixel_values


class ImageCollator:
    """Rows with an image and maybe a label to `pixel_values` `(B, 3, H, W)` and `class_labels` `(B,)`.

    Args:
        processor: Image processor of the tokenizer.
        image_column: Name of the column of images.
        label_column: Name of the column of integer labels; none if not given.
        augmentation: Random changes, for training.

    Raises:
        KeyError: If a row lacks a column.
    """

    def __init__(
        self,
        processor: BaseImageProcessor,
        image_column: str = "image",
        label_column: str | None = None,
        augmentation: Augmentation | None = None,
    ):
        self.processor = processor
        self.image_column = image_column
        self.label_column = label_column
        self.augmentation = augmentation or Augmentation()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        images = [row[self.image_column] for row in rows]
        if self.augmentation.random_crop:
            images = self.processor(images, do_center_crop=False)["pixel_values"]  # (3, h, w) each
            side = self.processor.crop_size["height"]
            pixel_values = torch.from_numpy(np.stack([random_crop(image, side) for image in images]))
        else:
            pixel_values = self.processor(images, return_tensors="pt")["pixel_values"]
        batch = {"pixel_values": self.augmentation(pixel_values)}  # (B, 3, H, W)
        if self.label_column is not None:
            batch["class_labels"] = torch.tensor([row[self.label_column] for row in rows])  # (B,)
        return batch


def random_crop(image: np.ndarray, side: int) -> np.ndarray:
    """A random `side` x `side` square of an image `(3, h, w)`."""
    top, left = (int(torch.randint(length - side + 1, ())) for length in image.shape[1:])
    return image[:, top : top + side, left : left + side]
