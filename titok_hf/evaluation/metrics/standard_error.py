"""Measured values with their standard errors."""

from dataclasses import dataclass

import torch
from accelerate.utils import gather_object


@dataclass(frozen=True)
class Estimate:
    """A measured value.

    Args:
        value: The value.
        standard_error: Estimated standard deviation of the value over repetitions of the
            measurement; `None` where it cannot be estimated.
        method: How the standard error was estimated, such as `"over images"` or `"jackknife over
            10 blocks of images"`.
    """

    value: float
    standard_error: float | None = None
    method: str | None = None

    @classmethod
    def mean(cls, values: torch.Tensor, method: str = "over images") -> "Estimate":
        """Returns the mean of independent values `(n,)`; a standard error needs two of them."""
        values = values.double()
        error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
        return cls(float(values.mean()), error, method if error is not None else None)


def jackknife_variance(values: list[float]) -> float:
    """Returns `(B - 1) / B * sum_b (d_b - mean(d))^2` for `B` values, each without one block."""
    return float(torch.tensor(values).double().var(correction=0) * (len(values) - 1))


class RunningMean:
    """The mean, in float64, of values that come in batches, and its standard error."""

    def __init__(self) -> None:
        self.moments = torch.zeros(
            3, dtype=torch.float64
        )  # count, mean, sum of squares about the mean

    def update(self, values: torch.Tensor) -> None:
        """Adds values `(n,)`."""
        values = values.cpu().double()  # Apple's devices have no float64
        self.merge(
            torch.stack(
                [
                    torch.tensor(len(values)).double(),
                    values.mean(),
                    values.var(correction=0) * len(values),
                ]
            )
        )

    def merge(self, moments: torch.Tensor) -> None:
        """Adds the count, mean and sum of squares `(3,)` of other values."""
        (count, mean, squares), (other_count, other_mean, other_squares) = self.moments, moments
        total = count + other_count
        if total:
            difference = other_mean - mean
            self.moments = torch.stack(
                [
                    total,
                    mean + difference * other_count / total,
                    squares + other_squares + difference**2 * count * other_count / total,
                ]
            )

    def reduce(self) -> None:
        """Joins the values of all processes, in every process."""
        everyones = gather_object([self.moments])
        self.moments = torch.zeros_like(self.moments)
        for moments in everyones:
            self.merge(moments)

    def compute(self) -> Estimate:
        """Returns the mean; a standard error needs two values."""
        count, mean, squares = self.moments.tolist()
        if count < 2:
            return Estimate(mean)
        return Estimate(mean, (squares / (count - 1) / count) ** 0.5, "over images")
