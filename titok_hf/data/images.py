"""Data sets of labelled images, from wherever they are."""

from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset, load_from_disk
from datasets.data_files import EmptyDatasetError
from huggingface_hub import HfApi


def load_image_dataset(
    source: str, image_column: str = "image", label_column: str = "label", revision: str | None = None
) -> DatasetDict:
    """Loads images with labels, as splits `train` and `test`.

    Args:
        source: `"digits"` for the embedded data set; a folder of images, one subfolder a class; a folder written by
            `save_to_disk`; or the name of a data set on the Hub.
        image_column: Name of the column of images.
        label_column: Name of the column of labels: classes, or integers or strings, which become classes.
        revision: Branch, tag or commit of a data set on the Hub.

    Returns:
        Both splits with these two columns. If there is no `test`, `validation` takes its place; if there is neither, a
        fifth of `train` is held out, with the same share of every class, and always the same.

    Raises:
        ValueError: If there is no split `train`, a column is missing, or `test` has a class that `train` lacks.
    """
    dataset = open_dataset(source, revision)
    if "train" not in dataset:
        raise ValueError(f"The data set {source!r} must have a split 'train', got {', '.join(dataset)}.")
    train = dataset["train"]
    for option, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in train.column_names:
            raise ValueError(
                f"The data set {source!r} has no column {column!r} but {', '.join(train.column_names)}; name the "
                f"right one with `{option}`."
            )
    held_out = next((dataset[split] for split in ("test", "validation") if split in dataset), None)
    splits = DatasetDict({"train": train} if held_out is None else {"train": train, "test": held_out})
    labels = train.features[label_column]
    if isinstance(labels, ClassLabel):
        for name, split in splits.items():
            if split.features[label_column] != labels:  # the same id may mean another class: go by the names
                names = split.features[label_column].names
                column = [names[label] for label in split[label_column]]
                splits[name] = split.remove_columns(label_column).add_column(label_column, column)
    else:
        values = sorted(train.unique(label_column))
        numbered = isinstance(values[0], int)
        labels = ClassLabel(names=[str(i) for i in range(values[-1] + 1)] if numbered else values)
    features = Features({image_column: Image(), label_column: labels})
    splits = splits.select_columns([image_column, label_column])
    if any(split.features != features for split in splits.values()):  # a cast leaves a copy beside the source
        splits = splits.cast(features)
    if held_out is None:
        splits = splits["train"].train_test_split(test_size=0.2, seed=0, stratify_by_column=label_column)
    return splits


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
        raise ValueError(f"The data set {source!r} has no split {wanted} but {', '.join(dataset)}; name one of these.")
    images = dataset[split]
    if image_column not in images.column_names:
        raise ValueError(
            f"The data set {source!r} has no column {image_column!r} but {', '.join(images.column_names)}; name the "
            "right one with `image_column`."
        )
    try:
        return images.cast_column(image_column, Image()), split
    except NotImplementedError as error:  # of Arrow
        raise ValueError(
            f"The column {image_column!r} of {source!r} holds no images but {images.features[image_column]}."
        ) from error


def dataset_commit(source: str, revision: str | None = None) -> str | None:
    """The commit of a data set on the Hub; `None` if it is embedded or a folder."""
    if source == "digits" or Path(source).is_dir():
        return None
    return HfApi().dataset_info(source, revision=revision).sha


def open_dataset(source: str, revision: str | None = None) -> DatasetDict:
    """All splits of a data set: embedded, of a folder, or on the Hub; see `load_image_dataset`.

    Raises:
        ValueError: If a folder holds no images.
    """
    folder = Path(source)
    if source == "digits":
        from .digits import load_digits_dataset

        return load_digits_dataset()
    if (folder / "dataset_dict.json").exists():
        return load_from_disk(source)
    if (folder / "state.json").exists():
        return DatasetDict(train=load_from_disk(source))
    if not folder.is_dir():
        return load_dataset(source, revision=revision)
    try:
        return load_dataset("imagefolder", data_dir=source)
    except (EmptyDatasetError, ValueError) as error:
        raise ValueError(f"The folder {source} holds no images that `datasets` can read: {error}") from error


def class_names(dataset: DatasetDict, label_column: str = "label") -> list[str]:
    """Names of the classes, in the order of their ids."""
    feature: ClassLabel = dataset["train"].features[label_column]
    return list(feature.names)
