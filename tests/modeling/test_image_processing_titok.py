import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from titok_hf import TiTokImageProcessor

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def processor():
    return TiTokImageProcessor.from_image_size(32)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def preprocess(processor, images, **kwargs):
    return processor(images, return_tensors="pt", **kwargs)["pixel_values"]


def test_pil_images_become_float_tensors_in_the_unit_interval(processor, pixels):
    pixel_values = preprocess(processor, Image.fromarray(pixels))

    assert pixel_values.dtype == torch.float32
    torch.testing.assert_close(pixel_values, torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)


@pytest.mark.parametrize(
    "layout", ["height width channels", "channels height width", "batch of tensors"]
)
def test_uint8_arrays_are_read_as_pil_images_are(processor, pixels, layout):
    expected = preprocess(processor, Image.fromarray(pixels))
    images = {
        "height width channels": pixels,
        "channels height width": pixels.transpose(2, 0, 1),
        "batch of tensors": torch.from_numpy(pixels).permute(2, 0, 1)[None],
    }[layout]

    assert torch.equal(preprocess(processor, images), expected)


@pytest.mark.parametrize("as_tensor", [True, False])
def test_float_images_stay_as_they_are_if_not_rescaled(processor, as_tensor):
    images = torch.rand(2, 3, 32, 32)
    pixel_values = preprocess(
        processor, images if as_tensor else list(images.numpy()), do_rescale=False
    )

    torch.testing.assert_close(pixel_values, images, atol=1 / 255, rtol=0)


def test_float_images_are_resized_as_their_uint8_versions_are(processor):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8)
    from_floats = preprocess(processor, pixels.astype(np.float32) / 255, do_rescale=False)

    torch.testing.assert_close(from_floats, preprocess(processor, pixels), atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("as_tensor", [True, False])
def test_float_images_are_not_rescaled_by_mistake(processor, as_tensor):
    images = torch.rand(2, 3, 32, 32)
    with pytest.raises(
        ValueError,
        match=r"Float images are expected in \[0, 1\] and not rescaled: pass `do_rescale=F",
    ):
        preprocess(processor, images if as_tensor else list(images.numpy()))


@pytest.mark.parametrize("value", [-1.5, -0.5, 2.0, 255.0, float("nan")])
def test_float_images_outside_the_unit_interval_are_refused(processor, value):
    image = torch.zeros(3, 32, 32)
    image[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"Float images must be in \[0, 1\], got"):
        preprocess(processor, image, do_rescale=False)


def test_gray_images_have_three_equal_channels(processor):
    pixel_values = preprocess(processor, Image.new("L", (32, 32), 51))
    torch.testing.assert_close(pixel_values, torch.full((1, 3, 32, 32), 0.2))


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(processor, mode):
    image = Image.new("RGB", (32, 32), GREEN).convert(mode)
    pixel_values = preprocess(processor, image)

    torch.testing.assert_close(
        pixel_values, torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    )


def test_images_of_different_sizes_and_modes_form_a_batch(processor):
    images = [Image.new("L", (40, 50)), Image.new("RGB", (70, 33)), Image.new("RGBA", (8, 8))]
    assert preprocess(processor, images).shape == (3, 3, 32, 32)


@given(width=st.integers(1, 80), height=st.integers(1, 80))
def test_any_size_becomes_the_square(width, height):
    pixel_values = preprocess(
        TiTokImageProcessor.from_image_size(32), Image.new("RGB", (width, height), RED)
    )

    assert pixel_values.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixel_values[0, 0], torch.ones(32, 32))
    assert pixel_values[0, 1:].max() == 0


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("vertical", [False, True])
def test_the_center_is_cut_out(processor, scale, vertical):
    stripes = np.repeat(np.array([RED, GREEN, BLUE], dtype=np.uint8), 32 * scale, axis=0)
    stripes = np.broadcast_to(stripes, (32 * scale, 96 * scale, 3))
    image = Image.fromarray(stripes.swapaxes(0, 1) if vertical else stripes)
    middle = preprocess(processor, image)[0, :, 4:-4, 4:-4]

    torch.testing.assert_close(
        middle, torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1).expand(3, 24, 24)
    )


def test_the_shorter_side_is_resized_bicubically(processor):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    resized = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40]

    expected = torch.from_numpy(resized / 255).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(preprocess(processor, image), expected)


def test_defaults_are_images_of_256_pixels():
    assert preprocess(TiTokImageProcessor(), Image.new("RGB", (300, 400))).shape == (1, 3, 256, 256)


def test_preprocessing_and_postprocessing_keep_every_bit(processor):
    levels = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32, 1).repeat(3, axis=2)
    (image,) = processor.postprocess(preprocess(processor, Image.fromarray(levels)))

    assert np.array_equal(np.asarray(image), levels)


def test_postprocessing_clamps_and_converts(processor):
    pixel_values = torch.randn(2, 3, 32, 32)
    clamped = pixel_values.clamp(0, 1)
    tensor, array, images = (
        processor.postprocess(pixel_values, kind) for kind in ("pt", "np", "pil")
    )

    assert torch.equal(tensor, clamped)
    assert array.shape == (2, 32, 32, 3) and array.dtype == np.float32
    assert np.array_equal(array, clamped.permute(0, 2, 3, 1).numpy())
    assert [(image.mode, image.size) for image in images] == [("RGB", (32, 32))] * 2
    assert np.array_equal(
        np.stack([np.asarray(image) for image in images]), np.rint(array * 255).astype(np.uint8)
    )


def test_postprocessing_makes_pil_images_unless_told_otherwise(processor):
    assert isinstance(processor.postprocess(torch.rand(1, 3, 32, 32))[0], Image.Image)


@pytest.mark.parametrize("output_type", ["pt", "np"])
def test_postprocessing_takes_bfloat16_with_gradients_to_float32(processor, output_type):
    pixel_values = torch.rand(1, 3, 32, 32, dtype=torch.bfloat16, requires_grad=True)
    images = torch.as_tensor(processor.postprocess(pixel_values, output_type))

    assert images.dtype == torch.float32
    assert not images.requires_grad


@pytest.mark.parametrize("loader", [TiTokImageProcessor, AutoImageProcessor])
def test_folder_keeps_every_setting(processor, titok, pixels, tmp_path, loader):
    titok.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)

    assert type(loaded) is TiTokImageProcessor
    assert loaded.to_dict() == processor.to_dict()
    image = Image.fromarray(pixels).resize((48, 40))
    assert torch.equal(preprocess(loaded, image), preprocess(processor, image))


def test_unknown_output_type_is_refused(processor):
    with pytest.raises(ValueError, match="`output_type` must be 'pil', 'np' or 'pt', got 'latent'"):
        processor.postprocess(torch.rand(1, 3, 32, 32), "latent")


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_not_a_number_is_refused(processor, output_type):
    pixel_values = torch.rand(2, 3, 32, 32)
    pixel_values[1, 2, 3, 4] = float("nan")
    with pytest.raises(ValueError, match="`pixel_values` must be finite, got NaN"):
        processor.postprocess(pixel_values, output_type)
