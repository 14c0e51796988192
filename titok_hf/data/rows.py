"""Where samples come from: rows of image and token data sets, undecoded, by number or shard by
shard."""

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    Features,
    Image,
    IterableDataset,
    Value,
    load_dataset_builder,
)
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from PIL import Image as PILImage

from .images import (
    NO_LABELS,
    as_images,
    check_column,
    files_by_split,
    holds_fifth_out,
    is_here,
    is_shard_pattern,
    load_split,
    matching_files,
    open_dataset,
    split_of,
)
from .shards import (
    Shard,
    find_labels,
    image_extensions,
    inspect_parquet,
    inspect_shards,
    inspect_tar,
    largest_label,
    parquet_features,
    stamp_of,
    tar_classes,
)

KEY_COLUMNS = ("__key__", "key")


@dataclass
class Row:
    """A sample as it is stored.

    Args:
        index: Its number in the split.
        key: What it is called: its `__key__` in a tar shard, its column `key`, or its file, with
            the path in a folder or repository of files; else its number.
        image: Not yet decoded, see `decode_image`; `None` in a data set of tokens, or if the sample
            lacks it.
        label: Number of its class; `None` if labels are not wanted.
        codes: Of a data set of tokens, int64: `(N,)`, or `(copies, N)`.
    """

    index: int
    key: str
    image: bytes | str | PILImage.Image | dict[str, Any] | None = None
    label: int | None = None
    codes: np.ndarray | None = None


