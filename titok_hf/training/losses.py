"""Adversarial losses of decoder fine-tuning."""

import torch
from torch.nn import functional as F


def hinge_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Hinge loss that raises the logits of real images over 1 and pushes those of fake ones under -1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def lecam_loss(
    real_mean: torch.Tensor, fake_mean: torch.Tensor, real_average: torch.Tensor, fake_average: torch.Tensor
) -> torch.Tensor:
    """LeCam regularization (arXiv 2104.03310): keeps each side's mean logit near the other side's moving average.

    Args:
        real_mean, fake_mean: Mean logits of this batch, scalars.
        real_average, fake_average: Their exponential moving averages, scalars without gradient.
    """
    return F.relu(real_mean - fake_average).square() + F.relu(real_average - fake_mean).square()
