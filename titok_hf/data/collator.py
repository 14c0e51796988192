"""From rows to batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend

from .augmentation import Augmentation
from .decoding import decode_image
from .loader import Sample
from .samples import IndexedSamples, Samples


class ImageCollator:
    """Rows with an image and maybe a label to `pixel_values` `(B, 3, H, W)` and `class_labels`
    `(B,)`.

    Args:
        processor: Image processor of the tokenizer.
        image_column: Name of the column of images.
        label_column: Name of the column of integer labels; none if not given.
        augmentation: Random changes of the images, in training only; none if not given.

    Raises:
        KeyError: If a row lacks a column.
    """

    def __init__(
        self,
        processor: PilBackend,
        image_column: str = "image",
        label_column: str | None = None,
        augmentation: Augmentation | None = None,
    ):
        self.processor = processor
        self.image_column = image_column
        self.label_column = label_column
        self.augmentation = augmentation or Augmentation()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch to measure on, without random changes."""
        images = [decode_image(row[self.image_column]) for row in rows]
        batch = dict(self.processor(images, return_tensors="pt"))
        if self.label_column is not None:
            batch["class_labels"] = torch.tensor([row[self.label_column] for row in rows])
        return batch

    def collate(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """A batch to train on.

        Args:
            samples: Of a `TrainingLoader`.

        Returns:
            `pixel_values` `(B, 3, H, W)`, changed at random; of a data set of tokens `codes` `(B,
            N)` instead, of each sample one of the copies. `class_labels` `(B,)`, if there is a
            label column. `draws` `(B, num_draws)`, if the loader draws any.

        Raises:
            ValueError: If labels are wanted and a sample has none, or there are other copies of the
                codes than the augmentation has variants.
        """
        if samples[0].stored.codes is not None:
            codes = samples[0].stored.codes
            copies = len(codes) if codes.ndim == 2 else 1
            if copies != self.augmentation.variants:
                variants = self.augmentation.variants or "ever new"
                raise ValueError(
                    f"The augmentation makes {variants} variants of each image, the tokens are of "
                    f"{copies}: tokenize "
                    "with the same augmentation, or train with that of the tokens."
                )
            batch = {
                "codes": torch.from_numpy(np.stack([choose_codes(sample) for sample in samples]))
            }
        else:
            images = [
                self.augmentation(sample.image, self.processor, sample.rng) for sample in samples
            ]
            batch = {"pixel_values": torch.stack(images)}
        if self.label_column is not None:
            labels = [sample.stored.label for sample in samples]
            if None in labels:
                key = samples[labels.index(None)].stored.key
                raise ValueError(
                    f"Every sample must have a label in {self.label_column!r}, {key} has none."
                )
            batch["class_labels"] = torch.tensor(labels)
        if samples[0].draws.size:
            batch["draws"] = torch.from_numpy(np.stack([sample.draws for sample in samples]))
        return batch


class FeatureCollator:
    """Training batches of a collator as `Trainer` knows them, which takes a list of features.

    A feature is a row of the data set with all its columns, its image decoded. If the samples are
    streamed, it has `image` or `codes`, and `label`.

    Args:
        collator: The collator; called in the workers of the loader.
        samples: The samples of the data set.
    """

    def __init__(
        self, collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]], samples: Samples
    ):
        self.collator = collator
        self.rows = None
        if isinstance(samples, IndexedSamples):
            self.image_column = None if samples.holds_codes else samples.content
            others = [name for name in samples.dataset.column_names if name != self.image_column]
            self.rows = samples.dataset.select_columns(others)

    def collate(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """A batch of the collator, with the random numbers of the objective as `draws`."""
        if self.rows is None:
            features = [
                {"image": sample.image, "codes": sample.stored.codes, "label": sample.stored.label}
                for sample in samples
            ]
        else:
            features = [self.rows[sample.stored.index] for sample in samples]
            if self.image_column is not None:
                for feature, sample in zip(features, samples, strict=True):
                    feature[self.image_column] = sample.image
        batch = dict(self.collator(features))
        if samples[0].draws.size:
            batch["draws"] = torch.from_numpy(np.stack([sample.draws for sample in samples]))
        return batch


def choose_codes(sample: Sample) -> np.ndarray:
    """Codes `(N,)` int64 of a sample; of copies, the one of the variant of an image that the same
    numbers choose."""
    codes = sample.stored.codes
    return codes[int(sample.rng.random() * len(codes))] if codes.ndim == 2 else codes


__all__ = ["FeatureCollator", "ImageCollator"]
