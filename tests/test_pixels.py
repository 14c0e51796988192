"""Every way from a file to a network's input sees the same pixels, for all modes of Pillow."""

import colorsys
import io
import struct
import zlib

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from titok_hf import TiTokImageProcessor
from titok_hf.data.augmentation import Augmentation
from titok_hf.data.collator import ImageCollator
from titok_hf.data.decoding import decode_image, decoder_for
from titok_hf.data.loader import TrainingLoader
from titok_hf.data.samples import IndexedSamples
from titok_hf.data.token_folder import Part
from titok_hf.data.tokenize import PartBatches
from titok_hf.evaluation.files import open_image_files
from titok_hf.evaluation.image_sources import DatasetImages, decode_row, encoded_images
from titok_hf.evaluation.protocol import Protocol
from titok_hf.modeling.checks import check_ids, check_pixel_values
from titok_hf.modeling.pixels import limit_aspect_ratio, to_rgb
from titok_hf.modeling.vtp import VTPImageProcessor
from titok_hf.training.previews import first_images

SIZE = 16
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
COLORS = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
INDICES = RNG.integers(0, 4, (SIZE, SIZE), dtype=np.uint8)
WIDE = np.linspace(0, 65535, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)


def gray(values):
    return np.repeat(np.asarray(values, float)[..., None], 3, -1)


def on_white(colors, alpha):
    """Colors `(..., 3)` and alpha `(...)`, both in [0, 255], by the definition of alpha."""
    weight = np.asarray(alpha, float)[..., None] / 255
    return weight * colors + (1 - weight) * 255


def palette_image(mode="P"):
    if mode == "PA":
        image = Image.merge("LA", [Image.fromarray(INDICES), Image.fromarray(BYTES[..., 3])])
        image = Image.frombytes("PA", image.size, image.tobytes())
    else:
        image = Image.fromarray(INDICES, "P")
    image.putpalette(COLORS.tobytes())
    return image


