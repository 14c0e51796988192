import numpy as np
import pytest
import torch

from titok_hf.evaluation.metrics import kernel_distance, kernel_distances


def unbiased(x, y):
    """MMD^2 of equation 4 of arXiv 1801.01401, by loops."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    m, n = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_x + within_y - 2 * np.mean([kernel(a, b) for a in x for b in y])


@pytest.fixture
def features():
    return torch.randn(30, 4)


@pytest.fixture
def reference():
    return torch.randn(30, 4) + 0.3


def test_a_subset_of_all_images_gives_the_definition(features, reference):
    expected = unbiased(features.double().numpy(), reference.double().numpy())
    estimate = kernel_distance(features, reference, num_subsets=3, subset_size=30)
    assert estimate.value == pytest.approx(expected, rel=1e-9)
    assert estimate.standard_error is None


def test_subsets_of_two_average_to_all_pairs():
    """Every pair of images is as likely, so their mean tends to the distance of all."""
    features, reference = torch.randn(6, 2), torch.randn(6, 2) + 1
    expected = unbiased(features.double().numpy(), reference.double().numpy())
    distances = kernel_distances(features, reference, num_subsets=4000, subset_size=2)
    assert distances.mean() == pytest.approx(expected, abs=4 * float(distances.std()) / 4000**0.5)
    assert len(distances.round(decimals=9).unique()) <= 15 * 15  # pairs of pairs


def test_a_seed_gives_the_same_subsets(features, reference):
    first, again, other = (
        kernel_distances(features, reference, num_subsets=5, subset_size=10, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_standard_error_is_that_of_other_images():
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(60):
        features = torch.randn(400, 4, generator=generator) + 0.5
        reference = torch.randn(400, 4, generator=generator)
        estimates.append(kernel_distance(features, reference, num_subsets=50, subset_size=50))
    spread = np.std([estimate.value for estimate in estimates], ddof=1)
    assert np.mean([estimate.standard_error for estimate in estimates]) == pytest.approx(
        spread, rel=0.3
    )


def test_the_same_distribution_is_at_0_on_average():
    features = torch.randn(2000, 8)
    distances = kernel_distances(features[:1000], features[1000:], num_subsets=50, subset_size=100)
    assert abs(float(distances.mean())) < 0.1 * float(
        kernel_distances(features, features + 1, 10, 100).mean()
    )
    assert distances.min() < 0 < distances.max()


def test_sets_that_do_not_fit_are_errors(features):
    with pytest.raises(ValueError, match=r"got \(30, 4\) and \(30, 3\)"):
        kernel_distance(features, features[:, :3])
    with pytest.raises(
        ValueError, match=r"Subsets of 1000 images .* got 30 and 30; choose a smaller"
    ):
        kernel_distance(features, features)
    with pytest.raises(ValueError, match="finite"):
        kernel_distance(features, features * torch.nan, subset_size=10)
