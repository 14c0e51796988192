import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from titok_hf.evaluation.metrics import density_coverage, precision_recall
from titok_hf.evaluation.metrics.precision_recall import neighbor_radii


def radii(points, k):
    """Distance of each point to its k-th nearest among the others."""
    distances = cdist(points, points)
    return np.array([np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(distances)])


def in_manifold(points, centers, k):
    return np.array(
        [
            any(d <= r for d, r in zip(row, radii(centers, k), strict=True))
            for row in cdist(points, centers)
        ]
    )


@pytest.fixture
def features():
    return torch.randn(40, 3)


@pytest.fixture
def reference():
    return torch.randn(60, 3) * torch.tensor([0.5, 1, 2]) + torch.tensor([1, 0, 0])


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_their_definitions(features, reference, k):
    measured = precision_recall(features, reference, k)
    for name, shares in (
        ("precision", in_manifold(features, reference, k)),
        ("recall", in_manifold(reference, features, k)),
    ):
        assert 0 < shares.mean() < 1
        assert measured[name].value == pytest.approx(shares.mean())
        assert measured[name].standard_error == pytest.approx(
            shares.std(ddof=1) / len(shares) ** 0.5
        )
        assert measured[name].method == "over images, the other set given"


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_their_definitions(features, reference, k):
    inside = cdist(features, reference) < radii(reference, k)  # (n, m)
    measured = density_coverage(features, reference, k)
    for name, values in (("density", inside.sum(1) / k), ("coverage", inside.any(0))):
        assert measured[name].value == pytest.approx(values.mean(), rel=1e-12)
        assert measured[name].standard_error == pytest.approx(
            values.std(ddof=1) / len(values) ** 0.5
        )


def test_more_images_than_a_block(features):
    features, reference = torch.randn(1100, 2), torch.randn(2100, 2) + 0.5
    distances = cdist(features, reference)
    own, others = radii(features, 3), radii(reference, 3)
    measured = precision_recall(features, reference)
    assert measured["precision"].value == pytest.approx((distances <= others).any(1).mean())
    assert measured["recall"].value == pytest.approx((distances <= own[:, None]).any(0).mean())
    inside = distances < radii(reference, 5)
    measured = density_coverage(features, reference)
    assert measured["density"].value == pytest.approx(inside.sum(1).mean() / 5, rel=1e-12)
    assert measured["coverage"].value == pytest.approx(inside.any(0).mean())


def test_equal_and_distant_sets(features):
    same = precision_recall(features, features.flip(0))
    assert (same["precision"].value, same["recall"].value) == (1, 1)
    far = precision_recall(features, features + 100) | density_coverage(features, features + 100)
    assert {name: estimate.value for name, estimate in far.items()} == dict.fromkeys(far, 0)
    assert density_coverage(features, features)["coverage"].value == 1


@pytest.mark.parametrize("offset", [0, 1000])
def test_duplicates_have_no_distance(offset):
    """A radius may be 0: the comparison of precision and recall includes it, that of density
    does not."""
    torch.manual_seed(1)
    points = torch.randn(5, 300) + offset
    four_times = points.repeat(4, 1)
    assert (neighbor_radii(four_times, 3) == 0).all()
    measured = precision_recall(points, four_times, 3) | density_coverage(points, four_times, 3)
    assert measured["precision"].value == 1
    assert measured["recall"].value == 1
    assert (measured["density"].value, measured["coverage"].value) == (0, 0)
    # a copy of all but one value is not one
    points[:, 0] += 1e-3 * (1 + offset)
    assert precision_recall(points, four_times, 3)["precision"].value == 0


def test_near_duplicates_are_told_apart():
    """Distances of 1e-4 between features of length 100 need double precision."""
    base = torch.full((1, 100), 10.0)
    line = torch.zeros(6, 100, dtype=torch.float64)
    line[:, 0] = 1e-4 * torch.tensor([0, 1, 3, 6, 10, 15])
    expected = radii(line.numpy(), 1)
    np.testing.assert_allclose(neighbor_radii(base + line, 1).sqrt(), expected, rtol=1e-4)


def test_density_and_coverage_need_few_images_and_more_reference_than_neighbors(
    features, reference
):
    inside = cdist(features[:4], reference) < radii(reference, 5)
    measured = density_coverage(features[:4], reference, 5)
    assert measured["density"].value == pytest.approx(inside.sum(1).mean() / 5, rel=1e-12)
    assert measured["coverage"].value == pytest.approx(inside.any(0).mean())


def test_sets_that_do_not_fit_are_errors(features):
    with pytest.raises(ValueError, match=r"got \(40, 3\) and \(40, 2\)"):
        precision_recall(features, features[:, :2])
    for sets in ((features, features[:3]), (features[:3], features)):
        with pytest.raises(ValueError, match="needs more than 3 images, got 3"):
            precision_recall(*sets)
    with pytest.raises(ValueError, match="needs more than 5 images, got 5"):
        density_coverage(features, features[:5])
    with pytest.raises(ValueError, match=r"n at least 1, .* got \(0, 3\)"):
        density_coverage(features[:0], features)
    with pytest.raises(ValueError, match="finite"):
        density_coverage(features, features / 0)
