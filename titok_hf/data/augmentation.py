"""Random augmentation of training images."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict

from ..modeling.pixels import limit_aspect_ratio
from ..modeling.vtp.image_processing_vtp import VTPImageProcessor

CROPS = ("center", "random", "resized", "adm", "ten")
ADM = VTPImageProcessor()


@dataclass(frozen=True)
class Augmentation:
    """Randomly crops, flips, rotates, scales and shifts each image; pixels from outside are 0.

    Args:
        crop: Kind of the crop. `"center"`: the crop of the image processor. `"random"`: a random
            position, as for the published tokenizers. `"resized"`: a random rectangle, resized
            (bicubic), as for CLIP. `"adm"`: ADM's center crop (halved with a box
            filter while it is twice as large, then bicubic; `center_crop_arr` of
            openai/guided-diffusion). `"ten"`: one of the four corners and the center, mirrored or
            not, with equal probability; in the order of torchvision's `TenCrop`, as in LlamaGen.
        enlarge: Shorter side of the image before the crop `"random"` or `"ten"`, in multiples of
            the crop's; rounded down to pixels, as in LlamaGen, which uses 1.1.
        horizontal_flip: Whether to mirror images with probability 0.5.
        rotation: Largest rotation in either direction, in degrees.
        scale: Largest change of size in either direction, as a fraction.
        translation: Largest shift in either direction, as a fraction of the side.
        least_area: Least share of the image's area in the crop `"resized"`; OpenCLIP's is 0.9.
    """

    crop: str = "center"
    enlarge: float = 1.0
    horizontal_flip: bool = False
    rotation: float = 0.0
    scale: float = 0.0
    translation: float = 0.0
    least_area: float = 0.9

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(
                f"`crop` must be one of {', '.join(map(repr, CROPS))}, got {self.crop!r}."
            )
        if self.enlarge < 1:
            raise ValueError(
                f"`enlarge` must be at least 1, so that the crop fits, got {self.enlarge}."
            )
        if self.enlarge > 1 and self.crop not in ("random", "ten"):
            raise ValueError(
                f"`enlarge` goes with the crops 'random' and 'ten', not with {self.crop!r}."
            )
        if not 0 < self.least_area <= 1:
            raise ValueError(f"`least_area` must be a share in (0, 1], got {self.least_area}.")
        if self.horizontal_flip and self.crop == "ten":
            raise ValueError("The crop 'ten' mirrors images already: leave `horizontal_flip` off.")

    @property
    def variants(self) -> int | None:
        """Number of equally likely results per image; `None` if the crop is random or the
        augmentation is continuous."""
        if self.crop in ("random", "resized") or self.is_affine:
            return None
        return self.num_views

    @property
    def num_views(self) -> int:
        """Number of fixed crops, including mirrored ones."""
        return 10 if self.crop == "ten" else 1 + self.horizontal_flip

    @property
    def is_affine(self) -> bool:
        """Whether images are rotated, scaled or shifted."""
        return bool(self.rotation or self.scale or self.translation)

    def __call__(
        self, image: Image.Image, processor: PilBackend, rng: np.random.Generator
    ) -> torch.Tensor:
        """Augments an image.

        Args:
            image: RGB image of any size.
            processor: The image processor of the tokenizer.
            rng: Source of randomness; with finite `variants`, its first number picks one.

        Returns:
            The `pixel_values`, `(3, H, W)`.
        """
        # crop and flip
        if self.crop == "random":
            enlarged, (height, width) = self.enlarged(image, processor)
            top = int(rng.integers(enlarged.shape[1] - height + 1))
            left = int(rng.integers(enlarged.shape[2] - width + 1))
            mirrored = self.horizontal_flip and rng.random() < 0.5
            pixel_values = to_tensor(
                enlarged[:, top : top + height, left : left + width], processor
            )
            pixel_values = pixel_values.flip(-1) if mirrored else pixel_values
        elif self.crop == "resized":
            (height, width), box = (
                crop_size(processor),
                crop_box(image, (self.least_area, 1.0), rng),
            )
            resized = image.resize((width, height), Image.Resampling.BICUBIC, box)
            if self.horizontal_flip and rng.random() < 0.5:
                resized = ImageOps.mirror(resized)
            pixel_values = to_tensor(np.asarray(resized).transpose(2, 0, 1), processor)
        else:
            pixel_values = self.variant(image, processor, int(rng.random() * self.num_views))
        if not self.is_affine:
            return pixel_values

        # rotation, scaling and shift, in coordinates where the side is [-1, 1]
        turn, grow, right, down = 2 * rng.random(4) - 1  # in [-1, 1)
        angle, scale = turn * math.radians(self.rotation), 1 + grow * self.scale
        x_shift, y_shift = (
            2 * self.translation * right,
            2 * self.translation * down,
        )
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        matrix = torch.tensor([[cos, -sin, x_shift], [sin, cos, y_shift]], dtype=pixel_values.dtype)
        grid = F.affine_grid(matrix[None], [1, *pixel_values.shape], align_corners=False)
        return F.grid_sample(pixel_values[None], grid, align_corners=False)[0]

    def variant(self, image: Image.Image, processor: PilBackend, number: int) -> torch.Tensor:
        """Returns one of the fixed crops of an image.

        Args:
            image: RGB image of any size.
            processor: The image processor of the tokenizer.
            number: Number of the crop, in [0, `variants`). The second half mirrors the first half.

        Returns:
            The `pixel_values`, `(3, H, W)`.
        """
        if self.crop == "center":
            pixel_values = processor(image, return_tensors="pt")["pixel_values"][0]
        elif self.crop == "adm":
            array = np.asarray(image).transpose(2, 0, 1)  # (3, h, w)
            pixel_values = to_tensor(ADM.fit(array, "adm", *crop_size(processor)), processor)
        else:
            enlarged, (height, width) = self.enlarged(image, processor)
            bottom, right = enlarged.shape[1] - height, enlarged.shape[2] - width
            center = (round(bottom / 2), round(right / 2))
            top, left = ((0, 0), (0, right), (bottom, 0), (bottom, right), center)[number % 5]
            pixel_values = to_tensor(
                enlarged[:, top : top + height, left : left + width], processor
            )
        mirrored = number >= (5 if self.crop == "ten" else 1)
        return pixel_values.flip(-1) if mirrored else pixel_values

    def enlarged(
        self, image: Image.Image, processor: PilBackend
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns the enlarged image before the crop, `(3, h, w)` uint8, resized with the
        processor's filter, and the size of the crop."""
        size = crop_size(processor)
        shorter_side = int(max(size) * self.enlarge)
        array = limit_aspect_ratio(np.asarray(image).transpose(2, 0, 1))
        return processor.resize(
            array, SizeDict(shortest_edge=shorter_side), processor.resample
        ), size


def crop_box(
    image: Image.Image, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws a crop whose share of the area is uniform in `scale` and whose aspect ratio is
    log-uniform in [3/4, 4/3], as torchvision's `RandomResizedCrop`; if none of ten fits, it is the
    largest one in the center.

    Returns:
        The crop as `(left, top, right, bottom)`.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop_size(processor: PilBackend) -> tuple[int, int]:
    """Returns height and width of a processor's output images."""
    size = processor.crop_size or processor.size
    return size.height, size.width


def to_tensor(crop: np.ndarray, processor: PilBackend) -> torch.Tensor:
    """Returns the `pixel_values` of a uint8 image `(3, H, W)` that already has its final size."""
    batch = processor(
        crop,
        do_resize=False,
        do_center_crop=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    return batch["pixel_values"][0]
