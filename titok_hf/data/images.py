"""Data sets of labelled images, from wherever they are."""

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from glob import escape, glob
from itertools import chain
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset, load_from_disk
from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern
from huggingface_hub import HfApi

NO_LABELS = "`label_column`, or say `label_column=None` if labels are not wanted"


def load_image_dataset(
    source: str,
    image_column: str = "image",
    label_column: str = "label",
    revision: str | None = None,
) -> DatasetDict:
    """Loads images with labels, as splits `train` and `test`.

    Args:
        source: `"digits"` for the embedded data set; a folder of images, one subfolder a class; a
            folder of Parquet files, or one written by `save_to_disk`; or the name of a data set on
            the Hub.
        image_column: Name of the column of images.
        label_column: Name of the column of labels: classes, or integers or strings, which become
            classes.
        revision: Branch, tag or commit of a data set on the Hub.

    Returns:
        Both splits with these two columns. If there is no `test`, `validation` takes its place; if
        there is neither, a fifth of `train` is held out, with the same share of every class, and
        always the same.

    Raises:
        ValueError: If there is no split `train`, a column is missing, or `test` has a class that
            `train` lacks.
    """
    return labelled_splits(open_dataset(source, revision), source, image_column, label_column)


def labelled_splits(
    dataset: DatasetDict, source: str, image_column: str, label_column: str
) -> DatasetDict:
    """What `load_image_dataset` makes of all splits of a data set."""
    if "train" not in dataset:
        raise ValueError(
            f"The data set {source!r} must have a split 'train', got {', '.join(dataset)}."
        )
    held_out = next((dataset[split] for split in ("test", "validation") if split in dataset), None)
    splits = DatasetDict(
        {"train": dataset["train"]} | ({} if held_out is None else {"test": held_out})
    )
    splits = with_classes(splits, source, image_column, label_column)
    if held_out is None:
        train = splits["train"]
        if not has_a_fifth(train[label_column][:]):
            raise ValueError(
                f"A fifth of {source!r} cannot be held out as the split 'test', which takes 2 "
                "images of every class "
                "and 5 on average: add images, or a split 'test'."
            )
        splits = train.train_test_split(test_size=0.2, seed=0, stratify_by_column=label_column)
    return splits


def has_a_fifth(labels: Sequence[int | None]) -> bool:
    """Whether `train_test_split` can hold a fifth out, with its share of every class."""
    images = Counter(labels)  # of each class
    return (
        None not in images
        and min(images.values(), default=0) > 1
        and math.ceil(0.2 * len(labels)) >= len(images)
    )


def with_classes(
    splits: DatasetDict, source: str, image_column: str, label_column: str
) -> DatasetDict:
    """The columns of images and labels of splits, with the classes of the first split.

    Args:
        splits: Splits of a data set.
        source: Its name, for errors.
        image_column, label_column: See `load_image_dataset`.

    Raises:
        ValueError: If a column is missing, images have no label, or a split has a class that the
            first one lacks.
    """
    first = next(iter(splits.values()))
    check_column(first.column_names, image_column, source, "`image_column`")
    check_column(first.column_names, label_column, source, "`label_column`")
    labels = first.features[label_column]
    if isinstance(labels, ClassLabel):
        for name, split in splits.items():
            if (
                split.features[label_column] != labels
            ):  # the same id may mean another class: go by the names
                names = split.features[label_column].names
                column = [names[label] for label in split[label_column]]
                splits[name] = split.remove_columns(label_column).add_column(label_column, column)
    else:
        values = first.unique(label_column)
        if None in values:
            raise ValueError(
                f"Some images of {source!r} have no label in the column {label_column!r}."
            )
        values.sort()
        numbered = isinstance(values[0], int)
        labels = ClassLabel(names=[str(i) for i in range(values[-1] + 1)] if numbered else values)
    features = Features({image_column: Image(), label_column: labels})
    splits = splits.select_columns([image_column, label_column])
    if any(
        split.features != features for split in splits.values()
    ):  # a cast leaves a copy beside the source
        splits = splits.cast(features)
    return splits


