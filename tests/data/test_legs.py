"""Trainings that go on with other batches, processes or workers: no sample comes twice in an epoch."""

from itertools import product

import numpy as np
import pytest

from titok_hf.data.samples import IndexedSamples

from .loading import N, assert_equal, make_loader, seen, take

pytestmark = pytest.mark.slow

SETTINGS = [(4, 1, 0), (3, 2, 1), (1, 3, 2), (5, 1, 2), (2, 4, 0)]  # batch, processes, workers


def train(rows, settings, batches, legs=()):
    """Takes batches on every process; returns the epochs and numbers of their samples, and the legs."""
    batch_size, world_size, num_workers = settings
    samples = []
    for rank in range(world_size):
        loader = make_loader(
            rows, batch_size, rank=rank, world_size=world_size, num_workers=num_workers, legs=legs
        )
        samples += seen(take(loader, batches))
    return samples, loader.legs(batches)


@pytest.mark.parametrize("seed", range(6))
def test_every_sample_still_comes_once_an_epoch(rows, seed):
    """The legs have random lengths and settings."""
    rng = np.random.default_rng(seed)
    legs, samples = [], []
    for number in rng.integers(len(SETTINGS), size=5):
        more, legs = train(rows, SETTINGS[number], int(rng.integers(1, 4)), legs)
        samples += more
    assert len(samples) == len({*samples}) == sum(leg.samples for leg in legs)
    if isinstance(rows, IndexedSamples):  # workers of a stream may be an epoch apart
        whole, rest = divmod(len(samples), N)
        assert sorted(samples)[: whole * N] == [*product(range(whole), range(N))]
        assert {epoch for epoch, _ in samples} == {*range(whole + bool(rest))}


@pytest.mark.parametrize("first", [(4, 1, 0), (2, 2, 2)])
def test_what_is_left_of_an_epoch_comes_next(rows, first):
    samples, legs = train(rows, first, 2)
    rest, _ = train(rows, (N - len(samples), 1, 0), 1, legs)
    assert sorted(samples + rest) == [(0, number) for number in range(N)]


def test_equal_settings_go_on_as_if_nothing_had_been(rows):
    alone = take(make_loader(rows), 12)
    legs = []
    for start in (0, 5, 9):
        loader = make_loader(rows, legs=legs)
        assert_equal(take(loader, 3), alone[start : start + 3])
        legs = loader.legs(5 if start == 0 else 4)
    assert len(legs) == 1
