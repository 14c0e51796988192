"""Normal noise from the uniform numbers that are drawn for each sample."""

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
