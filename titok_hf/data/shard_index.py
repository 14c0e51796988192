"""Shards of a data set: how many samples they hold, which of them are damaged, and what their
samples are."""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import fsspec
import pyarrow as pa
from huggingface_hub import HfFileSystem
from PIL import Image
from pyarrow import parquet

from ..distributed import process_state
from ..hub.folders import whole_file
from ..version import __version__

SPLIT_FOLDERS = {"train", "validation", "val", "test"}
READERS = 16  # shards inspected at once: remote ones make one wait


@dataclass
class Shard:
    """What is known of a shard without decoding anything.

    Args:
        samples: How many can be read.
        layouts: Of a tar file: which members the samples have, by extension, and how many have
            these, such as `{"cls jpg": 1250}`.
        labels: For the member `cls` and for each integer in the member `json` of a tar file, or for
            the columns of integers of a Parquet file, as far as its footer says it: how many
            samples have a value, the smallest, and the largest.
        damage: Why it is not read to its end, in a sentence.
    """

    samples: int
    layouts: dict[str, int] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    damage: str | None = None


def inspect_shards(
    paths: Sequence[str], inspect: Callable[[str], Shard]
) -> tuple[list[Shard], list[list[Any]]]:
    """Inspects shards: one process of each machine first; the others find its results in the cache
    of `datasets`.

    Args:
        paths: Files, or addresses `hf://…` that name a commit.
        inspect: `inspect_tar` or `inspect_parquet`.

    Returns:
        What they hold, and the stamp of each, see `stamp_of`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file holds what cannot be read; see `inspect_tar`.
    """
    with process_state().local_main_process_first():
        stamps = {path: stamp_of(path) for path in paths}
        found: dict[str, Shard] = {}
        for folder in {os.path.dirname(path) for path in paths}:
            address = re.sub(
                "^(hf://[^@]+)@[^/]+", r"\1", folder
            )  # the same files may be in several commits
            name = hashlib.sha256(f"{__version__} {address}".encode()).hexdigest()
            file = Path(datasets.config.HF_DATASETS_CACHE, "titok_shards", f"{name}.json")
            known = json.loads(file.read_text()) if file.exists() else {}
            members = {
                os.path.basename(path): path for path in paths if os.path.dirname(path) == folder
            }
            new = [
                name
                for name, path in members.items()
                if known.get(name, {}).get("stamp") != stamps[path]
            ]
            try:
                with ThreadPoolExecutor(READERS) as pool:
                    for name, shard in zip(
                        new, pool.map(inspect, map(members.get, new)), strict=True
                    ):
                        known[name] = {"stamp": stamps[members[name]], "shard": asdict(shard)}
            finally:
                if new:
                    with whole_file(file, shared=True) as partial:
                        partial.write_text(json.dumps(known))
            found |= {path: Shard(**known[name]["shard"]) for name, path in members.items()}
    return [found[path] for path in paths], [stamps[path] for path in paths]


def stamp_of(path: str) -> list[Any]:
    """What changes when a file does: its size and the time of the last change; on the Hub, size and
    hash."""
    if path.startswith("hf://"):
        info = HfFileSystem().info(path)
        return [info["size"], info["lfs"]["sha256"] if info["lfs"] else info["blob_id"]]
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def open_shard(path: str) -> BinaryIO:
    return fsspec.open(path, "rb").open() if "://" in path else open(path, "rb")


def inspect_parquet(path: str) -> Shard:
    """Reads the footer of a Parquet file; if it has none, the file cannot be read at all."""
    with open_shard(path) as file:
        try:
            metadata = parquet.read_metadata(file)
        except pa.ArrowInvalid as error:
            return Shard(samples=0, damage=f"It is no Parquet file, or truncated: {error}")
    labels = {}
    for i in range(metadata.num_columns):
        groups = [
            metadata.row_group(group).column(i).statistics
            for group in range(metadata.num_row_groups)
        ]
        if not all(
            group and group.has_null_count and (group.has_min_max or not group.num_values)
            for group in groups
        ):
            continue
        values = [
            value for group in groups if group.has_min_max for value in (group.min, group.max)
        ]
        if values and type(values[0]) is int:
            number = metadata.num_rows - sum(group.null_count for group in groups)
            labels[metadata.schema.column(i).path] = [number, min(values), max(values)]
    return Shard(samples=metadata.num_rows, labels=labels)


def parquet_features(path: str) -> datasets.Features:
    """The columns of a Parquet file."""
    with open_shard(path) as file:
        return datasets.Features.from_arrow_schema(parquet.read_schema(file))


