import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from titok_hf.evaluation import frechet_distance


def corners(scales):
    """Points whose covariance is diagonal: every corner of a box of these half sides."""
    return np.array(list(itertools.product(*((-scale, scale) for scale in scales))), dtype=float)


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(50, 6))


def test_equal_sets_have_distance_0(features):
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-10)


def test_a_shift_counts_squared(features):
    shift = np.array([3, 0, 0, -4, 0, 0])
    assert frechet_distance(features + shift, features) == pytest.approx(25)


@pytest.mark.parametrize(
    ("scales", "reference_scales"),
    [
        ((1, 2, 3), (1, 2, 3)),
        ((1, 2, 3), (3, 2, 1)),
        ((0.5, 4), (2, 1)),
        ((5,), (2,)),
        ((1, 0), (3, 2)),
        ((0, 0), (1, 1)),
    ],
)
def test_standard_deviations_along_the_axes_count_squared(scales, reference_scales):
    points, reference = corners(scales), corners(reference_scales)
    # the variance of +-a over n points is a^2 n / (n - 1)
    factor = len(points) / (len(points) - 1)
    expected = factor * sum((a - b) ** 2 for a, b in zip(scales, reference_scales, strict=True))
    assert frechet_distance(points, reference) == pytest.approx(expected, abs=1e-10)


def test_shift_and_scale_add_up():
    points, reference = corners((1, 1)) + np.array([10, 0]), corners((2, 3))
    assert frechet_distance(points, reference) == pytest.approx(100 + 4 / 3 * (1 + 4))


def test_scaling_all_features_scales_the_distance_squared(features):
    reference = np.random.default_rng(1).normal(1, 2, size=(40, 6))
    assert frechet_distance(5 * features, 5 * reference) == pytest.approx(25 * frechet_distance(features, reference))


def test_it_is_the_formula_with_a_matrix_root(features):
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(70, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    covariance, reference_covariance = np.cov(features.T), np.cov(reference.T)
    squares = ((features.mean(0) - reference.mean(0)) ** 2).sum()
    root = sqrtm(covariance @ reference_covariance).real
    expected = squares + np.trace(covariance + reference_covariance - 2 * root)
    assert frechet_distance(features, reference) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_rows", [2, 3])
def test_fewer_rows_than_features_give_a_finite_distance(num_rows):
    rng = np.random.default_rng(3)
    few, many = rng.normal(size=(num_rows, 64)), rng.normal(size=(100, 64))
    assert 0 < frechet_distance(few, many) < np.inf
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)


def test_a_constant_set_differs_by_its_mean_and_the_others_variance():
    reference = corners((1, 2))
    constant = np.full((3, 2), 7.0)
    assert frechet_distance(constant, reference) == pytest.approx(98 + 4 / 3 * (1 + 4))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 8), st.integers(2, 8))
def test_it_is_symmetric_not_negative_and_blind_to_rotations(seed, num_features, num_rows, num_reference_rows):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(num_rows, num_features))
    reference = rng.normal(size=(num_reference_rows, num_features))
    distance = frechet_distance(points, reference)
    rotation, _ = np.linalg.qr(rng.normal(size=(num_features, num_features)))
    assert distance > -1e-6
    assert frechet_distance(reference, points) == pytest.approx(distance, abs=1e-6)
    assert frechet_distance(points @ rotation, reference @ rotation) == pytest.approx(distance, abs=1e-6)


def test_single_precision_is_computed_in_double(features):
    shifted = (features + 1000).astype(np.float32)
    assert frechet_distance(shifted, shifted.astype(np.float64)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("shape", "reference_shape", "message"),
    [
        ((5, 3), (5, 4), r"got \(5, 3\) and \(5, 4\)"),
        ((5,), (5,), r"\(n, D\)"),
        ((5, 3, 1), (5, 3, 1), r"\(n, D\)"),
        ((1, 3), (5, 3), "two rows .* got 1 and 5"),
        ((5, 3), (0, 3), "two rows .* got 5 and 0"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(shape, reference_shape, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(np.zeros(shape), np.zeros(reference_shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_values_that_are_not_finite_are_errors(features, value, side):
    sets = [features, features.copy()]
    sets[side] = np.where(np.eye(50, 6) > 0, value, features)
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(*sets)
