"""VTP in its authors' format: held against outputs of the reference implementation, there and back,
and refused."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from titok_hf import (
    MaskGitModel,
    VTPConfig,
    VTPForImageReconstruction,
    VTPImageProcessor,
    VTPModel,
    VTPVisionModel,
)
from titok_hf.conversion import convert, convert_to_official

from .conftest import OF_TRANSFORMERS
from .test_parity import CASES, Case, assert_near

NAMES = (
    "vtp_base",
    "vtp_tiny",
    "vtp_tiny_bottleneck_everywhere",
    "vtp_tiny_variants",
)  # the long one first
TOLERANCE = 1e-3  # the reference computes with the CPU's rounding of bfloat16 angles
TOLERANCE_OF_TEXT = 5e-6
PERIODS = ("trunk.rope_embed.periods", "pixel_decoder.rope_embed.periods")


class VTPCase(Case):
    """A case of VTP. The periods are not filled: DINOv3 computes them, in bfloat16."""

    def __init__(self, name):
        super().__init__(name)
        description = json.loads((CASES / f"{name}.json").read_text())
        self.is_base = "input_ids" not in description
        if self.is_base:
            self.input_ids = self.integers("input_ids", 49000, 2, 77)
            self.input_ids[:, description["end_of_text"]] = 49407
            self.pixel_values = self.normal("pixel_values", 1, 3, 256, 256)
            self.latents = self.normal("latents", 1, 64, 16, 16)
            self.periods = [100 ** (2 * k / 32) for k in range(16)]
        else:
            self.input_ids = torch.tensor(description["input_ids"])
            self.pixel_values = self.normal("pixel_values", 2, 3, 64, 96)
            self.latents = self.normal("latents", 2, 16, 4, 6)
            self.periods = description["periods"]

    def weights(self):
        return super().weights() | {name: torch.tensor(self.periods).bfloat16() for name in PERIODS}

    def official_config(self):
        return self.config | OF_TRANSFORMERS

    def outputs(self, model):
        vision = model.get_vision_features(self.pixel_values, output_hidden_states=True)
        decoded = model.decode(self.latents).reconstruction
        outputs = {
            "cls_token": vision.cls_token,
            "image_features": model.get_image_features(self.pixel_values),
            "text_features": model.get_text_features(self.input_ids),
            "latents": model.encode(self.pixel_values).latents,
        }
        if self.is_base:
            return outputs | {"decoded_every_8th": decoded[..., ::8, ::8]}
        first = vision.hidden_states[0]
        return outputs | {
            "patch_tokens": vision.patch_tokens,
            "intermediate_cls_0": first[:, 0],
            "intermediate_patch_0": first[:, 1:],
            "decoded": decoded,
            "logits_per_image": model(self.pixel_values, self.input_ids).logits_per_image,
        }


def assert_same_bits(left, right):
    """Bit-equality of two checkpoints."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        other = right[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert torch.equal(
            tensor.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
        ), name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_vtp_is_the_reference_and_goes_back(tmp_path, name):
    case = VTPCase(name)
    weights = case.weights()
    assert {key: list(tensor.shape) for key, tensor in weights.items()} == case.shapes
    (tmp_path / "config.json").write_text(json.dumps(case.official_config()))
    save_file(weights, tmp_path / "model.safetensors")
    model = VTPModel.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path)  # 1.2 GB
    assert not model.training and model.dtype == torch.float32

    outputs = case.outputs(model)
    assert outputs.keys() == case.reference.keys()
    for key, output in outputs.items():
        tolerance = TOLERANCE_OF_TEXT if key == "text_features" else TOLERANCE
        assert_near(key, output, case.reference[key], tolerance)
    assert_same_bits(model.config.official_format().to_official(model), weights)


def test_every_case_is_compared():
    pretraining = {"vtp_self_supervised"}  # see tests/training/test_self_supervision.py
    assert {file.stem for file in CASES.glob("vtp_*")} - pretraining == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_configuration_goes_back(name, tmp_path):
    case = VTPCase(name)
    (tmp_path / "config.json").write_text(json.dumps(case.official_config()))
    config = VTPConfig.from_pretrained(tmp_path)
    assert config.official_format().official_config(config) == case.config | {"model_type": "vtp"}
    config.save_pretrained(tmp_path / "ours")
    assert VTPConfig.from_pretrained(tmp_path / "ours").to_dict() == config.to_dict()


