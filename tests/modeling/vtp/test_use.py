"""VTP in training, in other precisions, through folders, and with bad input."""

import json
import math
import re

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoConfig

from titok_hf import (
    VTPConfig,
    VTPForImageReconstruction,
    VTPImageProcessor,
    VTPModel,
    VTPVisionModel,
)

from .variants import CLASSES, VARIANTS, call

# gradients


def without_gradient(gradients):
    return {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}


def test_loss_reaches_what_takes_part(any_variant, pixel_values, input_ids, parameter_gradients):
    loss = any_variant(pixel_values, input_ids, return_loss=True).loss
    missing = without_gradient(parameter_gradients(any_variant, loss))

    absent = {
        name for name, _ in any_variant.named_parameters() if name.startswith("pixel_decoder.")
    }
    absent.add("vision_encoder.mask_token")
    if not any_variant.config.bottleneck_everywhere:
        absent.add("vision_encoder.bottleneck.weight")
    # a bias of all logits or of all keys does not change a softmax
    indifferent = {
        name
        for name, _ in any_variant.named_parameters()
        if name.endswith(("k_proj.bias", "logit_bias"))
    }
    assert missing - indifferent == absent


@pytest.mark.parametrize("variant", VARIANTS)
def test_reconstruction_reaches_every_parameter(
    make_model, pixel_values, parameter_gradients, variant
):
    model = make_model(VTPForImageReconstruction, **VARIANTS[variant])
    assert without_gradient(parameter_gradients(model, model(pixel_values).loss)) == {
        "vision_encoder.mask_token"
    }


def test_masked_features_reach_the_mask_token(vision, pixel_values, parameter_gradients):
    patch_mask = torch.rand(3, 16) < 0.5
    masked = vision(pixel_values, patch_mask).patch_tokens.square().sum()
    assert without_gradient(parameter_gradients(vision, masked)) == {
        "vision_encoder.bottleneck.weight"
    }


@pytest.mark.parametrize("model_class", CLASSES)
def test_gradient_checkpointing_recomputes_blocks_and_keeps_gradients(
    make_model, pixel_values, input_ids, parameter_gradients, model_class
):
    model = make_model(model_class, vision_qk_norm=True, vision_layer_scale=0.5).train()
    calls = []
    model.vision_encoder.blocks[1].mlp_norm.register_forward_hook(lambda *_: calls.append("vision"))
    if model_class is VTPForImageReconstruction:
        model.pixel_decoder.blocks[0].mlp_norm.register_forward_hook(
            lambda *_: calls.append("decoder")
        )
    if model_class is VTPModel:
        model.text_encoder.encoder.layers[0].layer_norm2.register_forward_hook(
            lambda *_: calls.append("text")
        )

    def gradients():
        calls.clear()
        if model_class is VTPVisionModel:
            return parameter_gradients(model, model(pixel_values).patch_tokens.square().sum())
        return parameter_gradients(
            model, call(model, pixel_values, input_ids, return_loss=True).loss
        )

    expected, once = gradients(), sorted(calls)
    model.activation_checkpointing_enable()
    actual = gradients()
    assert sorted(calls) == sorted(2 * once)
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


# attention, precision, compilation


@pytest.mark.parametrize("variant", ["plain", "registers", "qk norm"])
def test_eager_attention_equals_sdpa(make_model, tmp_path, pixel_values, input_ids, variant):
    model = make_model(**VARIANTS[variant])
    model.save_pretrained(tmp_path)
    eager = VTPModel.from_pretrained(tmp_path, attn_implementation="eager")

    assert {part.config._attn_implementation for part in (model, model.text_encoder)} == {"sdpa"}
    assert {part.config._attn_implementation for part in (eager, eager.text_encoder)} == {"eager"}
    # where a query falls between two numbers of bfloat16, the last bit of the block before decides
    near = {"rtol": 1e-3, "atol": 1e-3}
    expected = model(pixel_values, input_ids)
    for name, tensor in eager(pixel_values, input_ids).items():
        torch.testing.assert_close(tensor, expected[name], **near, msg=name)
    latents = model.encode(pixel_values).latents
    torch.testing.assert_close(eager.encode(pixel_values).latents, latents, **near)
    decoded = model.decode(latents).reconstruction
    torch.testing.assert_close(eager.decode(latents).reconstruction, decoded, **near)


