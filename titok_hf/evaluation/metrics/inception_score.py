"""Inception Score."""

import torch

from ...distributed import sum_over_processes
from ...modeling.checks import check_id_range, check_ids
from .standard_error import Estimate


class InceptionScore:
    """Inception Score (arXiv 1606.03498): `exp(mean KL(p(y|x) || p(y)))`, averaged over equal parts
    of the images.

    The parts are consecutive, as in ADM's evaluator (openai/guided-diffusion,
    `evaluations/evaluator.py`), whose parts are 5000 of 50,000 images in the order of the file.
    Only sums are kept, in float64.

    Args:
        num_images: Number of images in the whole evaluation.
        num_classes: Number of logits per image.
        num_splits: Number of parts; their sizes differ by one image at most.
        split_size: Images per part, instead of the number of parts; the last part may be smaller.
    """

    def __init__(
        self, num_images: int, num_classes: int, num_splits: int = 10, split_size: int | None = None
    ) -> None:
        num_splits = num_splits if split_size is None else -(-num_images // split_size)
        if not 1 <= num_splits <= num_images:
            raise ValueError(
                f"Inception Score needs an image at least in each of its parts, got {num_images} "
                f"images and {num_splits} parts; choose fewer splits."
            )
        self.num_images = num_images
        self.split_size = split_size
        self.num_splits = num_splits
        self.counts = torch.zeros(num_splits, dtype=torch.int64)
        self.negative_entropies = torch.zeros(num_splits, dtype=torch.float64)  # sums of p log p
        self.probabilities = torch.zeros(num_splits, num_classes, dtype=torch.float64)  # sums of p

    def update(self, logits: torch.Tensor, indices: torch.Tensor) -> None:
        """Adds images.

        Args:
            logits: `(B, K)`.
            indices: Positions of the images in the whole evaluation, int64 `(B,)`.
        """
        num_classes = self.probabilities.shape[1]
        if logits.ndim != 2 or logits.shape[1] != num_classes:
            raise ValueError(
                f"Logits must have shape (B, {num_classes}), got {tuple(logits.shape)}."
            )
        check_ids(indices, "indices", (len(logits),))
        check_id_range(indices, "indices", self.num_images)
        if not logits.isfinite().all():
            raise ValueError("Logits must be finite, got NaN or infinity.")
        probabilities = logits.cpu().double().softmax(-1)
        indices = indices.cpu()
        if self.split_size is None:
            splits = indices * self.num_splits // self.num_images
        else:
            splits = indices // self.split_size
        self.counts += torch.bincount(splits, minlength=self.num_splits)
        self.negative_entropies.index_add_(
            0, splits, torch.xlogy(probabilities, probabilities).sum(-1)
        )
        self.probabilities.index_add_(0, splits, probabilities)

    def reduce(self) -> None:
        """Adds the images of all other processes, in every process; call it once, after the last
        batch."""
        self.counts = sum_over_processes(self.counts)
        self.negative_entropies = sum_over_processes(self.negative_entropies)
        self.probabilities = sum_over_processes(self.probabilities)

    def scores(self) -> torch.Tensor:
        """Returns the score of each part, `(num_splits,)` in float64. Papers quote their standard
        deviation, computed with `n`, as +-.

        Raises:
            ValueError: If an image is missing or was added more than once.
        """
        if int(self.counts.sum()) != self.num_images:
            raise ValueError(
                f"Logits of {self.num_images} images are expected, got {int(self.counts.sum())}."
            )
        marginals = self.probabilities / self.counts[:, None]
        divergences = self.negative_entropies / self.counts - torch.xlogy(marginals, marginals).sum(
            -1
        )
        return divergences.clamp_min(0).exp()  # rounding could make it negative

    def compute(self) -> Estimate:
        """Returns the mean of `scores`; its standard error is their standard deviation divided by
        the root of their number."""
        return Estimate.mean(self.scores(), f"over {self.num_splits} parts of the images")