def test_fields_mean_what_they_mean_there():
    config = VTPCase("vtp_base").our_config()
    assert config.to_diff_dict() == VTPConfig().to_diff_dict()

    config = VTPCase("vtp_tiny_variants").our_config()
    assert (config.vision_mlp, config.vision_norm, config.vision_layer_scale) == (
        "mlp",
        "layernorm",
        0.1,
    )
    assert (config.decoder_mlp, config.decoder_norm, config.decoder_layer_scale) == (
        "swiglu",
        "rmsnorm",
        None,
    )
    assert (config.image_pooling, config.text_hidden_act) == ("mean", "quick_gelu")
    assert config.vision_qk_norm and config.decoder_qk_norm and config.text_projection_bias
    assert not config.bottleneck_everywhere and not config.logit_bias

    config = VTPCase("vtp_tiny_bottleneck_everywhere").our_config()
    assert config.bottleneck_everywhere and config.logit_bias and config.decoder_mlp == "swiglu64"
    assert (config.text_hidden_size, config.text_intermediate_size) == (32, 128)


VARIANTS = {
    "plain": {},
    "mlp and layer norm": {
        "vision_mlp": "mlp",
        "vision_norm": "layernorm",
        "decoder_norm": "rmsnorm",
    },
    "swiglu64": {"vision_mlp": "swiglu64", "decoder_mlp": "mlp"},
    "layer scale": {"vision_layer_scale": 0.1, "decoder_layer_scale": 1e-5},
    "qk norm": {"vision_qk_norm": True, "decoder_qk_norm": True},
    "mean": {"image_pooling": "mean", "bottleneck_everywhere": True},
    "text": {"text_projection_bias": True, "text_hidden_act": "quick_gelu", "logit_bias": True},
    "without text": {"has_text": False},
    "without decoder": {"has_decoder": False},
    "vision only": {"has_text": False, "has_decoder": False},
    "unequal parts": {
        "decoder_hidden_size": 48,
        "decoder_num_hidden_layers": 1,
        "vision_mlp_ratio": 3.5,
    },
}


def fields_of(config):
    """Our fields, but for how the weights started, which the official format does not tell."""
    fields = {field.name for field in dataclasses.fields(VTPConfig)} - {"initializer_range"}
    return {
        key: value
        for key, value in config.to_diff_dict().items()
        if key in fields - OF_TRANSFORMERS.keys()
    }


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_go_there_and_back(make_vtp, write_vtp, assert_same_weights, variant):
    model = make_vtp(**VARIANTS[variant])
    folder = write_vtp(model)
    loaded = VTPModel.from_pretrained(folder)

    assert_same_weights(loaded, model)
    assert fields_of(loaded.config) == fields_of(model.config)
    assert_same_bits(
        model.config.official_format().to_official(loaded), load_file(folder / "model.safetensors")
    )


@pytest.mark.parametrize("fields", [{"num_register_tokens": 2}, {"decoder_mlp_ratio": 2}])
def test_models_without_a_word_in_the_official_format_are_refused(make_vtp, tmp_path, fields):
    make_vtp(**fields).save_pretrained(tmp_path / "ours")
    with pytest.raises(
        ValueError, match="no register tokens, and a decoder with MLPs of 4 times the width"
    ):
        convert_to_official(tmp_path / "ours", tmp_path / "official")
    assert not (tmp_path / "official").exists()


def test_auto_classes_load_the_official_folder(official, assert_same_weights):
    model, folder = official
    assert (
        AutoConfig.from_pretrained(folder).to_diff_dict()
        == VTPConfig.from_pretrained(folder).to_diff_dict()
    )
    assert_same_weights(AutoModel.from_pretrained(folder), model)


def assert_same_part(part, whole):
    """Asserts that the weights of `part` are those of `whole`, and none is missing."""
    weights = whole.state_dict()
    prefixes = (
        ("vision_encoder.",)
        if isinstance(part, VTPVisionModel)
        else ("vision_encoder.", "pixel_decoder.")
    )
    assert part.state_dict().keys() == {name for name in weights if name.startswith(prefixes)}
    for name, tensor in part.state_dict().items():
        assert tensor.dtype == weights[name].dtype and torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("model_class", [VTPVisionModel, VTPForImageReconstruction])
