"""The legs of a training, and what they leave of a stream: a run keeps its place in the data when
it is resumed with other numbers of images, processes or workers."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from .shuffling import buffered_order


@dataclass(frozen=True)
class Leg:
    """A part of a training with constant settings.

    Args:
        batches: Number of batches that each process has taken.
        batch_size: Number of samples in a batch of a process.
        world_size: Number of processes.
        num_workers: Number of workers of each process that read, at least 1.
        shuffle_buffer: Number of samples in each worker's shuffle buffer, for shards.
    """

    batches: int
    batch_size: int
    world_size: int
    num_workers: int
    shuffle_buffer: int

    @property
    def samples(self) -> int:
        """Number of samples that all processes have taken."""
        return self.batches * self.batch_size * self.world_size

    @property
    def num_slots(self) -> int:
        """Number of workers of all processes."""
        return self.world_size * self.num_workers

    def given_out(self, slot: int) -> int:
        """Returns how many samples a worker has given out; the workers of a process take turns."""
        turns = range(slot % self.num_workers, self.batches, self.num_workers)
        return len(turns) * self.batch_size


class Remainder:
    """The samples of each epoch of a stream that the earlier legs of a training have left.

    In each leg, every worker takes an equal share of what is left of an epoch, shuffles it in its
    buffer, and goes on with the next epoch.

    Args:
        size: Number of samples in the stream.
        seed: Seed of the order.
        legs: The earlier legs.
    """

    def __init__(self, size: int, seed: int, legs: Sequence[Leg] = ()):
        self.size = size
        self.seed = seed
        self.number = 0  # of the current leg
        self.first_epoch = 0
        self.left: dict[int, np.ndarray] = {}  # places in the stream, by epoch, if not all
        for leg in legs:
            self.take(leg)
            self.number += 1

    def share(self, epoch: int, slot: int, num_slots: int) -> range:
        """Returns the part of what is left of an epoch that a worker takes."""
        size = len(self.left[epoch]) if epoch in self.left else self.size
        return range(size * slot // num_slots, size * (slot + 1) // num_slots)

    def order(self, epoch: int, slot: int, num_slots: int, shuffle_buffer: int) -> np.ndarray:
        """Returns the places in the stream that a worker gives out in an epoch, in its order."""
        share = self.share(epoch, slot, num_slots)
        key = (self.seed, epoch, slot, self.number) if self.number else (self.seed, epoch, slot)
        rng = np.random.default_rng(key)
        order = share.start + buffered_order(len(share), shuffle_buffer, rng)
        return self.left[epoch][order] if epoch in self.left else order

    def take(self, leg: Leg) -> None:
        """Removes what a leg has given out."""
        slots = range(leg.num_slots)
        given_out = [leg.given_out(slot) for slot in slots]
        while True:  # epochs that all workers have finished
            sizes = [len(self.share(self.first_epoch, slot, leg.num_slots)) for slot in slots]
            if any(size > given for size, given in zip(sizes, given_out, strict=True)):
                break
            given_out = [given - size for size, given in zip(sizes, given_out, strict=True)]
            self.left.pop(self.first_epoch, None)
            self.first_epoch += 1
        taken = defaultdict(list)
        for slot, given in zip(slots, given_out, strict=True):
            for epoch in count(self.first_epoch):
                if not given:
                    break
                order = self.order(epoch, slot, leg.num_slots, leg.shuffle_buffer)[:given]
                taken[epoch].append(order)
                given -= len(order)
        for epoch, places in taken.items():
            left = self.left.get(epoch, np.arange(self.size))
            self.left[epoch] = np.setdiff1d(left, np.concatenate(places))


__all__ = ["Leg", "Remainder"]
