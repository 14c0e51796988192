import numpy as np
import pytest
from counting import lines_run
from scipy.stats import chisquare

from titok_hf.data.shuffling import buffered_order, permutation


def simulate(n, buffer_size, rng):
    """A shuffle buffer, sample by sample."""
    slots = rng.integers(buffer_size, size=n - buffer_size)
    buffer, given_out = list(range(buffer_size)), []
    for sample, slot in zip(range(buffer_size, n), slots, strict=True):
        given_out.append(buffer[slot])
        buffer[slot] = sample
    return given_out + rng.permutation(buffer).tolist()


def test_every_number_comes_once_in_another_order_each_epoch_and_seed():
    orders = [permutation(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10  # of two random orders, 1 on average
    assert np.array_equal(permutation(1000, 1, 2), orders[-1])


def test_each_number_is_as_likely_at_each_place():
    places = np.array(
        [[permutation(4, seed, epoch) for epoch in range(20)] for seed in range(100)]
    ).reshape(-1, 4)
    counts = [np.bincount(place, minlength=4) for place in places.T]
    assert chisquare(np.ravel(counts)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("n", "buffer_size"), [(10, 3), (2000, 10), (6, 5), (50, 49), (7, 1), (300, 100)]
)
def test_the_buffer_gives_out_what_a_simulated_one_does(n, buffer_size):
    for seed in range(5):
        order = buffered_order(n, buffer_size, np.random.default_rng(seed))
        assert order.tolist() == simulate(n, buffer_size, np.random.default_rng(seed))
        assert sorted(order) == list(range(n))


@pytest.mark.parametrize(("n", "buffer_size"), [(0, 3), (1, 1), (5, 5), (40, 1000)])
def test_a_buffer_that_holds_all_permutes_all(n, buffer_size):
    order = buffered_order(n, buffer_size, np.random.default_rng(3))
    assert np.array_equal(order, np.random.default_rng(3).permutation(n))


def test_a_buffer_of_one_does_not_shuffle():
    assert buffered_order(20, 1, np.random.default_rng(0)).tolist() == list(range(20))


def test_the_buffer_holds_no_more_than_its_size():
    order = buffered_order(3000, 64, np.random.default_rng(0))
    read = np.maximum.accumulate(order) + 1
    assert (read - np.arange(3000)).max() == 64


@pytest.mark.parametrize("buffer_size", [10, 100, 1000])
def test_samples_move_by_about_the_size_of_the_buffer(buffer_size):
    order = buffered_order(100_000, buffer_size, np.random.default_rng(0))
    moved = np.abs(order - np.arange(len(order))).mean()
    # a sample waits for a geometric time of mean B, which differs from its mean by 2 B / e on
    # average
    assert moved == pytest.approx(2 * buffer_size / np.e, rel=0.1)


def test_neighbours_are_parted():
    order = buffered_order(50_000, 1000, np.random.default_rng(0))
    assert (np.abs(np.diff(order)) < 10).mean() < 0.02


def test_buffers_differ_by_their_seed():
    orders = [
        buffered_order(1000, 100, np.random.default_rng((0, epoch, slot)))
        for epoch in (0, 1)
        for slot in (0, 1)
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).mean() < 0.05


def test_orders_of_a_million_are_cheap():
    """No Python runs for a number alone."""
    assert lines_run(permutation, 1_300_000, 0, 0) < 1000
    assert lines_run(buffered_order, 1_300_000, 1000, np.random.default_rng(0)) < 1000
