"""Labels as classes, and the fifth of a data set that is held out."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Value, concatenate_datasets

from .samples import NO_LABELS, check_column, check_labels
from .shard_index import numbered_classes

logger = logging.getLogger(__name__)


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sorts names of classes; numbers by their value, if all names are numbers."""
    names = set(names)
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def holds_fifth_out(dataset: DatasetDict, source: str, label_column: str | None) -> bool:
    """Whether a fifth of `train` becomes the split `test`; see `open_images`."""
    if "train" not in dataset or {"test", "validation"} & set(dataset):
        return False
    train = dataset["train"]
    if (label_column or "label") not in train.column_names or "codes" in train.column_names:
        return False
    if label_column is not None:
        return True
    try:
        labels = whole_numbers(train, source, "label")["label"]
    except ValueError:  # the column holds no labels, and none are wanted
        return False
    return has_a_fifth([label for label in labels if label is not None])


def has_a_fifth(labels: Sequence[Any]) -> bool:
    """Whether `train_test_split` can hold out a stratified fifth."""
    images = Counter(map(str, labels))  # of each class
    return min(images.values(), default=0) > 1 and math.ceil(0.2 * len(labels)) >= len(images)


def fifth_held_out(
    train: Dataset, source: str, label_column: str, labelled: bool = True
) -> DatasetDict:
    """Splits images into `train` and a stratified fifth, `test`.

    Args:
        train: The images.
        source: Name of the data set, for errors.
        label_column: Name of the column of labels.
        labelled: Whether labels are wanted. If not, images without a label are in `train`, so that
            the fifth is the same one in both cases.

    Raises:
        ValueError: If there are too few images.
    """
    train = whole_numbers(train, source, label_column)
    without = [] if labelled else [i for i, x in enumerate(train[label_column]) if x is None]
    others = train.select(without).remove_columns(label_column)
    if without:
        train = train.select(sorted(set(range(len(train))) - set(without)))
    train = with_classes(train, train, source, label_column)
    if labelled:
        check_labels(train, label_column)
    if not has_a_fifth(train[label_column][:]):
        raise ValueError(
            f"A fifth of {source!r} cannot be held out as the split 'test', which takes 2 images "
            "of every class and 5 per class on average: add images, or a split 'test'."
        )
    splits = train.train_test_split(test_size=0.2, seed=0, stratify_by_column=label_column)
    if without:
        kept = splits["train"].remove_columns(label_column)
        splits["train"] = concatenate_datasets([kept, others])
    return splits


def with_classes(split: Dataset, first: Dataset, source: str, label_column: str) -> Dataset:
    """Converts the labels of a split to the classes of another one; tokens are left unchanged.

    Strings are names of classes. Integers, whole floats and booleans are ids, whose names are the
    numbers from 0 to the largest.

    Args:
        split: The split.
        first: The split that defines the classes.
        source: Name of the data set, for errors.
        label_column: Name of the column of labels.

    Raises:
        ValueError: If the column is missing or holds something else, images have no label, or the
            split has a class that the first one lacks.
    """
    check_column(first.column_names, label_column, source, NO_LABELS)
    if "codes" in split.column_names:
        return split
    check_column(split.column_names, label_column, source, NO_LABELS)
    split, first = (whole_numbers(rows, source, label_column) for rows in (split, first))
    classes = first.features[label_column]
    if not isinstance(classes, ClassLabel):
        values = first.unique(label_column)
        if not values:
            raise ValueError(f"A split of {source!r} that should tell the classes holds no images.")
        if None in values:
            missing = sum(label is None for label in first[label_column])
            raise ValueError(
                f"Some images of {source!r} have no label in the column {label_column!r}: {missing} "
                f"of {len(first)}. Leave them out, or give them a label."
            )
        if isinstance(values[0], str):
            classes = ClassLabel(names=sort_classes(values))
        else:
            number = int(max(values)) + 1
            if number > 2 * len(values):
                logger.warning(
                    "The labels of %s are ids up to %d, of which only %d occur: there are %d classes. "
                    "If the others do not exist, store names instead of ids.",
                    source,
                    number - 1,
                    len(values),
                    number,
                )
            classes = ClassLabel(names=numbered_classes(number - 1))
    labels = split.features[label_column]
    if labels == classes:  # a cast would write a copy next to the source
        return split
    if isinstance(labels, ClassLabel):  # the same id may be another class, so match by name
        names = [
            None if label is None or label < 0 else labels.names[label]
            for label in split[label_column]
        ]
        split = split.remove_columns(label_column).add_column(label_column, names)
    elif "string" in first.features[label_column].dtype:  # numbers are names there
        split = split.cast_column(label_column, Value("string"))
    values = set(split.unique(label_column)) - {None}
    if "string" in split.features[label_column].dtype:
        unknown = values - set(classes.names)
    else:  # negative ones are missing labels
        unknown = {str(int(value)) for value in values if value >= classes.num_classes}
    if unknown:
        raise ValueError(
            f"A split of {source!r} has the classes {', '.join(map(repr, sort_classes(unknown)))}, "
            "which its first split, which tells the classes, lacks: add images of them there, or "
            "leave them out."
        )
    return split.cast_column(label_column, classes)


def whole_numbers(split: Dataset, source: str, label_column: str) -> Dataset:
    """Returns a split whose labels are integers if they were whole floats; NaN and empty strings
    become `None`.

    Raises:
        ValueError: If labels are neither classes, strings, integers nor whole floats.
    """
    feature = split.features.get(label_column)
    if feature is None or isinstance(feature, ClassLabel):
        return split
    dtype = feature.dtype if isinstance(feature, Value) else str(feature)
    if "float" in dtype:
        values = split.unique(label_column)
        if broken := [x for x in values if x is not None and (math.isinf(x) or x % 1 > 0)]:
            raise ValueError(
                f"Labels must be names, classes or integers; the column {label_column!r} of "
                f"{source!r} holds numbers such as {broken[0]}."
            )
        numbers = [None if x is None or math.isnan(x) else int(x) for x in split[label_column]]
        return replace_column(split, label_column, numbers, Value("int64"))
    if "string" in dtype and "" in split.unique(label_column):
        return replace_column(
            split, label_column, [name or None for name in split[label_column]], feature
        )
    if not dtype.startswith(("int", "uint", "bool", "string", "large_string", "null")):
        raise ValueError(
            f"Labels must be names, classes or integers, one for each image; the column "
            f"{label_column!r} of {source!r} holds {dtype}."
        )
    return split


def replace_column(split: Dataset, column: str, values: list[Any], feature: Value) -> Dataset:
    replaced = split.remove_columns(column).add_column(column, values, feature=feature)
    return replaced.select_columns(split.column_names)


__all__ = ["fifth_held_out", "holds_fifth_out", "sort_classes", "with_classes"]
