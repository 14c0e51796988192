"""From data set rows to batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BaseImageProcessor


class ImageCollator:
    """Rows with an image and maybe a label to `pixel_values` `(B, 3, H, W)` and `class_labels` `(B,)`.

    Args:
        processor: Image processor of the tokenizer.
        image_column: Name of the column of images.
        label_column: Name of the column of integer labels; none if not given.

    Raises:
        KeyError: If a row lacks a column.
    """

    def __init__(self, processor: BaseImageProcessor, image_column: str = "image", label_column: str | None = None):
        self.processor = processor
        self.image_column = image_column
        self.label_column = label_column

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.processor([row[self.image_column] for row in rows], return_tensors="pt"))
        if self.label_column is not None:
            batch["class_labels"] = torch.tensor([row[self.label_column] for row in rows])
        return batch
