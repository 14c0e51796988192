"""The Fréchet distance of images decoded from interpolated latents (iFID, arXiv 2603.05630)."""

import torch
from torch import nn
from torch.nn import functional as F

from ..modeling.titok import TiTokImageProcessor
from ..progress import index_batches
from .extractors import FeatureExtractor
from .image_sources import to_uint8
from .metrics.frechet import frechet_distance


def interpolated_latents(
    latents: torch.Tensor, known: torch.Tensor, k: int = 10, share: float = 0.5, seed: int = 0
) -> torch.Tensor:
    """Interpolates each image's latents with those of a similar training image.

    One of the `k` training images that are nearest by cosine is drawn, with the softmax of the
    negative mean squared errors as probabilities, and the two are interpolated on the sphere.

    Args:
        latents: `(B, ...)`.
        known: Latents of training images `(n, ...)`.
        k: Number of neighbors; at most `n`.
        share: Share of the neighbor: 0 gives the latents themselves.
        seed: Random seed of the draw.

    Returns:
        `(B, ...)`.
    """
    generator = torch.Generator().manual_seed(seed)
    others = known.flatten(1)  # (n, D)
    unit = F.normalize(others, dim=1)
    mixed = []
    for some in latents.flatten(1).split(256):  # (b, D)
        directions = F.normalize(some, dim=1)
        nearest = others[(directions @ unit.T).topk(min(k, len(others))).indices]  # (b, k, D)
        errors = (some[:, None] - nearest).square().mean(2)
        chosen = torch.multinomial((-errors).softmax(1), 1, generator=generator)[:, 0]  # (b,)
        neighbors = nearest[torch.arange(len(some)), chosen]  # (b, D)
        cosine = (directions * F.normalize(neighbors, dim=1)).sum(1, keepdim=True)
        angle = cosine.clamp(-1, 1).acos()
        # between almost parallel latents, the sphere is flat
        flat, sine = angle < 1e-3, angle.sin().clamp_min(1e-6)
        own = torch.where(flat, 1 - share, ((1 - share) * angle).sin() / sine)
        other = torch.where(flat, share, (share * angle).sin() / sine)
        mixed.append(own * some + other * neighbors)
    return torch.cat(mixed).view_as(latents)


@torch.no_grad()
def interpolated_frechet_distance(
    tokenizer: nn.Module,
    processor: TiTokImageProcessor,
    extractor: FeatureExtractor,
    features: torch.Tensor,
    latents: torch.Tensor,
    known: torch.Tensor,
    k: int = 10,
    share: float = 0.5,
    batch_size: int = 64,
) -> float:
    """Measures the Fréchet distance between images and those decoded from their latents, interpolated
    with a neighbor's (iFID). A `share` of 0 gives the distance of reconstructions.

    Args:
        tokenizer: A tokenizer of any family, on its device.
        processor: Its processor.
        extractor: Network of the features.
        features: Features of the images `(B, D)`.
        latents: Their latents `(B, ...)`.
        known: See `interpolated_latents`, as for `k` and `share`.
        batch_size: Number of images per batch.
    """
    decoded = []
    mixed = interpolated_latents(latents, known, k, share)
    for indices in index_batches(len(mixed), batch_size, "interpolations"):
        some = mixed[indices]
        output = tokenizer.decode(some.to(tokenizer.device, tokenizer.dtype)).reconstruction
        shown = to_uint8(processor.postprocess(output, "pt"), "round")
        decoded.append(extractor(shown).features.cpu())
    return frechet_distance(torch.cat(decoded), features)


__all__ = ["interpolated_frechet_distance", "interpolated_latents"]