class IndexedRows:
    """Rows of a data set that is here, in any order.

    Args:
        dataset: Images, or tokens if it has the column `codes`.
        image_column: Name of the column of images.
        label_column: Name of the column of labels, classes or integers; `None` if they are not
            wanted.
        folder: Where the images are, if they are files of a folder; keys are paths from there.

    Attributes:
        class_names (`list[str] | None`): Names of the classes, if labels are wanted; of plain
            integers, these.
        holds_codes (`bool`): Whether this is a data set of tokens.

    Raises:
        ValueError: If a column is missing or holds something else, or a row has no label.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_column: str = "image",
        label_column: str | None = "label",
        folder: str | Path | None = None,
    ):
        self.holds_codes = "codes" in dataset.column_names
        self.class_names = names_of_classes(dataset.features, label_column)
        if label_column is not None:
            largest = check_labels(dataset, label_column)
            self.class_names = self.class_names or [str(number) for number in range(largest + 1)]
        self.content = "codes" if self.holds_codes else image_column
        self.label_column = label_column
        self.folder = None if folder is None else os.path.abspath(folder)
        if not self.holds_codes:
            dataset = as_images(dataset, image_column).cast_column(
                image_column, Image(decode=False)
            )
        wanted = {*KEY_COLUMNS, self.content, label_column}
        self.dataset = dataset.select_columns(
            [name for name in dataset.column_names if name in wanted]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Row:
        sample = self.dataset[index]
        content = sample[self.content]
        key = key_of(sample, content, index, self.folder)
        label = None if self.label_column is None else sample[self.label_column]
        if self.holds_codes:
            return Row(index, key, label=label, codes=np.asarray(content, dtype=np.int64))
        return Row(index, key, content, label)

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """The rows `start` to `stop`, the latter excluded."""
        return (self[index] for index in range(start, stop))

    def name_of(self, row: Row) -> str:
        """What to call a row in a list of what is unreadable."""
        return row.key


class ShardedRows:
    """Rows of a stream, which are read in the order of a shard.

    Args:
        stream: One shard for each of `names`; images are not decoded, or these have no feature of
            an image.
        sizes: Samples of each shard, as far as it can be read.
        names: Path or address of each shard.
        image_column: Name of the column of images; or names, if each sample has its image in one of
            several columns.
        label_column: Name of the column of labels, or the way to them in a column of structures,
            such as `("json", "label")`; `None` if labels are not wanted.
        class_names: Names of the classes, if known; see `open_rows`.
        damaged: Of the shards that cannot be read to their end, by name, what is wrong.
        stamps: Of each shard, what `stamp_of` gave when it was counted; a file that has changed is
            an error.

    Attributes:
        holds_codes (`bool`): Whether this is a data set of tokens, with the column `codes`.

    Raises:
        OSError: While reading: if a shard has vanished or changed, or cannot be read.
        ValueError: While reading: if a row has no label.
    """

    def __init__(
        self,
        stream: IterableDataset,
        sizes: Sequence[int],
        names: Sequence[str],
        image_column: str | Sequence[str] = "image",
        label_column: str | Sequence[str] | None = None,
        class_names: list[str] | None = None,
        damaged: Mapping[str, str] | None = None,
        stamps: Sequence[list[Any]] | None = None,
    ):
        self.stream = stream
        self.sizes = list(sizes)
        self.names = list(names)
        self.class_names = class_names
        self.damaged = dict(damaged or {})
        self.stamps = stamps
        self.holds_codes = "codes" in (stream.features or ())
        self.contents = [image_column] if isinstance(image_column, str) else list(image_column)
        if self.holds_codes:
            self.contents = ["codes"]
        self.label_path = [label_column] if isinstance(label_column, str) else label_column
        self.offsets = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self.offsets[-1]

    def read_shard(self, shard: int, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """The rows `start` to `stop` of a shard, the latter excluded; those before `start` are
        read, not decoded."""
        stop = self.sizes[shard] if stop is None else min(stop, self.sizes[shard])
        if start >= stop:
            return
        name = self.names[shard]
        self.check_unchanged(shard)
        stream = self.stream.shard(num_shards=len(self.sizes), index=shard).skip(start)
        # `iter` of a stream shares its shards among the workers of a DataLoader, and `take` reads
        # one sample too many
        samples = stream.iter(batch_size=1)
        for place in range(start, stop):
            try:
                sample = next(samples, None)
            except Exception as error:  # whatever `datasets` meets in the file
                raise OSError(
                    f"The shard {name} cannot be read at its sample {place}: {error}"
                ) from error
            if sample is None:
                raise OSError(
                    f"The shard {name} has {place} samples now, {self.sizes[shard]} when it was "
                    "counted."
                )
            yield self.row(
                self.offsets[shard] + place, {column: value for column, [value] in sample.items()}
            )

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """The rows `start` to `stop` of all shards in a row, the latter excluded."""
        for shard in range(bisect_right(self.offsets, start) - 1, len(self.sizes)):
            offset = self.offsets[shard]
            if offset >= stop:
                return
            yield from self.read_shard(shard, max(start - offset, 0), stop - offset)

    def name_of(self, row: Row) -> str:
        """What to call a row in a list of what is unreadable; the same key may be in several
        shards."""
        return f"{self.names[bisect_right(self.offsets, row.index) - 1]}: {row.key}"

    def check_unchanged(self, shard: int) -> None:
        """Checks that a file is the one that was counted; addresses name a commit.

        Raises:
            OSError: If it is not.
        """
        name = self.names[shard]
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
                f"The shard {name} has changed since it was counted; start again to count it anew."
            )

    def row(self, index: int, sample: Mapping[str, Any]) -> Row:
        content = next(
            (sample[column] for column in self.contents if sample[column] is not None), None
        )
        key, label = key_of(sample, content, index), None
        if self.label_path is not None:
            label = checked_label(reduce(getitem, self.label_path, sample), key)
        if self.holds_codes:
            return Row(index, key, label=label, codes=np.asarray(content, dtype=np.int64))
        return Row(index, key, content, label)


def key_of(sample: Mapping[str, Any], content: Any, index: int, folder: str | None = None) -> str:
    """What a sample is called; see `Row`."""
    for column in KEY_COLUMNS:
        if column in sample:
            return str(sample[column])
    path = content.get("path") if isinstance(content, dict) else None
    if path is None:
        return str(index)
    if folder is not None and path.startswith(folder + os.sep):
        return os.path.relpath(path, folder)
    downloaded = re.search(r"/snapshots/[0-9a-f]{40}/(.+)", path)  # in the cache of huggingface_hub
    return downloaded[1] if downloaded else os.path.basename(path)


def check_labels(dataset: Dataset, label_column: str) -> int:
    """The largest label of a data set; -1 if it is empty.

    Raises:
        ValueError: If a row has none; many data sets on the Hub say so by -1.
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


