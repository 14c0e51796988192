import numpy as np
import pytest
from scipy import ndimage

from titok_hf.data.masking import block_mask, masked_counts


@pytest.mark.parametrize("grid", [(16, 16), (7, 7), (4, 6), (1, 9)])
def test_a_mask_has_exactly_the_number(grid):
    size = grid[0] * grid[1]
    for count in range(size + 1):
        mask = block_mask(grid, count, np.random.default_rng(count))
        assert mask.shape == (size,) and mask.dtype == bool and mask.sum() == count


def test_masks_are_blocks():
    """Half as many parts as scattered patches would have, or fewer."""
    rng = np.random.default_rng(0)
    parts, scattered = 0, 0
    for _ in range(50):
        parts += ndimage.label(block_mask((16, 16), 64, rng).reshape(16, 16))[1]
        random = rng.permutation(256) < 64
        scattered += ndimage.label(random.reshape(16, 16))[1]
    assert parts < scattered / 2


def test_every_patch_may_be_masked():
    rng = np.random.default_rng(0)
    share = np.mean([block_mask((8, 8), 20, rng) for _ in range(2000)], axis=0)
    assert share.mean() == pytest.approx(20 / 64) and share.min() > 0.05 and share.max() < 0.65


def test_counts_are_stratified():
    rng = np.random.default_rng(0)
    edges = np.linspace(0.1, 0.5, 11)
    for _ in range(20):
        counts = masked_counts(20, 1000, rng)
        masked = np.sort(counts[counts > 0])
        assert len(masked) == 10
        assert (edges[:-1] * 1000 - 1 <= masked).all() and (masked <= edges[1:] * 1000).all()
    first = np.mean([masked_counts(20, 1000, rng)[0] > 0 for _ in range(400)])
    assert 0.4 < first < 0.6  # in random order


@pytest.mark.parametrize(
    ("number", "probability", "masked"), [(1, 0.5, 0), (3, 0.5, 1), (4, 1.0, 4)]
)
def test_the_share_of_masked_crops(number, probability, masked):
    counts = masked_counts(number, 100, np.random.default_rng(0), probability)
    assert len(counts) == number and (counts > 0).sum() == masked