def check_column(columns: Sequence[str], column: str, source: str | None, option: str) -> None:
    """Checks that a data set has a column.

    Args:
        columns: Those that it has.
        column: The one that is wanted.
        source: Name of the data set, if it has one.
        option: What to name the right one with.

    Raises:
        ValueError: If it has not.
    """
    if column not in columns:
        name = "The data set" if source is None else f"The data set {source!r}"
        raise ValueError(
            f"{name} has no column {column!r} but {', '.join(columns)}; name the right one with "
            f"{option}."
        )


def split_of(splits: Collection[str], split: str, source: str) -> str:
    """The name of a split; where there is no `test`, it is `validation`.

    Raises:
        ValueError: If there is no such split.
    """
    if split == "test" and split not in splits and "validation" in splits:
        return "validation"
    if split not in splits:
        raise ValueError(
            f"The data set {source!r} has no split {split!r} but {', '.join(splits)}; name one of "
            "these."
        )
    return split


def load_images(
    source: str, split: str | None = None, revision: str | None = None, image_column: str = "image"
) -> tuple[Dataset, str]:
    """Loads images, labelled or not, to measure on.

    Args:
        source: See `load_image_dataset`; a folder of images may also be flat, without classes.
        split: Which one; if not given, `test`, else `validation`, else the only one.
        revision: Branch, tag or commit of a data set on the Hub.
        image_column: Name of the column of images.

    Returns:
        The split, with all its columns, and its name.

    Raises:
        ValueError: If there is no such split or column, or the column holds no images.
    """
    dataset = open_dataset(source, revision)
    if split is None:
        split = next((name for name in ("test", "validation") if name in dataset), None)
        split = next(iter(dataset)) if split is None and len(dataset) == 1 else split
    if split not in dataset:
        wanted = "test or validation" if split is None else repr(split)
        raise ValueError(
            f"The data set {source!r} has no split {wanted} but {', '.join(dataset)}; name one of "
            "these."
        )
    return as_images(dataset[split], image_column, source), split


def as_images(dataset: Dataset, image_column: str, source: str | None = None) -> Dataset:
    """A split with its images, of whatever kind the column is, as a column of `datasets.Image`.

    Raises:
        ValueError: If there is no such column, or it holds no images.
    """
    check_column(dataset.column_names, image_column, source, "`image_column`")
    try:
        return dataset.cast_column(image_column, Image())
    except NotImplementedError as error:  # of Arrow
        name = "the data set" if source is None else repr(source)
        raise ValueError(
            f"The column {image_column!r} of {name} holds no images but "
            f"{dataset.features[image_column]}."
        ) from error


def load_split(
    source: str,
    split: str,
    image_column: str,
    label_column: str | None,
    revision: str | None = None,
) -> Dataset:
    """Loads a split of images or tokens to train on.

    Args:
        source: See `load_image_dataset`; images need no classes if labels are not wanted.
        split: Which one. Where `load_image_dataset` holds a fifth of `train` out as `test`, so does
            this, even if labels are not wanted.
        image_column: Name of the column of images.
        label_column: Name of the column of labels, which become classes; `None` if they are not
            wanted.
        revision: Branch, tag or commit of a data set on the Hub.

    Raises:
        ValueError: If there is no such split or column, or the column holds something else.
    """
    dataset = open_dataset(source, revision)
    if split in ("train", "test") and holds_fifth_out(dataset, label_column):
        return labelled_splits(dataset, source, image_column, label_column or "label")[split]
    name = split_of(dataset, split, source)
    columns = dataset[name].column_names
    if label_column is not None:
        check_column(columns, label_column, source, NO_LABELS)
    if "codes" in columns or label_column is None:
        return dataset[name]
    first = "train" if "train" in dataset else name  # says which classes there are
    splits = DatasetDict({first: dataset[first], name: dataset[name]})
    return with_classes(splits, source, image_column, label_column)[name]


def holds_fifth_out(dataset: DatasetDict, label_column: str | None) -> bool:
    """Whether a fifth of `train` is the split `test`: of labelled images that have no such split of
    their own.

    If labels are not wanted, but there is a column `label`, the same fifth is held out, as other
    stages of a training want the labels; unless it cannot be, as there are classes of one image,
    for example.
    """
    if "train" not in dataset or {"test", "validation"} & set(dataset):
        return False
    train = dataset["train"]
    if (label_column or "label") not in train.column_names or "codes" in train.column_names:
        return False
    if label_column is not None:
        return True
    return has_a_fifth(train["label"][:])


