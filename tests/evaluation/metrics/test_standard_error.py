import numpy as np
import pytest
import torch
from scipy.stats import sem

from titok_hf.evaluation.metrics import Estimate
from titok_hf.evaluation.metrics.standard_error import RunningMean


@pytest.fixture
def values():
    return np.random.default_rng(0).exponential(size=37)


def test_the_mean_of_values_and_its_standard_error(values):
    estimate = Estimate.mean(torch.from_numpy(values), "over 37 seeds")
    assert estimate.value == pytest.approx(values.mean(), rel=1e-12)
    assert estimate.standard_error == pytest.approx(sem(values), rel=1e-12)
    assert estimate.method == "over 37 seeds"
    assert Estimate.mean(torch.from_numpy(values)).method == "over images"


def test_shares_are_means_too():
    estimate = Estimate.mean(torch.tensor([True, False, False, True, True]))
    assert estimate.value == 0.6
    assert estimate.standard_error == pytest.approx(sem([1, 0, 0, 1, 1]))


def test_a_single_value_has_no_standard_error():
    assert Estimate.mean(torch.tensor([2.5])) == Estimate(2.5, None, None)
    mean = RunningMean()
    mean.update(torch.tensor([2.5]))
    assert mean.compute() == Estimate(2.5, None, None)


@pytest.mark.parametrize("batch_size", [1, 5, 36, 37])
def test_values_may_come_in_batches(values, batch_size):
    mean = RunningMean()
    for batch in torch.from_numpy(values).split(batch_size):
        mean.update(batch)
    estimate = mean.compute()
    assert estimate.value == pytest.approx(values.mean(), rel=1e-12)
    assert estimate.standard_error == pytest.approx(sem(values), rel=1e-12)
    assert estimate.method == "over images"


def test_small_differences_of_large_values_are_kept():
    """In float32, or as the mean square less the squared mean, nothing would be left of them."""
    values = 1e9 + np.arange(100) / 7
    mean = RunningMean()
    for batch in torch.from_numpy(values).split(9):
        mean.update(batch)
    assert mean.compute().value - 1e9 == pytest.approx(np.mean(np.arange(100) / 7), rel=1e-6)
    assert mean.compute().standard_error == pytest.approx(sem(np.arange(100) / 7), rel=1e-6)


def test_half_precision_and_shares_are_summed_in_float64():
    mean = RunningMean()
    for _ in range(3000):
        mean.update(torch.full((1,), 1.5, dtype=torch.bfloat16))
    assert mean.compute() == Estimate(1.5, 0.0, "over images")
    shares = RunningMean()
    shares.update(torch.tensor([True, False]))
    shares.update(torch.tensor([True, True, False]))
    assert shares.compute().value == pytest.approx(0.6)
    assert shares.compute().standard_error == pytest.approx(sem([1, 0, 1, 1, 0]))


def test_means_of_other_processes_are_joined(values):
    whole, empty = RunningMean(), RunningMean()
    parts = [RunningMean(), RunningMean()]
    parts[0].update(torch.from_numpy(values[:30]))
    parts[1].update(torch.from_numpy(values[30:]))
    for part in (empty, parts[0], empty, parts[1], empty):
        whole.merge(part.moments)
    assert whole.compute().value == pytest.approx(values.mean(), rel=1e-12)
    assert whole.compute().standard_error == pytest.approx(sem(values), rel=1e-12)
    assert torch.equal(empty.moments, torch.zeros(3).double())


def test_one_process_alone_is_all_of_them(values):
    mean = RunningMean()
    mean.update(torch.from_numpy(values))
    expected = mean.compute()
    mean.reduce()
    assert mean.compute() == expected
