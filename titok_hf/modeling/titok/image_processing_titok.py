"""Converts images to TiTok's input tensors and back."""

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageColor
from transformers import BatchFeature, PreTrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from ...hub.errors import explain_loading_errors
from ...hub.location import split_location
from ...hub.publish import PublishMixin
from ..pixels import limit_aspect_ratio, open_encoded, to_rgb
from .configuration_titok import TiTokConfig


class TiTokImageProcessorKwargs(ImagesKwargs, total=False):
    background: str
    apply_icc_profile: bool


class TiTokImageProcessor(PublishMixin, PilBackend):
    """PIL, uint8, bool or float images to `pixel_values` `(B, 3, H, W)` in [0, 1], and back.

    By default the shorter side is resized to 256 pixels (bicubic, antialiased) and the center
    256x256 is cropped. If one side is more than 16 times the other, the ends are cut off before.
    Arrays may be gray, `(H, W)`. PIL images of all modes become upright RGB: `background` is the
    color behind transparent pixels, and `apply_icc_profile` is for CMYK, see `to_rgb`. Needs no
    torchvision.
    """

    valid_kwargs = TiTokImageProcessorKwargs
    background = "white"
    apply_icc_profile = False
    config_class: type[PreTrainedConfig] = TiTokConfig
    resample = PILImageResampling.BICUBIC
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 256, "width": 256}
    do_convert_rgb = True
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = False

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Same as in transformers; a tokenizer stored without a processor, as in the official
        repositories, gets one for its image size."""
        try:
            with explain_loading_errors(pretrained_model_name_or_path):
                return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        except OSError as error:
            location, kwargs = split_location(kwargs)
            try:
                config = cls.config_class.from_pretrained(pretrained_model_name_or_path, **location)
            except (OSError, ValueError):
                raise error from None
            return cls.from_image_size(config.image_size).to_dict(), kwargs

    @classmethod
    def from_image_size(cls, image_size: int) -> Self:
        """Returns the processor of a tokenizer for square images of `image_size` pixels."""
        return cls(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
        )

    def fetch_images(self, image_url_or_urls: ImageInput) -> Any:
        """Same as in transformers, but keeps the mode of image files, and takes gray arrays
        `(H, W)`.

        Raises:
            TypeError: If an image is `None`.
            ValueError: If there are no images.
        """
        images = image_url_or_urls
        if images is None:
            raise TypeError("An image or a list of images is expected, got None.")
        if isinstance(images, str) and os.path.isfile(images):
            return open_encoded(Path(images).read_bytes())
        if isinstance(images, list | tuple) or (
            isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4
        ):
            if not len(images):
                raise ValueError("At least one image is expected, got an empty batch.")
            for index, image in enumerate(images):
                if image is None:
                    raise TypeError(f"Image {index} of {len(images)} is None; leave it out.")
        elif isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 2:
            return np.stack([np.asarray(images)] * 3)
        return super().fetch_images(images)

    def process_image(
        self,
        image: Image.Image | np.ndarray | torch.Tensor,
        do_rescale: bool | None = None,
        do_convert_rgb: bool | None = None,
        input_data_format: str | None = None,
        background: str = "white",
        apply_icc_profile: bool = False,
        **kwargs: Any,
    ) -> np.ndarray:
        """Converts one image to a channels-first array.

        Raises:
            ValueError: If a float image is to be rescaled, or is not in [0, 1]; or an integer image
                is not in [0, 255].
        """
        if isinstance(image, Image.Image):
            if do_convert_rgb:
                image = to_rgb(image, background, apply_icc_profile)
        else:
            array = np.asarray(image)
            if array.dtype.kind == "b":
                image = array.astype(np.uint8) * 255
            elif array.dtype.kind in "iu" and array.dtype != np.uint8:
                if not (array.min() >= 0 and array.max() <= 255):
                    raise ValueError(
                        f"Integer images must be in [0, 255], got {array.min()} to {array.max()}."
                    )
                image = array.astype(np.uint8)
            elif array.dtype.kind == "f":
                if do_rescale:
                    raise ValueError(
                        "Float images are expected in [0, 1] and not rescaled: pass "
                        "`do_rescale=False`."
                    )
                if not (array.min() >= 0 and array.max() <= 1):
                    raise ValueError(
                        f"Float images must be in [0, 1], got {array.min():.4g} to "
                        f"{array.max():.4g}."
                    )
        image = super().process_image(image, input_data_format=input_data_format, **kwargs)
        if do_convert_rgb and len(image) == 1:
            image = image.repeat(3, axis=0)
        elif do_convert_rgb and len(image) == 4:
            if image.dtype == np.uint8:
                rgb = to_rgb(Image.fromarray(image.transpose(1, 2, 0)), background)
                return np.asarray(rgb).transpose(2, 0, 1)
            color = np.array(ImageColor.getrgb(background)[:3], image.dtype)[:, None, None] / 255
            image = image[3] * image[:3] + (1 - image[3]) * color
        return image

    def _preprocess(
        self, images: list[np.ndarray], do_resize: bool, do_center_crop: bool, **kwargs: Any
    ) -> BatchFeature:
        if do_resize and do_center_crop:
            images = [limit_aspect_ratio(image) for image in images]
        return super()._preprocess(
            images, do_resize=do_resize, do_center_crop=do_center_crop, **kwargs
        )

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs: Any) -> np.ndarray:
        """Crops the center as torchvision does, which the official weights were trained with.

        Half-pixel offsets are rounded to the even pixel. Images that are too small get a black
        border.
        """
        sides = (size.height, size.width)
        top, left = (
            round((side - wanted) / 2) for side, wanted in zip(image.shape[1:], sides, strict=True)
        )
        if top < 0 or left < 0:
            return super().center_crop(image, size, **kwargs)
        return image[:, top : top + size.height, left : left + size.width]

    def postprocess(
        self, pixel_values: torch.Tensor, output_type: str = "pil"
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Clamps images to [0, 1] and converts them.

        Args:
            pixel_values: Float images `(B, 3, H, W)` around [0, 1].
            output_type: `"pil"` for a list of PIL images, `"np"` for a float array `(B, H, W, 3)`
                in [0, 1], `"pt"` for a float tensor `(B, 3, H, W)` in [0, 1].

        Raises:
            ValueError: If the output type is unknown, or there is a NaN.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}.")
        images = pixel_values.detach().float().clamp(0, 1).cpu()
        if images.isnan().any():  # a clamp keeps NaNs; checked here, on the CPU
            raise ValueError("`pixel_values` must be finite, got NaN.")
        if output_type == "pt":
            return images
        array = images.permute(0, 2, 3, 1).numpy()  # (B, H, W, 3)
        if output_type == "np":
            return array
        return [Image.fromarray(image) for image in (array * 255).round().astype(np.uint8)]


__all__ = ["TiTokImageProcessor"]