def srgb_of_lab(lab):
    """CIE Lab relative to D50, to sRGB: Bradford-adapted matrix of IEC 61966-2-1."""
    lightness, a, b = (lab[..., i].astype(float) for i in range(3))
    y = (lightness * 100 / 255 + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    linear = (
        xyz
        @ np.array(
            [
                [3.1338561, -1.6168667, -0.4906146],
                [-0.9787684, 1.9161415, 0.0334540],
                [0.0719453, -0.2289914, 1.4052427],
            ]
        ).T
    )
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def ycbcr(values):
    y, cb, cr = (values[..., i].astype(float) for i in range(3))
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return rgb.clip(0, 255)


def hsv(values):
    return np.array([[np.multiply(colorsys.hsv_to_rgb(*p / 255), 255) for p in r] for r in values])


def premultiplied(channels):
    alpha = BYTES[..., 3:]
    return np.concatenate([(BYTES[..., :channels] * (alpha / 255)).astype(np.uint8), alpha], -1)


def raw(mode, values):
    return Image.frombytes(mode, (SIZE, SIZE), np.ascontiguousarray(values).tobytes())


LAB = np.stack(
    [RNG.integers(a, b, (SIZE, SIZE)) for a, b in ((100, 160), (-15, 15), (-15, 15))], -1
)
CMYK = 255 - BYTES.astype(float)
RGB = BYTES[..., :3].astype(float)


def with_info(image, **info):
    image.info |= info
    return image


# image, format of the file (none: Pillow writes the mode in no lossless format), expected values,
# largest difference of rounding
CASES = {
    "1": (Image.fromarray(BYTES[..., 0] > 127), "PNG", gray((BYTES[..., 0] > 127) * 255), 0),
    "L": (Image.fromarray(BYTES[..., 0]), "PNG", gray(BYTES[..., 0]), 0),
    "LA": (raw("LA", BYTES[..., 2:]), "PNG", on_white(gray(BYTES[..., 2]), BYTES[..., 3]), 1),
    "La": (
        raw("La", premultiplied(1)),
        None,
        gray(premultiplied(1)[..., 0] + 255.0 - BYTES[..., 3]),
        2,
    ),
    "P": (palette_image(), "PNG", COLORS[INDICES], 0),
    "PA": (palette_image("PA"), None, on_white(COLORS[INDICES], BYTES[..., 3]), 1),
    "RGB": (raw("RGB", BYTES[..., :3]), "PNG", RGB, 0),
    "RGBA": (raw("RGBA", BYTES), "PNG", on_white(RGB, BYTES[..., 3]), 1),
    "RGBa": (
        raw("RGBa", premultiplied(3)),
        None,
        premultiplied(3)[..., :3] + 255.0 - BYTES[..., 3:],
        2,
    ),
    "RGBX": (raw("RGBX", BYTES), "TIFF", RGB, 0),
    "CMYK": (raw("CMYK", BYTES), "TIFF", CMYK[..., :3] * CMYK[..., 3:] / 255, 1),
    "YCbCr": (raw("YCbCr", BYTES[..., :3]), None, ycbcr(BYTES), 2),
    "LAB": (raw("LAB", LAB.astype(np.uint8)), "TIFF", srgb_of_lab(LAB), 3),
    "HSV": (raw("HSV", BYTES[..., :3]), None, hsv(BYTES[..., :3]), 3),
    "I": (Image.fromarray(WIDE.astype(np.int32)), "TIFF", gray(WIDE / 257), 0.5),
    "I 32 bits": (Image.fromarray(WIDE.astype(np.int32) * 2**15), "TIFF", gray(WIDE / 257), 0.51),
    "I;16": (Image.fromarray(WIDE), "PNG", gray(WIDE / 257), 0.5),
    "I;16L": (raw("I;16L", WIDE.astype("<u2")), None, gray(WIDE / 257), 0.5),
    "I;16B": (raw("I;16B", WIDE.astype(">u2")), "TIFF", gray(WIDE / 257), 0.5),
    "F": (Image.fromarray((WIDE / 65535).astype(np.float32)), "TIFF", gray(WIDE / 257), 0.51),
    "F to 255": (Image.fromarray((WIDE / 257).astype(np.float32)), "TIFF", gray(WIDE / 257), 0.51),
    "L transparent": (
        with_info(Image.fromarray(INDICES * 60), transparency=60),
        "PNG",
        on_white(gray(INDICES * 60), (INDICES != 1) * 255),
        0,
    ),
    "RGB transparent": (
        with_info(raw("RGB", COLORS[INDICES]), transparency=tuple(map(int, COLORS[2]))),
        "PNG",
        on_white(COLORS[INDICES], (INDICES != 2) * 255),
        0,
    ),
    "P transparent": (
        with_info(palette_image(), transparency=bytes([0, 128, 255, 30])),
        "PNG",
        on_white(COLORS[INDICES], np.array([0, 128, 255, 30])[INDICES]),
        1,
    ),
    "I;16 transparent": (
        with_info(Image.fromarray(WIDE), transparency=int(WIDE[3, 3])),
        "PNG",
        on_white(gray(WIDE / 257), (WIDE[3, 3] != WIDE) * 255),
        0.5,
    ),
}


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def animated(kind):
    frames = [Image.fromarray(BYTES[..., i]) for i in range(2)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def turned():
    exif = Image.Exif()
    exif[274] = 6
    return encoded(raw("RGB", BYTES[..., :3]), "PNG", exif=exif)


FILES = {
    **{
        name: (encoded(image, kind, **image.info), expected, tolerance)
        for name, (image, kind, expected, tolerance) in CASES.items()
        if kind is not None
    },
    "GIF": (animated("GIF"), gray(BYTES[..., 0]), 0),
    "APNG": (animated("PNG"), gray(BYTES[..., 0]), 0),
    "EXIF": (turned(), np.rot90(RGB, -1), 0),
}
PROTOCOL = Protocol.load("titok-rfid", [f"image_size={SIZE}"])


def tensor(array):
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def seen_by_all(path, **colors):
    """The pixels of an image file by each path, uint8 `(3, SIZE, SIZE)`."""
    titok, vtp = (
        kind(**kind.from_image_size(SIZE).to_dict() | colors)
        for kind in (TiTokImageProcessor, VTPImageProcessor)
    )
    rows = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    samples = IndexedSamples(rows, label_column=None)

    def bits(pixel_values, processor=titok):
        return (processor.postprocess(pixel_values, "pt")[0] * 255).round().to(torch.uint8)

    loader = TrainingLoader(
        samples, ImageCollator(titok).collate, batch_size=1, decode=decoder_for(titok)
    )
    part = Part("train", 0, 1, 0, 1)
    parts = PartBatches({"train": samples}, [part], titok, Augmentation(), 1, torch.float32)
    yield "training", bits(next(iter(loader))["pixel_values"])
    yield "collator", bits(ImageCollator(titok)([{"image": Image.open(path)}])["pixel_values"])
    yield "tokenize", bits(next(iter(parts)).pixel_values)
    if not colors:  # a protocol has its own processor
        yield "evaluate", next(DatasetImages(rows, PROTOCOL).batches(1)).images[0]
    yield "preview", tensor(np.asarray(first_images(samples, 1, decoder_for(titok))[0]))
    yield "reconstruct", tensor(np.asarray(open_image_files([path], decoder_for(titok))[0]))
    for name, processor in (("titok", titok), ("vtp", vtp)):
        for image in (Image.open(path), str(path)):
            pixel_values = processor(image, return_tensors="pt")["pixel_values"]
            yield f"{name}, {type(image).__name__}", bits(pixel_values, processor)


@pytest.mark.parametrize("name", FILES)
def test_all_paths_see_the_same_pixels_of_a_file(name, tmp_path):
    data, expected, tolerance = FILES[name]
    path = tmp_path / "image"
    path.write_bytes(data)
    seen = dict(seen_by_all(path))
    assert len(seen) == 10
    assert np.abs(seen["training"].permute(1, 2, 0).numpy() - expected).max() <= tolerance
    for other, pixels in seen.items():
        assert torch.equal(pixels, seen["training"]), other


def test_all_paths_follow_the_background_of_the_processor(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.new("RGBA", (SIZE, SIZE), (200, 100, 50, 0)), "PNG"))
    seen = dict(seen_by_all(path, background="#102030"))
    assert len(seen) == 9
    color = torch.tensor([0x10, 0x20, 0x30], dtype=torch.uint8)[:, None, None]
    for name, pixels in seen.items():
        assert torch.equal(pixels, color.expand(3, SIZE, SIZE)), name


@pytest.mark.parametrize("name", CASES)
def test_processors_read_images_of_all_modes(name):
    image, _, expected, tolerance = CASES[name]
    decoded = np.asarray(decode_image(image))
    assert np.abs(decoded - expected).max() <= tolerance
    for kind in (TiTokImageProcessor, VTPImageProcessor):
        plain = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
        pixels = kind.from_image_size(SIZE)(image, **plain)["pixel_values"][0]
        assert np.array_equal(pixels.transpose(1, 2, 0), decoded), kind


@pytest.mark.parametrize("kind", [TiTokImageProcessor, VTPImageProcessor])
class TestSwitches:
    def test_background(self, kind, tmp_path):
        """The field is saved with the processor, and arrays with alpha follow it too."""
        kind.from_image_size(SIZE).save_pretrained(tmp_path)
        assert kind.from_pretrained(tmp_path).background == "white"
        kind(**kind.from_image_size(SIZE).to_dict() | {"background": "#102030"}).save_pretrained(
            tmp_path
        )
        processor = kind.from_pretrained(tmp_path)
        alpha = BYTES[..., 3:] / 255
        expected = BYTES[..., :3] * alpha + (1 - alpha) * [0x10, 0x20, 0x30]
        image = Image.fromarray(BYTES)
        for given in (image, BYTES, torch.from_numpy(BYTES).permute(2, 0, 1)):
            (result,) = processor.postprocess(processor(given, return_tensors="pt")["pixel_values"])
            assert np.abs(np.asarray(result) - expected).max() <= 1
            assert np.array_equal(np.asarray(decode_image(image, "#102030")), np.asarray(result))
        floats = BYTES.astype(np.float32) / 255
        pixel_values = processor(floats, do_rescale=False, return_tensors="pt")["pixel_values"]
        assert np.abs(np.asarray(processor.postprocess(pixel_values)[0]) - expected).max() <= 1
        floats = BYTES.astype(np.float32) / 255
        pixel_values = processor(floats, do_rescale=False, return_tensors="pt")["pixel_values"]
        assert np.abs(np.asarray(processor.postprocess(pixel_values)[0]) - expected).max() <= 1
        with pytest.raises(ValueError, match="whtie"):
            processor(image, background="whtie")

    def test_icc_profile_of_cmyk(self, kind):
        """Pillow brings no CMYK profile: that the profile is used shows in the error of one that
        does not fit."""
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        image = with_info(raw("CMYK", BYTES), icc_profile=profile)
        processor = kind.from_image_size(SIZE)
        expected = CMYK[..., :3] * CMYK[..., 3:] / 255
        (result,) = processor.postprocess(processor(image, return_tensors="pt")["pixel_values"])
        assert np.abs(np.asarray(result) - expected).max() <= 1
        with pytest.raises(ImageCms.PyCMSError):
            processor(image, apply_icc_profile=True)


@pytest.mark.parametrize("kind", [TiTokImageProcessor, VTPImageProcessor])
class TestArrays:
    @pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
    def test_gray_and_bool(self, kind, convert):
        processor = kind.from_image_size(SIZE)
        bits = BYTES[..., :3] > 127
        for array in (BYTES[..., 0], bits[..., 0], bits):
            image = Image.fromarray(array.astype(np.uint8) * (255 if array.dtype == bool else 1))
            expected = processor(image, return_tensors="pt")["pixel_values"]
            for given in (convert(array), [convert(array)]):
                assert torch.equal(processor(given, return_tensors="pt")["pixel_values"], expected)

    def test_gray_floats(self, kind):
        values = np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
        found = kind.from_image_size(SIZE)(
            values, do_rescale=False, do_normalize=False, return_tensors="np"
        )["pixel_values"]
        assert np.abs(found - values).max() <= 1 / 255
        with pytest.raises(ValueError, match="do_rescale"):
            kind.from_image_size(SIZE)(values)

    @pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
    def test_integers_of_other_types(self, kind, dtype):
        processor = kind.from_image_size(8)
        array = BYTES[..., :3].astype(dtype)
        expected = processor(BYTES[..., :3], return_tensors="pt")["pixel_values"]
        assert torch.equal(processor(array, return_tensors="pt")["pixel_values"], expected)
        with pytest.raises(ValueError, match=r"\[0, 255\], got .*300"):
            processor(np.where(array == array.max(), 300, array).astype(dtype))

    def test_no_image(self, kind):
        processor, image = kind.from_image_size(SIZE), Image.new("L", (SIZE, SIZE))
        with pytest.raises(TypeError, match="got None"):
            processor(None)
        with pytest.raises(TypeError, match="Image 1 of 3 is None"):
            processor([image, None, image])
        for empty in ([], np.zeros((0, 3, SIZE, SIZE), np.uint8), torch.zeros(0, 3, SIZE, SIZE)):
            with pytest.raises(ValueError, match="empty batch"):
                processor(empty)


def test_networks_name_the_type_of_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"`codes` must be a tensor, got numpy\.ndarray"):
        check_ids(np.zeros((1, 4), np.int64), "codes", ("batch", 4))
    with pytest.raises(TypeError, match=r"`pixel_values` must be a tensor, got builtins\.list"):
        check_pixel_values([[0.0]], 3)


