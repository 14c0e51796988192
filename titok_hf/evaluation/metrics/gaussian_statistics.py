"""Mean and covariance of features in batches."""

from collections.abc import Iterable

import numpy as np
import torch

from ...distributed import sum_over_processes

COLUMNS = 256  # columns per product, where half of a symmetric matrix is enough
ROWS = 512  # rows per product: fewer take as long, more do not fit the cache


class GaussianStatistics:
    """Count, mean and scatter matrix of features, in float64.

    Each batch is centered on its own mean and merged by the formula of Chan, Golub & LeVeque (1979,
    "Updating formulae and a pairwise algorithm for computing sample variances"), so that features
    far from 0 lose no digits.

    Args:
        num_features: `D`.
        device: Device of the sums.

    Attributes:
        count: Number of rows so far; `None` if only mean and covariance are known.
        mean: `(D,)`.
        scatter: `(D, D)`, the sum of outer products about the mean, of which only the upper
            triangle is valid; the whole covariance if the count is unknown.
    """

    def __init__(self, num_features: int, device: str | torch.device = "cpu") -> None:
        self.count: int | None = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)

    @classmethod
    def from_features(cls, features: np.ndarray | torch.Tensor) -> "GaussianStatistics":
        """Computes the statistics of features `(n, D)`, on their device."""
        if features.ndim != 2:
            raise ValueError(f"Features must have shape (n, D), got {tuple(features.shape)}.")
        is_tensor = isinstance(features, torch.Tensor)
        statistics = cls(features.shape[1], features.device if is_tensor else "cpu")
        for start in range(0, len(features), ROWS):
            rows = features[start : start + ROWS]
            statistics.update(rows if is_tensor else torch.tensor(np.ascontiguousarray(rows)))
        return statistics

    @classmethod
    def from_moments(
        cls, mean: np.ndarray | torch.Tensor, covariance: np.ndarray | torch.Tensor
    ) -> "GaussianStatistics":
        """Makes statistics of unknown count, which can only be compared with, from a mean `(D,)`
        and a covariance `(D, D)`."""
        mean, covariance = torch.as_tensor(mean).double(), torch.as_tensor(covariance).double()
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                "A mean (D,) and a covariance (D, D) are expected, got shapes "
                f"{tuple(mean.shape)} and {tuple(covariance.shape)}."
            )
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError("Mean and covariance must be finite, got NaN or infinity.")
        statistics = cls(0)
        statistics.count, statistics.mean, statistics.scatter = None, mean, covariance
        return statistics

    @property
    def num_features(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> torch.Tensor:
        """The unbiased covariance `(D, D)`, as `np.cov` defines it, of at least two rows."""
        if self.count is None:
            return self.scatter
        if self.count < 2:
            raise ValueError(f"At least two rows of features are needed, got {self.count}.")
        return (self.scatter.triu() + self.scatter.triu(1).T) / (self.count - 1)

    def update(self, features: torch.Tensor) -> None:
        """Adds features `(B, D)`."""
        check_shape(features, self.num_features)
        self.check_count()
        if not len(features):
            return
        total = self.count + len(features)
        rows = self.mean.new_empty(len(features) + 1, self.num_features)
        rows[:-1] = features
        mean = rows[:-1].mean(0)
        check_finite(mean)
        difference = mean - self.mean
        rows[:-1] -= mean
        rows[-1] = (
            difference * (self.count * len(features) / total) ** 0.5
        )  # the difference of the means enters as one more row
        for start in range(0, self.num_features, COLUMNS):
            stop = start + COLUMNS
            self.scatter[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])
        self.mean += difference * (len(features) / total)
        self.count = total

    def merge(self, other: "GaussianStatistics") -> None:
        """Adds the rows of other statistics, whose count must be known, too."""
        self.check_count()
        other.check_count()
        if other.count == 0:
            return
        total = self.count + other.count
        difference = other.mean.to(self.mean.device) - self.mean
        self.scatter += other.scatter.to(self.mean.device)
        self.scatter.addr_(difference, difference, alpha=self.count * other.count / total)
        self.mean += difference * (other.count / total)
        self.count = total

    def reduce(self) -> None:
        """Adds the rows of all other processes, in every process; call it once, after the last
        batch."""
        # shift the scatter of each process to the common mean, then sum
        total = int(sum_over_processes(torch.tensor(self.count)))
        mean = sum_over_processes(self.mean * (self.count / max(total, 1)))
        difference = self.mean - mean
        self.scatter = sum_over_processes(
            self.scatter.addr(difference, difference, alpha=self.count)
        )
        self.mean, self.count = mean, total

    def check_count(self) -> None:
        """Raises `ValueError` if the count is unknown."""
        if self.count is None:
            raise ValueError(
                "Statistics that were made of a mean and a covariance cannot be joined with others."
            )


