"""Precision, recall, density and coverage: metrics on nearest neighbours of features.

They need the features of both sets, `4 D` bytes per image, and compute distances in float64 for a
block of 512 images at a time, so memory grows with `n`, not with `n^2`.
"""

from collections.abc import Iterator

import torch

from .standard_error import Estimate

ROWS = 512
METHOD = "over images, the other set given"


def precision_recall(
    features: torch.Tensor, reference: torch.Tensor, k: int = 3
) -> dict[str, Estimate]:
    """Computes improved precision and recall (arXiv 1904.06991) as ADM's evaluator does, but in
    float64 instead of float16.

    An image is in the manifold of a set if its distance to some image of the set is at most the
    distance of that image to its `k`-th neighbour.

    Args:
        features: `(n, D)`, of the evaluated images, n > k.
        reference: `(m, D)`, of the real images, m > k. ADM compares 10,000 real images with 50,000
            samples.
        k: Number of the neighbour that gives the radius; an image is not its own neighbour.

    Returns:
        `precision`, the share of `features` in the manifold of `reference`; `recall`, the reverse.
    """
    check_sets(features, reference)
    radii, reference_radii = neighbor_radii(features, k), neighbor_radii(reference, k)
    precise = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=features.device)
    for rows, distances in distance_blocks(features, reference):  # (b, m)
        precise[rows] = (distances <= reference_radii).any(1)
        recalled |= (distances <= radii[rows, None]).any(0)
    return {"precision": Estimate.mean(precise, METHOD), "recall": Estimate.mean(recalled, METHOD)}


def density_coverage(
    features: torch.Tensor, reference: torch.Tensor, k: int = 5
) -> dict[str, Estimate]:
    """Computes density and coverage (arXiv 2002.09797), with the strict comparison of the authors'
    package `prdc`.

    Args:
        features: `(n, D)`, of the evaluated images.
        reference: `(m, D)`, of the real images, m > k.
        k: Number of the neighbour that gives the radius of a real image, as in `precision_recall`.

    Returns:
        `density`, the mean over `features` of the number of real images within whose radius they
        are, divided by `k`, which may exceed 1; `coverage`, the share of `reference` with one of
        `features` within its radius.
    """
    check_sets(features, reference)
    radii = neighbor_radii(reference, k)
    densities = torch.zeros(len(features), dtype=torch.float64, device=features.device)
    covered = torch.zeros(len(reference), dtype=torch.bool, device=features.device)
    for rows, distances in distance_blocks(features, reference):  # (b, m)
        inside = distances < radii
        densities[rows] = inside.sum(1).double() / k
        covered |= inside.any(0)
    return {"density": Estimate.mean(densities, METHOD), "coverage": Estimate.mean(covered, METHOD)}


def neighbor_radii(features: torch.Tensor, k: int) -> torch.Tensor:
    """Computes the squared distance `(n,)` of each of `(n, D)` to its `k`-th nearest other row; raises
    `ValueError` if there are not more than `k`."""
    if len(features) <= k:
        raise ValueError(
            f"The {k}-th nearest neighbour needs more than {k} images, got {len(features)}."
        )
    radii = torch.empty(len(features), dtype=torch.float64, device=features.device)
    for rows, distances in distance_blocks(features, features):
        distances[:, rows].fill_diagonal_(torch.inf)  # an image is not its own neighbour
        radii[rows] = distances.topk(k, largest=False).values[:, -1]
    return radii


def distance_blocks(
    features: torch.Tensor, others: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields blocks of rows of `features`, each with its squared distances to all of `others`,
    `(b, m)` in float64.

    The distances are `|x|^2 - 2 x.y + |y|^2`, and 0 where that is below its rounding error, `D *
    eps * (|x|^2 + |y|^2)`. So equal features have the distance 0, as do features that differ by a
    millionth of their length.
    """
    rounding = features.shape[1] * torch.finfo(torch.float64).eps
    for start in range(0, len(features), ROWS):
        block = features[start : start + ROWS].double()
        norms = block.square().sum(1, keepdim=True)  # (b, 1)
        distances = []
        for other in others.split(4 * ROWS):
            other = other.double()
            sums = norms + other.square().sum(1)  # (b, c)
            squares = torch.addmm(sums, block, other.T, alpha=-2)
            distances.append(squares.where(squares > rounding * sums, 0))
        yield slice(start, start + len(block)), torch.cat(distances, dim=1)


def check_sets(features: torch.Tensor, reference: torch.Tensor) -> None:
    """Raises `ValueError` unless these are finite `(n, D)` and `(m, D)`, n at least 1."""
    if (
        features.ndim != 2
        or reference.ndim != 2
        or features.shape[1] != reference.shape[1]
        or not len(features)
    ):
        raise ValueError(
            f"Features must have shapes (n, D), n at least 1, and (m, D), got {tuple(features.shape)} and "
            f"{tuple(reference.shape)}."
        )
    if not (features.isfinite().all() and reference.isfinite().all()):
        raise ValueError("Features must be finite, got NaN or infinity.")