def test_bfloat16_is_near(any_variant, pixel_values, input_ids):
    latents = any_variant.encode(pixel_values).latents
    features = any_variant.get_image_features(pixel_values)
    texts = any_variant.get_text_features(input_ids)
    image = any_variant.decode(latents).reconstruction
    any_variant.bfloat16()

    for actual, expected in (
        (any_variant.encode(pixel_values.bfloat16()).latents, latents),
        (any_variant.get_image_features(pixel_values.bfloat16()), features),
        (any_variant.get_text_features(input_ids), texts),
        (any_variant.decode(latents.bfloat16()).reconstruction, image),
    ):
        assert actual.dtype == torch.bfloat16
        assert (actual.float() - expected).norm() < 0.1 * expected.norm()


def test_autocast_is_near(reconstructor, pixel_values):
    expected = reconstructor(pixel_values)
    with torch.autocast("cpu", torch.bfloat16):
        output = reconstructor(pixel_values)
    for name in ("latents", "reconstruction"):
        assert (output[name].float() - expected[name]).norm() < 0.1 * expected[name].norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "registers", "layer scale", "qk norm"])
@torch.no_grad()
def test_compiles_without_a_break(make_model, pixel_values, variant):
    torch.compiler.reset()
    vision = make_model(VTPVisionModel, **VARIANTS[variant])
    reconstructor = make_model(VTPForImageReconstruction, **VARIANTS[variant])
    patch_mask = torch.rand(3, 16) < 0.5
    for model, inputs in (
        (vision, [pixel_values, patch_mask, True]),
        (reconstructor, [pixel_values]),
    ):
        expected = model(*inputs)
        output = torch.compile(model, fullgraph=True, backend="eager")(*inputs)
        assert output.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(output[name], tensor, msg=name)
    torch.compiler.reset()


@pytest.mark.slow
def test_compiled_encode_and_decode(reconstructor, pixel_values):
    torch.compiler.reset()
    with torch.no_grad():
        encode = torch.compile(
            lambda images: reconstructor.encode(images).latents, fullgraph=True, backend="eager"
        )
        decode = torch.compile(
            lambda latents: reconstructor.decode(latents).reconstruction,
            fullgraph=True,
            backend="eager",
        )
        expected = reconstructor(pixel_values)
        torch.testing.assert_close(encode(pixel_values), expected.latents)
        torch.testing.assert_close(decode(expected.latents), expected.reconstruction)
    torch.compiler.reset()


# folders


@pytest.mark.parametrize("variant", VARIANTS)
def test_folder_keeps_every_bit(
    make_model, save_and_load, assert_same_tensors, pixel_values, input_ids, variant
):
    model = make_model(**VARIANTS[variant])
    loaded = save_and_load(model)

    assert type(loaded) is VTPModel and not loaded.training
    assert_same_tensors(model, loaded)
    before, after = model(pixel_values, input_ids), loaded(pixel_values, input_ids)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(model.encode(pixel_values).latents, loaded.encode(pixel_values).latents)


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_folder_of_every_class(make_model, assert_same_tensors, tmp_path, model_class, dtype):
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, dtype=dtype)
    assert_same_tensors(model.to(dtype or torch.float32), loaded)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        model_class.__name__
    ]


@pytest.mark.parametrize("variant", [*VARIANTS, "no text", "no decoder"])
def test_config_survives_a_folder(make_config, tmp_path, variant):
    fields = {**VARIANTS, "no text": {"has_text": False}, "no decoder": {"has_decoder": False}}[
        variant
    ]
    config = make_config(**fields)
    config.save_pretrained(tmp_path / "first")
    loaded = AutoConfig.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")

    assert type(loaded) is VTPConfig
    first, second = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second")
    )
    assert first == second
    assert all(getattr(loaded, name) == value for name, value in fields.items())


def test_text_positions_are_there_after_loading(save_and_load, vtp):
    for model in (vtp, save_and_load(vtp), save_and_load(vtp, dtype=torch.bfloat16)):
        assert torch.equal(model.text_encoder.embeddings.position_ids, torch.arange(10)[None])


