import math

import numpy as np
import pytest
import torch

from titok_hf.evaluation.metrics import BlockedStatistics, GaussianStatistics


def correlated(num_rows, num_features, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_rows, num_features)) @ rng.normal(size=(num_features, num_features))


def in_batches(features, batch_size):
    statistics = GaussianStatistics(features.shape[1])
    for batch in torch.tensor(features).split(batch_size):
        statistics.update(batch)
    return statistics


def assert_moments(statistics, features, **tolerance):
    assert statistics.count == len(features)
    np.testing.assert_allclose(statistics.mean, features.mean(0), **tolerance)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), **tolerance)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_give_the_moments_of_all_rows(batch_size):
    features = correlated(50, 6)
    assert_moments(in_batches(features, batch_size), features, rtol=1e-12, atol=1e-12)


def test_more_columns_than_a_product_takes_at_once():
    features = correlated(2100, 300)
    assert_moments(GaussianStatistics.from_features(features), features, rtol=1e-9, atol=1e-9)
    assert_moments(
        GaussianStatistics.from_features(torch.tensor(features)), features, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("batch_size", [3, 40])
def test_features_far_from_0_lose_no_digits(batch_size):
    features = np.random.default_rng(0).integers(-8, 8, size=(40, 5)).astype(float)
    statistics = in_batches(features + 2.0**30, batch_size)  # squares would need 60 bits and more
    np.testing.assert_allclose(
        statistics.covariance, np.cov(features, rowvar=False), rtol=1e-6, atol=1e-6
    )


def test_single_precision_is_summed_in_double():
    features = correlated(1000, 4).astype(np.float32)
    assert_moments(in_batches(features, 64), features.astype(np.float64), rtol=1e-12, atol=1e-12)


def test_merged_statistics_are_those_of_all_rows():
    features = correlated(60, 5)
    merged = GaussianStatistics(5)
    for part in (features[:0], features[:1], features[1:40], features[40:]):
        merged.merge(GaussianStatistics.from_features(part))
    assert_moments(merged, features, rtol=1e-12, atol=1e-12)


def test_moments_are_kept_and_take_no_rows():
    features = correlated(30, 3)
    statistics = GaussianStatistics.from_moments(features.mean(0), np.cov(features.T))
    assert statistics.count is None
    assert statistics.num_features == 3
    np.testing.assert_array_equal(statistics.mean, features.mean(0))
    np.testing.assert_array_equal(statistics.covariance, np.cov(features.T))
    with pytest.raises(ValueError, match="cannot be joined"):
        statistics.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="cannot be joined"):
        GaussianStatistics(3).merge(statistics)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (np.zeros(3), np.zeros((2, 2)), r"got shapes \(3,\) and \(2, 2\)"),
        (np.zeros((1, 3)), np.zeros((3, 3)), r"got shapes \(1, 3\) and \(3, 3\)"),
        (np.array([0, np.nan]), np.eye(2), "finite"),
        (np.zeros(2), np.full((2, 2), np.inf), "finite"),
    ],
)
def test_moments_that_do_not_fit_are_errors(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        GaussianStatistics.from_moments(mean, covariance)


def test_features_that_do_not_fit_are_errors():
    statistics = GaussianStatistics(3)
    with pytest.raises(ValueError, match=r"shape \(B, 3\), got \(2, 4\)"):
        statistics.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"shape \(n, D\), got \(2, 3, 1\)"):
        GaussianStatistics.from_features(np.zeros((2, 3, 1)))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="finite"):
            statistics.update(torch.tensor([[0, value, 0]]))
        with pytest.raises(ValueError, match="finite"):
            BlockedStatistics(3).update(torch.tensor([[0, value, 0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"index for each of 2 rows of features, got \(3,\)"):
        BlockedStatistics(3).update(torch.zeros(2, 3), torch.arange(3))
    with pytest.raises(ValueError, match=r"two rows .* got 0"):
        _ = statistics.covariance


def test_blocks_depend_on_the_index_alone():
    features = correlated(1500, 4)
    golden = (math.sqrt(5) - 1) / 2
    expected = np.floor(10 * (np.arange(1500) * golden % 1)).astype(int)
    in_order, shuffled = BlockedStatistics(4), BlockedStatistics(4)
    for indices in torch.arange(1500).split(64):
        in_order.update(torch.tensor(features)[indices], indices)
    for indices in torch.randperm(1500).split(700):
        shuffled.update(torch.tensor(features)[indices], indices)
    for statistics in (in_order, shuffled):
        assert statistics.counts == np.bincount(expected).tolist()
        assert_moments(statistics.total(), features, rtol=1e-11, atol=1e-11)
        for block in range(10):
            assert_moments(
                statistics.merged([block]), features[expected == block], rtol=1e-11, atol=1e-11
            )


@pytest.mark.parametrize(
    "classes", [np.arange(5000) // 50, np.arange(5000) % 100, np.arange(5000) % 10]
)
def test_each_block_has_its_share_of_each_class(classes):
    """The images are of 10 or 100 classes, sorted by class or alternating."""
    statistics = BlockedStatistics(1 + classes.max())
    statistics.update(
        torch.nn.functional.one_hot(torch.tensor(classes)).float(), torch.arange(5000)
    )
    expected = 1 / (1 + classes.max())
    for block in range(10):
        shares = statistics.merged([block]).mean
        assert expected * 0.5 < shares.min() < shares.max() < expected * 1.5
