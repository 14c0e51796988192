import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, UNet2DModel, VQModel
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from titok_hf import (
    TiTokImageProcessor,
    TiTokModel,
    VTPForImageReconstruction,
    VTPImageProcessor,
    VTPModel,
)
from titok_hf.modeling.auto import load_tokenizer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vtp(make_vtp_config):
    return VTPModel(make_vtp_config())


@pytest.fixture(params=[AutoencoderKL, VQModel])
def autoencoder(request):
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return request.param(
        **blocks, block_out_channels=(8, 16), norm_num_groups=4, sample_size=32
    ).eval()


def decode_once(model, pixel_values):
    with torch.no_grad():
        return model.decode(model.encode(pixel_values).latents).reconstruction


def decode_with_diffusers(autoencoder, pixel_values):
    with torch.no_grad():
        encoded = autoencoder.encode(2 * pixel_values - 1)
        latents = (
            encoded.latents if isinstance(autoencoder, VQModel) else encoded.latent_dist.mode()
        )
        return (autoencoder.decode(latents).sample + 1) / 2


@pytest.mark.parametrize("family", ["titok", "vqgan", "vtp"])
@pytest.mark.parametrize("with_processor", [True, False])
def test_every_family_loads_with_its_processor(request, tmp_path, family, with_processor):
    saved = request.getfixturevalue(family)
    saved.save_pretrained(tmp_path)
    processor_class = VTPImageProcessor if family == "vtp" else TiTokImageProcessor
    if with_processor:
        processor_class.from_image_size(32).save_pretrained(tmp_path)
    model, processor = load_tokenizer(tmp_path)

    assert type(model) is (VTPForImageReconstruction if family == "vtp" else type(saved))
    assert type(processor) is processor_class and not model.training
    image = processor.postprocess(torch.zeros(1, 3, 32, 32))[0].resize((50, 40))
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    assert processor.postprocess(decode_once(model, pixel_values))[0].size == (32, 32)


def test_autoencoders_of_diffusers_load(tmp_path, autoencoder, pixel_values):
    autoencoder.save_pretrained(tmp_path)
    model, processor = load_tokenizer(tmp_path)
    assert type(model.autoencoder) is type(autoencoder) and not model.training
    expected = decode_with_diffusers(autoencoder, pixel_values)
    torch.testing.assert_close(decode_once(model, pixel_values), expected, atol=1e-5, rtol=1e-4)
    assert processor.crop_size == {"height": 32, "width": 32}

    model, processor = load_tokenizer(str(tmp_path), image_size=48, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.config.image_size == 48
    assert processor.crop_size == {"height": 48, "width": 48}


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_may_be_a_name(tmp_path, autoencoder, name):
    autoencoder.save_pretrained(tmp_path)
    for dtype in ("bfloat16", torch.bfloat16):
        model, _ = load_tokenizer(tmp_path, **{name: dtype})
        assert next(model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"The dtype must be one of float32, .* got 'bf16'"):
        load_tokenizer(tmp_path, **{name: "bf16"})


def test_autoencoders_come_from_the_hub(hub, tmp_path, pixel_values, autoencoder):
    name = f"user/{type(autoencoder).__name__}"
    expected = []
    for subfolder, revision in (("", "main"), ("vae", "v2")):
        with torch.no_grad():
            next(autoencoder.parameters()).add_(1)
        folder = tmp_path / revision
        autoencoder.save_pretrained(folder)
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, path_in_repo=subfolder, revision=revision
        )
        expected.append(decode_with_diffusers(autoencoder, pixel_values))
    cache = tmp_path / "cache"
    loaded = [
        load_tokenizer(name, cache_dir=cache)[0],
        load_tokenizer(name, subfolder="vae", revision="v2", token="hf_user", cache_dir=cache)[0],
        load_tokenizer(
            name, subfolder="vae", revision="v2", local_files_only=True, cache_dir=cache
        )[0],
    ]
    for model, images in zip(loaded, [*expected, expected[1]], strict=True):
        torch.testing.assert_close(decode_once(model, pixel_values), images, atol=1e-5, rtol=1e-4)
    with pytest.raises(FileNotFoundError, match="no such revision"):
        load_tokenizer(name, revision="v3")
    with pytest.raises(FileNotFoundError, match="no repository user/none on the Hub"):
        load_tokenizer("user/none")