def test_model_on_the_meta_device_has_no_storage(make_config, any_vtp):
    with torch.device("meta"):
        model = type(any_vtp)(make_config())
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    shapes = {name: tensor.shape for name, tensor in any_vtp.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_value_is_read(make_model, pixel_values, input_ids, variant):
    """A tensor of the meta device has no value that could be read."""
    images, input_ids = pixel_values.to("meta"), input_ids.to("meta")
    for model_class in CLASSES:
        model = make_model(model_class, **VARIANTS[variant]).to("meta")
        call(model, images, input_ids)
        model.get_vision_features(images, torch.ones(3, 16, dtype=torch.bool, device="meta"))
        latents = model.encode(images).latents
        if model_class is not VTPVisionModel:
            assert model.decode(latents).reconstruction.shape == images.shape


# weights at the start


@pytest.mark.parametrize("model_class", CLASSES)
def test_weights_start_as_configured(make_model, model_class):
    torch.manual_seed(1)
    sizes = {"vision_hidden_size": 512, "vision_num_hidden_layers": 1, "num_register_tokens": 4}
    scales = {"vision_layer_scale": 0.1, "decoder_layer_scale": 1e-5}
    model = make_model(model_class, initializer_range=0.05, **sizes, **scales)
    encoder = model.vision_encoder

    for weight in (
        encoder.cls_token,
        encoder.mask_token,
        encoder.register_tokens,
        encoder.patch_embedding.weight,
        encoder.blocks[0].attention.qkv.weight,
        encoder.blocks[0].mlp.out.weight,
        encoder.bottleneck.weight,
    ):
        assert weight.std().item() == pytest.approx(0.05, rel=0.1)
        assert abs(weight.mean().item()) < 0.01
    for block in encoder.blocks:
        assert (block.attention_scale == 0.1).all() and (block.mlp_scale == 0.1).all()
        assert not block.attention.qkv.bias.any() and not block.mlp.out.bias.any()
        assert (block.attention_norm.weight == 1).all()
    if model_class is not VTPVisionModel:
        assert model.pixel_decoder.proj_out.weight.std().item() == pytest.approx(0.05, rel=0.1)
        assert not model.pixel_decoder.proj_in.bias.any()
        for block in model.pixel_decoder.blocks:
            assert (block.attention_scale == 1e-5).all() and (block.mlp_scale == 1e-5).all()
    if model_class is VTPModel:
        assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
        assert model.image_projection.weight.std().item() == pytest.approx(0.05, rel=0.1)
        assert model.text_projection.weight.std().item() == pytest.approx(0.05, rel=0.15)


def test_logit_bias_starts_as_that_of_siglip(make_model):
    assert make_model(logit_bias=True).logit_bias.item() == -10
    assert not hasattr(make_model(), "logit_bias")


def test_same_seed_makes_the_same_model(make_config, assert_same_tensors):
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(VTPModel(make_config()))
    assert_same_tensors(*models)


# what is refused

BAD_IMAGES = {
    "height": (
        torch.randn(2, 3, 36, 32),
        ValueError,
        r"multiples of 8, got \(2, 3, 36, 32\); the image processor",
    ),
    "width": (torch.randn(2, 3, 32, 4), ValueError, r"multiples of 8, got \(2, 3, 32, 4\)"),
    "no height": (torch.randn(2, 3, 0, 32), ValueError, r"multiples of 8, got \(2, 3, 0, 32\)"),
    "channels last": (
        torch.randn(2, 32, 32, 3),
        ValueError,
        r"channels first, .* got \(2, 32, 32, 3\)",
    ),
    "gray": (
        torch.randn(2, 1, 32, 32),
        ValueError,
        r"must have shape \(batch, 3, height, width\), .*\(2, 1, 32, 32\)",
    ),
    "no batch": (torch.randn(3, 32, 32), ValueError, r"must have shape .* got \(3, 32, 32\)"),
    "uint8": (
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        TypeError,
        "float images, got torch.uint8",
    ),
    "int64": (
        torch.zeros(2, 3, 32, 32, dtype=torch.int64),
        TypeError,
        "float images, got torch.int64",
    ),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_pixel_values_are_checked(any_vtp, input_ids, kind):
    images, error, sentence = BAD_IMAGES[kind]
    for method in (
        any_vtp.encode,
        any_vtp.get_vision_features,
        lambda images: call(any_vtp, images, input_ids[:2]),
    ):
        with pytest.raises(error, match=sentence):
            method(images)


@pytest.mark.parametrize("value", [-2.1, 0.0, 0.4, 2.6])
def test_nearly_uniform_images_pass(any_vtp, value):
    images = value + 0.2 * torch.rand(1, 3, 32, 32)
    assert any_vtp.encode(images).latents.isfinite().all()


def test_a_foggy_picture_passes(make_model):
    """Its grays, 0.487 to 0.631 of white, normalized, are numbers from about 0 to 1, as those of
    images that are not normalized are."""
    gray = np.linspace(0.487, 0.631, 32 * 32).reshape(1, 32, 32).repeat(3, 0).astype(np.float32)
    processor = VTPImageProcessor.from_image_size(32)
    pixel_values = processor(gray, do_rescale=False, return_tensors="pt")["pixel_values"]
    assert 0 <= pixel_values.min() < 0.05 and 0.55 < pixel_values.max() <= 1

    model = make_model(VTPModel)
    latents = model.encode(pixel_values).latents
    assert latents.std() > 0
    assert torch.equal(
        latents.flatten(2).transpose(1, 2),
        model.vision_encoder.bottleneck(model.get_vision_features(pixel_values).patch_tokens),
    )


@pytest.mark.parametrize("shape", [(2, 7, 4, 4), (2, 8, 16), (8, 4, 4), (2, 4, 4, 8)])
def test_latents_are_checked(reconstructor, shape):
    got = re.escape(f"got {shape}")
    with pytest.raises(
        ValueError, match=rf"`latents` must have shape \(batch, 8, height, width\), {got}"
    ):
        reconstructor.decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("ids", "error", "sentence"),
    [
        (
            torch.zeros(2, 11, dtype=torch.int64),
            ValueError,
            r"at most 10 tokens a text, got 11; .*truncation=True",
        ),
        (
            torch.zeros(5, dtype=torch.int64),
            ValueError,
            r"`input_ids` must have shape \(batch, length\), got \(5,\)",
        ),
        (torch.zeros(2, 5), TypeError, "`input_ids` must be an int64 tensor, got torch.float32"),
    ],
)
def test_ids_are_checked(vtp, pixel_values, ids, error, sentence):
    with pytest.raises(error, match=sentence):
        vtp.get_text_features(ids)
    with pytest.raises(error, match=sentence):
        vtp(pixel_values, ids)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"patch_size": 5}, "`patch_size` must divide the image size 32, got 5"),
        (
            {"vision_hidden_size": 36},
            "`vision_hidden_size` must be a multiple of 4 times the 2 .*, got 36",
        ),
        (
            {"vision_num_attention_heads": 3},
            "`vision_hidden_size` must be a multiple of 4 times the 3 .*, got 32",
        ),
        (
            {"decoder_hidden_size": 44},
            "`decoder_hidden_size` must be a multiple of 4 times the 2 .*, got 44",
        ),
        (
            {"text_num_attention_heads": 3},
            "`text_hidden_size` must be a multiple of 1 times the 3 .*, got 16",
        ),
        ({"latent_dim": 0}, "`latent_dim` must be at least 1, got 0"),
        ({"vision_num_hidden_layers": 0}, "`vision_num_hidden_layers` must be at least 1, got 0"),
        ({"vision_mlp": "gelu"}, "'vision_mlp' expected one of .*'swiglu64'.*, got gelu"),
        (
            {"decoder_norm": "batchnorm"},
            "'decoder_norm' expected one of .*'rmsnorm'.*, got batchnorm",
        ),
        ({"image_pooling": "max"}, "'image_pooling' expected one of .*'cls', 'mean'.*, got max"),
        (
            {"text_hidden_act": "relu"},
            "'text_hidden_act' expected one of .*'quick_gelu'.*, got relu",
        ),
        ({"latent_dim": "8"}, "'latent_dim' expected int, got str"),
        ({"num_register_tokens": -1}, "`num_register_tokens` must be at least 0, got -1"),
        ({"vision_mlp_ratio": 0}, "`vision_mlp_ratio` must be .* got 0"),
    ],
)
def test_contradictory_configs_are_refused(make_config, fields, sentence):
    with pytest.raises(StrictDataclassError, match=sentence):
        make_config(**fields)


def test_sizes_of_a_decoder_that_is_not_there_do_not_matter(make_config):
    make_config(has_decoder=False, decoder_hidden_size=10, decoder_mlp_ratio=0)


# cards


@pytest.mark.parametrize("model_class", CLASSES)
def test_snippet_of_the_card_runs(hub, make_model, tmp_path, monkeypatch, model_class):
    make_model(model_class).push_to_hub("user/card")
    card = hub.files("user/card")["README.md"].decode()
    assert f"{model_class.__name__}.from_pretrained" in card and "2512.13687" in card

    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((48, 40)).save("image.png")
    variables = {}
    exec(compile(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], "card", "exec"), variables)
    assert "# (1, 8, h, w)" in card and variables["latents"].shape == (1, 8, 4, 4)
    if model_class is VTPVisionModel:
        assert "image" not in variables
    else:
        assert variables["image"].size == (32, 32)