def dataset_commit(source: str, revision: str | None = None) -> str | None:
    """The commit of a data set on the Hub; `None` if it is embedded, or here as a folder or as
    shards."""
    if is_here(source) or is_shard_pattern(source):
        return None
    return HfApi().dataset_info(source, revision=revision).sha


def open_dataset(source: str, revision: str | None = None) -> DatasetDict:
    """All splits of a data set: embedded, of a folder, or on the Hub; see `load_image_dataset`.

    Raises:
        ValueError: If it is a file, or a folder that holds no images.
    """
    folder = Path(source)
    if source == "digits":
        from .digits import load_digits_dataset

        return load_digits_dataset()
    if (folder / "dataset_dict.json").exists():
        return load_from_disk(source)
    if (folder / "state.json").exists():
        return DatasetDict(train=load_from_disk(source))
    if folder.is_file():
        raise ValueError(
            f"{source} is a file: a folder, tar shards, or a data set on the Hub is expected."
        )
    if not folder.is_dir():
        return load_dataset(source, revision=revision)
    if files := files_by_split(folder, ".parquet"):
        return load_dataset(
            "parquet", data_files={name: list(map(escape, paths)) for name, paths in files.items()}
        )
    try:
        return load_dataset("imagefolder", data_dir=source)
    except (EmptyDatasetError, ValueError) as error:
        raise ValueError(
            f"The folder {source} holds no images that `datasets` can read: {error}"
        ) from error


def is_here(source: str) -> bool:
    """Whether a data set is embedded or in a folder, not on the Hub."""
    return source == "digits" or Path(source).exists()


def is_shard_pattern(source: str) -> bool:
    """Whether a source names tar files, with or without wildcards, rather than a folder or a
    repository."""
    return source.endswith(".tar") or (
        any(sign in source for sign in "*?[{") and not Path(source).exists()
    )


def matching_files(pattern: str) -> list[str]:
    """The tar files that a pattern names: `{0000..0015}` and `{a,b}` as in a shell, then `*`, `?`
    and `[]`.

    Raises:
        ValueError: If a part of the pattern names none.
    """
    if braces := re.search(r"\{([^{}]*)\}", pattern):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
        if numbers:
            first, last = numbers.groups()
            options = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
        else:
            options = braces[1].split(",")
        each = (
            matching_files(pattern[: braces.start()] + option + pattern[braces.end() :])
            for option in options
        )
        return list(dict.fromkeys(chain.from_iterable(each)))
    files = sorted(
        os.path.abspath(path) for path in glob(pattern, recursive=True) if path.endswith(".tar")
    )
    if not files:
        raise ValueError(f"No tar file matches {pattern!r}.")
    return files


def files_by_split(folder: Path, suffix: str) -> dict[str, list[str]]:
    """The files of a kind below a folder, by split as `datasets` finds it in their names; all
    `train` if in none."""
    files = [
        str(path)
        for path in folder.resolve().rglob(f"*{suffix}")
        if path.name != "metadata.parquet"  # which describes an image folder
        and not any(part.startswith(".") for part in path.relative_to(folder.resolve()).parts)
    ]
    if not files:
        return {}
    found: dict[str, list[str]] = {}
    base_path = escape(str(folder.resolve()))  # `datasets` takes it for a part of its patterns
    for split, patterns in get_data_patterns(base_path).items():
        matches = set()
        for pattern in patterns:
            with suppress(FileNotFoundError):
                matches.update(resolve_pattern(pattern, base_path))
        if of_kind := sorted(path for path in matches if path.endswith(suffix)):
            found[str(split)] = of_kind
    return found or {"train": sorted(files)}


def class_names(dataset: DatasetDict, label_column: str = "label") -> list[str]:
    """Names of the classes, in the order of their ids."""
    feature: ClassLabel = dataset["train"].features[label_column]
    return list(feature.names)
