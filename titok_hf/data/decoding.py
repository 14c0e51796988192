"""Decoding of images of any format to PIL, with a readable reason if that fails."""

from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image, ImageOps


class UnreadableImageError(ValueError):
    """Raised if an image cannot be decoded; the message is one sentence with the reason."""


def decode_image(source: bytes | str | Path | Image.Image | dict[str, Any] | None) -> Image.Image:
    """Decodes an image to RGB and turns it upright by its EXIF data.

    Transparency is dropped, and PIL converts CMYK to RGB. Values of more than 8 bits are scaled,
    not clipped: integers from [0, 65535], or [0, 2^31) if one is larger; floats from [0, 1], or
    [0, 255] if one is larger. Animated images are represented by their first frame.

    Args:
        source: The bytes of a file; its path, or a URL for fsspec; an image; or a value in a column
            of `datasets.Image(decode=False)`, `{"bytes": …, "path": …}`, where bytes take
            precedence.

    Raises:
        UnreadableImageError: If there is no image or file, or if it is truncated, damaged, of an
            unknown format, or has more pixels than PIL opens (179 million, see
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
    except Exception as error:  # PIL's decoders raise almost anything on damaged files
        raise UnreadableImageError(
            f"The image cannot be decoded: {str(error).rstrip('.')}."
        ) from error


def readable_extensions() -> set[str]:
    """Returns the extensions of image files that Pillow can read, such as `".png"`."""
    # these are documents, data, or formats for which Pillow only knows how to call other programs
    others = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
    formats = Image.registered_extensions()
    return {ending for ending, name in formats.items() if name in Image.OPEN and name not in others}


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB; see `decode_image`."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))  # (H, W)
        scales = (1, 255) if image.mode == "F" else (2**16 - 1, 2**31 - 1)
        values = values / (scales[0] if values.max() <= scales[0] else scales[1])
        image = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns on a direct conversion to RGB
    return image.convert("RGB")
