"""The one conversion of images of any mode to RGB, for image processors and for files."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, ImageOps
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Longest side of an image before a resize to its shorter side, in multiples of the shorter side.
MAX_ASPECT_RATIO = 16


def to_rgb(
    image: Image.Image, background: str = "white", apply_icc_profile: bool = False
) -> Image.Image:
    """Turns an image of any mode upright by its EXIF data, and converts it to RGB.

    Transparency is laid on a background. Values of more than 8 bits are scaled, not clipped:
    integers of 16 bits from [0, 65535]; of 32 bits also, or from [0, 2^31) if one is larger; floats
    from [0, 1], or [0, 255] if one is larger. Lab colors are converted by their definition, all
    other modes by PIL. Animated images are represented by their current frame, after opening the
    first.

    Args:
        image: The image, which is not changed.
        background: Color behind transparent pixels, by a name or hexadecimal number that PIL knows.
        apply_icc_profile: Whether the colors of a CMYK image are converted by its ICC profile, if
            it has one, and not by PIL's formula, as published preprocessing does.
    """
    image = ImageOps.exif_transpose(image)
    transparency = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))  # (H, W)
        scales = (1, 255) if image.mode == "F" else (2**16 - 1, 2**31 - 1)
        scale = scales[0] if values.max() <= scales[0] else scales[1]
        if image.mode == "F" and scale == 255:
            logger.warning_once(
                "An image of floats has values above 1: such images are read as [0, 255]."
            )
        image = Image.fromarray((values / scale * 255).clip(0, 255).round().astype(np.uint8))
        if transparency is not None:  # the value of the transparent pixels, before scaling
            image.putalpha(
                Image.fromarray(np.where(values == transparency, 0, 255).astype(np.uint8))
            )
    elif image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    elif image.mode == "CMYK" and apply_icc_profile and "icc_profile" in image.info:
        profile = ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"]))
        image = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    elif image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(backdrop, image)
    return image.convert("RGB")


def open_encoded(data: bytes) -> Image.Image:
    """Opens the bytes of a file with PIL; without text and profile, if those of a PNG are too long.

    PIL refuses chunks that are long once they are decompressed (`PngImagePlugin.MAX_TEXT_CHUNK`),
    since they could fill the memory. Pixels do not need them, so that they are left out unread.
    """
    try:
        image = Image.open(BytesIO(data))
        image.load()
        return image
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
    chunks, place = [data[:8]], 8  # after the signature
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])  # length, type, data, checksum
        if data[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            chunks.append(data[place:end])
        place = end
    return Image.open(BytesIO(b"".join(chunks)))


def limit_aspect_ratio(image: np.ndarray) -> np.ndarray:
    """Cuts out the center of an image `(C, H, W)` whose longer side is more than
    `MAX_ASPECT_RATIO` times its shorter side; returns other images as they are.

    The part that is kept is longer than any square crop and its filter reach, so that the center
    crop stays the same. Without the cut, the resized image could have billions of pixels.
    """
    longest = MAX_ASPECT_RATIO * min(image.shape[1:])
    for axis in (1, 2):
        side = image.shape[axis]
        if side > longest:
            start = (side - longest) // 2  # the center stays the center
            image = image.take(range(start, side - start), axis)
    return image
