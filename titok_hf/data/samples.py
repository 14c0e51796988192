"""Stored samples before decoding, read in any order or shard by shard."""

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from ..progress import counted
from .decoding import UnreadableImageError, decode_image
from .shard_index import numbered_classes, stamp_of

KEY_COLUMNS = ("__key__", "key")
NO_LABELS = (
    "`label_column` (`--label-column`); in a folder of images, labels are the names of its subfolders: put the "
    "images into one subfolder per class; where labels are not needed, pass `label_column=None` (`--no-labels` "
    "of `titok tokenize` and `titok evaluate`)"
)


@dataclass
class StoredSample:
    """A sample as stored.

    Args:
        index: Number of the sample in the split.
        key: Name of the sample: `__key__` in a tar shard, the column `key`, or the path of its file
            in the folder or repository; else its number.
        image: The undecoded image, see `decode_image`; `None` in a token data set, or if missing.
        label: Number of the class; `None` if labels are not wanted.
        tokens: Codes `(N,)` int64, or latents `(K, C)` or `(C, h, w)` float32, of a token data set;
            with copies, one more axis in front.
        captions: Texts of the image, without blank ones; `None` if they are not wanted.
        row: The whole row, for an own collator that gets rows as they are; then there is no image.
    """

    index: int
    key: str
    image: bytes | str | PILImage.Image | dict[str, Any] | None = None
    label: int | None = None
    tokens: np.ndarray | None = None
    captions: list[str] | None = None
    row: Any = None


