"""Frozen vision models of transformers, whose features judge images or guide latents."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..hub.errors import explain_loading_errors
from .known import KNOWN


class FrozenVision(nn.Module):
    """Base class of modules with a frozen vision model.

    Args:
        network: The model.
        image_size: Side to which images are resized (bilinear, antialiased).
        image_mean, image_std: Normalization of images in [0, 1]; ImageNet's if not given.

    Raises:
        ValueError: If patches do not divide the images.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        image_size: int,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ):
        super().__init__()
        if image_size % network.config.patch_size:
            raise ValueError(
                f"`image_size` must be a multiple of the patch size {network.config.patch_size} of the "
                f"{type(network).__name__}, got {image_size}."
            )
        self.network = network.eval().requires_grad_(False)
        self.image_size = image_size
        for name, values in (
            ("mean", image_mean or IMAGENET_DEFAULT_MEAN),
            ("std", image_std or IMAGENET_DEFAULT_STD),
        ):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "FrozenVision":
        """Keeps the network in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        """Returns images `(B, 3, H, W)` in [0, 1], resized and normalized for the network."""
        size = (self.image_size, self.image_size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return (images - self.mean) / self.std

    def patch_map(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns hidden states `(B, N, D)` of patches, after any other tokens, as a map
        `(B, D, h, w)`."""
        side = self.image_size // self.network.config.patch_size
        return hidden[:, -(side**2) :].transpose(1, 2).unflatten(-1, (side, side))


def load_vision_network(source: str, load_weights: bool, **location: Any) -> PreTrainedModel:
    """Loads a vision model of transformers, or builds it without its weights.

    Args:
        source: Folder or Hub repository.
        load_weights: Whether to load the weights; without, a known configuration is enough.
        location: Arguments of `from_pretrained` that locate it, such as `revision`.

    Raises:
        OSError: If it cannot be reached.
    """
    with explain_loading_errors(source):
        if load_weights:
            return AutoModel.from_pretrained(source, **location)
        known = KNOWN["configurations"].get(source)
        if known is not None:
            return AutoModel.from_config(AutoConfig.for_model(**known))
        return AutoModel.from_config(AutoConfig.from_pretrained(source, **location))
