"""Fonts for labels in any script."""

import importlib.util
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)

SIZE = 14
FONT_FOLDERS = [
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "C:/Windows/Fonts",
]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def font_for(text: str, substitute: str) -> tuple[str, Font]:
    """Returns a text and a font that has all of its glyphs.

    Args:
        text: The text.
        substitute: A text in ASCII, returned if no installed font has the glyphs; a warning then
            says which fonts to install.
    """
    default = ImageFont.load_default(size=SIZE)
    if has_glyphs(default, text):
        return text, default
    for path in installed_fonts():
        try:
            font = ImageFont.truetype(path, SIZE)
        except OSError:  # damaged, or pictures of one size, as in fonts of colored emoji
            continue
        if has_glyphs(font, text):
            return text, font
    logger.warning(
        "No installed font has the glyphs of the label %r, so %s is drawn in its place. Install a "
        "font, such as Debian's packages fonts-noto-core (most scripts), fonts-noto-cjk, or "
        "fonts-symbola (emoji).",
        text,
        substitute,
    )
    return substitute, default


def has_glyphs(font: Font, text: str) -> bool:
    """Whether a font has a glyph for every character of a text; if not, it would draw boxes."""
    box = font.getmask("\U0010ffff")  # not a character, so the font's sign for missing glyphs
    missing = (box.size, bytes(box))
    for character in set(text):
        glyph = font.getmask(character)
        if not character.isspace() and (glyph.size, bytes(glyph)) in (missing, ((0, 0), b"")):
            return False
    return True


def installed_fonts() -> Iterator[str]:
    """Yields the paths of the installed fonts, those of matplotlib first, if it is installed."""
    folders = [Path(folder).expanduser() for folder in FONT_FOLDERS]
    if matplotlib := importlib.util.find_spec("matplotlib"):
        folders.insert(0, Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf")
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in (".ttf", ".otf", ".ttc"):
                yield str(path)


__all__ = ["font_for"]