def inspect_tar(path: str) -> Shard:
    """Walks over the headers of a tar file, without its images, and counts its whole samples.

    In a truncated file these are all before the last one that begins in it. Where the file ends
    between two members, the last one counts, too, if it has all members of the one before. Where it
    ends behind the content of a member, in the zeros that pad it, the sample does not count, whole
    as it may be: `datasets` does not read it either.

    Raises:
        ValueError: If a member `cls` holds no integer, or a member `json` no JSON: `datasets` would
            fail on these.
    """
    shard = Shard(samples=0)
    last: dict[str, bytes] = {}

    def count(members: dict[str, bytes]) -> None:
        layout = " ".join(sorted(members))
        shard.samples += 1
        shard.layouts[layout] = shard.layouts.get(layout, 0) + 1
        for name, label in labels_of(members, path).items():
            number, smallest, largest = shard.labels.get(name, (0, label, label))
            shard.labels[name] = [number + 1, min(smallest, label), max(largest, label)]

    try:
        with open_shard(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            before: dict[str, bytes] = {}
            for _, members in samples_of(archive, ("cls", "json")):
                if last:
                    count(last)
                before, last = last, members
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except tarfile.ReadError as error:  # behind the last sample
        if last:
            count(last)
        shard.damage = (
            f"It is no tar file, or truncated or damaged after {shard.samples} samples: {error}."
        )
        return shard
    whole = bool(end) and not any(end)  # zeros mark the end
    if last and (whole or (before and before.keys() <= last.keys())):
        count(last)
    if not whole:
        found = "a damaged header" if end else "no end mark"
        shard.damage = f"It is truncated or damaged after {shard.samples} samples: {found}."
    return shard


def samples_of(
    archive: tarfile.TarFile, wanted: Collection[str], start: int = 0
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each sample, grouped as `datasets` groups them: members that follow each
    other and have the same name up to the first dot.

    Args:
        archive: The tar file.
        wanted: Extensions whose contents are read; of other members they are empty.
        start: The first sample; those before it are passed over.

    Raises:
        tarfile.ReadError: Where `datasets` fails, too: at the end of a truncated file, or if two
            members of a sample have the same extension.
    """
    number, key, members = 0, "", {}
    while (member := archive.next()) is not None:
        archive.members = []  # it would keep all of them
        name = os.path.basename(member.name)
        stem, dot, extension = name.partition(".")
        if not (member.isreg() and stem and dot) or name.startswith("__"):
            continue
        sample = member.name.removesuffix(dot + extension)
        if members and sample != key:
            if number >= start:
                yield key, members
            number, members = number + 1, {}
        if extension in members:
            raise tarfile.ReadError(f"two members {member.name!r} in a row")
        content = b""
        if number >= start and extension in wanted:
            archive.fileobj.seek(member.offset_data)
            content = archive.fileobj.read(member.size)
        key, members[extension] = sample, content
    if members and number >= start:
        yield key, members


def read_tar(
    path: str, start: int, images: Sequence[str], label: str | None
) -> Iterator[dict[str, Any]]:
    """The samples of a tar file from number `start` on, as `StreamedSamples` takes them.

    Args:
        path: Path or address of the file.
        start: The first sample.
        images: Extensions of images, see `image_extensions`.
        label: Where labels are, see `find_labels`; `None` if they are not wanted.
    """
    labels = () if label is None else ("cls", "json")
    with open_shard(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for key, members in samples_of(archive, {*images, *labels}, start):
            image = next((members[name] for name in images if name in members), None)
            sample = {"__key__": key, "content": image}
            yield sample if label is None else sample | {"label": labels_of(members, path)[label]}


def read_parquet(path: str, start: int, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file from number `start` on, as `StreamedSamples` takes them.

    Args:
        path: Path or address of the file.
        start: The first row.
        columns: The columns to read, with the name that each gets.
    """
    with open_shard(path) as file, parquet.ParquetFile(file) as rows:
        for group in range(rows.num_row_groups):
            skipped = min(start, rows.metadata.row_group(group).num_rows)
            start -= skipped
            if skipped == rows.metadata.row_group(group).num_rows:
                continue
            # a worker is forked, and Arrow's threads are not
            batches = rows.iter_batches(64, [group], list(columns), use_threads=False)
            for batch in batches:
                passed = min(skipped, batch.num_rows)
                skipped -= passed
                for row in batch.slice(passed).to_pylist():
                    yield {name: row[column] for column, name in columns.items()}


def labels_of(members: dict[str, bytes], path: str) -> dict[str, int]:
    """The number in the member `cls`, and the integers by name in the member `json`."""
    try:
        described = json.loads(members["json"]) if "json" in members else None
    except ValueError as error:
        raise ValueError(f"A member .json of the shard {path} holds no JSON: {error}.") from error
    labels = described.items() if isinstance(described, dict) else ()
    labels = {name: value for name, value in labels if type(value) is int}
    if "cls" in members:
        try:
            labels["cls"] = int(members["cls"])
        except ValueError as error:
            raise ValueError(
                f"A member .cls of the shard {path} must hold the number of a class, got "
                f"{members['cls'][:20]!r}."
            ) from error
    return labels


def image_extensions(shards: Sequence[Shard], source: str, image_column: str) -> list[str]:
    """Which members of tar shards are the images, by extension; of a sample, one.

    Args:
        shards: What is known of the shards.
        source: Name of the data set, for errors.
        image_column: The extension, or `"image"` for all extensions of images.

    Raises:
        ValueError: If there are no such members, or more than one in a sample.
    """
    layouts = [
        set(layout.split(" "))
        for layout in sorted(set().union(*(shard.layouts for shard in shards)))
    ]
    members = sorted(set().union(*layouts))
    if image_column != "image":
        images = [image_column] if image_column in members else []
    else:
        formats = Image.registered_extensions()
        readable = {extension for extension, name in formats.items() if name in Image.OPEN}
        images = [name for name in members if f".{name.rsplit('.')[-1].lower()}" in readable]
    if not images:
        there = ", ".join(f".{name}" for name in members)
        wanted = (
            "images (members such as .jpg)"
            if image_column == "image"
            else f"members .{image_column}"
        )
        raise ValueError(f"The shards of {source!r} hold no {wanted} but {there}.")
    if several := next((layout for layout in layouts if len(layout & set(images)) > 1), None):
        names = ", ".join(sorted(several & set(images)))
        raise ValueError(
            f"Samples of {source!r} hold several images ({names}); name the extension of the right "
            "one with "
            "`image_column`."
        )
    return images


def find_labels(shards: Sequence[Shard], source: str, label_column: str) -> str:
    """Where tar shards have their labels: `"cls"` for this member, or a name in the member `json`.

    Raises:
        ValueError: If they have none.
    """
    names = set().union(*(shard.labels for shard in shards))
    name = "cls" if label_column == "label" and "cls" in names else label_column
    if name not in names:
        raise ValueError(
            f"The shards of {source!r} hold no labels (members .cls, or the integer "
            f"{label_column!r} in .json); "
            "say `label_column=None` if labels are not wanted."
        )
    return name


def largest_label(shards: Sequence[Shard], paths: Sequence[str], label: str) -> int:
    """The largest label of shards.

    Raises:
        ValueError: If a sample has none, or a negative one, which says the same in many data sets.
    """
    largest = -1
    for shard, path in zip(shards, paths, strict=True):
        labelled, smallest, largest_here = shard.labels.get(label, (0, 0, -1))
        largest = max(largest, largest_here)
        if labelled < shard.samples or smallest < 0:
            lacking = f"{shard.samples - labelled} of its {shard.samples} samples have none"
            raise ValueError(
                f"Every sample must have a label of 0 or more in {label!r}; of the shard {path} "
                f"{f'one is {smallest}' if smallest < 0 else lacking}: leave them out, or say "
                "`label_column=None` if "
                "labels are not wanted."
            )
    return largest


def tar_classes(paths: Sequence[str], largest: int) -> list[str]:
    """Names of the classes: the lines of `classnames.txt` beside the shards, or above a folder of a
    split.

    This file is the convention of CLIP_benchmark's data sets. Without it, they are numbers.

    Args:
        paths: Of the shards.
        largest: The largest label.

    Raises:
        ValueError: If there are fewer names than classes.
    """
    folder = os.path.dirname(paths[0])
    folders = [folder]
    if os.path.basename(folder) in SPLIT_FOLDERS:
        folders.append(os.path.dirname(folder))
    for file in (f"{folder}/classnames.txt" for folder in folders):
        if HfFileSystem().exists(file) if file.startswith("hf://") else os.path.exists(file):
            with open_shard(file) as lines:
                names = lines.read().decode().strip().splitlines()
            if len(names) <= largest:
                raise ValueError(
                    f"{file} names {len(names)} classes, but there is a label {largest}."
                )
            return [name.strip() for name in names]
    return [str(number) for number in range(largest + 1)]
