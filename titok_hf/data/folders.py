"""The meaning of a folder: its splits, its classes, and the files that are left out.

The rule is the same for training, tokenizing, evaluating and probing:

- Links are followed. Hidden files and those that operating systems leave behind are ignored.
- A folder holds images or shards, whichever has more files. The others are left out.
- A folder that holds all data in one subfolder with subfolders of its own stands for that
  subfolder.
- The subfolders are splits if all of them that hold data have names of splits. Otherwise, every
  folder with images is a class, named by its path.
- The names of shards may also name a split, as in `test-0000.tar`; those of images do not.
- A file `metadata.csv`, `.jsonl` or `.parquet` adds columns to the images in its column `file_name`.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, Image

from ..progress import counted
from .classes import sort_classes
from .decoding import readable_extensions

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names}
SYSTEM_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
KINDS = {".tar": "tar files", ".parquet": "Parquet files", "images": "images"}


@dataclass
class FolderContents:
    """The data in a folder.

    Args:
        folder: The folder.
        kind: `"images"`, `".tar"` or `".parquet"`.
        files: Relative paths of the images or shards of each split, sorted.
        classes: The class of each image, named by its folder; `None` outside of class folders.
        metadata: Relative paths of the metadata files.
        left_out: Relative paths of the files that are not used, by the reason.
    """

    folder: Path
    kind: str
    files: dict[str, list[str]]
    classes: dict[str, list[str | None]] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)


def read_folder(folder: Path) -> FolderContents:
    """Finds the data in a folder; the docstring of this module states the rule.

    Raises:
        ValueError: If there are neither images nor shards.
    """
    extensions = readable_extensions()
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    left_out: dict[str, list[str]] = {
        "archives": [],
        "broken links": [],
        "names that are not UTF-8": [],
        "other files": [],
    }
    metadata = []
    for path in counted(files_below(str(folder)), folder.name, "files"):
        relative = os.path.relpath(path, folder)
        name = os.path.basename(path).lower()
        extension = os.path.splitext(name)[1]
        if any("\udc80" <= sign <= "\udcff" for sign in relative):  # how Python reads other bytes
            left_out["names that are not UTF-8"].append(ascii(relative))
        elif not os.path.isfile(path):
            left_out["broken links"].append(relative)
        elif name in METADATA:
            metadata.append(relative)
        elif name.endswith(ARCHIVES):
            left_out["archives"].append(relative)
        elif extension in KINDS:
            found[extension].append(relative)
        elif extension in extensions:
            found["images"].append(relative)
        elif name != "classnames.txt":  # the class names of tar shards
            left_out["other files"].append(relative)
    kind = max(found, key=lambda kind: len(found[kind]))  # of equal ones, the first
    paths = found.pop(kind)
    if not paths:
        held = ", ".join(f"{what} ({len(names)})" for what, names in left_out.items() if names)
        advice = " Unpack the archives first." if left_out["archives"] else ""
        raise ValueError(
            f"The folder {folder} must hold images, tar shards or Parquet files, but holds only "
            f"{held or 'hidden files or none'}.{advice}"
        )
    left_out |= {KINDS[other]: names for other, names in found.items()}
    if kind != "images":
        left_out["other files"] += metadata
    wrapper = wrapper_of(paths)
    tops = {path.split("/")[wrapper] for path in paths if path.count("/") > wrapper}
    named = bool(tops) and all(top.lower() in SPLITS for top in tops)
    if kind == "images" and not named:
        for top in sorted(top for top in tops if top.lower() in SPLITS):
            logger.warning(
                "The folder %s/%s is a class, not a split: for that, every folder beside it would "
                "need the name of a split, such as train, validation or test.",
                folder,
                top,
            )
    files: dict[str | None, list[str]] = {}
    for path in paths:
        if named:
            parts = path.split("/")[wrapper:-1]
            split = SPLITS[parts[0].lower()] if parts else None
        else:
            split = "train" if kind == "images" else split_in_name(path)
        files.setdefault(split, []).append(path)
    beside = files.pop(None, [])
    if not named and "train" not in files:  # unlike its siblings, this shard is of no other split
        files["train"], beside = beside, []
    left_out[f"{KINDS[kind]} outside of the splits"] = beside
    return FolderContents(
        folder,
        kind,
        files={split: files[split] for split in SPLIT_NAMES if files.get(split)},
        classes=classes_of(files, depth=wrapper + named) if kind == "images" else {},
        metadata=metadata if kind == "images" else [],
        left_out={what: names for what, names in left_out.items() if names},
    )


def files_below(folder: str, parents: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yields the paths of the files below a folder, in order; `parents` are the real paths of the
    folders that contain it, which end loops of links."""
    real = os.path.realpath(folder)
    if real in parents:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name in SYSTEM_FILES:
            continue
        if entry.is_dir():
            yield from files_below(entry.path, parents | {real})
        else:
            yield entry.path


