"""Data sets of labelled images, from wherever they are."""

from pathlib import Path

from datasets import ClassLabel, DatasetDict, Features, Image, load_dataset, load_from_disk


def load_image_dataset(source: str, image_column: str = "image", label_column: str = "label") -> DatasetDict:
    """Loads images with labels, as splits `train` and `test`.

    Args:
        source: `"digits"` for the embedded data set; a folder of images, one subfolder a class; a folder written by
            `save_to_disk`; or the name of a data set on the Hub.
        image_column: Name of the column of images.
        label_column: Name of the column of labels: classes, or integers or strings, which become classes.

    Returns:
        Both splits with these two columns. If there is no `test`, `validation` takes its place; if there is neither, a
        fifth of `train` is held out, with the same share of every class, and always the same.

    Raises:
        ValueError: If there is no split `train`, a column is missing, or `test` has a class that `train` lacks.
    """
    folder = Path(source)
    if source == "digits":
        from .digits import load_digits_dataset

        dataset = load_digits_dataset()
    elif (folder / "dataset_dict.json").exists():
        dataset = load_from_disk(source)
    elif (folder / "state.json").exists():
        dataset = DatasetDict(train=load_from_disk(source))
    elif folder.is_dir():
        dataset = load_dataset("imagefolder", data_dir=source)
    else:
        dataset = load_dataset(source)
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


def class_names(dataset: DatasetDict, label_column: str = "label") -> list[str]:
    """Names of the classes, in the order of their ids."""
    feature: ClassLabel = dataset["train"].features[label_column]
    return list(feature.names)
