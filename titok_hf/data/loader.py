"""Endless training batches, whose order a resumed run continues exactly without saved state."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .decoding import UnreadableImageError, decode_image
from .legs import Leg, Remainder
from .rows import IterableRows, TrainingData
from .samples import StoredSample, StreamedSamples
from .shuffling import permutation

logger = logging.getLogger(__name__)

PATIENCE = 1000  # consecutive unreadable images of an iterable data set


@dataclass
class Sample:
    """A sample with its image and its random numbers.

    Args:
        epoch: Number of the epoch, from 0.
        stored: The sample as stored. An unreadable image is replaced by another sample, which is
            then seen twice in the epoch.
        image: The decoded image; `None` in a token data set.
        draws: Random numbers of the objective, `(num_draws,)` float32 in [0, 1).
        rng: Generator of all other random numbers of the sample; `draws` were its first. It was
            seeded with the run's seed, the epoch and the index of the sample, so that it does not
            depend on the number of processes and workers.
        position: Place in what all processes see, from 0. A step of n samples has the places from a multiple
            of n on, which is n times its number unless n has changed.
    """

    epoch: int
    stored: StoredSample
    image: Image.Image | None
    draws: np.ndarray
    rng: np.random.Generator
    position: int = 0


@dataclass
class DecodedSample:
    """A stored sample with its image, or with the error in decoding it."""

    stored: StoredSample
    image: Image.Image | None = None
    error: str | None = None

    @classmethod
    def from_stored(
        cls, stored: StoredSample, decode: Callable[[Any], Image.Image], captioned: bool
    ) -> "DecodedSample":
        if stored.tokens is not None or stored.row is not None:
            return cls(stored)
        if captioned and stored.captions == []:
            return cls(replace(stored, image=None), error="The image has no caption.")
        try:
            return cls(stored, decode(stored.image))
        except UnreadableImageError as error:
            return cls(replace(stored, image=None), error=str(error))


class TrainingLoader:
    """Endless batches of one process, in an order that is a function of the seed.

    A run that starts at batch `n` sees bit by bit the same as an uninterrupted one sees from there
    on. Every sample occurs once per epoch, on any number of processes and workers; a batch may
    contain the end of an epoch and the beginning of the next.

    Indexed samples are permuted anew in each epoch and dealt out to the batches of all processes.
    The samples of a step depend only on the total number of samples per step, not on the number of
    processes and workers.

    Shards are permuted anew in each epoch; every worker of every process reads an equal share of
    the samples and shuffles them in a buffer. A resumed run sees the same order only with the same
    batch size, buffer, and number of processes and workers; with others, it sees what is left of
    the epoch in another order. It starts reading at the oldest sample that was in the buffer, about
    7 buffers back for a buffer of 1,000.

    Args:
        rows: The samples. Iterables are read in their own order by this process itself, which
            reads again what it has already seen; each process takes its batches of them.
        collate: Turns a list of samples into a batch; called in the workers.
        batch_size: Number of samples in a batch of this process.
        seed: Seed of the order and of the samples' random numbers.
        start_batch: Number of batches that this process has already seen.
        rank: Rank of this process.
        world_size: Number of processes.
        accumulated: Number of batches of this process in an optimizer step.
        num_draws: Number of random numbers per sample for the objective.
        shuffle_buffer: Number of undecoded samples in each worker's shuffle buffer, for shards.
        num_workers: Number of worker processes that read and decode; 0 to do so in this process.
        prefetch_factor: Number of batches that each worker prepares in advance; torch's default if
            not given.
        pin_memory: Whether batches are in page-locked memory, for faster copies to an accelerator.
        decode: Decodes a stored image, see `decoder_for`; called in the workers.
        captioned: Whether an image without a caption counts as unreadable, if captions are wanted.
        legs: The legs of the training so far, whose samples are not seen again in their epoch. The
            last one is continued if its settings are the same.

    Attributes:
        unreadable (`dict[str, str]`): Errors by name: of damaged shards, and of the unreadable
            images in the batches so far, whose key follows the name of their shard.

    Raises:
        ValueError: If there are no samples, fewer samples in shards than readers, or the buffer is
            empty. While iterating: if no image can be read, or if reading the samples raises it.
        OSError: While iterating, if reading the samples raises it.
    """

    def __init__(
        self,
        rows: TrainingData,
        collate: Callable[[list[Sample]], dict[str, torch.Tensor]],
        batch_size: int,
        seed: int = 0,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulated: int = 1,
        num_draws: int = 0,
        shuffle_buffer: int = 1000,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        pin_memory: bool = False,
        decode: Callable[[Any], Image.Image] = decode_image,
        captioned: bool = True,
        legs: Sequence[Leg] = (),
    ):
        if isinstance(rows, IterableRows):
            if num_workers:
                logger.warning("Workers would read an iterable data set in turn: none is used.")
            num_workers, prefetch_factor = 0, None
        elif not len(rows):
            raise ValueError("The data set is empty: there is nothing to train on.")
        readers = world_size * max(1, num_workers)
        if isinstance(rows, StreamedSamples) and len(rows) < readers:
            raise ValueError(
                f"{len(rows)} samples in shards cannot be shared by {readers} readers "
                f"({world_size} processes with {max(1, num_workers)} each): use fewer workers "
                "(`num_workers`) or processes, or more samples."
            )
        if shuffle_buffer < 1:
            raise ValueError(
                "`shuffle_buffer` must be at least 1, which does not shuffle, got "
                f"{shuffle_buffer}."
            )
        self.rows = rows
        self.collate = collate
        self.batch_size = batch_size
        self.seed = seed
        self.leg = Leg(
            batches=start_batch,
            batch_size=batch_size,
            world_size=world_size,
            num_workers=max(1, num_workers),
            shuffle_buffer=shuffle_buffer,
        )
        self.before = list(legs)
        if self.before and replace(self.before[-1], batches=start_batch) == self.leg:
            self.leg = self.before.pop()
        self.start_batch = self.leg.batches
        # positions go on with the next whole step, as those of the earlier legs end with one
        step, seen = batch_size * accumulated * world_size, sum(leg.samples for leg in self.before)
        self.first_position = math.ceil(seen / step) * step
        self.rank = rank
        self.world_size = world_size
        self.num_draws = num_draws
        self.shuffle_buffer = shuffle_buffer
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.pin_memory = pin_memory
        self.decode = decode
        self.captioned = captioned
        self.unreadable = dict(rows.damaged) if isinstance(rows, StreamedSamples) else {}

    def legs(self, batches: int) -> list[Leg]:
        """Returns the legs of the training once this process has taken `batches` from the loader."""
        return [*self.before, replace(self.leg, batches=self.start_batch + batches)]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batches = DataLoader(
            BatchStream(self),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            pin_memory=self.pin_memory,
            # without one, torch's global random state would be advanced
            generator=torch.Generator(),
        )
        for made in batches:
            if isinstance(made, Exception):
                raise made
            batch, unreadable = made
            self.unreadable |= unreadable
            yield batch


class BatchStream(IterableDataset):
    """Batches of one worker: every `num_workers`-th batch of the process from `start_batch` on.

    Args:
        loader: The loader of the process.
    """

    def __init__(self, loader: TrainingLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, str]] | Exception]:
        """Yields batches, each with the errors of its unreadable images by name; if reading fails,
        the last item is the error."""
        worker = get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        batch = self.loader.start_batch + number
        if isinstance(self.loader.rows, IterableRows):
            samples = self.iterated_samples()
        elif isinstance(self.loader.rows, StreamedSamples):
            samples = self.sharded_samples(batch, num_workers)
        else:
            samples = self.indexed_samples(batch, num_workers)
        try:
            for current in count(batch, num_workers):
                unreadable: dict[str, str] = {}
                chosen = []
                start = current * self.loader.world_size + self.loader.rank
                first = self.loader.first_position + start * self.loader.batch_size
                for planned, sample in islice(samples, self.loader.batch_size):
                    sample.position = first + len(chosen)
                    chosen.append(sample)
                    if planned.error is not None:
                        unreadable[self.loader.rows.name_of(planned.stored)] = planned.error
                yield self.loader.collate(chosen), unreadable
        # an error raised in a worker would arrive with the traceback as its text
        except (OSError, ValueError) as error:
            yield error

    def indexed_samples(
        self, first_batch: int, num_workers: int
    ) -> Iterator[tuple[DecodedSample, Sample]]:
        """Yields each stored sample in order with the resulting sample; an unreadable one is
        replaced by the next readable one of the data set."""
        rows, batch_size = self.loader.rows, self.loader.batch_size
        seen = sum(leg.samples for leg in self.loader.before)
        current, order = -1, np.empty(0, np.int64)
        for batch in count(first_batch, num_workers):
            start = seen + (batch * self.loader.world_size + self.loader.rank) * batch_size
            for position in range(start, start + batch_size):
                epoch, place = divmod(position, len(rows))
                if epoch != current:
                    current, order = epoch, permutation(len(rows), self.loader.seed, epoch)
                index = int(order[place])
                planned = chosen = self.decoded(rows[index])
                tries = 1
                while chosen.error is not None:
                    if tries == len(rows):
                        raise nothing_readable(planned, tries)
                    chosen = self.decoded(rows[(index + tries) % len(rows)])
                    tries += 1
                yield planned, self.sample(epoch, index, chosen)

    def iterated_samples(self) -> Iterator[tuple[DecodedSample, Sample]]:
        """Yields each stored sample of this process with the resulting sample; an unreadable one is
        replaced by the next readable one."""
        at_once = self.loader.batch_size * self.loader.world_size
        seen = sum(leg.samples for leg in self.loader.before) + self.loader.start_batch * at_once
        position = 0
        waiting: list[tuple[int, DecodedSample]] = []
        for epoch in count():
            for stored in self.loader.rows.epoch(epoch):
                place = (position - seen) % at_once // self.loader.batch_size
                position += 1
                if position <= seen or place != self.loader.rank:
                    continue
                decoded = self.decoded(stored)
                waiting.append((epoch, decoded))
                if decoded.error is None:
                    for planned_epoch, planned in waiting:
                        yield planned, self.sample(planned_epoch, planned.stored.index, decoded)
                    waiting = []
                elif len(waiting) == PATIENCE:
                    raise nothing_readable(waiting[0][1], PATIENCE)

    def sharded_samples(
        self, first_batch: int, num_workers: int
    ) -> Iterator[tuple[DecodedSample, Sample]]:
        """Yields each stored sample in order with the resulting sample; an unreadable one is
        replaced by the next readable one from the buffer."""
        slot = self.loader.rank * num_workers + first_batch % num_workers
        stream = self.shuffled(slot, first_batch // num_workers * self.loader.batch_size)
        ahead: deque[tuple[int, DecodedSample]] = deque()
        while True:
            tries = 0
            while tries == len(ahead) or ahead[tries][1].error is not None:
                if tries == len(self.loader.rows):
                    raise nothing_readable(ahead[0][1], tries)
                if tries == len(ahead):
                    epoch, row = next(stream)
                    ahead.append((epoch, self.decoded(row)))
                else:
                    tries += 1
            chosen = ahead[tries][1]
            epoch, planned = ahead.popleft()
            yield planned, self.sample(epoch, planned.stored.index, chosen)

    def shuffled(self, slot: int, given_out: int) -> Iterator[tuple[int, StoredSample]]:
        """Yields epoch and stored sample of the endless sequence of a worker, without the first
        `given_out`; see `Remainder`. `slot` is the number of the worker among those of all
        processes."""
        rows, seed, num_slots = self.loader.rows, self.loader.seed, self.loader.leg.num_slots
        remainder = Remainder(len(rows), seed, self.loader.before)
        for epoch in count(remainder.first_epoch):
            share = remainder.share(epoch, slot, num_slots)
            if given_out >= len(share):
                given_out -= len(share)
                continue
            order = remainder.order(epoch, slot, num_slots, self.loader.shuffle_buffer)[given_out:]
            first, stop = int(order.min()), int(order.max()) + 1
            wanted = np.zeros(stop - first, bool)
            wanted[order - first] = True
            stream = self.unshuffled(first, stop, permutation(len(rows.sizes), seed, epoch))
            waiting: dict[int, StoredSample] = {}
            read = first
            for place in map(int, order):  # a list would take several times the memory
                while read <= place:
                    row = next(stream)
                    if wanted[read - first]:
                        waiting[read] = row
                    read += 1
                yield epoch, waiting.pop(place)
            given_out = 0

    def unshuffled(self, start: int, stop: int, shards: np.ndarray) -> Iterator[StoredSample]:
        """Yields samples `start` to `stop` of the concatenation of shards."""
        for shard in shards.tolist():
            size = self.loader.rows.sizes[shard]
            if max(start, 0) < min(stop, size):
                yield from self.loader.rows.read_shard(shard, max(start, 0), min(stop, size))
            start, stop = start - size, stop - size

    def decoded(self, stored: StoredSample) -> DecodedSample:
        return DecodedSample.from_stored(stored, self.loader.decode, self.loader.captioned)

    def sample(self, epoch: int, index: int, chosen: DecodedSample) -> Sample:
        """Returns a sample with the random numbers of the planned sample number `index`."""
        rng = np.random.default_rng((self.loader.seed, epoch, index))
        draws = rng.random(self.loader.num_draws, np.float32)
        return Sample(epoch=epoch, stored=chosen.stored, image=chosen.image, draws=draws, rng=rng)


def nothing_readable(first: DecodedSample, tries: int) -> ValueError:
    return ValueError(
        f"None of {tries} consecutive images could be read: check the data set and the column of "
        f"images. The first is {first.stored.key}: {first.error}"
    )