def checked_label(label: int | None, key: str) -> int:
    """A label that is one.

    Raises:
        ValueError: If it is missing; many data sets on the Hub say so by -1.
    """
    if label is None or label < 0:
        raise ValueError(
            f"The sample {key!r} has no label but {label}; without labels: `label_column=None`."
        )
    return label


def names_of_classes(
    features: Features, label_column: str | None, source: str | None = None
) -> list[str] | None:
    """Names of the classes of a column; `None` if it holds plain integers, or labels are not
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


def open_rows(
    source: str,
    split: str = "train",
    image_column: str = "image",
    label_column: str | None = "label",
    revision: str | None = None,
    streaming: bool = False,
) -> IndexedRows | ShardedRows:
    """Opens a split of images, or of tokens where there is a column `codes`.

    Samples of tar shards are made of members with the same name up to the first dot, one behind the
    other: one with the extension of an image, and for the label the class's number in the member
    `cls`, or as `label` in `json`. Names of the classes are the lines of `classnames.txt` beside
    the shards, if it is there. Classes without names are called by their numbers, from 0 to the
    largest label.

    Args:
        source: `"digits"` for the embedded data set; a folder of images, one subfolder a class, or
            without classes; a folder of tar shards or of Parquet files, or one written by
            `save_to_disk`; tar shards as a pattern such as `"data/train-{0000..0015}.tar"` or
            `"data/*.tar"`, which is all `train`; or the name of a data set on the Hub.
        split: Which one. Of labelled images that are not streamed and have neither `test` nor
            `validation`, `test` is a fifth and `train` the rest, see `load_image_dataset`, also if
            labels are not wanted.
        image_column: Name of the column of images; in tar shards an extension, or `"image"` for
            that of any image.
        label_column: Name of the column of labels; in tar shards `"label"` or an integer in the
            member `json`. `None` if labels are not wanted.
        revision: Branch, tag or commit of a data set on the Hub.
        streaming: Whether to stream Parquet files, rather than to load them; tar shards always are.

    Returns:
        Rows in shards if they are streamed. What the shards hold is counted once, and then kept in
        the cache of `datasets`; those of tar files on the Hub are read through for it.

    Raises:
        FileNotFoundError: If there is no such folder or data set.
        ValueError: If there is no such split or column, no image, no label where one is wanted, or
            nothing to stream.
    """
    if shards := find_shards(source, revision):
        kind, files, features = shards
        if kind == ".tar":
            return open_tars(
                files[split_of(files, split, source)], source, image_column, label_column
            )
        if streaming:
            paths = files[split_of(files, split, source)]
            return open_parquet(
                paths, features, source=source, image_column=image_column, label_column=label_column
            )
    elif streaming and not is_here(source):
        raise ValueError(
            f"The data set {source!r} has no tar or Parquet files to stream; load it without "
            "`streaming`."
        )
    dataset = load_split(
        source, split, image_column=image_column, label_column=label_column, revision=revision
    )
    return IndexedRows(
        dataset, image_column, label_column, folder=source if Path(source).is_dir() else None
    )


def split_names(
    source: str,
    label_column: str | None = "label",
    revision: str | None = None,
    streaming: bool = False,
) -> list[str]:
    """The splits that `open_rows` opens with the same arguments."""
    shards = find_shards(source, revision)
    if shards and (streaming or shards[0] == ".tar"):
        return list(shards[1])
    dataset = open_dataset(source, revision)
    return [*dataset, *(["test"] if holds_fifth_out(dataset, label_column) else [])]


def find_shards(
    source: str, revision: str | None = None
) -> tuple[str, dict[str, list[str]], Features | None] | None:
    """The tar or Parquet files of a data set.

    Returns:
        Their extension, the files by split, and the features that the data set declares, if it
        does; `None` if it is stored otherwise.
    """
    if is_shard_pattern(source):
        return ".tar", {"train": matching_files(source)}, None
    if is_here(source):
        folder = Path(source)
        if (
            source == "digits"
            or (folder / "dataset_dict.json").exists()
            or (folder / "state.json").exists()
        ):
            return None
        for suffix in (".tar", ".parquet"):
            if files := files_by_split(folder, suffix):
                return suffix, files, None
        return None
    builder = load_dataset_builder(source, revision=revision)
    for suffix, kind in ((".tar", WebDataset), (".parquet", Parquet)):
        if isinstance(builder, kind):
            files = {
                str(split): list(map(str, paths))
                for split, paths in builder.config.data_files.items()
            }
            return suffix, files, builder.info.features
    return None


def open_tars(
    paths: list[str], source: str, image_column: str, label_column: str | None
) -> ShardedRows:
    """Opens tar shards; see `open_rows`."""
    shards, stamps = inspect_shards(paths, inspect_tar)
    check_not_empty(shards, source)
    images = image_extensions(shards, source, image_column)
    columns = {"__key__": Value("string")} | {
        name: Value("binary") for name in images
    }  # which nobody decodes
    label_path, classes = None, None
    if label_column is not None:
        label_path = find_labels(shards, source, label_column)
        columns |= {
            label_path[0]: Value("int64")
            if len(label_path) == 1
            else {label_path[1]: Value("int64")}
        }
        classes = tar_classes(paths, largest_label(shards, paths, label_path[-1]))
    stream = open_stream(WebDataset, paths, features=Features(columns))
    damaged = {
        path: shard.damage for path, shard in zip(paths, shards, strict=True) if shard.damage
    }
    sizes = [shard.samples for shard in shards]
    return ShardedRows(
        stream,
        sizes=sizes,
        names=paths,
        image_column=images,
        label_column=label_path,
        class_names=classes,
        damaged=damaged,
        stamps=stamps,
    )


def open_parquet(
    paths: list[str],
    features: Features | None,
    source: str,
    image_column: str,
    label_column: str | None,
) -> ShardedRows:
    """Opens Parquet files as shards; see `open_rows`."""
    shards, stamps = inspect_shards(paths, inspect_parquet)
    check_not_empty(shards, source)
    readable = next(path for path, shard in zip(paths, shards, strict=True) if shard.samples)
    features = features or parquet_features(readable)
    classes = names_of_classes(features, label_column, source)
    if label_column is not None and all(
        label_column in shard.labels for shard in shards if shard.samples
    ):
        largest = largest_label(shards, paths, label_column)
        classes = classes or [str(number) for number in range(largest + 1)]
    content = "codes" if "codes" in features else image_column
    check_column(list(features), content, source, "`image_column`")
    columns = [name for name in features if name in {*KEY_COLUMNS, content, label_column}]
    stream = open_stream(Parquet, paths, features=features, columns=columns)
    if content != "codes":
        stored = features[content]
        encoded = isinstance(stored, Value) and stored.dtype.removeprefix("large_") in (
            "string",
            "binary",
        )
        if not encoded and not isinstance(stored, Image | dict):
            raise ValueError(f"The column {content!r} of {source!r} holds no images but {stored}.")
        stream = stream.cast_column(content, Image(decode=False))
    damaged = {
        path: shard.damage for path, shard in zip(paths, shards, strict=True) if shard.damage
    }
    sizes = [shard.samples for shard in shards]
    return ShardedRows(
        stream,
        sizes=sizes,
        names=paths,
        image_column=content,
        label_column=label_column,
        class_names=classes,
        damaged=damaged,
        stamps=stamps,
    )


def open_stream(
    builder: type[WebDataset] | type[Parquet], paths: list[str], **arguments: Any
) -> IterableDataset:
    """A stream with a shard for each file; `load_dataset` would look each of them up first."""
    files = DataFilesDict(train=DataFilesList(paths, origin_metadata=[()] * len(paths)))
    return builder(data_files=files, **arguments).as_streaming_dataset("train")


def check_not_empty(shards: Sequence[Shard], source: str) -> None:
    """Checks that there is a sample.

    Raises:
        ValueError: If there is none.
    """
    if not any(shard.samples for shard in shards):
        damage = next((shard.damage for shard in shards if shard.damage), "They are empty.")
        raise ValueError(f"The {len(shards)} shards of {source!r} hold no whole sample. {damage}")