class TestThinImages:
    @pytest.mark.parametrize("kind", [TiTokImageProcessor, VTPImageProcessor])
    @pytest.mark.parametrize("shape", [(1, 3000), (3001, 1), (2, 801), (800, 2), (16, 903)])
    def test_the_center_is_that_of_the_whole(self, kind, shape):
        """The expected crop is cut from the whole image after it is enlarged."""
        array = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
        image, scale = Image.fromarray(array), 32 // min(shape)
        whole = np.asarray(
            image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
        )
        top, left = (side * scale // 2 - 16 for side in shape)
        processor = kind.from_image_size(32)
        (found,) = processor.postprocess(processor(image, return_tensors="pt")["pixel_values"])
        assert np.array_equal(np.asarray(found), whole[top : top + 32, left : left + 32])

    def test_sides_up_to_16_to_1_are_kept(self):
        for shape in ((3, 10, 160), (3, 160, 10), (3, 7, 7)):
            array = np.zeros(shape, np.uint8)
            assert limit_aspect_ratio(array) is array
        assert limit_aspect_ratio(np.zeros((3, 10, 161), np.uint8)).shape == (3, 10, 161)
        assert limit_aspect_ratio(np.zeros((3, 10, 163), np.uint8)).shape == (3, 10, 161)

    @pytest.mark.parametrize("crop", ["center", "random", "adm", "ten"])
    def test_memory(self, crop):
        """Resized as a whole, this image would have 13 billion pixels, more than PIL can hold."""
        image = Image.new("RGB", (200_000, 1), (255, 0, 0))
        processor = TiTokImageProcessor.from_image_size(256)
        pixel_values = Augmentation(crop)(image, processor, np.random.default_rng(0))
        assert pixel_values.shape == (3, 256, 256) and torch.all(pixel_values[0] == 1)


def chunk(kind, data):
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def bomb():
    """A PNG of 14,000 x 14,000 black pixels, more than PIL opens."""
    header = struct.pack(">IIBBBBB", 14_000, 14_000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(14_000 * (1 + 14_000 // 8)))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_long_text_is_no_obstacle(kind, after, tmp_path):
    data = encoded(raw("RGBA", BYTES), "PNG")
    fields = b"\0\1\0\0\0" if kind == b"iTXt" else b"\0\0"
    text = chunk(kind, b"key" + fields + zlib.compress(bytes(2_000_000)))
    place = -12 if after else 33  # before the end, or after the header
    found = decode_image(data[:place] + text + data[place:])
    assert np.array_equal(np.asarray(found), np.asarray(to_rgb(raw("RGBA", BYTES))))

    (tmp_path / "text.png").write_bytes(data[:place] + text + data[place:])
    (tmp_path / "plain.png").write_bytes(data)
    processor = TiTokImageProcessor.from_image_size(4)
    found, expected = (
        processor(str(tmp_path / name), return_tensors="pt")["pixel_values"]
        for name in ("text.png", "plain.png")
    )
    assert torch.equal(found, expected)


def test_text_within_the_limits_stays_readable():
    """Orientation may stand in the text of XMP."""
    info = PngInfo()
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", xmp)
    data = encoded(raw("RGB", BYTES[..., :3]), "PNG", pnginfo=info)
    assert np.array_equal(np.asarray(decode_image(data)), np.rot90(BYTES[..., :3], -1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(bomb(), "exceeds limit"), (b"no image", "no image"), (b"", "empty")],
    ids=["bomb", "text", "empty"],
)
def test_what_cannot_be_read_is_named_by_evaluation_and_commands(data, reason, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    rows = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    with pytest.raises(ValueError, match=rf"broken\.png.*{reason}"):
        DatasetImages(rows, PROTOCOL).open(0)
    with pytest.raises(ValueError, match=rf"broken\.png.*{reason}"):
        open_image_files([path])
    with pytest.raises(ValueError, match=rf"Image 0 .*broken\.png.*{reason}"):
        decode_row(encoded_images(rows, "image")[0]["image"], 0)
