import numpy as np
import pytest
import torch
from PIL import Image

from titok_hf import VTPImageProcessor
from titok_hf.data.multi_crop import Distortion, MultiCrop, crop_box, jitter_colors

OFF = {"blur": 0.0, "solarize": 0.0, "jitter": 0.0, "gray": 0.0, "flip": 0.0}


@pytest.fixture
def image():
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    return Image.fromarray(values)


def test_sizes_values_and_randomness(image):
    crop = MultiCrop(global_size=32, local_size=16, num_local=3, patch_size=8)
    processor = VTPImageProcessor.from_image_size(32)
    first, again, other = (
        crop(image, processor, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first[0].shape == (2, 3, 32, 32) and first[1].shape == (3, 3, 16, 16)
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])
    assert first[0].min() < 0 < first[0].max()  # normalized
    _, none = MultiCrop(32, 16, 0, patch_size=8)(image, processor, np.random.default_rng(1))
    assert none.shape == (0, 3, 16, 16)


def test_a_crop_of_the_whole_image_is_what_the_processor_makes():
    image = Image.new("RGB", (32, 32), (10, 120, 250))
    crop = MultiCrop(32, 32, 0, global_scale=(1.0, 1.0), patch_size=8)
    processor = VTPImageProcessor.from_image_size(32)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    undistorted = [  # about a tenth of the first crops keep their colors
        torch.equal(crop(image, processor, np.random.default_rng(seed))[0][0], expected)
        for seed in range(40)
    ]
    assert any(undistorted) and not all(undistorted)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"global_size": 250}, "`global_size` must be a multiple of the patch size 16, got 250"),
        (
            {"local_size": 96, "patch_size": 14},
            "`global_size` must be a multiple of the patch size 14",
        ),
        ({"local_size": 0}, "`local_size` must be a multiple of the patch size 16, got 0"),
        (
            {"local_scale": (0.5, 0.1)},
            r"`local_scale` must be two shares in \(0, 1\], the least first",
        ),
        ({"global_scale": (0.0, 1.0)}, r"`global_scale` must be two shares in \(0, 1\]"),
    ],
)
def test_wrong_settings_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        MultiCrop(**fields)


@pytest.mark.parametrize("size", [(60, 40), (500, 10), (1, 1), (1, 50)])
def test_crops_lie_in_the_image_and_have_the_share(size):
    rng = np.random.default_rng(0)
    image = Image.new("RGB", size)
    for _ in range(300):
        left, top, right, bottom = crop_box(image, (0.2, 0.4), rng)
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        if size == (60, 40):
            share = (right - left) * (bottom - top) / (60 * 40)
            assert 0.17 < share < 0.43
            assert 0.7 < (right - left) / (bottom - top) < 1.45


def test_probabilities_are_effective(image):
    """Each distortion alone changes the image as often as its probability says."""
    for name in OFF:
        for probability in (0.0, 0.3, 1.0):
            distortion = Distortion(**{**OFF, name: probability})
            rng = np.random.default_rng(0)
            changed = [
                np.asarray(distortion(image, rng)).tobytes() != image.tobytes() for _ in range(200)
            ]
            assert np.mean(changed) == pytest.approx(probability, abs=0.08)


def test_colors_stay_near():
    """A color whose channels differ keeps their order of magnitude, and gray stays gray in hue."""
    rng = np.random.default_rng(0)
    gray = Image.new("RGB", (4, 4), (128, 128, 128))
    values = np.array([jitter_colors(gray, rng).getpixel((0, 0)) for _ in range(200)])
    assert (values.max(1) - values.min(1)).max() <= 1
    assert values.min() > 128 * 0.55 and values.max() < 128 * 1.45
    red = Image.new("RGB", (4, 4), (200, 40, 40))
    values = np.array([jitter_colors(red, rng).getpixel((0, 0)) for _ in range(200)])
    assert (values[:, 0] >= values[:, 1:].max(1)).all()  # a tenth of a turn is not another color
    assert len(np.unique(values, axis=0)) > 150
