"""The folder of a token data set in progress: its parts, their metadata, and its completion."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features

from ..hub.folders import whole_file
from ..hub.lock import NAME as LOCK
from ..hub.lock import locked_folder
from ..version import __version__
from .samples import Samples, StreamedSamples
from .tokens import RECORD, STATISTICS, UNREADABLE, latent_statistics, token_card

ROW_GROUP = 1_000  # rows per row group of a Parquet file
PART_KEY = b"titok_hf"  # key of our entry in the metadata of a Parquet file


@dataclass(frozen=True)
class Part:
    """Consecutive samples of a split that become one file.

    Args:
        split: Name of the split.
        number: Number of the part in the split, from 0; for shards, the number of the shard.
        count: Number of parts in the split.
        start, stop: Range of its samples in the split.
    """

    split: str
    number: int
    count: int
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.count:05d}.parquet"


class Batch(NamedTuple):
    """Decoded samples of a part.

    Args:
        part: Index into the list of remaining parts.
        keys, labels: Keys and labels of the readable images.
        pixel_values: `(B * copies, 3, H, W)`, the copies of an image in a row; `None` if no image
            is readable.
        unreadable: `key` and `reason` of each unreadable image.
    """

    part: int
    keys: list[str]
    labels: list[int | None]
    pixel_values: torch.Tensor | None
    unreadable: list[dict[str, str]]


class PartWriter:
    """Writes a file of a token data set, and moves it to its place by one rename when complete.

    Row count, bytes, unreadable files and sums of latents are stored in the Parquet metadata; see
    `read_part`.

    Args:
        path: Final path of the file.
        features: Columns of the file.
        unfinished: Temporary folder on the same disk.
        num_copies: Number of copies of each image.
    """

    def __init__(self, path: Path, features: Features, unfinished: Path, num_copies: int):
        self.path, self.features, self.num_copies = path, features, num_copies
        self.temporary = unfinished / uuid4().hex
        self.writer = pq.ParquetWriter(self.temporary, features.arrow_schema, write_page_index=True)
        self.batches: list[dict[str, Any]] = []
        self.num_rows, self.num_bytes, self.num_waiting = 0, 0, 0
        self.unreadable: list[dict[str, str]] = []
        self.sums: np.ndarray | None = None  # (3, C), see `channel_sums`

    @property
    def num_seen(self) -> int:
        """Number of samples so far, including unreadable ones."""
        return self.num_rows + len(self.unreadable)

    def add(self, batch: Batch, values: np.ndarray | None) -> None:
        """Adds a batch and its codes or latents `(B, …)`; `None` if no image is readable."""
        self.unreadable += batch.unreadable
        if values is None:
            return
        columns = {"key": batch.keys, "label": batch.labels, "codes": values, "latents": values}
        self.batches.append({name: columns[name] for name in self.features})
        self.num_rows += len(batch.keys)
        self.num_waiting += len(batch.keys)
        if "latents" in self.features:
            sums = channel_sums(values, self.num_copies)
            self.sums = sums if self.sums is None else self.sums + sums
        if self.num_waiting >= ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered rows as a row group."""
        columns = {}
        for name in self.features:
            pieces = [batch[name] for batch in self.batches]
            columns[name] = (
                np.concatenate(pieces) if name in ("codes", "latents") else [*chain(*pieces)]
            )
        table = Dataset.from_dict(columns, features=self.features).data.table
        self.writer.write_table(table)
        self.num_bytes += table.nbytes
        self.batches, self.num_waiting = [], 0

    def finish(self) -> None:
        """Writes the remaining rows and the metadata, and moves the file to its place."""
        if self.batches:
            self.flush()
        known = {
            "rows": self.num_rows,
            "bytes": self.num_bytes,
            "unreadable": self.unreadable,
            "sums": None if self.sums is None else self.sums.tolist(),
        }
        self.writer.add_key_value_metadata({PART_KEY: json.dumps(known).encode()})
        self.writer.close()
        with self.temporary.open("rb+") as file:  # a power cut might otherwise leave it empty
            os.fsync(file.fileno())
        self.temporary.rename(self.path)


def read_part(path: Path) -> dict[str, Any]:
    """Returns the metadata of a finished part: `rows`, `bytes`, `unreadable`, and `sums` of its
    latents."""
    return json.loads(pq.read_metadata(path).metadata[PART_KEY])


