"""The interface of the networks whose features and logits metrics use."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

INCEPTION = "inception-v3-fid"  # name of FID's network in results


@dataclass(frozen=True)
class Extracted:
    """Outputs of an extractor for a batch of images, in float32 or float64, on its device.

    Args:
        features: `(B, D)`.
        spatial: `(B, S)`, for sFID; only from extractors with `num_spatial`.
        logits: `(B, K)`, for Inception Score and accuracy; only from extractors with `num_classes`.
    """

    features: torch.Tensor
    spatial: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class FeatureExtractor(ABC):
    """Maps images to features.

    Args:
        name: Name in results, such as `"inception-v3-fid"`.
        num_features: `D`.
        num_spatial: `S`, if it has spatial features.
        num_classes: `K`, if it classifies.
        class_names: Names of the classes, if they are known.
        input_size: Side of the square input, to which it resizes all images.
    """

    name: str
    num_features: int
    num_spatial: int | None = None
    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    input_size: int

    @abstractmethod
    def __call__(self, images: torch.Tensor) -> Extracted:
        """Extracts features of uint8 images `(B, 3, H, W)` on any device."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns the fields that describe it in a result: `name`, `weights` (their origin),
        `weights_sha256` and `preprocessing`."""


def check_images(images: torch.Tensor) -> None:
    """Raises `TypeError` or `ValueError` unless these are uint8 images `(B, 3, H, W)`."""
    if images.dtype != torch.uint8:
        raise TypeError(f"Extractors take uint8 images in [0, 255], got {images.dtype}.")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(
            f"Extractors take images (batch, 3, height, width), got {tuple(images.shape)}."
        )


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Makes cuDNN compute convolutions in float32; by default it rounds to TF32's 10 bits."""
    settings = torch.backends.cudnn.conv
    precision = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = precision
