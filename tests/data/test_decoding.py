import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import Image

from titok_hf.data.decoding import UnreadableImageError, decode_image


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def decoded(source):
    image = decode_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


class TestSources:
    def test_bytes_paths_dictionaries_and_images(self, pixels, tmp_path):
        image, path = Image.fromarray(pixels), tmp_path / "a.png"
        data = encoded(image)
        path.write_bytes(data)
        for source in (
            data,
            path,
            str(path),
            {"bytes": data, "path": None},
            {"bytes": None, "path": str(path)},
            {"path": str(path)},
            {"bytes": data, "path": "0001.png"},  # a path inside a shard
            image,
            Image.open(path),
            path.as_uri(),
        ):
            assert np.array_equal(decoded(source), pixels), source

    def test_the_given_image_stays_as_it_is(self, pixels):
        image = Image.fromarray(pixels).convert("L")
        decode_image(image)
        assert image.mode == "L"

    def test_of_moving_images_the_first_frame_is_taken(self, pixels):
        first, second = Image.new("L", (4, 4), 9), Image.new("L", (4, 4), 200)
        data = encoded(first, "GIF", save_all=True, append_images=[second])
        assert np.all(decoded(data) == 9)


class TestModes:
    def test_gray(self, pixels):
        gray = pixels[..., 0]
        assert np.array_equal(decoded(encoded(Image.fromarray(gray))), np.stack([gray] * 3, -1))

    def test_black_and_white(self, pixels):
        bits = pixels[..., 0] > 127
        assert np.array_equal(
            decoded(encoded(Image.fromarray(bits))), np.stack([bits * 255] * 3, -1)
        )

    def test_transparency_is_laid_on_white(self, pixels):
        alpha = np.random.default_rng(1).integers(0, 256, (5, 7, 1), dtype=np.uint8)
        on_white = (pixels * (alpha / 255) + 255 - alpha).round()
        color = Image.fromarray(np.concatenate([pixels, alpha], -1), "RGBA")
        assert np.abs(decoded(encoded(color)) - on_white).max() <= 1
        gray = Image.fromarray(np.concatenate([pixels[..., :1], alpha], -1), "LA")
        assert np.abs(decoded(encoded(gray)) - on_white[..., :1]).max() <= 1

    @pytest.mark.parametrize(
        "transparency", [None, 1, bytes([0, 128, 255])], ids=["none", "index", "bytes"]
    )
    @pytest.mark.filterwarnings("error")
    def test_palettes(self, transparency):
        colors = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 255]], np.uint8)
        indices = np.random.default_rng(2).integers(0, 3, (5, 7), dtype=np.uint8)
        image = Image.fromarray(indices, "P")
        image.putpalette(colors.tobytes())
        options = {} if transparency is None else {"transparency": transparency}
        alpha = {None: [255] * 3, 1: [255, 0, 255]}.get(transparency, transparency)
        alpha = np.array(list(alpha), float)[:, None]
        expected = (colors * alpha / 255 + 255 - alpha)[indices]
        assert np.abs(decoded(encoded(image, **options)) - expected).max() <= 1

    def test_cmyk(self):
        c, m, y, k = color = (40, 100, 200, 60)
        data = encoded(Image.new("CMYK", (16, 16), color), "JPEG", quality=100)
        expected = [(255 - ink) * (255 - k) / 255 for ink in (c, m, y)]  # light passes both inks
        assert np.abs(decoded(data) - np.array(expected)).max() < 4

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_16_bits_are_scaled_not_clipped(self, kind):
        values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
        expected = np.floor(values / 257 + 0.5)  # 65535 / 255 = 257
        assert np.array_equal(
            decoded(encoded(Image.fromarray(values), kind)), np.stack([expected] * 3, -1)
        )

    @pytest.mark.parametrize(
        ("largest", "full"), [(65535, 65535), (40_000, 65535), (2**31 - 1, 2**31 - 1)]
    )
    def test_wide_integers(self, largest, full):
        values = np.linspace(0, largest, 64).astype(np.int32).reshape(8, 8)
        result = decoded(encoded(Image.fromarray(values), "TIFF"))
        assert np.abs(result[..., 0] - values / full * 255).max() <= 0.5

    def test_dark_wide_integers_stay_dark(self):
        assert np.all(decoded(Image.fromarray(np.full((2, 2), 257 * 3, np.int32))) == 3)

    @pytest.mark.parametrize(("largest", "full"), [(1.0, 1), (0.5, 1), (255.0, 255), (100.0, 255)])
    def test_floats(self, largest, full):
        values = np.linspace(0, largest, 64, dtype=np.float32).reshape(8, 8)
        result = decoded(encoded(Image.fromarray(values), "TIFF"))
        assert np.abs(result[..., 0] - values / full * 255).max() <= 0.5

    def test_floats_that_are_no_numbers_are_black(self):
        values = np.array([[np.nan, 1.0], [0.5, -1.0]], np.float32)
        assert decoded(Image.fromarray(values))[..., 0].tolist() == [[0, 255], [128, 0]]


