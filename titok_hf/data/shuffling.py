"""The order of training samples, computed from numbers alone, so that resuming needs no saved
state."""

import numpy as np


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the numbers 0 to n - 1 in the random order of an epoch, `(n,)` int64."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def buffered_order(n: int, buffer_size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the order in which a shuffle buffer emits the samples 0 to n - 1 of a stream.

    The first samples fill the buffer. Then each step emits the sample in a random slot and refills
    the slot with the next sample; after the end of the stream, the rest is emitted in random order.
    This is the buffer of torchdata's `Shuffler` and of `datasets` before version 5 (version 5 emits
    half of the buffer at a time); here the whole order is computed at once. The sample emitted at
    position `t` is among the first `buffer_size + t`.

    Args:
        n: Number of samples in the stream.
        buffer_size: Capacity of the buffer.
        rng: Source of randomness.

    Returns:
        Numbers of the samples in the order of emission, `(n,)` int64.
    """
    if n <= buffer_size:
        return rng.permutation(n)
    slots = rng.integers(buffer_size, size=n - buffer_size)
    # A slot drawn at step t is refilled with sample buffer_size + t. So a draw emits the sample
    # from the previous draw of the same slot, and the first draw the slot's initial sample.
    steps = np.argsort(slots, kind="stable")  # by slot, then by step
    first = np.diff(slots[steps], prepend=-1) != 0
    given_out = np.empty_like(slots)
    given_out[steps] = np.where(first, slots[steps], buffer_size + np.roll(steps, 1))
    last = np.roll(first, -1)
    rest = np.arange(buffer_size)
    rest[slots[steps[last]]] = buffer_size + steps[last]
    return np.concatenate([given_out, rng.permutation(rest)])
