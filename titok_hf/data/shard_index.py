"""Inspection and reading of shards: their numbers of samples, damage, labels and contents."""

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
from pyarrow import parquet

from ..distributed import process_state
from ..hub.folders import whole_file
from ..progress import counted
from ..version import __version__
from .decoding import readable_extensions

SPLIT_FOLDERS = {"train", "validation", "val", "test"}
MAX_CLASSES = 1_000_000  # larger numbers are hashes or keys, not numbers of classes
READERS = 16  # shards inspected in parallel, because remote ones have latency


@dataclass
class Shard:
    """Summary of a shard, found without decoding images.

    Args:
        samples: Number of readable samples.
        layouts: Number of samples of a tar file by the extensions of their members, such as
            `{"cls jpg": 1250}`.
        labels: Count, minimum and maximum of the labels, for the member `cls` and each integer in
            the member `json` of a tar file, or for each column of integers of a Parquet file whose
            footer has them.
        damage: Sentence that says why the shard cannot be read to its end, if so.
    """

    samples: int
    layouts: dict[str, int] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    damage: str | None = None


def inspect_shards(
    paths: Sequence[str], inspect: Callable[[str], Shard]
) -> tuple[list[Shard], list[list[Any]]]:
    """Inspects shards: first in one process per machine, whose results the others read from the
    cache of `datasets`.

    Args:
        paths: Files, or URLs `hf://…` that name a commit.
        inspect: `inspect_tar` or `inspect_parquet`.

    Returns:
        Summary and stamp of each shard, see `stamp_of`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the content of a file is not valid; see `inspect_tar`.
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
                    shards = pool.map(inspect, map(members.get, new))
                    shards = counted(shards, "index of shards", "shards", total=len(new))
                    for name, shard in zip(new, shards, strict=True):
                        known[name] = {"stamp": stamps[members[name]], "shard": asdict(shard)}
            finally:  # an error in one shard keeps the results of those before it
                if new:
                    with whole_file(file, shared=True) as partial:
                        partial.write_text(json.dumps(known))
            found |= {path: Shard(**known[name]["shard"]) for name, path in members.items()}
    return [found[path] for path in paths], [stamps[path] for path in paths]


def stamp_of(path: str) -> list[Any]:
    """Returns a value that identifies a version of a file: its size and time of modification; on
    the Hub, size and hash."""
    if path.startswith("hf://"):
        info = HfFileSystem().info(path)
        return [info["size"], info["lfs"]["sha256"] if info["lfs"] else info["blob_id"]]
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def open_shard(path: str) -> BinaryIO:
    return fsspec.open(path, "rb").open() if "://" in path else open(path, "rb")


def inspect_parquet(path: str) -> Shard:
    """Reads the footer of a Parquet file; a file without one is not readable at all."""
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
    """Returns the columns of a Parquet file."""
    with open_shard(path) as file:
        return datasets.Features.from_arrow_schema(parquet.read_schema(file))


def inspect_tar(path: str) -> Shard:
    """Walks over the headers of a tar file, skipping image data, and counts its complete samples.

    In a truncated file, the last sample does not count, with one exception: if the file ends
    between two members, it counts if it has all members of the sample before. If the file ends in
    the zeros that pad a member, the sample does not count even if its content is complete, because
    `datasets` does not read it either.

    Raises:
        ValueError: If a member `cls` is no integer, or a member `json` is no JSON; `datasets` would
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
    except tarfile.ReadError as error:  # later than `last`, which is complete
        if last:
            count(last)
        shard.damage = (
            f"It is no tar file, or truncated or damaged after {shard.samples} samples: {error}."
        )
        return shard
    whole = bool(end) and not any(end)  # a block of zeros marks the end of a tar file
    if last and (whole or (before and before.keys() <= last.keys())):
        count(last)
    if not whole:
        found = "a damaged header" if end else "no end mark"
        shard.damage = f"It is truncated or damaged after {shard.samples} samples: {found}."
    return shard