UPRIGHT = {  # what a viewer does, EXIF 2.32, tag 274
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_upright(pixels, orientation):
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[274] = orientation
    data = encoded(image, exif=exif)
    assert np.array_equal(decoded(data), UPRIGHT[orientation](pixels))
    assert np.array_equal(decoded(Image.open(io.BytesIO(data))), UPRIGHT[orientation](pixels))


class TestUnreadable:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF"])
    def test_a_truncated_image(self, kind):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        data = encoded(Image.fromarray(noise), kind)
        with pytest.raises(UnreadableImageError):
            decode_image(data[: len(data) // 2])

    @pytest.mark.filterwarnings("ignore")
    def test_damaged_files_raise_nothing_else(self, pixels):
        """Each decoder has its own ways to fail."""
        rng = np.random.default_rng(0)
        failures = 0
        for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"):
            whole = encoded(Image.fromarray(pixels.repeat(4, 0)), kind)
            for _ in range(40):
                data = bytearray(whole)
                for place in rng.integers(0, min(len(data), 200), 5):
                    data[place] = rng.integers(0, 256)
                try:
                    decode_image(bytes(data))
                except UnreadableImageError:
                    failures += 1
        assert failures > 60

    @pytest.mark.parametrize(
        ("source", "sentence"),
        [
            (b"", "The file is empty."),
            ({"bytes": b"", "path": "a.jpg"}, "The file is empty."),
            (b"no image at all", "no image, or its header is damaged."),
            (None, "The sample has no image."),
            ({"bytes": None, "path": None}, "The sample has no image."),
            ("/nowhere/a.png", "There is no file /nowhere/a.png."),
            ({"bytes": None, "path": "/nowhere/a.png"}, "There is no file /nowhere/a.png."),
            (Path("/"), "cannot be decoded: .*directory"),
        ],
        ids=str,
    )
    def test_what_is_wrong_is_said_in_a_sentence(self, source, sentence):
        with pytest.raises(UnreadableImageError, match=sentence) as caught:
            decode_image(source)
        assert isinstance(caught.value, ValueError) and str(caught.value).endswith(".")

    def test_more_pixels_than_pil_opens(self, monkeypatch, pixels):
        data = encoded(Image.fromarray(pixels))
        monkeypatch.setattr(
            PIL.Image, "MAX_IMAGE_PIXELS", 17
        )  # the error comes at twice as many, here 34 < 35
        with pytest.raises(
            UnreadableImageError, match=r"Image size \(35 pixels\) exceeds limit of 34"
        ):
            decode_image(data)

    def test_a_large_image_is_decoded(self):
        assert decoded(encoded(Image.new("L", (9000, 3000), 7))).shape == (3000, 9000, 3)
