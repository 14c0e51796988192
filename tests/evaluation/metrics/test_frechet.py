import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from titok_hf.evaluation.metrics import (
    BlockedStatistics,
    GaussianStatistics,
    frechet_distance,
    jackknife_frechet,
)


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
    assert frechet_distance(5 * features, 5 * reference) == pytest.approx(
        25 * frechet_distance(features, reference)
    )


def test_it_is_the_formula_with_a_matrix_root(features):
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(70, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    covariance, reference_covariance = np.cov(features.T), np.cov(reference.T)
    squares = ((features.mean(0) - reference.mean(0)) ** 2).sum()
    root = sqrtm(covariance @ reference_covariance).real
    expected = squares + np.trace(covariance + reference_covariance - 2 * root)
    assert frechet_distance(features, reference) == pytest.approx(expected, rel=1e-9)


def test_statistics_and_features_give_the_same(features):
    reference = np.random.default_rng(1).normal(1, 2, size=(40, 6))
    expected = frechet_distance(features, reference)
    moments = GaussianStatistics.from_moments(reference.mean(0), np.cov(reference.T))
    assert frechet_distance(GaussianStatistics.from_features(features), moments) == pytest.approx(
        expected, rel=1e-12
    )
    assert frechet_distance(features, moments) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(torch.tensor(features), torch.tensor(reference)) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("num_features", [5, 300])
def test_it_is_the_matrix_root_of_well_conditioned_covariances(num_features):
    """300 is more than a product takes at once."""
    rng = np.random.default_rng(4)
    covariances = []
    for _ in range(2):
        axes, _ = np.linalg.qr(rng.normal(size=(num_features, num_features)))
        covariances.append((axes * rng.uniform(0.01, 2, num_features)) @ axes.T)
    means = rng.normal(size=(2, num_features))
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(sum(covariances))
    expected -= 2 * np.trace(sqrtm(covariances[0] @ covariances[1])).real
    sides = [
        GaussianStatistics.from_moments(*moments)
        for moments in zip(means, covariances, strict=True)
    ]
    assert frechet_distance(*sides) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(*reversed(sides)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variances", "reference_variances"),
    [
        (np.geomspace(1e-12, 1, 300), np.geomspace(1e-12, 3, 300)),
        (np.geomspace(1e-12, 1, 300), np.geomspace(1, 1e-12, 300)),
        (np.geomspace(1e-20, 1, 300), np.geomspace(1e-20, 1, 300)),
        (np.repeat([0, 1.5], 150), np.ones(300)),
        (np.repeat([0, 1.5], 150), np.repeat([2, 0], 150)),
        (np.repeat([0, 1.5], 150), np.repeat([0, 0.5], 150)),
    ],
)
def test_near_singular_and_singular_covariances_of_the_same_axes(variances, reference_variances):
    """The sum of squared differences of standard deviations, off by what rounding hides in the
    covariances alone."""
    axes, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(300, 300)))
    sides = [
        GaussianStatistics.from_moments(np.zeros(300), (axes * spectrum) @ axes.T)
        for spectrum in (variances, reference_variances)
    ]
    expected = ((np.sqrt(variances) - np.sqrt(reference_variances)) ** 2).sum()
    assert frechet_distance(*sides) == pytest.approx(expected, abs=1e-5)
    assert frechet_distance(*reversed(sides)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("num_rows", [2, 3])
def test_fewer_rows_than_features_give_a_finite_distance(num_rows):
    rng = np.random.default_rng(3)
    few, many = rng.normal(size=(num_rows, 64)), rng.normal(size=(100, 64))
    assert 0 < frechet_distance(few, many) < np.inf
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)


def test_fewer_rows_than_features_give_the_nuclear_norm_of_inner_products():
    """Roots of the eigenvalues of `C1 C2` are singular values of the centered `X1 X2^T / sqrt((n -
    1) (m - 1))`."""
    rng = np.random.default_rng(7)
    features, reference = rng.normal(size=(40, 90)), rng.normal(0.2, 1.5, size=(60, 90))
    centered, reference_centered = features - features.mean(0), reference - reference.mean(0)
    trace_of_root = np.linalg.norm(centered @ reference_centered.T, "nuc") / np.sqrt(39 * 59)
    expected = ((features.mean(0) - reference.mean(0)) ** 2).sum() - 2 * trace_of_root
    expected += (centered**2).sum() / 39 + (reference_centered**2).sum() / 59
    assert frechet_distance(features, reference) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(reference, features) == pytest.approx(expected, rel=1e-10)


def test_a_constant_set_differs_by_its_mean_and_the_others_variance():
    reference = corners((1, 2))
    constant = np.full((3, 2), 7.0)
    assert frechet_distance(constant, reference) == pytest.approx(98 + 4 / 3 * (1 + 4))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 8), st.integers(2, 8))