def channel_sums(latents: np.ndarray, num_copies: int) -> np.ndarray:
    """Returns count, sum and sum of squares of each channel, `(3, C)`, in float64.

    Args:
        latents: `(B, K, C)` or `(B, C, h, w)`; with copies `(B, copies, …)`.
        num_copies: Number of copies of each image.
    """
    if num_copies > 1:
        latents = latents.reshape(-1, *latents.shape[2:])
    channels = latents if latents.ndim == 3 else np.moveaxis(latents, 1, -1)
    channels = channels.reshape(-1, channels.shape[-1]).astype(np.float64)  # (n, C)
    return np.stack(
        [np.full(channels.shape[1], len(channels)), channels.sum(0), np.square(channels).sum(0)]
    )


class WorkFolder:
    """The folder of a token data set in progress; one rename moves it to its place when complete.

    Args:
        folder: Final path of the folder.
        command: Arguments that define the data set, for the record.
        rows: Samples of each split.
        max_unreadable: Largest allowed share of unreadable samples in a split.
    """

    def __init__(
        self,
        folder: str | Path,
        command: Mapping[str, Any],
        rows: Mapping[str, Samples],
        max_unreadable: float,
    ):
        self.folder = Path(folder).resolve()
        self.partial = self.folder.with_name(self.folder.name + ".partial")
        self.unfinished = self.partial / "unfinished"
        self.command = json.loads(
            json.dumps(command)
        )  # the form of a record that was read: tuples become lists
        self.rows, self.max_unreadable = rows, max_unreadable
        self.num_unreadable = dict.fromkeys(rows, 0)

    def read(self) -> dict[str, Any]:
        """Returns the record of the finished data set."""
        return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock on the folder in progress, which is deleted in the end if nothing is in it.

        Raises:
            BlockingIOError: If another run holds it.
        """
        try:
            with locked_folder(self.partial):
                yield
        finally:
            with suppress(OSError):
                self.partial.rmdir()  # fails if anything is in it

    def is_made(self, folder: Path) -> bool:
        """Whether this command has written to a folder, for data and a tokenizer of this content.

        Raises:
            FileExistsError: If another one has.
        """
        if not (folder / RECORD).exists():
            return False
        made_by = json.loads((folder / RECORD).read_text(encoding="utf-8"))["command"]
        made_by["tokenizer"]["id"] = self.command["tokenizer"]["id"]
        # the name of the data tells what they are only where an earlier version recorded no hash
        spelling = "source" if "data" in made_by else "data"
        if others := [
            key for key in self.command if key != spelling and made_by.get(key) != self.command[key]
        ]:
            raise FileExistsError(
                f"{folder} holds the result of another command (with other "
                f"{' and '.join(others)}): choose another folder, or delete it."
            )
        return True

    def prepare(self, parts: list[Part]) -> list[Part]:
        """Prepares the folder and returns the remaining parts. Only the main process calls it.

        Raises:
            FileExistsError: If the folder holds anything else, or the result of another command.
        """
        if self.folder.exists() and (
            self.folder == Path.cwd() or not self.folder.is_dir() or any(self.folder.iterdir())
        ):
            raise FileExistsError(
                f"{self.folder} exists already: choose another name, or delete it."
            )
        if not self.is_made(self.partial):
            # a run that was killed before it wrote the record leaves no more than these
            known = {"data", LOCK, f"{RECORD}.partial"}
            if others := {path.name for path in self.partial.rglob("*")} - known:
                raise FileExistsError(
                    f"{self.partial} holds something else, such as {min(others)}: move it, or choose "
                    "another folder."
                )
            (self.partial / "data").mkdir(exist_ok=True)
            self.write_record({"command": self.command})
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir()
        return [part for part in parts if not self.path(part).exists()]

    def path(self, part: Part) -> Path:
        return self.partial / "data" / part.file_name

    def write(
        self,
        parts: list[Part],
        done: list[Part],
        batches: Iterable[tuple[Batch, np.ndarray | None]],
        result: Mapping[str, Any],
    ) -> Iterator[int]:
        """Writes encoded batches to the files of their parts, and yields the number of samples in
        each batch.

        Args:
            parts: Parts that this process writes.
            done: Parts that were finished before.
            batches: Batches with codes or latents; `part` is an index into `parts`.
            result: See `describe_result`.

        Raises:
            ValueError: If too many images are unreadable.
        """
        for name, rows in self.rows.items():
            self.count_unreadable(name, damaged_shards(rows))
        for part in done:
            self.count_unreadable(part.split, read_part(self.path(part))["unreadable"])
        features, open_parts = Features.from_dict(result["features"]), {}
        for part in parts:
            if part.start == part.stop:  # an empty part gets no batch, but still a file
                PartWriter(self.path(part), features, self.unfinished, result["copies"]).finish()
        for batch, values in batches:
            part = parts[batch.part]
            if batch.part not in open_parts:
                open_parts[batch.part] = PartWriter(
                    self.path(part), features, self.unfinished, result["copies"]
                )
            writer = open_parts[batch.part]
            writer.add(batch, values)
            self.count_unreadable(part.split, batch.unreadable)
            if writer.num_seen == part.stop - part.start:
                open_parts.pop(batch.part).finish()
            yield len(batch.keys) + len(batch.unreadable)

    def count_unreadable(self, split: str, unreadable: Sequence[Mapping[str, str]]) -> None:
        """Counts unreadable images of a split.

        Raises:
            ValueError: If their total exceeds the allowed share.
        """
        self.num_unreadable[split] += len(unreadable)
        count, total = self.num_unreadable[split], len(self.rows[split])
        if unreadable and count > self.max_unreadable * total:
            raise ValueError(
                f"{count} of the {total} images of the split {split!r} cannot be read, more than "
                f"the share of {self.max_unreadable:g} that `max_unreadable` allows; the last is "
                f"{unreadable[-1]['key']}: {unreadable[-1]['reason']} Allow more to continue from "
                f"the finished parts in {self.partial}."
            )

    def finish(self, parts: list[Part], result: Mapping[str, Any]) -> None:
        """Adds card, statistics and the list of unreadable images, then moves the folder.

        Raises:
            ValueError: If too many images are unreadable.
        """
        self.num_unreadable = dict.fromkeys(self.rows, 0)
        splits, listed, sums = {}, [], []
        for name, split_rows in self.rows.items():
            files = [self.path(part) for part in parts if part.split == name]
            known = [read_part(path) for path in files]
            unreadable = damaged_shards(split_rows) + [
                entry for part in known for entry in part["unreadable"]
            ]
            self.count_unreadable(name, unreadable)
            listed += [{"split": name, **entry} for entry in unreadable]
            splits[name] = {
                "rows": sum(part["rows"] for part in known),
                "unreadable": len(unreadable),
                "bytes": sum(part["bytes"] for part in known),
                "download_bytes": sum(path.stat().st_size for path in files),
            }
            if name == "train":
                sums = [part["sums"] for part in known if part["sums"] is not None]
        if listed:
            lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in listed)
            (self.partial / UNREADABLE).write_text(lines, encoding="utf-8")
        if sums:
            statistics = json.dumps(latent_statistics(sums), indent=2) + "\n"
            (self.partial / STATISTICS).write_text(statistics, encoding="utf-8")
        content = {key: value for key, value in result.items() if key != "features"}
        record = {
            "command": self.command,
            "result": {**content, "splits": splits, "titok_hf": __version__},
        }
        card = token_card(record, self.folder.name)
        (self.partial / "README.md").write_text(str(card), encoding="utf-8")
        self.write_record(record)
        shutil.rmtree(self.unfinished)
        if self.folder.exists():
            self.folder.rmdir()
        self.partial.rename(self.folder)
        (self.folder / LOCK).unlink(missing_ok=True)

    def write_record(self, record: Mapping[str, Any]) -> None:
        with whole_file(self.partial / RECORD) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def damaged_shards(rows: Samples) -> list[dict[str, str]]:
    """Returns `key` and `reason` of each shard that cannot be read to its end."""
    damaged = rows.damaged if isinstance(rows, StreamedSamples) else {}
    return [{"key": name, "reason": reason} for name, reason in damaged.items()]


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Context manager that replaces the `OSError` of a full disk by a readable one."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"The disk of {folder} is full. Finished parts are kept: make room, and start the same "
            "command again."
        ) from error
