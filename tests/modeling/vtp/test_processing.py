"""VTP's image processor and processor."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoProcessor, CLIPTokenizer

from titok_hf import (
    VTPImageProcessor,
    VTPProcessor,
    VTPVisionModel,
)

from .variants import END, START

# the image processor


def adm_center_crop(picture, size):
    """`center_crop_arr` of guided-diffusion, by which reconstructions are published."""
    while min(*picture.size) >= 2 * size:
        picture = picture.resize(
            tuple(side // 2 for side in picture.size), resample=Image.Resampling.BOX
        )
    scale = size / min(*picture.size)
    fitted = tuple(round(side * scale) for side in picture.size)
    array = np.array(picture.resize(fitted, resample=Image.Resampling.BICUBIC))
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def normalized(pixels):
    """An image `(H, W, 3)` of uint8 as the models take it, `(3, H, W)`."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(((pixels / 255 - mean) / std).transpose(2, 0, 1)).float()


def make_picture(width, height, mode="RGB"):
    pixels = np.random.default_rng(0).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 4), dtype=np.uint8
    )
    picture = Image.fromarray(pixels, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
    if mode == "RGBA":
        return picture
    picture = picture.convert("RGB")
    return picture.quantize(16) if mode == "P" else picture.convert(mode)


def as_rgb(picture):
    """Transparent pixels become white."""
    if picture.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(
            "RGB"
        )
    return picture.convert("RGB")


@pytest.fixture
def image_processor():
    return VTPImageProcessor.from_image_size(32)


def preprocess(processor, images, **kwargs):
    return processor(images, return_tensors="pt", **kwargs)["pixel_values"]


SIZES = [
    (32, 32),
    (64, 64),
    (40, 50),
    (63, 65),
    (64, 200),
    (127, 64),
    (257, 131),
    (20, 33),
    (31, 95),
    (500, 375),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crop_is_that_of_published_reconstructions(image_processor, size):
    picture = make_picture(*size)
    expected = normalized(adm_center_crop(picture, 32))
    torch.testing.assert_close(preprocess(image_processor, picture), expected[None])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
@pytest.mark.parametrize("crop", ["adm", "squash"])
def test_pictures_of_any_mode_become_rgb(mode, crop):
    picture = make_picture(90, 70, mode)
    pixel_values = preprocess(
        VTPImageProcessor(size={"height": 32, "width": 32}, crop=crop), picture
    )
    expected = as_rgb(picture)
    if crop == "squash":
        expected = np.asarray(expected.resize((32, 32), Image.Resampling.BILINEAR))
    else:
        expected = adm_center_crop(expected, 32)
    torch.testing.assert_close(pixel_values, normalized(expected)[None])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_squash_resizes_both_sides(image_processor, size):
    picture = make_picture(*size)
    expected = normalized(np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)))
    torch.testing.assert_close(preprocess(image_processor, picture, crop="squash"), expected[None])


@pytest.mark.parametrize("crop", ["adm", "squash"])
def test_sizes_need_not_be_square(crop):
    processor = VTPImageProcessor(size={"height": 32, "width": 48}, crop=crop)
    pixel_values = preprocess(processor, [make_picture(100, 40), make_picture(30, 200)])
    assert pixel_values.shape == (2, 3, 32, 48)
    assert all(image.size == (48, 32) for image in processor.postprocess(pixel_values))


def test_images_of_several_sizes_make_a_batch(image_processor):
    pictures = [make_picture(40, 50), make_picture(100, 33)]
    batch = preprocess(image_processor, pictures)
    assert batch.shape == (2, 3, 32, 32) and batch.dtype == torch.float32
    for picture, pixel_values in zip(pictures, batch, strict=True):
        assert torch.equal(preprocess(image_processor, picture)[0], pixel_values)


@pytest.mark.parametrize("layout", ["height width channels", "channels height width", "tensor"])
def test_arrays_are_read_as_pictures_are(image_processor, layout):
    pixels = np.asarray(make_picture(70, 50))
    images = {
        "height width channels": pixels,
        "channels height width": pixels.transpose(2, 0, 1),
        "tensor": torch.from_numpy(pixels.copy()).permute(2, 0, 1),
    }[layout]
    expected = preprocess(image_processor, Image.fromarray(pixels))
    assert torch.equal(preprocess(image_processor, images), expected)


