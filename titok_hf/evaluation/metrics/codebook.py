"""Codebook usage."""

import math

import torch

from ...distributed import sum_over_processes
from ...modeling.checks import check_id_range, check_ids
from .gaussian_statistics import block_of
from .standard_error import Estimate, jackknife_variance


class CodebookUsage:
    """Measures how much of its codebook a discrete tokenizer uses, from codes in batches.

    Args:
        codebook_size: Number of codes.
        num_blocks: Number of blocks of images, of which the jackknife leaves out one at a time.
    """

    def __init__(self, codebook_size: int, num_blocks: int = 10) -> None:
        self.counts = torch.zeros(num_blocks, codebook_size, dtype=torch.int64)

    def update(self, codes: torch.Tensor, indices: torch.Tensor | None = None) -> None:
        """Adds codes.

        Args:
            codes: Integers in [0, codebook_size), `(B, N)` or, without indices, of any shape.
            indices: Positions of the images in the whole evaluation, int64 `(B,)`; only `estimates`
                needs them.
        """
        num_blocks, codebook_size = self.counts.shape
        check_ids(codes.flatten(), "codes", ("n",))
        cells = codes.cpu().long()
        check_id_range(cells, "codes", codebook_size)
        if indices is not None:
            # one bincount counts all blocks: each has `codebook_size` cells
            cells = cells + codebook_size * block_of(indices.cpu(), num_blocks)[:, None]
        self.counts += torch.bincount(cells.flatten(), minlength=self.counts.numel()).view_as(
            self.counts
        )

    def reduce(self) -> None:
        """Adds the codes of all other processes, in every process; call it once, after the last
        batch."""
        self.counts = sum_over_processes(self.counts)

    def compute(self) -> dict[str, float]:
        """Returns `usage`, the share of the codes that occur; `entropy`, that of their frequencies
        in bits; and `perplexity`, 2 to the power of the entropy."""
        if not self.counts.any():
            raise ValueError("Codebook usage needs codes, got none.")
        return statistics_of(self.counts.sum(0))

    def estimates(self) -> dict[str, Estimate]:
        """Returns the values of `compute` with standard errors from a jackknife over blocks of
        images, see `jackknife_frechet`."""
        values = self.compute()
        total, blocks = self.counts.sum(0), [counts for counts in self.counts if counts.any()]
        if len(blocks) < 2:
            return {name: Estimate(value) for name, value in values.items()}
        without = [statistics_of(total - counts) for counts in blocks]
        method = f"jackknife over {len(blocks)} blocks of images"
        return {
            name: Estimate(
                value, jackknife_variance([other[name] for other in without]) ** 0.5, method
            )
            for name, value in values.items()
        }


def statistics_of(counts: torch.Tensor) -> dict[str, float]:
    """Computes usage, perplexity and entropy from the counts of the codes, `(codebook_size,)`."""
    shares = counts.double() / counts.sum()
    entropy = float(-torch.xlogy(shares, shares).sum())
    return {
        "usage": float((counts > 0).double().mean()),
        "perplexity": math.exp(entropy),
        "entropy": entropy / math.log(2),
    }