def wrapper_of(paths: Sequence[str]) -> int:
    """Returns the number of leading folders that only hold the folder of all classes or splits."""
    folders = [path.split("/")[:-1] for path in paths]
    shared = common_start(folders)
    if all(folder == shared for folder in folders):
        shared = shared[:-1]  # the last one is the only class
    return len(list(takewhile(lambda name: name.lower() not in SPLITS, shared)))


def common_start(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the elements with which all rows start."""
    first, last = min(rows, default=()), max(rows, default=())  # all others lie between them
    return [
        a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    ]


def split_in_name(path: str) -> str | None:
    """Returns the split that the name of a shard tells, if it tells just one."""
    words = re.split(r"[^a-z]+", os.path.basename(path).lower())
    splits = {SPLITS[word] for word in words if word in SPLITS}
    return splits.pop() if len(splits) == 1 else None


def classes_of(files: dict[str, list[str]], depth: int) -> dict[str, list[str | None]]:
    """Returns the class of each image, named by its folders below the first `depth` ones.

    If the last folder has the same name in all classes, as in `n01443537/images`, the name does
    not include it.
    """
    folders = {
        split: [tuple(path.split("/")[depth:-1]) for path in paths]
        for split, paths in files.items()
    }
    distinct = {folder for split in folders.values() for folder in split if folder}
    tail = common_start([folder[:0:-1] for folder in distinct])  # not the first one
    return {
        split: ["/".join(folder[: len(folder) - len(tail)]) or None for folder in split_folders]
        for split, split_folders in folders.items()
    }


def load_folder(contents: FolderContents, labelled: bool) -> DatasetDict:
    """Loads the images of a folder, with the column `label` if its subfolders are classes, and the
    columns of its metadata.

    Args:
        contents: Contents of the folder.
        labelled: Whether labels are wanted. If so, images outside of the class folders are left
            out, which is noted in `contents.left_out`.

    Raises:
        ValueError: If a metadata file cannot be read, or has a column `image`.
    """
    described = read_metadata(contents)
    columns = list(dict.fromkeys(name for row in described.values() for name in row))
    splits = DatasetDict()
    for split, paths in contents.files.items():
        classes = contents.classes[split]
        names = sort_classes({name for name in classes if name is not None})
        if labelled and names and "label" not in columns:
            kept = [i for i, name in enumerate(classes) if name is not None]
            if len(kept) < len(paths):
                contents.left_out.setdefault("images beside the class folders", []).extend(
                    path for path, name in zip(paths, classes, strict=True) if name is None
                )
            paths, classes = [paths[i] for i in kept], [classes[i] for i in kept]
        values: dict[str, list[Any]] = {"image": [str(contents.folder / path) for path in paths]}
        for column in columns:
            values[column] = [described.get(path, {}).get(column) for path in paths]
        dataset = Dataset.from_dict(values).cast_column("image", Image())
        if names and "label" not in columns:
            ids = {name: number for number, name in enumerate(names)}
            dataset = dataset.add_column(
                "label", [ids.get(name) for name in classes], feature=ClassLabel(names=names)
            )
        splits[split] = dataset
    return splits


def read_metadata(contents: FolderContents) -> dict[str, dict[str, Any]]:
    """Returns the rows of the metadata files by the relative paths of their images.

    Raises:
        ValueError: If a file cannot be read, or has a column `image`.
    """
    readers = {
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
        ".parquet": pyarrow.parquet.read_table,
    }
    rows, used = {}, {path for paths in contents.files.values() for path in paths}
    for relative in contents.metadata:
        path = contents.folder / relative
        try:
            table = readers[path.suffix.lower()](path)
        except pyarrow.ArrowException as error:
            raise ValueError(f"The metadata file {path} cannot be read: {error}") from error
        if "file_name" not in table.column_names:
            contents.left_out.setdefault("metadata without a column file_name", []).append(relative)
            continue
        if "image" in table.column_names:
            raise ValueError(
                f"The metadata file {path} has a column 'image', which is the name of the images' own "
                "column: rename it."
            )
        for row in table.to_pylist():
            name = str(row.pop("file_name"))
            image = os.path.normpath(os.path.join(os.path.dirname(relative), name))
            if image in used:
                rows[image] = row
            else:
                contents.left_out.setdefault("rows of metadata without an image", []).append(image)
    return rows
