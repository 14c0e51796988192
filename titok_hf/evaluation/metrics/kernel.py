"""Kernel Inception Distance."""

import torch

from .standard_error import Estimate


def kernel_distance(
    features: torch.Tensor,
    reference: torch.Tensor,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Computes the kernel distance, which is KID with Inception's features (arXiv 1801.01401): the
    mean of `kernel_distances`.

    Its standard error is that over other images of the same kind. With `s` the standard deviation
    over subsets of `m` of the `n` images of the smaller set, it is `s * sqrt(1 / num_subsets + m /
    (n - m))`: one part for the number of subsets and one for the images, since the variance of a
    subset is proportional to `1 / m - 1 / n` given the images, and that of all images to `1 / n`.
    It is too large if both sets have the same distribution. Papers quote `s` itself as +-.

    Args:
        features, reference, num_subsets, subset_size, seed: Same as in `kernel_distances`.

    Returns:
        The distance, not multiplied by 1000; without a standard error if the subsets hold all
        images of a set, or there is only one subset.
    """
    distances = kernel_distances(features, reference, num_subsets, subset_size, seed=seed)
    num_images = min(len(features), len(reference))
    if num_subsets == 1 or num_images == subset_size:
        return Estimate(float(distances.mean()))
    error = (
        float(distances.std()) * (1 / num_subsets + subset_size / (num_images - subset_size)) ** 0.5
    )
    return Estimate(
        float(distances.mean()), error, f"over {num_subsets} subsets of {subset_size} images"
    )


def kernel_distances(
    features: torch.Tensor,
    reference: torch.Tensor,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> torch.Tensor:
    """Computes unbiased squared maximum mean discrepancies of random subsets (arXiv 1801.01401,
    section 3), with the kernel `(x.y / D + 1)^3` in float64.

    Args:
        features: `(n, D)`, of the evaluated images.
        reference: `(m, D)`, of the real images.
        num_subsets: Number of random subsets.
        subset_size: Number of different images of each set in a subset.
        seed: Random seed of the subsets.

    Returns:
        `(num_subsets,)` in float64; values can be negative, since the estimator is unbiased.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"Features must have shapes (n, D) and (m, D), got {tuple(features.shape)} and "
            f"{tuple(reference.shape)}."
        )
    if not 2 <= subset_size <= min(len(features), len(reference)):
        raise ValueError(
            f"Subsets of {subset_size} images need as many in each set, and two at least, got "
            f"{len(features)} and {len(reference)}; choose a smaller `subset_size`."
        )
    if not (features.isfinite().all() and reference.isfinite().all()):
        raise ValueError("Features must be finite, got NaN or infinity.")
    generator = torch.Generator().manual_seed(seed)
    distances = torch.empty(num_subsets, dtype=torch.float64)
    for subset in range(num_subsets):
        x, y = (
            side[
                torch.randperm(len(side), generator=generator)[:subset_size].to(side.device)
            ].double()
            for side in (features, reference)
        )
        within = [kernel(side, side) for side in (x, y)]
        # the diagonal is left out, which makes the estimate unbiased
        pairs = sum(values.sum() - values.trace() for values in within) / (
            subset_size * (subset_size - 1)
        )
        distances[subset] = pairs - 2 * kernel(x, y).mean()
    return distances


def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Computes the kernel `(x.y / D + 1)^3`, `(n, m)`, of `(n, D)` and `(m, D)`."""
    return (x @ y.T / x.shape[1] + 1) ** 3
