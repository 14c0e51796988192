"""Decoding of images of any format to PIL, with a readable reason if that fails."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from PIL import Image, ImageColor
from transformers import BaseImageProcessor

from ..modeling.pixels import open_encoded, to_rgb


class UnreadableImageError(ValueError):
    """Raised if an image cannot be decoded; the message is one sentence with the reason."""


def decode_image(
    source: bytes | str | Path | Image.Image | dict[str, Any] | None,
    background: str = "white",
    apply_icc_profile: bool = False,
) -> Image.Image:
    """Decodes an image to upright RGB, as `to_rgb` says; of an animated image the first frame.

    Args:
        source: The bytes of a file; its path, or a URL for fsspec; an image; or a value in a column
            of `datasets.Image(decode=False)`, `{"bytes": …, "path": …}`, where bytes take
            precedence.
        background, apply_icc_profile: See `to_rgb`.

    Raises:
        UnreadableImageError: If there is no image or file, or if it is truncated, damaged, of an
            unknown format, or has more pixels than PIL opens (179 million, see
            `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if source is None:
        raise UnreadableImageError("The sample has no image.")
    ImageColor.getrgb(background)  # a wrong color is no fault of the image
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
            source = open_encoded(source)
        return to_rgb(source, background, apply_icc_profile)
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


def decoder_for(processor: BaseImageProcessor) -> Callable[[Any], Image.Image]:
    """Returns `decode_image` with `background` and `apply_icc_profile` of an image processor, if it
    has these fields."""
    names = ("background", "apply_icc_profile")
    fields = {name: getattr(processor, name) for name in names if hasattr(processor, name)}
    return partial(decode_image, **fields)
