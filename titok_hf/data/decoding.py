"""Encoded images to PIL, whatever their format, or one sentence that says why not."""

from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image, ImageOps


class UnreadableImageError(ValueError):
    """An image that cannot be decoded; the message is one sentence that says why."""


def decode_image(source: bytes | str | Path | Image.Image | dict[str, Any] | None) -> Image.Image:
    """Decodes an image: upright, as its EXIF data say, and in RGB.

    Transparency is dropped, CMYK becomes RGB as in PIL. Brightness of more than 8 bits is scaled,
    not clipped: integers from [0, 65535], or [0, 2^31) if one is larger, floats from [0, 1], or [0,
    255] if one is larger. Of moving images the first frame is taken.

    Args:
        source: The bytes of a file; its path, or an address that fsspec opens; an image; or what a
            column of `datasets.Image(decode=False)` holds, `{"bytes": …, "path": …}`, where bytes
            take precedence.

    Raises:
        UnreadableImageError: If there is no image, no such file, or it is truncated, damaged, of an
            unknown format, or of more pixels than PIL opens (179 million, see
            `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if source is None:
        raise UnreadableImageError("The sample has no image.")
    try:
        if isinstance(source, str | Path):
            with (
                fsspec.open(str(source), "rb")
                if "://" in str(source)
                else open(source, "rb") as file
            ):
                source = file.read()
        if isinstance(source, bytes):
            if not source:
                raise UnreadableImageError("The file is empty.")
            source = Image.open(BytesIO(source))
        return to_rgb(ImageOps.exif_transpose(source))
    except (MemoryError, UnreadableImageError):
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(f"There is no file {error.filename or source}.") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImageError("The file is no image, or its header is damaged.") from error
    except Exception as error:  # PIL's decoders raise whatever a damaged file leads them to
        raise UnreadableImageError(
            f"The image cannot be decoded: {str(error).rstrip('.')}."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB; see `decode_image`."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))  # (H, W)
        scales = (1, 255) if image.mode == "F" else (2**16 - 1, 2**31 - 1)
        values = values / (scales[0] if values.max() <= scales[0] else scales[1])
        image = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, PIL warns
    return image.convert("RGB")