def block_of(indices: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Returns the block of each image from its position, `indices` `(B,)`: `floor(num_blocks *
    frac(index * 0.618...))`.

    This is Fibonacci hashing (Knuth, The Art of Computer Programming 3, section 6.4). It spreads
    consecutive images, and images at equal steps, evenly over the blocks, so each block has its
    share of every class, whether images are sorted by class or cycle through the classes.
    """
    return (indices * 2654435769 % 2**32) * num_blocks // 2**32


class BlockedStatistics:
    """Statistics of features in several blocks of images, for standard errors by the jackknife.

    The block of an image depends on its index alone, see `block_of`. Each block takes `8 D^2`
    bytes; 10 blocks of 2048 features take 336 MB.

    Args:
        num_features: `D`.
        num_blocks: Number of blocks.
        device: Device of the sums.
    """

    def __init__(
        self, num_features: int, num_blocks: int = 10, device: str | torch.device = "cpu"
    ) -> None:
        self.blocks = [GaussianStatistics(num_features, device) for _ in range(num_blocks)]
        self.waiting: list[list[torch.Tensor]] = [[] for _ in range(num_blocks)]

    @property
    def num_features(self) -> int:
        return self.blocks[0].num_features

    @property
    def counts(self) -> list[int]:
        """Number of rows of each block."""
        return [
            block.count + sum(map(len, rows))
            for block, rows in zip(self.blocks, self.waiting, strict=True)
        ]

    def update(self, features: torch.Tensor, indices: torch.Tensor) -> None:
        """Adds features `(B, D)` of the images at the positions `indices` `(B,)`, int64, in the
        whole evaluation."""
        check_shape(features, self.num_features)
        check_finite(features)
        if indices.shape != features.shape[:1]:
            raise ValueError(
                f"There must be an index for each of {len(features)} rows of features, got "
                f"{tuple(indices.shape)}."
            )
        blocks = block_of(indices, len(self.blocks))
        for block in blocks.unique().tolist():
            self.waiting[block].append(features[(blocks == block).to(features.device)])
            if sum(map(len, self.waiting[block])) >= ROWS:
                self.multiply(block)

    def multiply(self, block: int) -> None:
        """Adds the waiting rows to their block; rows wait since few large products take less time
        than many small ones."""
        if self.waiting[block]:
            self.blocks[block].update(torch.cat(self.waiting[block]))
            self.waiting[block] = []

    def total(self) -> GaussianStatistics:
        """Returns the statistics of all images."""
        return self.merged(range(len(self.blocks)))

    def merged(self, blocks: Iterable[int]) -> GaussianStatistics:
        """Returns the joint statistics of these blocks."""
        merged = GaussianStatistics(self.num_features, self.blocks[0].mean.device)
        for block in blocks:
            self.multiply(block)
            merged.merge(self.blocks[block])
        return merged

    def reduce(self) -> None:
        """Adds the rows of all other processes, in every process; call it once, after the last
        batch."""
        for number, block in enumerate(self.blocks):
            self.multiply(number)
            block.reduce()


def check_shape(features: torch.Tensor, num_features: int) -> None:
    """Raises `ValueError` unless these are features `(B, num_features)`."""
    if features.ndim != 2 or features.shape[1] != num_features:
        raise ValueError(
            f"Features must have shape (B, {num_features}), got {tuple(features.shape)}."
        )


def check_finite(values: torch.Tensor) -> None:
    """Raises `ValueError` if one of these features or means is NaN or infinite."""
    if not values.isfinite().all():
        raise ValueError("Features must be finite, got NaN or infinity.")
