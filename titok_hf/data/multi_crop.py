"""Multi-crop augmentation of self-supervised training (SwAV, arXiv 2006.09882), with DINOv2's
settings."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ..modeling.vtp import VTPImageProcessor
from .augmentation import crop_box


@dataclass(frozen=True)
class Distortion:
    """Random flips, colors and blur of a crop.

    The probabilities are effective ones. DINOv2's code passes `1 - p` for the blur, so that its
    first global crop is never blurred and its second one with probability 0.9; the released models
    were trained so.

    Args:
        blur: Probability of a Gaussian blur, whose radius is uniform in [0.1, 2] pixels.
        solarize: Probability that values from 128 are inverted.
        jitter: Probability that brightness and contrast change by up to 0.4, saturation by up to 0.2
            and hue by up to 0.1 of a turn, in random order.
        gray: Probability of gray.
        flip: Probability of a horizontal flip.
    """

    blur: float
    solarize: float = 0.0
    jitter: float = 0.8
    gray: float = 0.2
    flip: float = 0.5

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if rng.random() < self.flip:
            image = ImageOps.mirror(image)
        if rng.random() < self.jitter:
            image = jitter_colors(image, rng)
        if rng.random() < self.gray:
            image = image.convert("L").convert("RGB")
        if rng.random() < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
        if rng.random() < self.solarize:
            image = ImageOps.solarize(image, 128)
        return image


@dataclass(frozen=True)
class MultiCrop:
    """Cuts two global and several local crops out of an image, and distorts each.

    Args:
        global_size, local_size: Sides of the crops, in pixels; multiples of the patch size. The
            defaults are those of DINOv3's 7B model, whose patches are VTP's.
        num_local: Number of local crops; 0 for none.
        global_scale, local_scale: Least and largest share of the image's area in a crop.
        patch_size: Side of a patch, in pixels.

    Raises:
        ValueError: If a size is no multiple of the patch size, or a scale is not in (0, 1].
    """

    global_size: int = 256
    local_size: int = 112
    num_local: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    patch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("global_size", "local_size"):
            size = getattr(self, name)
            if size < self.patch_size or size % self.patch_size:
                raise ValueError(
                    f"`{name}` must be a multiple of the patch size {self.patch_size}, got {size}."
                )
        for name in ("global_scale", "local_scale"):
            least, largest = getattr(self, name)
            if not 0 < least <= largest <= 1:
                raise ValueError(
                    f"`{name}` must be two shares in (0, 1], the least first, got "
                    f"{[least, largest]}."
                )

    def __call__(
        self, image: Image.Image, processor: VTPImageProcessor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the global crops `(2, 3, G, G)` and the local crops `(num_local, 3, L, L)`.

        Args:
            image: RGB image of any size.
            processor: Image processor, which normalizes the crops.
            rng: Source of randomness.
        """
        plan = [
            (self.global_size, self.global_scale, Distortion(blur=0.0)),
            (self.global_size, self.global_scale, Distortion(blur=0.9, solarize=0.2)),
            *[(self.local_size, self.local_scale, Distortion(blur=0.5))] * self.num_local,
        ]
        crops = []
        for size, scale, distortion in plan:
            box = crop_box(image, scale, rng)
            crop = distortion(image.resize((size, size), Image.Resampling.BICUBIC, box), rng)
            square = {"height": size, "width": size}
            batch = processor(crop, size=square, crop="squash", return_tensors="pt")
            crops.append(batch["pixel_values"][0])  # (3, size, size)
        if not self.num_local:
            return torch.stack(crops), torch.empty(0, 3, self.local_size, self.local_size)
        return torch.stack(crops[:2]), torch.stack(crops[2:])


def jitter_colors(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Changes brightness, contrast, saturation and hue; see `Distortion`."""
    factors = 1 + rng.uniform(-1, 1, 3) * (0.4, 0.4, 0.2)
    turn = round(rng.uniform(-0.1, 0.1) * 255)
    for step in rng.permutation(4).tolist():
        if step == 3:
            hue, saturation, value = image.convert("HSV").split()
            shifted = Image.fromarray(np.asarray(hue) + np.uint8(turn % 256))
            image = Image.merge("HSV", (shifted, saturation, value)).convert("RGB")
        else:
            kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            image = kinds[step](image).enhance(factors[step])
    return image


__all__ = ["Distortion", "MultiCrop"]
