"""Masks of patches for masked image modeling: blocks as in BEiT, exact numbers as in DINOv3."""

import math

import numpy as np

MIN_BLOCK = 4  # patches
ASPECT = math.log(1 / 0.3)  # aspect ratios are log-uniform in [0.3, 1 / 0.3]
TRIES = 10


def masked_counts(
    num_crops: int,
    num_patches: int,
    rng: np.random.Generator,
    probability: float = 0.5,
    ratios: tuple[float, float] = (0.1, 0.5),
) -> np.ndarray:
    """Draws the number of masked patches of each crop of a batch.

    `int(probability * num_crops)` crops are masked. Their shares are stratified, as in DINOv2: the
    i-th of n is uniform in the i-th of n equal parts of `ratios`; then they are shuffled.

    Args:
        num_crops: Number of crops in the global batch, whatever the number of processes.
        num_patches: Number of patches of a crop.
        rng: Source of randomness.
        probability: Share of the crops that are masked.
        ratios: Least and largest share of masked patches of a masked crop.

    Returns:
        The numbers `(num_crops,)`, 0 for crops without a mask.
    """
    num_masked = int(probability * num_crops)
    edges = np.linspace(*ratios, num_masked + 1)
    shares = rng.uniform(edges[:-1], edges[1:])
    counts = np.zeros(num_crops, np.int64)
    counts[:num_masked] = (shares * num_patches).astype(np.int64)
    return rng.permutation(counts)


def block_mask(grid: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a mask of exactly `count` patches: random blocks (BEiT, arXiv 2106.08254, algorithm 1),
    and single patches where no further block fits (DINOv3).

    Args:
        grid: Rows and columns of patches.
        count: Number of masked patches.
        rng: Source of randomness.

    Returns:
        The mask `(rows * columns,)` in raster order, true where a patch is masked.
    """
    rows, columns = grid
    mask = np.zeros(grid, bool)
    missing, tries = count, 0
    while missing and tries < TRIES:
        area = rng.uniform(min(MIN_BLOCK, missing), missing)
        aspect = math.exp(rng.uniform(-ASPECT, ASPECT))
        height, width = (round(math.sqrt(area * x)) for x in (aspect, 1 / aspect))
        tries += 1
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        block = mask[top : top + height, left : left + width]
        added = block.size - block.sum()
        if 0 < added <= missing:
            block[:] = True
            missing, tries = missing - int(added), 0
    free = np.flatnonzero(~mask)
    mask.flat[rng.choice(free, missing, replace=False)] = True
    return mask.ravel()


__all__ = ["block_mask", "masked_counts"]
