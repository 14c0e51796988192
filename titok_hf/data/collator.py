"""Collators that turn samples into batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend

from .augmentation import Augmentation
from .decoding import decoder_for
from .loader import Sample
from .rows import TrainingData, picture
from .samples import IndexedSamples


class ImageCollator:
    """Turns rows with images and optional labels into `pixel_values` `(B, 3, H, W)` and
    `class_labels` `(B,)`.

    Args:
        processor: Image processor of the tokenizer.
        image_column: Name of the column of images.
        label_column: Name of the column of integer labels, if any.
        augmentation: Augmentation of training images, if any.
        token_axes: Number of axes of an image's tokens in a token data set; another one in front is
            of copies.

    Raises:
        KeyError: If a row lacks a column.
    """

    text_column: str | None = None

    def __init__(
        self,
        processor: PilBackend,
        image_column: str = "image",
        label_column: str | None = None,
        augmentation: Augmentation | None = None,
        token_axes: int = 1,
    ):
        self.token_axes = token_axes
        self.processor = processor
        self.image_column = image_column
        self.label_column = label_column
        self.augmentation = augmentation or Augmentation()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns a batch for evaluation, without augmentation."""
        decode = decoder_for(self.processor)
        images = [decode(picture(row[self.image_column])) for row in rows]
        batch = dict(self.processor(images, return_tensors="pt"))
        if self.label_column is not None:
            batch["class_labels"] = torch.tensor([row[self.label_column] for row in rows])
        return batch

    def collate(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """Returns a batch for training.

        Args:
            samples: Samples of a `TrainingLoader`.

        Returns:
            `pixel_values` `(B, 3, H, W)` after augmentation, or for a token data set `codes` `(B,
            N)` or `latents` `(B, …)` of a random copy of each sample; `class_labels` `(B,)`, if
            there is a label column; `draws` `(B, num_draws)`, if the loader draws any.

        Raises:
            ValueError: If a sample lacks a required label, or the number of copies of the tokens is
                not the augmentation's number of variants.
        """
        tokens = samples[0].stored.tokens
        if tokens is not None:
            has_copies = tokens.ndim > self.token_axes
            copies = len(tokens) if has_copies else 1
            if copies != self.augmentation.variants:
                variants = self.augmentation.variants or "ever new"
                raise ValueError(
                    f"The augmentation makes {variants} variants of each image, the tokens are of "
                    f"{copies}: tokenize with the same augmentation, or train with that of the tokens."
                )
            chosen = [
                choose_copy(sample) if has_copies else sample.stored.tokens for sample in samples
            ]
            batch = {kind_of(tokens): torch.from_numpy(np.stack(chosen))}
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
                    f"Every sample must have a label in {self.label_column!r}, but {key} has none."
                )
            batch["class_labels"] = torch.tensor(labels)
        if samples[0].draws.size:
            batch["draws"] = torch.from_numpy(np.stack([sample.draws for sample in samples]))
        return batch


class FeatureCollator:
    """Makes training batches with an ordinary data collator of `Trainer`.

    The collator takes a list of features. A feature is a row of the data set with all its columns
    and the image decoded; of a list, a data set of torch or an iterable, it is a row as it is. For
    streamed samples, it has `image`, `codes` or `latents`, `label`, and `text`, a list, if captions are
    wanted.

    Args:
        collator: The data collator; called in the workers of the loader.
        samples: The samples of the data set.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
        samples: TrainingData,
    ):
        self.collator = collator
        self.rows = None
        if isinstance(samples, IndexedSamples):
            self.image_column = None if samples.token_column else samples.content
            others = [name for name in samples.dataset.column_names if name != self.image_column]
            self.rows = samples.dataset.select_columns(others)

    def collate(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """Returns a batch of the collator, with the random numbers of the objective as `draws`."""
        if samples[0].stored.row is not None:
            features = [sample.stored.row for sample in samples]
        elif self.rows is None:
            features = [
                {
                    "image": sample.image,
                    kind_of(sample.stored.tokens): sample.stored.tokens,
                    "label": sample.stored.label,
                    **({"text": sample.stored.captions} if sample.stored.captions else {}),
                }
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


def kind_of(tokens: np.ndarray | None) -> str:
    """Returns `"latents"` for those, else `"codes"`."""
    is_latents = tokens is not None and np.issubdtype(tokens.dtype, np.floating)
    return "latents" if is_latents else "codes"


def choose_copy(sample: Sample) -> np.ndarray:
    """Returns the tokens of the variant that the augmentation would choose by the same random number."""
    copies = sample.stored.tokens
    return copies[int(sample.rng.random() * len(copies))]


__all__ = ["FeatureCollator", "ImageCollator"]