class IndexedSamples:
    """Samples of a local data set, accessible in any order.

    Args:
        dataset: Images, or tokens if it has the column `codes` or `latents`.
        image_column: Name of the column of images.
        label_column: Name of the column of labels, classes or integers; `None` if they are not
            wanted.
        source: Name of the data set, for errors. If it is a folder of images, keys are relative to
            it.
        text_column: Name of the column of captions, one or a list for each image; `None` if they
            are not wanted.
        latent_statistics: `mean` and `std` of each channel of the latents, in a token data set.

    Attributes:
        dataset (`Dataset`): The data set with all its columns; the image column is cast to
            `datasets.Image`.
        class_names (`list[str] | None`): Names of the classes, if labels are wanted; plain integers
            are their own names.
        token_column (`str | None`): `"codes"` or `"latents"` of a token data set.
        captioned (`bool`): Whether captions are wanted.

    Raises:
        ValueError: If a column is missing or of another kind, or a sample has no label.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_column: str = "image",
        label_column: str | None = "label",
        source: str | None = None,
        text_column: str | None = None,
        latent_statistics: Mapping[str, list[float]] | None = None,
    ):
        self.token_column = token_column(dataset.column_names)
        self.latent_statistics = latent_statistics
        check_captions(dataset.features, text_column, source)
        self.class_names = names_of_classes(dataset.features, label_column, source)
        if label_column is not None:
            largest = check_labels(dataset.with_format(None), label_column)
            self.class_names = self.class_names or numbered_classes(largest)
        self.content = self.token_column or image_column
        self.label_column = label_column
        self.text_column = text_column
        self.captioned = text_column is not None
        self.folder = None if source is None else os.path.abspath(source)
        self.dataset = dataset if self.token_column else as_images(dataset, image_column, source)
        wanted = {*KEY_COLUMNS, self.content, label_column, text_column}
        self.stored = self.dataset.select_columns(
            [name for name in dataset.column_names if name in wanted]
        ).with_format(None)
        if self.token_column is None:
            self.stored = self.stored.cast_column(image_column, Image(decode=False))

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> StoredSample:
        sample = self.stored[index]
        content = sample[self.content]
        key = key_of(sample, content, index, self.folder)
        label = None if self.label_column is None else sample[self.label_column]
        if self.token_column is not None:
            return StoredSample(
                index, key, label=label, tokens=as_tokens(content, self.token_column)
            )
        captions = None if self.text_column is None else captions_of(sample[self.text_column])
        return StoredSample(index, key, content, label, captions=captions)

    def read(self, start: int, stop: int) -> Iterator[StoredSample]:
        """Yields the samples `start` to `stop - 1`."""
        return (self[index] for index in range(start, stop))

    def name_of(self, sample: StoredSample) -> str:
        """Returns the name of a sample in `unreadable.jsonl`."""
        return sample.key


class StreamedSamples:
    """Samples in shards that are read sequentially.

    Args:
        read_file: Reads a shard from a given sample: `read_file(name, start)` yields dictionaries
            with a key (`__key__` or `key`, if there is one), the image or codes as `content`, and
            the label as `label` and the captions as `text`, if they are wanted.
        sizes: Number of readable samples in each shard.
        names: Path or URL of each shard.
        labelled: Whether labels are wanted.
        captioned: Whether captions are wanted.
        class_names: Names of the classes, if known; see `open_images`.
        damaged: Maps each shard that cannot be read to its end to the reason.
        stamps: Result of `stamp_of` for each shard when it was indexed; a changed file is an error.
        token_column: `"codes"` or `"latents"` of a token data set.
        latent_statistics: See `IndexedSamples`.

    Raises:
        OSError: While reading, if a shard has vanished or changed, or cannot be read.
        ValueError: While reading, if a sample has no label.
    """

    def __init__(
        self,
        read_file: Callable[[str, int], Iterator[dict[str, Any]]],
        sizes: Sequence[int],
        names: Sequence[str],
        *,
        labelled: bool = True,
        captioned: bool = False,
        class_names: list[str] | None = None,
        damaged: Mapping[str, str] | None = None,
        stamps: Sequence[list[Any]] | None = None,
        token_column: str | None = None,
        latent_statistics: Mapping[str, list[float]] | None = None,
    ):
        self.read_file = read_file
        self.sizes = list(sizes)
        self.names = list(names)
        self.labelled = labelled
        self.captioned = captioned
        self.class_names = class_names
        self.damaged = dict(damaged or {})
        self.stamps = stamps
        self.token_column = token_column
        self.latent_statistics = latent_statistics
        self.offsets = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self.offsets[-1]

    def read_shard(
        self, shard: int, start: int = 0, stop: int | None = None
    ) -> Iterator[StoredSample]:
        """Yields the samples `start` to `stop - 1` of a shard; by default all of them."""
        stop = self.sizes[shard] if stop is None else min(stop, self.sizes[shard])
        if start >= stop:
            return
        name = self.names[shard]
        self.check_unchanged(shard)
        samples = self.read_file(name, start)
        for place in range(start, stop):
            try:
                sample = next(samples, None)
            except Exception as error:  # pyarrow, tarfile and file systems have their own errors
                raise OSError(
                    f"The shard {name} cannot be read at its sample {place}: {error}"
                ) from error
            if sample is None:
                raise OSError(
                    f"The shard {name} has {place} samples now, {self.sizes[shard]} when it was "
                    "counted."
                )
            yield self.sample(self.offsets[shard] + place, sample)

    def read(self, start: int, stop: int) -> Iterator[StoredSample]:
        """Yields the samples `start` to `stop - 1`, counted over all shards."""
        for shard in range(bisect_right(self.offsets, start) - 1, len(self.sizes)):
            offset = self.offsets[shard]
            if offset >= stop:
                return
            yield from self.read_shard(shard, max(start - offset, 0), stop - offset)

    def name_of(self, sample: StoredSample) -> str:
        """Returns the name of a sample in `unreadable.jsonl`; with the shard, because several
        shards may have the same key."""
        return f"{self.names[bisect_right(self.offsets, sample.index) - 1]}: {sample.key}"

    def check_unchanged(self, shard: int) -> None:
        """Raises `OSError` if the file of a shard has changed since it was indexed."""
        name = self.names[shard]
        # a URL names a commit, so that its file cannot change
        if self.stamps is None or "://" in name:
            return
        try:
            stamp = stamp_of(name)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"The shard {name} has vanished since it was counted."
            ) from error
        if stamp != self.stamps[shard]:
            raise OSError(
                f"The shard {name} has changed since it was counted; restart to count it again."
            )

    def sample(self, index: int, stored: Mapping[str, Any]) -> StoredSample:
        content, label = stored["content"], stored.get("label")
        key = key_of(stored, content, index)
        # many data sets on the Hub mark a missing label by -1
        if self.labelled and (label is None or label < 0):
            raise ValueError(
                f"The sample {key!r} has no label but {label}; without labels: `label_column=None`."
            )
        if self.token_column is not None:
            return StoredSample(
                index, key, label=label, tokens=as_tokens(content, self.token_column)
            )
        captions = captions_of(stored["text"]) if "text" in stored else None
        return StoredSample(index, key, content, label, captions=captions)


Samples = IndexedSamples | StreamedSamples


def token_column(columns: Iterable[str]) -> str | None:
    """Returns the column of a token data set that holds its tokens; `None` if it holds images."""
    return next((name for name in ("codes", "latents") if name in columns), None)


def as_tokens(content: Any, column: str) -> np.ndarray:
    """Returns codes as int64, latents as float32."""
    return np.asarray(content, np.int64 if column == "codes" else np.float32)


def check_readable(samples: IndexedSamples, indices: Sequence[int]) -> None:
    """Raises `ValueError` if one of the held-out images at some indices cannot be decoded."""
    unreadable = {}
    for index in counted(indices, "held-out images", total=len(indices)):
        sample = samples[index]
        try:
            decode_image(sample.image)
        except UnreadableImageError as error:
            unreadable[sample.key] = error
    if unreadable:
        key, error = next(iter(unreadable.items()))
        raise ValueError(
            f"{len(unreadable)} of the held-out images cannot be read, such as {key}: {error} Repair or "
            "remove them, or remove `eval_strategy`."
        )


def captions_of(value: str | Sequence[str | None] | None) -> list[str]:
    """Returns the captions of an image that are not blank."""
    values = [value] if isinstance(value, str) else value or []
    return [text for text in values if text and text.strip()]


def check_captions(features: Features, text_column: str | None, source: str | None) -> None:
    """Raises `ValueError` if captions are wanted and a data set has no such column of texts."""
    if text_column is None:
        return
    check_column(list(features), text_column, source, "`text_column`")
    feature = features[text_column]
    texts = feature.feature if isinstance(feature, List) else feature
    if not isinstance(texts, Value) or not texts.dtype.endswith("string"):
        raise ValueError(
            f"Captions must be texts or lists of texts, the column {text_column!r} holds {feature}."
        )


def key_of(sample: Mapping[str, Any], content: Any, index: int, folder: str | None = None) -> str:
    """Returns the name of a sample; see `StoredSample`."""
    for column in KEY_COLUMNS:
        if column in sample:
            return str(sample[column])
    path = content.get("path") if isinstance(content, dict) else content
    if not isinstance(path, str):
        return str(index)
    if folder is not None and path.startswith(folder + os.sep):
        return os.path.relpath(path, folder)
    downloaded = re.search(r"/snapshots/[0-9a-f]{40}/(.+)", path)  # in the cache of huggingface_hub
    return downloaded[1] if downloaded else os.path.basename(path)


def check_labels(dataset: Dataset, label_column: str) -> int:
    """Returns the largest label of a data set; -1 if it is empty.

    Raises:
        ValueError: If a sample has no label, or -1, which marks a missing one in many data sets.
    """
    labels = dataset[label_column][:]
    lacking = sum(label is None or label < 0 for label in labels)
    if lacking:
        split = f" of the split {str(dataset.split)!r}" if dataset.split else ""
        raise ValueError(
            f"Every sample must have a label of 0 or more in {label_column!r}; {lacking} of the "
            f"{len(dataset)} samples{split} have none: leave them out, or say `label_column=None` "
            "if labels are not wanted."
        )
    return max(labels, default=-1)


def names_of_classes(
    features: Features, label_column: str | None, source: str | None = None
) -> list[str] | None:
    """Returns the class names of a column; `None` if it holds plain integers, or labels are not
    wanted.

    Raises:
        ValueError: If there is no such column, or it holds neither classes nor integers.
    """
    if label_column is None:
        return None
    check_column(list(features), label_column, source, NO_LABELS)
    labels = features[label_column]
    if isinstance(labels, ClassLabel):
        return list(labels.names)
    if not isinstance(labels, Value) or "int" not in labels.dtype:
        raise ValueError(
            f"Labels must be classes or integers, the column {label_column!r} holds {labels}."
        )
    return None


def as_images(dataset: Dataset, image_column: str, source: str | None = None) -> Dataset:
    """Casts the image column of a split to `datasets.Image`.

    Raises:
        ValueError: If there is no such column, or it holds no images.
    """
    check_column(dataset.column_names, image_column, source)
    try:
        return dataset.cast_column(image_column, Image())
    except NotImplementedError as error:  # raised by Arrow
        raise no_images(image_column, source, dataset.features[image_column]) from error


def no_images(column: str, source: str | None, found: Any) -> ValueError:
    name = "the data set" if source is None else repr(source)
    return ValueError(f"The column {column!r} of {name} holds no images but {found}.")


def check_column(
    columns: Sequence[str], column: str, source: str | None, option: str = "`image_column`"
) -> None:
    """Raises `ValueError` if a data set lacks a column.

    Args:
        columns: Columns of the data set.
        column: The required column.
        source: Name of the data set, if it has one.
        option: The argument that chooses another column, for the error.
    """
    if column not in columns:
        name = "The data set" if source is None else f"The data set {source!r}"
        raise ValueError(
            f"{name} has no column {column!r} but {', '.join(columns)}; name the right one with "
            f"{option}."
        )
