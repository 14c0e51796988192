"""Noise and stochastic depth from the uniform numbers that are drawn for each sample."""

import torch


def standard_normal(draws: torch.Tensor) -> torch.Tensor:
    """Maps uniform float32 numbers in [0, 1), multiples of 2^-24, to standard normal ones."""
    # half of the smallest step stands for 0, whose quantile is minus infinity
    return torch.special.ndtri(draws.clamp_min(2.0**-25))


def noisy_latents(latents: torch.Tensor, draws: torch.Tensor, largest: float) -> torch.Tensor:
    """Adds noise to latents `(B, C, h, w)`.

    Args:
        latents: `(B, C, h, w)`.
        draws: Uniform numbers `(B, 1 + C * h * w)`: the first sets an image's standard deviation.
        largest: Largest standard deviation, in multiples of that of the image's latents.
    """
    scale = largest * draws[:, 0] * latents.flatten(1).std(1)  # (B,)
    return latents + scale.view(-1, 1, 1, 1) * standard_normal(draws[:, 1:]).view_as(latents)


def branch_scales(draws: torch.Tensor, drop_rate: float, num_layers: int) -> torch.Tensor:
    """Returns the factors of the branches of a transformer's blocks, for stochastic depth.

    A factor is 0 where a branch is left out, and else the inverse of the probability that it is
    kept, so that its expectation is 1.

    Args:
        draws: `(B, passes * num_layers * 2)`, uniform in [0, 1).
        drop_rate: The probability that a branch is left out.
        num_layers: Number of blocks, of two branches each.

    Returns:
        `(num_layers, 2, passes * B)`.
    """
    kept = draws.unflatten(1, (-1, num_layers, 2)) >= drop_rate  # (B, passes, layers, 2)
    return kept.permute(2, 3, 1, 0).flatten(2).float() / (1 - drop_rate)
