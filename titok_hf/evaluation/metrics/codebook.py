"""Use of a codebook."""

import math

import torch

from ...modeling.checks import check_ids
from .processes import sum_over_processes


class CodebookUsage:
    """How much of its codebook a discrete tokenizer uses, from codes that come in batches.

    Args:
        codebook_size: Number of codes.
    """

    def __init__(self, codebook_size: int) -> None:
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)

    def update(self, codes: torch.Tensor) -> None:
        """Adds codes of any shape, integers in [0, codebook_size).

        Raises:
            TypeError: If they are no integers.
            ValueError: If one is out of range.
        """
        check_ids(codes.flatten(), "codes", len(self.counts), ("n",))
        self.counts += torch.bincount(codes.flatten().cpu(), minlength=len(self.counts))

    def reduce(self) -> None:
        """Adds the codes of all other processes, in every process; to be called once, after the last batch."""
        self.counts = sum_over_processes(self.counts)

    def compute(self) -> dict[str, float]:
        """`usage`, the share of the codes that occur; `entropy` of their shares in bits; `perplexity`, 2 to its power.

        Raises:
            ValueError: If there are no codes.
        """
        total = int(self.counts.sum())
        if total == 0:
            raise ValueError("Codebook usage needs codes, got none.")
        shares = self.counts.double() / total
        entropy = float(-torch.xlogy(shares, shares).sum())
        return {
            "usage": float((self.counts > 0).double().mean()),
            "perplexity": math.exp(entropy),
            "entropy": entropy / math.log(2),
        }