@pytest.mark.parametrize("crop", ["adm", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (50, 70)])
def test_float_images(image_processor, crop, size):
    pixels = np.asarray(make_picture(*size)).transpose(2, 0, 1)
    images = torch.from_numpy(pixels.astype(np.float32)) / 255
    expected = preprocess(image_processor, pixels, crop=crop)
    for floats in (images, images.numpy()):
        pixel_values = preprocess(image_processor, floats, do_rescale=False, crop=crop)
        assert pixel_values.dtype == torch.float32
        torch.testing.assert_close(pixel_values, expected, rtol=0, atol=1.01 / 255 / 0.224)

    with pytest.raises(ValueError, match="not rescaled: pass `do_rescale=False`"):
        preprocess(image_processor, images)
    for refused, values in (
        (2 * images / images.max(), ".* to 2"),
        (torch.linspace(0, 255, 3072).view(3, 32, 32), "0 to 255"),
        (torch.full((3, 32, 32), torch.nan), "nan to nan"),
    ):
        with pytest.raises(ValueError, match=rf"must be in \[0, 1\], got {values}"):
            preprocess(image_processor, refused, do_rescale=False)


def test_postprocess_undoes_the_normalization(image_processor):
    picture = make_picture(32, 32)
    pixel_values = preprocess(image_processor, picture)
    expected = np.asarray(picture)

    [back] = image_processor.postprocess(pixel_values)
    assert np.array_equal(np.asarray(back), expected)
    array = image_processor.postprocess(pixel_values, "np")
    assert array.shape == (1, 32, 32, 3) and np.abs(array[0] - expected / 255).max() < 1e-6
    tensor = image_processor.postprocess(pixel_values.bfloat16(), "pt")
    assert tensor.dtype == torch.float32 and tensor.shape == (1, 3, 32, 32)
    assert (tensor[0] - torch.from_numpy(expected / 255).permute(2, 0, 1)).abs().max() < 1 / 255
    assert image_processor.postprocess(torch.full((1, 3, 8, 8), 9.0), "np").max() == 1
    with pytest.raises(ValueError, match="must be finite, got NaN"):
        image_processor.postprocess(pixel_values * torch.nan)
    with pytest.raises(ValueError, match="`output_type` must be 'pil', 'np' or 'pt', got 'jpg'"):
        image_processor.postprocess(pixel_values, "jpg")


@pytest.mark.parametrize("crop", ["adm", "squash"])
@pytest.mark.parametrize("processor_class", [VTPImageProcessor, AutoImageProcessor])
def test_folder_keeps_the_crop(tmp_path, crop, processor_class):
    processor = VTPImageProcessor(size={"height": 32, "width": 32}, crop=crop)
    processor.save_pretrained(tmp_path)
    loaded = processor_class.from_pretrained(tmp_path)

    assert type(loaded) is VTPImageProcessor
    assert loaded.crop == crop and loaded.to_dict() == processor.to_dict()
    picture = make_picture(50, 90)
    assert torch.equal(preprocess(loaded, picture), preprocess(processor, picture))
    assert VTPImageProcessor.from_pretrained(tmp_path, crop="squash").crop == "squash"


def test_defaults_are_those_of_the_released_models():
    processor = VTPImageProcessor()
    assert (processor.crop, dict(processor.size)) == ("adm", {"height": 256, "width": 256})
    assert preprocess(processor, make_picture(40, 50)).shape == (1, 3, 256, 256)


def test_unknown_crop_is_refused(image_processor):
    for size in ((32, 32), (40, 50)):
        with pytest.raises(ValueError, match="`crop` must be 'adm' or 'squash', got 'center'"):
            preprocess(image_processor, make_picture(*size), crop="center")


def test_model_takes_what_the_processor_gives(image_processor, reconstructor):
    fog = Image.fromarray(
        np.linspace(130, 150, 1024).round().astype(np.uint8).reshape(32, 32)
    )  # 0.11 to 0.81
    for picture in (
        make_picture(40, 50),
        Image.new("RGB", (40, 40), "white"),
        Image.new("RGB", (40, 40)),
        fog,
    ):
        pixel_values = preprocess(image_processor, picture)
        assert reconstructor(pixel_values).reconstruction.shape == (1, 3, 32, 32)


