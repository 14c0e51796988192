"""Labels in any script are drawn with glyphs, or replaced by a number; never as boxes."""

import logging
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from titok_hf.data import fonts
from titok_hf.data.fonts import font_for, has_glyphs
from titok_hf.data.grids import image_grid

NAMES = {
    "Latin": "Größe",
    "Greek": "αβγ",
    "Cyrillic": "Кошка",
    "CJK": "画像",
    "Arabic": "قطة",
    "Hindi": "बिल्ली",
    "emoji": "🐟",
}


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine without fonts."""
    monkeypatch.setattr(fonts, "installed_fonts", lambda: iter(()))
    font_for.cache_clear()
    yield
    font_for.cache_clear()


def test_the_font_of_pillow_has_the_glyphs_of_ascii():
    font = ImageFont.load_default(size=14)
    assert has_glyphs(font, "goldfish, Carassius auratus 0123456789")
    assert not any(has_glyphs(font, name) for name in NAMES.values())


@pytest.mark.parametrize("script", NAMES)
def test_a_text_is_drawn_with_its_glyphs_or_not_at_all(script):
    """The fonts are those of this machine, whatever they are."""
    font_for.cache_clear()
    text, font = font_for(NAMES[script], "7")
    assert text in (NAMES[script], "7") and has_glyphs(font, text)


@pytest.mark.parametrize("script", ["CJK", "Arabic", "emoji"])
def test_without_a_font_the_number_is_drawn_and_a_font_named(no_fonts, caplog, script):
    caplog.set_level(logging.WARNING, "titok_hf.data")
    rows = [[Image.new("RGB", (8, 8))]]
    grid = image_grid(rows, [NAMES[script]], substitutes=[7])
    assert np.array_equal(np.asarray(grid), np.asarray(image_grid(rows, ["7"])))
    assert NAMES[script] in caplog.text and "fonts-noto" in caplog.text
    image_grid(rows, [NAMES[script]], substitutes=[7])
    assert len(caplog.records) == 1


def test_an_installed_font_with_the_glyphs_is_taken(no_fonts, monkeypatch, tmp_path):
    """A damaged font and one for Greek are installed."""
    greek = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    paths = [str(tmp_path / "damaged.ttf"), greek]
    monkeypatch.setattr(fonts, "installed_fonts", lambda: iter(paths))
    text, font = font_for(NAMES["Greek"], "7")
    assert text == NAMES["Greek"] and font.path == greek


def test_fonts_are_found_in_folders(monkeypatch, tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.ttf", "deep/b.OTF", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(fonts, "FONT_FOLDERS", [str(tmp_path), str(tmp_path / "nowhere")])
    found = [path for path in fonts.installed_fonts() if path.startswith(str(tmp_path))]
    assert found == [str(tmp_path / "a.ttf"), str(tmp_path / "deep" / "b.OTF")]
