"""Mean and covariance of features that come in batches."""

from collections.abc import Iterable

import numpy as np
import torch

from ...distributed import sum_over_processes

COLUMNS = 256  # that a product takes at once where half of a symmetric matrix is enough
ROWS = 512  # that are worth a product: fewer cost as much, more fall out of the cache


class GaussianStatistics:
    """Count, mean and scatter matrix of features, in float64.

    Each batch is centered on its own mean and merged by the formula of Chan, Golub & LeVeque (1979,
    "Updating formulae and a pairwise algorithm for computing sample variances"), so features far
    from 0 lose no digits.

    Args:
        num_features: `D`.
        device: Where the sums are.

    Attributes:
        count: Rows so far; `None` if only mean and covariance are known.
        mean: `(D,)`.
        scatter: `(D, D)`, the sum of outer products about the mean, of which only the upper
            triangle is kept up; the covariance itself, whole, if there is no count.
    """

    def __init__(self, num_features: int, device: str | torch.device = "cpu") -> None:
        self.count: int | None = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)

    @classmethod
    def from_features(cls, features: np.ndarray | torch.Tensor) -> "GaussianStatistics":
        """Statistics of features `(n, D)`, on their device.

        Raises:
            ValueError: If the shape is another, or values are not finite.
        """
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
        """Statistics of unknown count, to compare with, from a mean `(D,)` and a covariance `(D,
        D)`.

        Raises:
            ValueError: If the shapes do not match, or values are not finite.
        """
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
        """The unbiased covariance `(D, D)`, as `np.cov` defines it.

        Raises:
            ValueError: If there are less than two rows.
        """
        if self.count is None:
            return self.scatter
        if self.count < 2:
            raise ValueError(f"At least two rows of features are needed, got {self.count}.")
        return (self.scatter.triu() + self.scatter.triu(1).T) / (self.count - 1)

    def update(self, features: torch.Tensor) -> None:
        """Adds features `(B, D)`.

        Raises:
            ValueError: If the shape is another, values are not finite, or the count is unknown.
        """
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
        )  # what the means add is one row more
        for start in range(0, self.num_features, COLUMNS):
            stop = start + COLUMNS
            self.scatter[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])
        self.mean += difference * (len(features) / total)
        self.count = total

    def merge(self, other: "GaussianStatistics") -> None:
        """Adds the rows that other statistics have seen.

        Raises:
            ValueError: If either count is unknown.
        """
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
        """Adds the rows of all other processes, in every process; to be called once, after the last
        batch."""
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
    """The block `(B,)` of the images at the positions `indices` `(B,)`: `floor(num_blocks *
    frac(index * 0.618...))`.

    This is Fibonacci hashing (Knuth, The Art of Computer Programming 3, section 6.4). Consecutive
    images, and images at equal steps, are spread evenly over the blocks, so each has its share of
    each class whether images are sorted by class or classes take turns.
    """
    return (indices * 2654435769 % 2**32) * num_blocks // 2**32


class BlockedStatistics:
    """Statistics of features in several blocks of images, from which the spread of what is computed
    on them is told.

    The block of an image depends on its index alone, see `block_of`. Each block takes `8 D^2`
    bytes: 10 blocks of 2048 features 336 MB.

    Args:
        num_features: `D`.
        num_blocks: How many blocks.
        device: Where the sums are.
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
        """Rows of each block."""
        return [
            block.count + sum(map(len, rows))
            for block, rows in zip(self.blocks, self.waiting, strict=True)
        ]

    def update(self, features: torch.Tensor, indices: torch.Tensor) -> None:
        """Adds features `(B, D)` of images at the positions `indices` `(B,)`, int64, in the whole
        evaluation.

        Raises:
            ValueError: If the shapes are others, or values are not finite.
        """
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
        """Adds the rows that wait to their block: few large products take less time than many small
        ones."""
        if self.waiting[block]:
            self.blocks[block].update(torch.cat(self.waiting[block]))
            self.waiting[block] = []

    def total(self) -> GaussianStatistics:
        """The statistics of all images."""
        return self.merged(range(len(self.blocks)))

    def merged(self, blocks: Iterable[int]) -> GaussianStatistics:
        """The statistics of these blocks together."""
        merged = GaussianStatistics(self.num_features, self.blocks[0].mean.device)
        for block in blocks:
            self.multiply(block)
            merged.merge(self.blocks[block])
        return merged

    def reduce(self) -> None:
        """Adds the rows of all other processes, in every process; to be called once, after the last
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
    """Raises `ValueError` if one of these features, or of their sums, is NaN or infinite."""
    if not values.isfinite().all():
        raise ValueError("Features must be finite, got NaN or infinity.")
