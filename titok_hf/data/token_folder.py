"""The folder of a token data set while it is being made: which parts are done, and what they hold."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from ..version import __version__
from .samples import Samples, StreamedSamples
from .tokens import RECORD, STATISTICS, UNREADABLE, latent_statistics, token_card

ROW_GROUP = 1_000  # rows of a Parquet file that are written and read together
PART_KEY = b"titok_hf"  # of the metadata of a Parquet file


@dataclass(frozen=True)
class Part:
    """Consecutive samples of a split that become one file.

    Args:
        split: The split.
        number: Which of its `count` parts, from 0; of shards, which shard.
        count: Parts of the split.
        start, stop: Its samples, by number in the split.
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
        part: Number of the part among those that are to be done.
        keys, labels: Of the images that are readable.
        pixel_values: `(B * copies, 3, H, W)`, the copies of an image side by side; `None` if no
            image is readable.
        unreadable: `key` and `reason` of the others.
    """

    part: int
    keys: list[str]
    labels: list[int | None]
    pixel_values: torch.Tensor | None
    unreadable: list[dict[str, str]]


class PartWriter:
    """Writes a file of a token data set, which takes its place in one rename when it is whole.

    What is to be known of it later stands in its own metadata; see `read_part`.

    Args:
        path: Where it ends up.
        features: Its columns.
        unfinished: Folder on the same disk to write in.
        num_copies: Copies of each image.
    """

    def __init__(self, path: Path, features: Features, unfinished: Path, num_copies: int):
        self.path, self.features, self.num_copies = path, features, num_copies
        self.temporary = unfinished / uuid4().hex
        self.writer = pq.ParquetWriter(self.temporary, features.arrow_schema, write_page_index=True)
        self.batches: list[dict[str, Any]] = []
        self.num_rows, self.num_bytes, self.num_waiting = 0, 0, 0
        self.unreadable: list[dict[str, str]] = []
        self.sums: np.ndarray | None = None  # (3, C): count, sum and sum of squares of each channel

    @property
    def num_seen(self) -> int:
        """Samples that are written or unreadable."""
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
        """Writes what waits as a group of rows."""
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
        """Writes the rest, and puts the file in its place."""
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
        with self.temporary.open("rb+") as file:  # or a power cut might leave it empty in its place
            os.fsync(file.fileno())
        self.temporary.rename(self.path)


def read_part(path: Path) -> dict[str, Any]:
    """What a finished part says of itself: `rows`, `bytes`, `unreadable` and the `sums` of its
    latents."""
    return json.loads(pq.read_metadata(path).metadata[PART_KEY])


def channel_sums(latents: np.ndarray, num_copies: int) -> np.ndarray:
    """Count, sum and sum of squares of each channel, in float64.

    Args:
        latents: `(B, K, C)` or `(B, C, h, w)`; with copies `(B, copies, …)`.
        num_copies: Copies of each image.

    Returns:
        `(3, C)`.
    """
    if num_copies > 1:
        latents = latents.reshape(-1, *latents.shape[2:])
    channels = latents if latents.ndim == 3 else np.moveaxis(latents, 1, -1)
    channels = channels.reshape(-1, channels.shape[-1]).astype(np.float64)  # (n, C)
    return np.stack(
        [np.full(channels.shape[1], len(channels)), channels.sum(0), np.square(channels).sum(0)]
    )


class WorkFolder:
    """The folder of a token data set while it is being made; in its place, by one rename, when it
    is whole.

    Args:
        folder: Where it ends up.
        command: What makes it, for the record.
        rows: Of each split.
        max_unreadable: Share of a split that may be unreadable.
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
        )  # as a record that is read: tuples are lists there
        self.rows, self.max_unreadable = rows, max_unreadable
        self.num_unreadable = dict.fromkeys(rows, 0)

    def read(self) -> dict[str, Any]:
        """The record of the finished data set."""
        return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))

    def prepare(self, parts: list[Part]) -> list[Part] | None:
        """What is left to do; `None` if the data set is whole. Of all processes the main one alone
        calls it.

        Raises:
            FileExistsError: If the folder holds something else, or what another command made.
        """
        for folder in (self.folder, self.partial):
            if not (folder / RECORD).exists():
                continue
            made_by = json.loads((folder / RECORD).read_text(encoding="utf-8"))["command"]
            if others := [key for key in self.command if made_by.get(key) != self.command[key]]:
                raise FileExistsError(
                    f"{folder} holds what another command made (with other "
                    f"{' and '.join(others)}): choose another "
                    "folder, or delete it."
                )
            if folder == self.folder:
                return None
        if self.folder.exists() and (
            self.folder == Path.cwd() or not self.folder.is_dir() or any(self.folder.iterdir())
        ):
            raise FileExistsError(
                f"{self.folder} exists already: choose another name, or delete it."
            )
        if not (self.partial / RECORD).exists():
            shutil.rmtree(self.partial, ignore_errors=True)
            (self.partial / "data").mkdir(parents=True)
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
        """Writes encoded batches into the files of their parts, and yields the number of samples of
        each.

        Args:
            parts: What this process writes.
            done: What was there before.
            batches: With codes or latents; `part` is the number in `parts`.
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
            if part.start == part.stop:
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
            ValueError: If they are too many by now.
        """
        self.num_unreadable[split] += len(unreadable)
        count, total = self.num_unreadable[split], len(self.rows[split])
        if unreadable and count > self.max_unreadable * total:
            raise ValueError(
                f"{count} of the {total} images of the split {split!r} cannot be read, more than "
                f"the share of {self.max_unreadable:g} that `max_unreadable` allows; the last is "
                f"{unreadable[-1]['key']}: {unreadable[-1]['reason']} To go on with what is done, "
                f"in {self.partial}, allow more."
            )

    def finish(self, parts: list[Part], result: Mapping[str, Any]) -> None:
        """Adds card, statistics and the list of what is unreadable, and moves the folder to its
        place.

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

    def write_record(self, record: Mapping[str, Any]) -> None:
        with whole_file(self.partial / RECORD) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def damaged_shards(rows: Samples) -> list[dict[str, str]]:
    """`key` and `reason` of the shards that are not read to their end."""
    damaged = rows.damaged if isinstance(rows, StreamedSamples) else {}
    return [{"key": name, "reason": reason} for name, reason in damaged.items()]


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Says in a sentence that the disk of a folder is full.

    Raises:
        OSError: If it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"The disk of {folder} is full. What is done stays there: make room, and start the "
            "same command again."
        ) from error