def test_it_is_symmetric_not_negative_and_blind_to_rotations(
    seed, num_features, num_rows, num_reference_rows
):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(num_rows, num_features))
    reference = rng.normal(size=(num_reference_rows, num_features))
    distance = frechet_distance(points, reference)
    rotation, _ = np.linalg.qr(rng.normal(size=(num_features, num_features)))
    assert distance > -1e-6
    assert frechet_distance(reference, points) == pytest.approx(distance, abs=1e-6)
    assert frechet_distance(points @ rotation, reference @ rotation) == pytest.approx(
        distance, abs=1e-6
    )


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


def blocked(features):
    statistics = BlockedStatistics(features.shape[1])
    for indices in torch.arange(len(features)).split(100):
        statistics.update(features[indices], indices)
    return statistics


def frechet_1d(values, reference):
    return (values.mean() - reference.mean()) ** 2 + (
        values.std(ddof=1) - reference.std(ddof=1)
    ) ** 2


def jackknife_error(distances):
    count = len(distances)
    return math.sqrt((count - 1) / count * sum((d - np.mean(distances)) ** 2 for d in distances))


def test_jackknife_leaves_out_a_block_at_a_time():
    """One feature has a known distance."""
    rng = np.random.default_rng(6)
    values, reference = rng.normal(1, 2, 500), rng.normal(0, 1, 500)
    blocks = np.floor(10 * (np.arange(500) * (math.sqrt(5) - 1) / 2 % 1))
    statistics, of_reference = (
        blocked(torch.tensor(side)[:, None]) for side in (values, reference)
    )
    without = [blocks != block for block in range(10)]
    one_sided = jackknife_error([frechet_1d(values[kept], reference) for kept in without])
    other_sided = jackknife_error([frechet_1d(values, reference[kept]) for kept in without])
    together = jackknife_error([frechet_1d(values[kept], reference[kept]) for kept in without])

    fixed = GaussianStatistics.from_moments(
        reference.mean(keepdims=True), reference.var(ddof=1).reshape(1, 1)
    )
    for measured, error in (
        (jackknife_frechet(statistics, fixed), one_sided),
        (jackknife_frechet(statistics, of_reference), math.hypot(one_sided, other_sided)),
        (jackknife_frechet(statistics, of_reference, paired=True), together),
    ):
        assert measured.value == pytest.approx(frechet_1d(values, reference), rel=1e-9)
        assert measured.standard_error == pytest.approx(error, rel=1e-6)
        assert measured.method == "jackknife over 10 blocks of images"


@pytest.mark.slow
@pytest.mark.parametrize(("num_features", "num_rows"), [(4, 2000), (16, 400)])
@pytest.mark.parametrize("paired", [False, True])
def test_the_standard_error_is_that_of_other_images(num_features, num_rows, paired):
    estimates = []
    for _ in range(80):
        reference = torch.randn(num_rows, num_features)
        noise = torch.randn(num_rows, num_features)
        features = (reference + 0.5 * noise if paired else 1.3 * noise) + 0.2
        estimates.append(jackknife_frechet(blocked(features), blocked(reference), paired))
    spread = np.std([estimate.value for estimate in estimates], ddof=1)
    assert np.mean([estimate.standard_error for estimate in estimates]) == pytest.approx(
        spread, rel=0.3
    )


def test_too_few_images_have_no_standard_error():
    one = BlockedStatistics(2, num_blocks=1)
    one.update(torch.randn(50, 2), torch.arange(50))
    reference = torch.randn(50, 2)
    measured = jackknife_frechet(one, GaussianStatistics.from_features(reference))
    assert measured.value == pytest.approx(frechet_distance(one.total(), reference), rel=1e-12)
    assert measured.standard_error is None
    assert jackknife_frechet(blocked(torch.randn(2, 2)), blocked(reference)).standard_error is None


def test_blocked_statistics_that_do_not_fit_are_errors():
    statistics = blocked(torch.randn(50, 2))
    with pytest.raises(
        ValueError, match=r"as many images in each block.* and statistics without blocks"
    ):
        jackknife_frechet(statistics, statistics.total(), paired=True)
    with pytest.raises(ValueError, match="as many images in each block"):
        jackknife_frechet(statistics, blocked(torch.randn(40, 2)), paired=True)
    with pytest.raises(ValueError, match=r"got \(50, 2\) and \(50, 3\)"):
        jackknife_frechet(statistics, blocked(torch.randn(50, 3)))
    with pytest.raises(ValueError, match=r"two rows .* got 1 and 50"):
        jackknife_frechet(blocked(torch.randn(1, 2)), statistics)
