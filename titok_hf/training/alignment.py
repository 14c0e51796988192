"""Alignment of latents with the features of a frozen foundation model (VA-VAE, arXiv 2501.01423)."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..devices import full_precision
from .frozen_vision import FrozenVision
from .losses import at_least_float32


def alignment_losses(
    latents: torch.Tensor,
    features: torch.Tensor,
    cosine_margin: float = 0.0,
    distance_margin: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the marginal cosine similarity loss and the marginal distance matrix similarity loss.

    The first is the mean of `relu(1 - cosine_margin - cosine)` between latents and features of the same
    place; the second, over all pairs of places of an image, of `relu(|c - c'| - distance_margin)`,
    where c and c' are the cosines of the pair's latents and features.

    Args:
        latents: Latents projected to the width of the features, `(B, D, h, w)`.
        features: `(B, D, h, w)`.
        cosine_margin, distance_margin: How far apart is near enough.
    """
    latents, features = at_least_float32(latents), at_least_float32(features)
    cosine = F.cosine_similarity(latents, features, dim=1)  # (B, h, w)
    unit = [F.normalize(each.flatten(2), dim=1) for each in (latents, features)]  # (B, D, N)
    of_latents, of_features = (each.transpose(1, 2) @ each for each in unit)  # (B, N, N)
    return (
        F.relu(1 - cosine_margin - cosine).mean(),
        F.relu((of_latents - of_features).abs() - distance_margin).mean(),
    )


class Alignment(FrozenVision):
    """Measures how far latents are from the features of a frozen foundation model, after a learned
    projection.

    Features are resized to the places of the latents if there are more or fewer.

    Args:
        network: A vision model of transformers with a `last_hidden_state` of patch tokens
            `(B, N, D)`, after any others, or of a feature map `(B, D, h, w)`.
        latent_dim: Channels of the latents.
        image_size, image_mean, image_std: See `FrozenVision`. VA-VAE's code feeds images in [-1, 1] to
            every network.
        cosine_margin, distance_margin: See `alignment_losses`.
        cosine_weight, distance_weight: Weights of the two losses.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        latent_dim: int,
        image_size: int = 224,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        cosine_margin: float = 0.5,
        distance_margin: float = 0.25,
        cosine_weight: float = 1.0,
        distance_weight: float = 1.0,
    ):
        super().__init__(network, image_size, image_mean, image_std)
        width = getattr(network.config, "hidden_size", None) or network.config.hidden_sizes[-1]
        self.projection = nn.Conv2d(latent_dim, width, 1, bias=False)
        self.cosine_margin = cosine_margin
        self.distance_margin = distance_margin
        self.cosine_weight = cosine_weight
        self.distance_weight = distance_weight

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the feature map `(B, D, h, w)` of images `(B, 3, H, W)` in [0, 1]."""
        hidden = self.network(self.prepared(images)).last_hidden_state
        return hidden if hidden.ndim == 4 else self.patch_map(hidden)

    def forward(
        self, latents: torch.Tensor, images: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the weighted loss of latents `(B, C, h, w)` and their images `(B, 3, H, W)` in
        [0, 1], and its terms by name."""
        with full_precision(images.device):
            features = self.features(images)
            if features.shape[2:] != latents.shape[2:]:
                features = F.interpolate(features, latents.shape[2:], mode="bilinear")
            cosine, distance = alignment_losses(
                self.projection(at_least_float32(latents)),
                features,
                self.cosine_margin,
                self.distance_margin,
            )
        loss = self.cosine_weight * cosine + self.distance_weight * distance
        return loss, {"alignment_cosine_loss": cosine, "alignment_distance_loss": distance}
