"""Grids of images for display: reconstructions below their images, or one row per class."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from ..modeling.titok import TiTokImageProcessor
from .fonts import font_for

BACKGROUND = (24, 24, 27)
TEXT = (228, 228, 231)


def image_grid(
    rows: Sequence[Sequence[Image.Image]],
    labels: Sequence[str] = (),
    zoom: int = 2,
    substitutes: Sequence[int] = (),
) -> Image.Image:
    """Draws rows of images of one size on a dark background, with optional labels on the left.

    Args:
        rows: The images.
        labels: The label of each row.
        zoom: Side of a drawn pixel.
        substitutes: Numbers to draw in place of the labels for which no font is installed; those of
            the rows if not given.
    """
    gap = 4
    width, height = (side * zoom for side in rows[0][0].size)
    drawn = [
        font_for(label, str(substitutes[i] if substitutes else i)) for i, label in enumerate(labels)
    ]
    margin = max((int(font.getlength(text)) for text, font in drawn), default=-2 * gap) + 3 * gap
    columns = max(len(row) for row in rows)
    grid = Image.new(
        "RGB", (margin + columns * (width + gap), gap + len(rows) * (height + gap)), BACKGROUND
    )
    draw = ImageDraw.Draw(grid)
    for i, row in enumerate(rows):
        top = gap + i * (height + gap)
        if labels:
            text, font = drawn[i]
            draw.text((gap, top + height / 2), text, fill=TEXT, font=font, anchor="lm")
        for j, image in enumerate(row):
            grid.paste(
                image.resize((width, height), Image.Resampling.NEAREST),
                (margin + j * (width + gap), top),
            )
    return grid


def reconstruction_grid(
    originals: torch.Tensor,
    reconstructions: torch.Tensor,
    columns: int = 16,
    pairs: int = 3,
    zoom: int = 2,
) -> Image.Image:
    """Draws pairs of rows: images `(B, 3, H, W)` in [0, 1] above their reconstructions."""
    processor = TiTokImageProcessor()
    above, below = processor.postprocess(originals), processor.postprocess(reconstructions)
    rows, labels = [], []
    for start in range(0, min(pairs * columns, len(above)), columns):
        rows += [above[start : start + columns], below[start : start + columns]]
        labels += ["image", "from tokens"]
    return image_grid(rows, labels, zoom)


def generation_grid(
    images: Sequence[Image.Image],
    names: Sequence[str],
    columns: int = 12,
    zoom: int = 2,
    substitutes: Sequence[int] = (),
) -> Image.Image:
    """Draws a row of at most `columns` images per name; `images` holds equally many of each name,
    one name after the other. See `image_grid` for `substitutes`."""
    each = len(images) // len(names)
    rows = [images[start : start + min(each, columns)] for start in range(0, len(images), each)]
    return image_grid(rows, names, zoom, substitutes)
