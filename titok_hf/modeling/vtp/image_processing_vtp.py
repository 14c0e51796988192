"""Converts images to VTP's input tensors and back."""

from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, SizeDict

from ..pixels import limit_aspect_ratio
from ..titok.image_processing_titok import TiTokImageProcessor, TiTokImageProcessorKwargs
from .configuration_vtp import VTPConfig


class VTPImageProcessorKwargs(TiTokImageProcessorKwargs, total=False):
    crop: str


class VTPImageProcessor(TiTokImageProcessor):
    """PIL, uint8, bool or float images to normalized `pixel_values` `(B, 3, H, W)`, and back.

    Images are normalized by ImageNet's mean and standard deviation. `crop` selects how they are
    brought to `size`: `"adm"`, as for published reconstructions, crops the center (halved with a
    box filter while it is twice as large, then bicubic to the shorter side); `"squash"`, as for
    published zero-shot classification, resizes both sides (bilinear). Images are taken as by
    `TiTokImageProcessor`. Needs no torchvision.
    """

    valid_kwargs = VTPImageProcessorKwargs
    config_class = VTPConfig
    crop = "adm"
    default_to_square = True
    size = {"height": 256, "width": 256}
    crop_size = None
    do_resize = False
    do_center_crop = False
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    @classmethod
    def from_image_size(cls, image_size: int) -> Self:
        """Returns the processor for square images of `image_size` pixels."""
        return cls(size={"height": image_size, "width": image_size})

    def _preprocess(
        self, images: list[np.ndarray], crop: str, size: SizeDict, **kwargs: Any
    ) -> BatchFeature:
        if not size.height or not size.width:
            raise ValueError(f"`size` must have a height and a width, got {size}.")
        fitted = [self.fit(image, crop, size.height, size.width) for image in images]
        return super()._preprocess(fitted, size=size, **kwargs)

    def fit(self, image: np.ndarray, crop: str, height: int, width: int) -> np.ndarray:
        """Crops or squashes an image `(3, H, W)`, uint8 or float in [0, 1], to `(3, height,
        width)`.

        Raises:
            ValueError: If `crop` is unknown.
        """
        if crop not in ("adm", "squash"):
            raise ValueError(f"`crop` must be 'adm' or 'squash', got {crop!r}.")
        if image.shape[1:] == (height, width):
            return image
        if image.dtype != np.uint8:  # PIL resizes uint8 images
            return (
                self.fit((image * 255).round().astype(np.uint8), crop, height, width).astype(
                    np.float32
                )
                / 255
            )
        image = limit_aspect_ratio(image) if crop == "adm" else image
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        if crop == "squash":
            return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).transpose(
                2, 0, 1
            )
        while picture.width >= 2 * width and picture.height >= 2 * height:
            picture = picture.resize(
                (picture.width // 2, picture.height // 2), Image.Resampling.BOX
            )
        scale = max(width / picture.width, height / picture.height)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return np.asarray(picture.crop((left, top, left + width, top + height))).transpose(2, 0, 1)

    def postprocess(
        self, pixel_values: torch.Tensor, output_type: str = "pil"
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Undoes the normalization, clamps to [0, 1] and converts; see
        `TiTokImageProcessor.postprocess`."""
        mean = torch.tensor(self.image_mean, device=pixel_values.device)[:, None, None]
        std = torch.tensor(self.image_std, device=pixel_values.device)[:, None, None]
        return super().postprocess(pixel_values.float() * std + mean, output_type)


__all__ = ["VTPImageProcessor"]