@pytest.mark.parametrize("variant", ["plain", "text", "layer scale", "without text"])
def test_parts_load_from_a_whole(make_vtp, write_vtp, tmp_path, variant, model_class):
    model = make_vtp(**VARIANTS[variant])
    model.save_pretrained(tmp_path / "ours")
    for folder in (write_vtp(model), tmp_path / "ours"):
        part, info = model_class.from_pretrained(folder, output_loading_info=True)
        assert type(part) is model_class and not part.training
        assert not info["missing_keys"] and not info["mismatched_keys"]
        assert_same_part(part, model)
        pixel_values = torch.randn(1, 3, 32, 48)
        assert torch.equal(part.encode(pixel_values).latents, model.encode(pixel_values).latents)

        part.save_pretrained(tmp_path / "part")
        assert_same_part(model_class.from_pretrained(tmp_path / "part"), model)
        shutil.rmtree(tmp_path / "part")


def test_vision_comes_from_a_reconstruction_too(make_vtp, tmp_path):
    model = make_vtp(VTPForImageReconstruction)
    model.save_pretrained(tmp_path)
    assert_same_part(VTPVisionModel.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("part", [VTPVisionModel, VTPForImageReconstruction])
@pytest.mark.parametrize("loader", [VTPModel, AutoModel])
def test_a_part_says_what_it_is_without(make_vtp, tmp_path, part, loader):
    saved = make_vtp(part)
    saved.save_pretrained(tmp_path)
    model = loader.from_pretrained(tmp_path)

    assert type(model) is VTPModel
    assert not hasattr(model, "text_encoder")
    assert hasattr(model, "pixel_decoder") == (part is VTPForImageReconstruction)
    assert_same_part(model, saved)


def test_reconstruction_does_not_come_from_the_vision_encoder_alone(make_vtp, tmp_path):
    make_vtp(VTPVisionModel).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs a configuration with `has_decoder=True`"):
        VTPForImageReconstruction.from_pretrained(tmp_path)


def test_vision_only_says_what_it_lacks(make_vtp, write_vtp):
    folder = write_vtp(make_vtp(has_text=False))
    assert json.loads((folder / "config.json").read_text())["train_clip"] is False
    model = VTPModel.from_pretrained(folder)
    pixel_values, input_ids = torch.randn(1, 3, 32, 32), torch.tensor([[48, 1, 49]])

    assert not hasattr(model, "text_encoder")
    assert model.decode(model.encode(pixel_values).latents).reconstruction.shape == (1, 3, 32, 32)
    for call, inputs in (
        (model.get_image_features, [pixel_values]),
        (model.get_text_features, [input_ids]),
        (model, [pixel_values, input_ids]),
    ):
        with pytest.raises(
            ValueError, match=r"This checkpoint has no text encoder: .*`has_text=False`"
        ):
            call(*inputs)


def test_without_decoder_says_what_it_lacks(make_vtp, write_vtp):
    folder = write_vtp(make_vtp(has_decoder=False))
    assert json.loads((folder / "config.json").read_text())["train_reconstruction"] is False
    assert "pixel_decoder.rope_embed.periods" not in load_file(folder / "model.safetensors")
    model = VTPModel.from_pretrained(folder)
    latents = model.encode(torch.randn(1, 3, 32, 32)).latents

    assert latents.shape == (1, 8, 4, 4)
    with pytest.raises(
        ValueError, match="This VTPModel has no pixel decoder; see `VTPForImageReconstruction`"
    ):
        model.decode(latents)
    with pytest.raises(
        ValueError,
        match="`VTPForImageReconstruction` needs a configuration with `has_decoder=True`",
    ):
        VTPForImageReconstruction.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_class", [VTPModel, VTPVisionModel, VTPForImageReconstruction])
def test_dtype_is_chosen_on_loading(official, model_class, dtype):
    model, folder = official
    for argument in (dtype, str(dtype).removeprefix("torch.")):
        loaded = model_class.from_pretrained(folder, dtype=argument)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        expected = model.state_dict()
        assert all(
            tensor.equal(expected[name].to(dtype)) for name, tensor in loaded.state_dict().items()
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_dtype_is_kept(make_vtp, write_vtp, assert_same_weights, tmp_path, dtype):
    model = make_vtp().to(dtype)
    folder = write_vtp(model)
    loaded = VTPModel.from_pretrained(folder, dtype="auto")

    assert_same_weights(loaded, model)
    assert_same_bits(
        model.config.official_format().to_official(loaded), load_file(folder / "model.safetensors")
    )


def test_convert_there_and_back(official, assert_same_weights, tmp_path):
    model, folder = official
    converted = convert(folder, tmp_path / "ours")
    assert_same_weights(converted, model)
    assert_same_weights(VTPModel.from_pretrained(tmp_path / "ours"), model)
    for processor_class in (VTPImageProcessor, AutoImageProcessor):
        processor = processor_class.from_pretrained(tmp_path / "ours")
        assert type(processor) is VTPImageProcessor
        assert dict(processor.size) == {"height": 32, "width": 32}
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "2512.13687" in card and 'VTPModel.from_pretrained("ours")' in card

    convert_to_official(tmp_path / "ours", tmp_path / "back")
    weights = load_file(folder / "model.safetensors")
    assert_same_bits(load_file(tmp_path / "back" / "model.safetensors"), weights)
    before, after = (
        json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "back")
    )
    assert before == after | OF_TRANSFORMERS
    assert_same_weights(VTPModel.from_pretrained(tmp_path / "back"), model)
    assert_same_weights(convert(tmp_path / "back", tmp_path / "again"), model)


def test_convert_takes_a_file_and_a_dtype(official, assert_same_weights, tmp_path):
    model, folder = official
    file = (folder / "model.safetensors").rename(tmp_path / "vtp.safetensors")
    converted = convert(
        file, tmp_path / "ours", config=folder / "config.json", dtype=torch.bfloat16
    )
    assert_same_weights(converted, model.bfloat16())
    with pytest.raises(
        ValueError, match=r"comes with a `config\.json`: put it beside the weights, or name it"
    ):
        convert(file, tmp_path / "without")


def test_convert_takes_a_repository(hub, official, assert_same_weights, tmp_path):
    model, folder = official
    hub.add("lab/vtp", {path.name: path.read_bytes() for path in folder.iterdir()})

    converted = convert("lab/vtp", tmp_path / "ours")
    assert_same_weights(converted, model)
    assert converted.provenance["base_model"] == ["lab/vtp"]
    assert_same_weights(VTPModel.from_pretrained("lab/vtp"), model)
    assert_same_part(VTPVisionModel.from_pretrained("lab/vtp"), model)
    assert VTPConfig.from_pretrained("lab/vtp").vision_hidden_size == 32
    assert dict(VTPImageProcessor.from_pretrained("lab/vtp").size) == {"height": 32, "width": 32}


def test_our_own_format_is_not_converted(make_vtp, tmp_path):
    make_vtp().save_pretrained(tmp_path / "ours")
    with pytest.raises(
        ValueError, match="in the format of titok_hf already: `from_pretrained` loads it"
    ):
        convert(tmp_path / "ours", tmp_path / "again")


def test_a_generator_is_refused(official, make_generator, write_official, tmp_path):
    _, folder = official
    generator = write_official(make_generator(MaskGitModel), "generator")
    with pytest.raises((TypeError, ValueError), match="VTPModel"):
        convert(folder, tmp_path / "pipeline", generator=generator)
    with pytest.raises(
        ValueError, match="A generator is expected beside the tokenizer, got a VTPModel"
    ):
        convert(folder, tmp_path / "pipeline", generator=folder)
    assert not (tmp_path / "pipeline").exists()


def test_layout_of_the_text_projection_and_the_attention(make_vtp):
    model = make_vtp()
    tensors = model.config.official_format().to_official(model)
    assert torch.equal(tensors["text_projection"], model.text_projection.weight.T)
    attention = model.text_encoder.encoder.layers[1].self_attn
    parts = [attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias]
    assert torch.equal(tensors["text_transformer.resblocks.1.attn.in_proj_bias"], torch.cat(parts))
    assert tensors["pixel_decoder.proj_in.weight"].shape == (32, 8, 1, 1)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
