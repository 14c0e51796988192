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
    """Kernel distance, KID with Inception's features (arXiv 1801.01401): the mean of
    `kernel_distances`.

    Its standard error is for other images of the same kind. With `s` the standard deviation over
    subsets of `m` of `n` images, in the smaller set, it is `s * sqrt(1 / num_subsets + m / (n -
    m))`: a part for the number of subsets, and one for the images, since a subset varies with `1 /
    m - 1 / n` given the images, and all of them vary with `1 / n`. Where both sets have the same
    distribution it is too large. Papers quote `s` itself as +-.

    Args:
        features, reference, num_subsets, subset_size, seed: As for `kernel_distances`.

    Returns:
        The distance, not multiplied by 1000; no standard error if the subsets hold all images of a
        set, or there is one only.

    Raises:
        ValueError: As `kernel_distances` does.
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
    """Unbiased squared maximum mean discrepancies of random subsets (arXiv 1801.01401, section 3).

    The kernel is `(x.y / D + 1)^3`, in float64.

    Args:
        features: `(n, D)` of the judged images.
        reference: `(m, D)` of the real ones.
        num_subsets: How many subsets are drawn.
        subset_size: Images in each, all different, of either set.
        seed: Of the subsets.

    Returns:
        `(num_subsets,)` in float64; a value below 0 is possible, since they are unbiased.

    Raises:
        ValueError: If the shapes do not match, a set is smaller than a subset, or values are not
            finite.
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
        pairs = sum(values.sum() - values.trace() for values in within) / (
            subset_size * (subset_size - 1)
        )
        distances[subset] = pairs - 2 * kernel(x, y).mean()
    return distances


def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`(x.y / D + 1)^3` `(n, m)` of `(n, D)` and `(m, D)`."""
    return (x @ y.T / x.shape[1] + 1) ** 3