def samples_of(
    archive: tarfile.TarFile, wanted: Collection[str], start: int = 0
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields key and members of each sample, grouped as in `datasets`: consecutive members with the
    same name up to the first dot.

    Args:
        archive: The tar file.
        wanted: Extensions whose contents are read; the contents of other members are empty.
        start: Number of the first sample to yield.

    Raises:
        tarfile.ReadError: Where `datasets` fails too: at the end of a truncated file, or if two
            members of a sample have the same extension.
    """
    number, key, members = 0, "", {}
    while (member := archive.next()) is not None:
        archive.members = []  # else the archive would keep all of them in memory
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
    path: str, start: int, images: Sequence[str], label: str | None, text: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the samples of a tar file from number `start`, in the form of `StreamedSamples`.

    Args:
        path: Path or URL of the file.
        start: Number of the first sample.
        images: Extensions of images, see `image_extensions`.
        label: Name of the label, see `find_labels`; `None` if labels are not wanted.
        text: The captions: those in the member `txt`, or else under this name in the member `json`;
            `None` if captions are not wanted.
    """
    labels = () if label is None else ("cls", "json")
    texts = () if text is None else ("txt", "json")
    with open_shard(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for key, members in samples_of(archive, {*images, *labels, *texts}, start):
            image = next((members[name] for name in images if name in members), None)
            sample = {"__key__": key, "content": image}
            if label is not None:
                sample["label"] = labels_of(members, path)[label]
            if "txt" in members and text is not None:
                sample["text"] = members["txt"].decode(errors="replace")
            elif text is not None:
                described = json.loads(members.get("json", b"{}"))
                sample["text"] = described.get(text) if isinstance(described, dict) else None
            yield sample


def read_parquet(path: str, start: int, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file from number `start`, in the form of `StreamedSamples`.

    Args:
        path: Path or URL of the file.
        start: Number of the first row.
        columns: Maps each column to read to its name in the result.
    """
    with open_shard(path) as file, parquet.ParquetFile(file) as rows:
        for group in range(rows.num_row_groups):
            skipped = min(start, rows.metadata.row_group(group).num_rows)
            start -= skipped
            if skipped == rows.metadata.row_group(group).num_rows:
                continue
            # workers of the data loader are forked, and Arrow's threads do not survive a fork
            batches = rows.iter_batches(64, [group], list(columns), use_threads=False)
            for batch in batches:
                passed = min(skipped, batch.num_rows)
                skipped -= passed
                for row in batch.slice(passed).to_pylist():
                    yield {name: row[column] for column, name in columns.items()}


def labels_of(members: dict[str, bytes], path: str) -> dict[str, int]:
    """Returns the number in the member `cls` and the integers in the member `json`, by name."""
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
    """Returns the extensions of the image members in tar shards; each sample has one of them.

    Args:
        shards: Summaries of the shards.
        source: Name of the data set, for errors.
        image_column: The extension, or `"image"` for all image extensions.

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
        readable = readable_extensions()
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
            "one with `image_column`."
        )
    return images


def find_labels(shards: Sequence[Shard], source: str, label_column: str) -> str:
    """Finds the labels of tar shards: returns `"cls"` for this member, or a name in the member
    `json`.

    Raises:
        ValueError: If there are none.
    """
    names = set().union(*(shard.labels for shard in shards))
    name = "cls" if label_column == "label" and "cls" in names else label_column
    if name not in names:
        raise ValueError(
            f"The shards of {source!r} hold no labels (members .cls, or the integer "
            f"{label_column!r} in .json); say `label_column=None` if labels are not wanted."
        )
    return name


def largest_label(shards: Sequence[Shard], paths: Sequence[str], label: str) -> int:
    """Returns the largest label of shards.

    Raises:
        ValueError: If a sample has no label, or a negative one, which often marks a missing label.
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
                "`label_column=None` if labels are not wanted."
            )
    return largest


def numbered_classes(largest: int) -> list[str]:
    """Returns the names of classes without other names: the numbers from 0 to the largest label.

    Raises:
        ValueError: If these are more than a million.
    """
    if largest >= MAX_CLASSES:
        raise ValueError(
            f"Labels must be the numbers of at most {MAX_CLASSES:,} classes, got {largest}; store "
            "numbers that are only names as strings."
        )
    return [str(number) for number in range(largest + 1)]


def tar_classes(paths: Sequence[str], largest: int) -> list[str]:
    """Returns the class names: the lines of `classnames.txt` next to the shards, or above the
    folder of a split.

    The file is the convention of CLIP_benchmark's data sets. Without it, the names are numbers.

    Args:
        paths: Paths of the shards.
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
    return numbered_classes(largest)