def test_the_tokenizer_of_a_pipeline_loads(tmp_path, pipeline, pixel_values, autoencoder):
    pipeline.save_pretrained(tmp_path)
    model, _ = load_tokenizer(tmp_path, subfolder="tokenizer")
    assert type(model) is TiTokModel
    autoencoder.save_pretrained(tmp_path / "vae")
    model, _ = load_tokenizer(tmp_path, subfolder="vae")
    expected = decode_with_diffusers(autoencoder, pixel_values)
    torch.testing.assert_close(decode_once(model, pixel_values), expected, atol=1e-5, rtol=1e-4)


def test_a_pipeline_without_a_subfolder_is_refused(hub, tmp_path, pipeline):
    pipeline.save_pretrained(tmp_path)
    pipeline.push_to_hub("user/whole-pipeline")
    for path, tokenizer in (
        (tmp_path, tmp_path / "tokenizer"),
        ("user/whole-pipeline", "`subfolder='tokenizer'`"),
    ):
        with pytest.raises(
            FileNotFoundError, match=f"{path} is a whole pipeline: name its tokenizer, {tokenizer}"
        ):
            load_tokenizer(path)


def test_what_is_no_tokenizer_is_refused(generator, tmp_path):
    generator.save_pretrained(tmp_path)
    sentence = (
        "one of titok, maskgit_vqgan, vtp or an image autoencoder of diffusers; it is a 'maskgit'"
    )
    with pytest.raises(ValueError, match=sentence):
        load_tokenizer(tmp_path)


def test_other_models_of_diffusers_are_refused(tmp_path):
    unet = UNet2DModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    for model in (unet, AutoencoderKLTemporalDecoder(block_out_channels=(32,))):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        sentence = (
            f"{folder} must be an image autoencoder of diffusers, one of .* it is a '{folder.name}'"
        )
        with pytest.raises(ValueError, match=sentence):
            load_tokenizer(folder)


def test_weights_that_do_not_fit_are_refused(tmp_path, autoencoder):
    autoencoder.save_pretrained(tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    kind, name = type(autoencoder).__name__, "decoder.conv_in.bias"
    for weights, problem in (
        (
            {key: value for key, value in whole.items() if key != name},
            f"1 weights are missing, {name} among them",
        ),
        (whole | {"stray": torch.zeros(2)}, "1 weights are unexpected, stray among them"),
        (
            whole | {name: torch.zeros(2)},
            rf"1 weights are misshapen, {name} among them: \(2,\) instead of \(16,\)",
        ),
    ):
        save_file(weights, tmp_path / WEIGHTS)
        with pytest.raises(
            ValueError, match=f"does not fit {kind} with its configuration: {problem}"
        ):
            load_tokenizer(tmp_path)


def test_broken_and_missing_weights_are_refused(tmp_path, autoencoder):
    autoencoder.save_pretrained(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:1000])
    with pytest.raises(ValueError, match=f"The weights of {tmp_path} are truncated or corrupt"):
        load_tokenizer(tmp_path)

    (tmp_path / WEIGHTS).unlink()
    torch.save(autoencoder.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match=f"no file named {WEIGHTS}"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, use_safetensors=False)[0].config.image_size == 32


@pytest.mark.parametrize("family", ["titok", "vtp"])
def test_a_processor_of_another_range_is_refused(family, titok, make_vtp_config, tmp_path):
    """Its images would be encoded, and to other codes."""
    model, processor_class = titok, TiTokImageProcessor
    if family == "vtp":
        model, processor_class = VTPForImageReconstruction(make_vtp_config()), VTPImageProcessor
    model.save_pretrained(tmp_path)
    processor = processor_class.from_image_size(32)
    processor.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)[1].do_normalize == processor.do_normalize

    processor.do_normalize = not processor.do_normalize
    processor.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"`do_normalize={family == 'vtp'}` .* got {family != 'vtp'}"
    ):
        load_tokenizer(tmp_path)
