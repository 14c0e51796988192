"""Rows that are not stored by `datasets`: lists, data sets of torch, and iterables."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image as PILImage
from torch.utils.data import IterableDataset

from .opening import ImageSplits
from .samples import (
    IndexedSamples,
    Samples,
    StoredSample,
    StreamedSamples,
    captions_of,
    key_of,
)


class Rows:
    """Rows that are dictionaries.

    Args:
        data: The rows.
        image_column: Name of the image in a row. If it is `None`, an own collator gets the rows as
            they are.
        label_column: Name of the label in a row; `None` if labels are not wanted.
        text_column: Name of the caption or captions in a row; `None` if they are not wanted.
    """

    def __init__(
        self,
        data: Any,
        image_column: str | None,
        label_column: str | None = None,
        text_column: str | None = None,
    ):
        self.data = data
        self.image_column = image_column
        self.label_column = label_column
        self.text_column = text_column

    def sample(self, index: int, row: Any) -> StoredSample:
        """Returns a row as a sample.

        Raises:
            ValueError: If the row is no dictionary, or lacks the image or the label.
        """
        if self.image_column is None:
            return StoredSample(index, str(index), row=row)
        columns = (self.image_column, self.label_column, self.text_column)
        wanted = [name for name in columns if name is not None]
        if not isinstance(row, Mapping) or any(name not in row for name in wanted):
            found = (
                f"has {', '.join(row)}"
                if isinstance(row, Mapping)
                else f"is a {type(row).__name__}"
            )
            raise ValueError(
                f"Every row of the training data must be a dictionary with {' and '.join(wanted)}, but "
                f"row {index} {found}."
            )
        image = row[self.image_column]
        label = None if self.label_column is None else row[self.label_column]
        return StoredSample(
            index,
            key_of(row, image, index),
            picture(image),
            None if label is None else int(label),
            captions=None if self.text_column is None else captions_of(row[self.text_column]),
        )

    def name_of(self, sample: StoredSample) -> str:
        """Returns the name of a sample in `unreadable.jsonl`."""
        return sample.key


class RowSamples(Rows):
    """Rows that can be read in any order: a list, or a map-style data set of torch."""

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> StoredSample:
        return self.sample(index, self.data[index])


class IterableRows(Rows):
    """Rows that are read in their own order, of unknown number; the order of each epoch is set by
    `set_epoch` if there is one, as in `datasets`."""

    def epoch(self, number: int) -> Iterator[StoredSample]:
        """Yields the samples of an epoch.

        Raises:
            ValueError: If there are none.
        """
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(number)
        index = -1
        for index, row in enumerate(self.data):
            yield self.sample(index, row)
        if index < 0:
            once = " again: an iterator can be read only once" if number else ""
            raise ValueError(f"The training data give no rows{once}; use an iterable data set.")


TrainingData = Samples | RowSamples | IterableRows


def training_data(
    data: Any,
    image_column: str | None,
    label_column: str | None,
    text_column: str | None = None,
) -> TrainingData | None:
    """Returns what was given to a trainer as samples.

    Args:
        data: Samples; a `Dataset` of any format; an `IterableDataset` of `datasets` or torch, or
            any other iterable; a list or map-style data set of torch, whose rows are dictionaries.
        image_column, label_column, text_column: Columns of an `ImageCollator`; `None` for another
            collator, which gets the rows.

    Raises:
        ValueError: If several splits are given, or something else.
    """
    if data is None or isinstance(data, IndexedSamples | StreamedSamples | Rows):
        return data
    check_one_split("train_dataset", data)
    if isinstance(data, datasets.Dataset) and data.format["type"] != "custom":
        features = data.features.items()
        images = [name for name, feature in features if isinstance(feature, datasets.Image)]
        image_column = image_column or (images[0] if images else "image")
        return IndexedSamples(data, image_column, label_column, text_column=text_column)
    if isinstance(data, datasets.IterableDataset) and image_column is not None:
        data = data.with_format(None)
        if isinstance((data.features or {}).get(image_column), datasets.Image):
            # so that an unreadable image is replaced and listed
            data = data.cast_column(image_column, datasets.Image(decode=False))
    if not isinstance(data, datasets.IterableDataset | IterableDataset) and all(
        hasattr(data, name) for name in ("__len__", "__getitem__")
    ):
        return RowSamples(data, image_column, label_column, text_column)
    if isinstance(data, Iterable):
        return IterableRows(data, image_column, label_column, text_column)
    raise ValueError(f"`train_dataset` must be a data set or rows, got a {type(data).__name__}.")


def evaluation_data(data: Any, plain: bool) -> Any:
    """Returns what was given to a trainer for evaluation as `Trainer` takes it.

    Args:
        data: A data set as for training, or several by name.
        plain: Whether data sets of `datasets` lose their format, as an `ImageCollator` needs it.

    Raises:
        ValueError: If they are the splits of `open_images`, shards, or a path.
    """
    if isinstance(data, Mapping):
        return {name: evaluation_data(each, plain) for name, each in data.items()}
    check_one_split("eval_dataset", data)
    if isinstance(data, StreamedSamples):
        raise ValueError(
            "`eval_dataset` must be images that can be read in any order, or rows, got shards that "
            "are read in sequence."
        )
    if isinstance(data, IndexedSamples):
        data = data.dataset
    is_dataset = isinstance(data, datasets.Dataset)
    if plain and (
        (is_dataset and data.format["type"] != "custom")
        or isinstance(data, datasets.IterableDataset)
    ):
        data = data.with_format(None)
    return data


def check_one_split(argument: str, data: Any) -> None:
    """Raises `ValueError` if the splits of a data set are given instead of one, or a path."""
    if isinstance(data, Mapping | ImageSplits):
        names = ", ".join(map(str, data))
        raise ValueError(
            f"`{argument}` must be one split, got a {type(data).__name__} of the splits {names}: "
            'name one of them, as in `data["train"]`.'
        )
    if isinstance(data, str | Path):
        raise ValueError(
            f'`{argument}` must be a data set, got {str(data)!r}: open it with `open_images(…)["train"]`.'
        )


def picture(image: Any) -> Any:
    """Turns an array `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels, of bytes, or of
    floats or booleans in [0, 1], into a PIL image; returns anything else unchanged."""
    first, last = 0, -1
    axes = (last, first) if isinstance(image, np.ndarray) else (first, last)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        return image
    given = f"{image.dtype} of shape {image.shape}"
    if image.ndim == 3:
        axis = next((axis for axis in axes if image.shape[axis] in (1, 3, 4)), last)
        image = np.moveaxis(image, axis, last)
        image = image[..., 0] if image.shape[last] == 1 else image
    if image.dtype == bool or (image.dtype.kind == "f" and 0 <= image.min() <= image.max() <= 1):
        image = (image * 255.0).round().astype(np.uint8)
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(
            "An array of an image must have the shape (H, W), (H, W, C) or (C, H, W), and values of "
            f"uint8, or of float in [0, 1], got {given}."
        )
    return PILImage.fromarray(image)


__all__ = ["IterableRows", "RowSamples", "TrainingData", "evaluation_data", "training_data"]