def test_processor_of_a_model_without_one(make_model, tmp_path):
    make_model(VTPVisionModel, image_size=48).save_pretrained(tmp_path)
    assert dict(VTPImageProcessor.from_pretrained(tmp_path).size) == {"height": 48, "width": 48}


def test_snippet_of_the_processors_card_runs(hub, image_processor, tmp_path, monkeypatch):
    image_processor.push_to_hub("user/processor")
    card = hub.files("user/processor")["README.md"].decode()
    monkeypatch.chdir(tmp_path)
    make_picture(48, 40).save("image.png")
    variables = {}
    exec(compile(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], "card", "exec"), variables)
    assert variables["pixel_values"].shape == (1, 3, 32, 32) and variables["image"].size == (32, 32)


# images and texts together


@pytest.fixture
def clip_files():
    """A tokenizer of 50 tokens in the files of CLIP's: letters, "cat" and "dog"."""
    letters = [*"acdgnot"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "do", "dog</w>"]
    tokens += [f"<|unused{index}|>" for index in range(START - len(tokens))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges = "#version: 0.2\nc a\nca t</w>\nd o\ndo g</w>\n"
    tokenizer_config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    return {
        "vocab.json": json.dumps({token: index for index, token in enumerate(tokens)}).encode(),
        "merges.txt": merges.encode(),
        "tokenizer_config.json": json.dumps(tokenizer_config).encode(),
    }


@pytest.fixture
def tokenizer(clip_files, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name, content in clip_files.items():
        (folder / name).write_bytes(content)
    return CLIPTokenizer.from_pretrained(folder, model_max_length=10)


@pytest.fixture
def processor(image_processor, tokenizer):
    return VTPProcessor(image_processor, tokenizer)


CAT, DOG = 15, 17


def test_texts_are_padded_to_the_context(processor):
    inputs = processor(text=["a cat", "dog", "a cat a dog"], return_tensors="pt")
    assert inputs.keys() == {"input_ids"}
    assert inputs["input_ids"].dtype == torch.int64
    assert inputs["input_ids"].tolist() == [
        [START, 7, CAT, *[END] * 7],
        [START, DOG, *[END] * 8],
        [START, 7, CAT, 7, DOG, *[END] * 5],
    ]


def test_images_and_texts_go_into_the_model(processor, vtp):
    pictures = [make_picture(40, 50), make_picture(60, 33)]
    inputs = processor(images=pictures, text=["a cat", "a dog"], return_tensors="pt")

    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "pixel_values": (2, 3, 32, 32),
        "input_ids": (2, 10),
    }
    assert torch.equal(inputs["pixel_values"], preprocess(processor.image_processor, pictures))
    output = vtp(**inputs, return_loss=True)
    assert output.logits_per_image.shape == (2, 2) and output.loss.isfinite()


def test_options_reach_images_and_texts(processor):
    picture = make_picture(60, 33)
    inputs = processor(
        images=picture, text=["cat", "a dog"], crop="squash", padding=True, return_tensors="pt"
    )
    assert torch.equal(
        inputs["pixel_values"], preprocess(processor.image_processor, picture, crop="squash")
    )
    assert inputs["input_ids"].tolist() == [[START, CAT, END, END], [START, 7, DOG, END]]


def test_too_long_texts_are_cut_on_request_only(processor, vtp):
    text = "a cat and a dog and a cat and a dog"
    ids = processor(text=[text], return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 10
    with pytest.raises(
        ValueError, match=rf"at most 10 tokens a text, got {ids.shape[1]}; .*truncation=True"
    ):
        vtp.get_text_features(ids)

    cut = processor(text=[text], truncation=True, return_tensors="pt")["input_ids"]
    assert cut.shape == (1, 10) and cut[0, -1] == END and torch.equal(cut[:, :9], ids[:, :9])
    assert vtp.get_text_features(cut).shape == (1, 16)


def assert_same_processor(loaded, processor):
    assert type(loaded) is VTPProcessor and type(loaded.image_processor) is VTPImageProcessor
    pictures, texts = [make_picture(40, 50)], ["a cat and a dog"]
    expected = processor(images=pictures, text=texts, return_tensors="pt")
    inputs = loaded(images=pictures, text=texts, return_tensors="pt")
    assert inputs.keys() == expected.keys() == {"pixel_values", "input_ids"}
    assert all(torch.equal(tensor, inputs[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("processor_class", [VTPProcessor, AutoProcessor])
@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize("crop", ["adm", "squash"])
def test_folder_keeps_the_processor(tokenizer, vtp, tmp_path, processor_class, with_model, crop):
    processor = VTPProcessor(
        VTPImageProcessor(size={"height": 32, "width": 32}, crop=crop), tokenizer
    )
    processor.save_pretrained(tmp_path / "ours")
    if with_model:
        vtp.save_pretrained(tmp_path / "ours")
    loaded = processor_class.from_pretrained(tmp_path / "ours")
    assert_same_processor(loaded, processor)
    assert loaded.image_processor.crop == crop and loaded.tokenizer.model_max_length == 10


@pytest.fixture
def released(hub, vtp, clip_files, tmp_path):
    """An official repository, which has neither a processor nor a tokenizer, and that of CLIP's."""
    official_format = vtp.config.official_format()
    save_file(
        official_format.to_official(vtp),
        tmp_path / "official.safetensors",
        metadata={"format": "pt"},
    )
    files = {
        "config.json": json.dumps(official_format.official_config(vtp.config)).encode(),
        "model.safetensors": (tmp_path / "official.safetensors").read_bytes(),
    }
    hub.add("lab/vtp", files)
    hub.add("openai/clip-vit-base-patch32", clip_files)
    return files


@pytest.mark.parametrize("processor_class", [VTPProcessor, AutoProcessor])
def test_official_repository_has_the_tokenizer_of_clip(released, processor, processor_class):
    loaded = processor_class.from_pretrained("lab/vtp")
    assert_same_processor(loaded, processor)
    assert loaded.tokenizer.model_max_length == 10  # the model's, not CLIP's


def test_official_branch_and_folder_have_it_too(released, hub, processor, tmp_path):
    hub.add("lab/vtp", released, revision="v2")
    assert_same_processor(VTPProcessor.from_pretrained("lab/vtp", revision="v2"), processor)
    (tmp_path / "config.json").write_bytes(released["config.json"])
    assert_same_processor(VTPProcessor.from_pretrained(tmp_path), processor)


def test_our_model_without_a_processor_has_it_too(released, vtp, processor, tmp_path):
    vtp.save_pretrained(tmp_path / "ours")
    assert_same_processor(VTPProcessor.from_pretrained(tmp_path / "ours"), processor)


def test_a_processor_out_of_reach_is_an_error(hub, make_config, tmp_path):
    with pytest.raises(OSError, match="lab/nothing"):
        VTPProcessor.from_pretrained("lab/nothing")
    make_config().save_pretrained(tmp_path / "model")
    with pytest.raises(OSError, match="openai/clip-vit-base-patch32"):
        VTPProcessor.from_pretrained(tmp_path / "model", cache_dir=tmp_path / "cache")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises((OSError, ValueError)):
        VTPProcessor.from_pretrained(tmp_path / "bert")


def test_a_tokenizer_without_its_vocabulary_is_an_error(vtp, image_processor, tmp_path):
    """transformers makes one if it does not find the files; all texts would get equal ids."""
    vtp.save_pretrained(tmp_path)
    VTPProcessor(image_processor, CLIPTokenizer()).save_pretrained(tmp_path)
    with pytest.raises(
        OSError, match=f"tokenizer of {tmp_path} has no entries but 2 special tokens"
    ):
        VTPProcessor.from_pretrained(tmp_path)


def test_a_tokenizer_of_another_model_is_an_error(make_model, processor, tmp_path):
    make_model(text_vocab_size=49).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 50 entries, the model only 49"):
        VTPProcessor.from_pretrained(tmp_path)


def test_a_model_may_have_more_entries_than_its_tokenizer(make_model, processor, tmp_path):
    make_model(text_vocab_size=64).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert_same_processor(VTPProcessor.from_pretrained(tmp_path), processor)


def test_the_end_of_a_text_has_the_largest_id(vtp, image_processor, tokenizer, tmp_path):
    vtp.save_pretrained(tmp_path)
    tokenizer.eos_token = "<|startoftext|>"
    VTPProcessor(image_processor, tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must have the largest id, 49, .* got 48"):
        VTPProcessor.from_pretrained(tmp_path)
