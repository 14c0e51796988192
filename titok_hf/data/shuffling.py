"""The order in which training sees its samples, from numbers alone: nothing of it has to be saved
to go on."""

import numpy as np


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers 0 to n - 1 in the random order of an epoch, `(n,)` int64."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def buffered_order(n: int, buffer_size: int, rng: np.random.Generator) -> np.ndarray:
    """The order in which a shuffle buffer gives out the samples 0 to n - 1 of a stream.

    The first samples fill the buffer. Then a random slot is given out and takes the next sample,
    until the stream ends and the rest comes in random order. This is the buffer of torchdata's
    `Shuffler` and of `datasets` before version 5 (which gives out half of the buffer at a time);
    here the whole order is computed at once. What is given out as number `t` is one of the first
    `buffer_size + t` samples.

    Args:
        n: Samples of the stream.
        buffer_size: Samples that the buffer holds.
        rng: Source of the random numbers.

    Returns:
        Number of the sample that is given out first, second, …: `(n,)` int64.
    """
    if n <= buffer_size:
        return rng.permutation(n)
    slots = rng.integers(buffer_size, size=n - buffer_size)
    # A slot that is drawn at step t holds sample buffer_size + u from then on, where u = t; so what
    # it gives out is what the step before put there that drew the same slot, and at its first draw
    # the sample that it began with.
    steps = np.argsort(slots, kind="stable")  # by slot, then by step
    first = np.diff(slots[steps], prepend=-1) != 0
    given_out = np.empty_like(slots)
    given_out[steps] = np.where(first, slots[steps], buffer_size + np.roll(steps, 1))
    last = np.roll(first, -1)
    rest = np.arange(buffer_size)
    rest[slots[steps[last]]] = buffer_size + steps[last]
    return np.concatenate([given_out, rng.permutation(rest)])
