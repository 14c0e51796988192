"""Tests of VTP's networks."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from titok_hf import (
    VTPConfig,
    VTPForImageReconstruction,
    VTPModel,
    VTPVisionModel,
)
from titok_hf.modeling.transformer import rotate
from titok_hf.modeling.vtp.rotary import axial_rotation, rotary_periods

from .variants import END

# what comes out


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 16), (8, 8)])
def test_shapes_follow_the_image(any_vtp, size):
    pixel_values, (height, width) = torch.randn(2, 3, *size), (side // 8 for side in size)
    features = any_vtp.get_vision_features(pixel_values)
    latents = any_vtp.encode(pixel_values)

    shapes = {name: tuple(tensor.shape) for name, tensor in features.items()}
    assert shapes == {"cls_token": (2, 32), "patch_tokens": (2, height * width, 32)}
    assert {name: tuple(tensor.shape) for name, tensor in latents.items()} == {
        "latents": (2, 8, height, width)
    }
    if not isinstance(any_vtp, VTPVisionModel):
        decoded = any_vtp.decode(latents.latents)
        assert {name: tuple(tensor.shape) for name, tensor in decoded.items()} == {
            "reconstruction": (2, 3, *size)
        }
    if isinstance(any_vtp, VTPModel):
        assert any_vtp.get_image_features(pixel_values).shape == (2, 16)


def test_outputs_of_every_variant(any_variant, pixel_values, input_ids):
    output = any_variant(pixel_values, input_ids, return_loss=True)

    assert {name: tuple(tensor.shape) for name, tensor in output.items()} == {
        "loss": (),
        "logits_per_image": (3, 3),
        "logits_per_text": (3, 3),
        "image_embeds": (3, 16),
        "text_embeds": (3, 16),
    }
    decoded = any_variant.decode(any_variant.encode(pixel_values).latents).reconstruction
    assert decoded.shape == (3, 3, 32, 32) and decoded.isfinite().all()


def test_forward_of_the_vision_model_is_its_features(vision, pixel_values):
    expected, output = vision.get_vision_features(pixel_values), vision(pixel_values)
    assert output.keys() == expected.keys()
    assert all(torch.equal(tensor, output[name]) for name, tensor in expected.items())


def test_forward_of_the_reconstruction_is_encoding_then_decoding(reconstructor, pixel_values):
    output = reconstructor(pixel_values)
    latents = reconstructor.encode(pixel_values).latents

    assert output.keys() == {"loss", "reconstruction", "latents"}
    assert torch.equal(output.latents, latents)
    assert torch.equal(output.reconstruction, reconstructor.decode(latents).reconstruction)
    torch.testing.assert_close(output.loss, (output.reconstruction - pixel_values).abs().mean())
    assert reconstructor(pixel_values, return_loss=False).loss is None


def test_latents_are_deterministic_and_those_of_their_patches(any_vtp, pixel_values):
    latents = any_vtp.encode(pixel_values).latents
    assert torch.equal(any_vtp.train().encode(pixel_values).latents, latents)

    patch_tokens = any_vtp.get_vision_features(pixel_values).patch_tokens
    expected = patch_tokens @ any_vtp.vision_encoder.bottleneck.weight.T  # (B, N, C)
    torch.testing.assert_close(latents[:, :, 1, 2], expected[:, 6])
    assert any_vtp.vision_encoder.bottleneck.bias is None


def test_images_do_not_depend_on_their_batch(reconstructor, pixel_values):
    together, alone = reconstructor(pixel_values), reconstructor(pixel_values[1:2])
    for name in ("latents", "reconstruction"):
        torch.testing.assert_close(together[name][1:2], alone[name], msg=name)


@pytest.mark.parametrize("registers", [None, 0, 3])
def test_hidden_states_are_after_the_norm(make_model, pixel_values, registers):
    model = make_model(VTPVisionModel, num_register_tokens=registers)
    seen = []
    for block in model.vision_encoder.blocks:
        block.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    output = model(pixel_values, output_hidden_states=True)

    registers = registers or 0
    assert [state.shape for state in output.hidden_states] == [(3, 1 + registers + 16, 32)] * 2
    for state, block_output in zip(output.hidden_states, seen, strict=True):
        torch.testing.assert_close(state, model.vision_encoder.norm(block_output))
    last = output.hidden_states[-1]
    assert torch.equal(last[:, 0], output.cls_token)
    assert torch.equal(last[:, 1 + registers :], output.patch_tokens)
    assert model(pixel_values).hidden_states is None


def test_registers_take_part(make_model, pixel_values):
    model = make_model(VTPVisionModel, num_register_tokens=2)
    before = model(pixel_values).patch_tokens
    model.vision_encoder.register_tokens.data[:, 1] += 1
    assert not torch.allclose(model(pixel_values).patch_tokens, before)
    assert model.vision_encoder.register_tokens.shape == (1, 2, 32)


def test_encoder_sees_the_class_token_the_registers_and_the_patches(
    make_model, pixel_values, inputs_and_outputs
):
    encoder = (model := make_model(VTPVisionModel, num_register_tokens=2)).vision_encoder
    [seen] = inputs_and_outputs(encoder.blocks[0])
    model(pixel_values)

    sequence = seen[0]
    patches = (
        pixel_values.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(3, 16, 192)
    )
    embedded = patches @ encoder.patch_embedding.weight.flatten(1).T + encoder.patch_embedding.bias
    assert torch.equal(sequence[:, :1], encoder.cls_token.expand(3, 1, 32))
    assert torch.equal(sequence[:, 1:3], encoder.register_tokens.expand(3, 2, 32))
    torch.testing.assert_close(sequence[:, 3:], embedded)


def test_decoder_lays_patches_out_in_raster_order(reconstructor, inputs_and_outputs):
    decoder, latents = reconstructor.pixel_decoder, torch.randn(2, 8, 4, 6)
    embedded, projected = inputs_and_outputs(decoder.proj_in, decoder.proj_out)
    image = reconstructor.decode(latents).reconstruction

    assert torch.equal(embedded[0][:, 8], latents[:, :, 1, 2])
    patch = projected[1][:, 8].view(2, 3, 8, 8)
    assert torch.equal(image[:, :, 8:16, 16:24], patch)


def reference_norm(norm, x):
    x = x.double()
    if isinstance(norm, torch.nn.RMSNorm):
        return norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    centered = x - x.mean(-1, keepdim=True)
    return (
        norm.weight * centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        + norm.bias
    )


def reference_block(block, x, rope):
    """A block in float64."""

    def linear(layer, x):
        return x @ layer.weight.double().T + layer.bias

    heads, length = block.attention.num_heads, x.shape[1]
    qkv = linear(block.attention.qkv, reference_norm(block.attention_norm, x)).view(
        len(x), length, 3, heads, -1
    )
    query, key, value = qkv.unbind(2)  # (B, N, heads, D)
    if block.attention.query_norm is not None:
        query = reference_norm(block.attention.query_norm, query)
        key = reference_norm(block.attention.key_norm, key)
    query, key = (
        rotate(states.transpose(1, 2).float(), rope).transpose(1, 2).double()
        for states in (query, key)
    )
    weights = (torch.einsum("bnhd,bmhd->bhnm", query, key) / query.shape[-1] ** 0.5).softmax(-1)
    attended = linear(
        block.attention.proj, torch.einsum("bhnm,bmhd->bnhd", weights, value).flatten(2)
    )
    x = x + attended * (1 if block.attention_scale is None else block.attention_scale)
    hidden, mlp = reference_norm(block.mlp_norm, x), block.mlp
    if hasattr(mlp, "gate"):
        gate = linear(mlp.gate, hidden)
        mixed = linear(mlp.out, gate * gate.sigmoid() * linear(mlp.up, hidden))
    else:
        inner = linear(mlp.mlp_in, hidden)
        mixed = linear(mlp.mlp_out, inner * 0.5 * (1 + torch.erf(inner / 2**0.5)))
    return x + mixed * (1 if block.mlp_scale is None else block.mlp_scale)


def test_blocks_do_what_the_configuration_says(any_variant):
    config = any_variant.config
    for part, module in (
        ("vision", any_variant.vision_encoder),
        ("decoder", any_variant.pixel_decoder),
    ):
        block = module.blocks[1]
        for name, parameter in block.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
        x = torch.randn(2, 1 + 6, getattr(config, f"{part}_hidden_size"))
        rope = axial_rotation(2, 3, module.head_dim, x.device)
        # queries and keys are rounded to bfloat16, at times in the other direction
        torch.testing.assert_close(
            block(x, rope).double(), reference_block(block, x, rope), rtol=0.01, atol=0.03
        )

        gated = hasattr(block.mlp, "gate")
        assert gated == (getattr(config, f"{part}_mlp") != "mlp")
        norm = (
            torch.nn.RMSNorm if getattr(config, f"{part}_norm") == "rmsnorm" else torch.nn.LayerNorm
        )
        assert type(block.attention_norm) is type(block.mlp_norm) is type(module.norm) is norm
        assert (block.attention.query_norm is not None) == getattr(config, f"{part}_qk_norm")
        assert (block.attention_scale is not None) == (
            getattr(config, f"{part}_layer_scale") is not None
        )


@pytest.mark.parametrize(
    ("mlp", "ratio", "width"),
    [
        ("swiglu", 4.0, 88),
        ("swiglu", 3, 64),
        ("swiglu64", 4.0, 128),
        ("swiglu64", 6, 128),
        ("mlp", 4.0, 128),
        ("mlp", 2.5, 80),
    ],
)
def test_widths_of_the_perceptrons(make_model, mlp, ratio, width):
    model = make_model(
        vision_mlp=mlp, vision_mlp_ratio=ratio, decoder_mlp=mlp, decoder_mlp_ratio=ratio
    )
    for module in (model.vision_encoder, model.pixel_decoder):
        layer = getattr(module.blocks[0].mlp, "mlp_in" if mlp == "mlp" else "up")
        assert (layer.in_features, layer.out_features) == (32, width)


def test_defaults_are_the_base_model():
    with torch.device("meta"):
        model = VTPModel(VTPConfig())
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(295.6, abs=0.5)
    assert model.vision_encoder.blocks[0].mlp.up.out_features == 2048


# positions


def reference_rotation(height, width, head_dim):
    """Cosines and sines in float64."""
    cos, sin = np.empty((height * width, head_dim)), np.empty((height * width, head_dim))
    for row in range(height):
        for column in range(width):
            for k in range(head_dim // 4):
                period = 100 ** (2 * k / (head_dim / 2))
                for axis, (index, length) in enumerate(((row, height), (column, width))):
                    angle = 2 * math.pi * (2 * (index + 0.5) / length - 1) / period
                    for half in (0, head_dim // 2):
                        place = half + axis * head_dim // 4 + k
                        cos[row * width + column, place] = math.cos(angle)
                        sin[row * width + column, place] = math.sin(angle)
    return torch.from_numpy(cos), torch.from_numpy(sin)


@pytest.mark.parametrize(
    ("height", "width", "head_dim"), [(4, 6, 16), (16, 16, 64), (1, 7, 8), (32, 32, 64)]
)
def test_rotation_is_axial_and_rounded_to_bfloat16(height, width, head_dim):
    rotation = axial_rotation(height, width, head_dim, torch.device("cpu"))
    for actual, expected in zip(rotation, reference_rotation(height, width, head_dim), strict=True):
        assert actual.dtype == torch.bfloat16
        error = (actual.double() - expected).abs()
        # an angle of up to 2 pi is off by 2**-8 of it after each of up to 3 roundings
        assert error.max() < 3 * 2 * math.pi * 2**-8 and error.mean() < 0.01


def test_periods_are_those_of_the_released_models():
    assert rotary_periods(16, torch.device("cpu")).tolist() == [1.0, 3.15625, 10.0, 31.625]
    periods = rotary_periods(64, torch.device("cpu"))
    assert periods.dtype == torch.bfloat16
    torch.testing.assert_close(
        periods.double(), 100 ** (torch.arange(16).double() / 16), rtol=0.01, atol=0
    )


def test_only_the_last_tokens_turn():
    x, rope = torch.randn(2, 3, 2 + 6, 16), axial_rotation(2, 3, 16, torch.device("cpu"))
    rotated = rotate(x, rope)

    assert rotated.dtype == torch.float32
    assert torch.equal(rotated[:, :, :2], x[:, :, :2].bfloat16().float())
    turned = (
        torch.complex(x[:, :, 2:, :8], x[:, :, 2:, 8:])
        * torch.complex(rope[0].float(), rope[1].float())[:, :8]
    )
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotated[:, :, 2:], expected, rtol=0.02, atol=0.04)
    assert not torch.allclose(rotated[:, :, 2:], x[:, :, 2:], atol=0.1)


@torch.no_grad()
def test_class_token_and_registers_have_no_position(make_model, pixel_values):
    model = make_model(VTPVisionModel, num_register_tokens=1)
    encoder = model.vision_encoder
    encoder.register_tokens.copy_(encoder.cls_token)
    state = model(pixel_values, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(state[:, 0], state[:, 1])


def test_patches_have_positions(vision):
    pixel_values = torch.randn(1, 3, 32, 32)
    turned = vision(pixel_values.flip(-1).unflatten(-1, (4, 8)).flip(-1).flatten(-2)).patch_tokens
    mirrored = vision(pixel_values).patch_tokens.unflatten(1, (4, 4)).flip(2).flatten(1, 2)
    assert not torch.allclose(turned, mirrored, atol=1e-3)


# images and texts


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_image_features_are_projected(make_model, pixel_values, pooling, everywhere):
    model = make_model(image_pooling=pooling, bottleneck_everywhere=everywhere)
    vision = model.get_vision_features(pixel_values)
    features = vision.cls_token if pooling == "cls" else vision.patch_tokens.mean(1)
    if everywhere:
        features = features @ model.vision_encoder.bottleneck.weight.T
    projected = features @ model.image_projection.weight.T

    expected = projected / projected.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(model.get_image_features(pixel_values), expected)
    assert model.image_projection.in_features == (8 if everywhere else 32)


@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_scaled_cosines(make_model, pixel_values, input_ids, bias):
    model = make_model(logit_bias=bias)
    model.logit_scale.data.fill_(1.5)
    output = model(pixel_values, input_ids[:2])
    images, texts = model.get_image_features(pixel_values), model.get_text_features(input_ids[:2])

    for embeds, expected in ((output.image_embeds, images), (output.text_embeds, texts)):
        assert torch.equal(embeds, expected)
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))
    expected = math.exp(1.5) * torch.einsum("ie,te->it", images, texts) + (-10 if bias else 0)
    torch.testing.assert_close(output.logits_per_image, expected)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    assert output.loss is None


def test_loss_is_contrastive_both_ways(vtp, pixel_values, input_ids):
    output = vtp(pixel_values, input_ids, return_loss=True)
    of_texts = -output.logits_per_image.log_softmax(1).diagonal().mean()
    of_images = -output.logits_per_image.log_softmax(0).diagonal().mean()

    torch.testing.assert_close(output.loss, (of_texts + of_images) / 2)
    assert vtp(pixel_values, input_ids[:2]).loss is None
    assert vtp(pixel_values, input_ids, return_loss=False).loss is None


def test_text_features_are_those_of_the_end(vtp, input_ids):
    ids = input_ids[:1].clone()
    ids[0, 5:] = torch.tensor([0, 3, 7, 0, 12])  # the end is at 4
    expected = vtp.get_text_features(ids)

    for position in range(5, 10):
        changed = ids.clone()
        changed[0, position] = 21
        torch.testing.assert_close(vtp.get_text_features(changed), expected)
    padded = ids.clone()
    padded[0, 5:] = END  # CLIP's tokenizer pads so
    torch.testing.assert_close(vtp.get_text_features(padded), expected)
    torch.testing.assert_close(vtp.get_text_features(ids[:, :5]), expected)
    for position in range(4):
        changed = ids.clone()
        changed[0, position] = 30 if changed[0, position] != 30 else 31
        assert not torch.allclose(vtp.get_text_features(changed), expected)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_text_encoder_is_clip_with_the_configured_sizes(make_model, input_ids, activation):
    model = make_model(text_hidden_act=activation, text_projection_bias=True)
    config = model.text_encoder.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    assert (config.vocab_size, config.max_position_embeddings, config.hidden_act) == (
        50,
        10,
        activation,
    )

    model.text_projection.bias.data.normal_()
    end = model.text_encoder(input_ids).last_hidden_state[torch.arange(3), torch.tensor([4, 9, 6])]
    projected = end @ model.text_projection.weight.T + model.text_projection.bias
    torch.testing.assert_close(model.get_text_features(input_ids), F.normalize(projected))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_ids_of_either_integer_type(vtp, input_ids, dtype):
    assert torch.equal(vtp.get_text_features(input_ids.to(dtype)), vtp.get_text_features(input_ids))


def test_model_without_text(make_model, pixel_values, input_ids):
    model = make_model(has_text=False)
    names = {name.split(".")[0] for name in model.state_dict()}
    assert names == {"vision_encoder", "pixel_decoder"}
    assert model.decode(model.encode(pixel_values).latents).reconstruction.shape == (3, 3, 32, 32)
    sentence = "This checkpoint has no text encoder: its configuration has `has_text=False`"
    for method, inputs in (
        (model.get_image_features, [pixel_values]),
        (model.get_text_features, [input_ids]),
        (model, [pixel_values, input_ids]),
    ):
        with pytest.raises(ValueError, match=sentence):
            method(*inputs)


def test_models_without_decoder(make_model, vision, pixel_values, input_ids):
    model = make_model(has_decoder=False)
    assert model(pixel_values, input_ids).logits_per_image.shape == (3, 3)
    for without in (model, vision):
        name = type(without).__name__
        with pytest.raises(
            ValueError, match=f"This {name} has no pixel decoder; see `VTPForImageReconstruction`"
        ):
            without.decode(torch.randn(1, 8, 4, 4))
    with pytest.raises(
        ValueError,
        match="`VTPForImageReconstruction` needs a configuration with `has_decoder=True`",
    ):
        make_model(VTPForImageReconstruction, has_decoder=False)


# masks


def pixels_of(patch_mask):
    """A mask of pixels `(B, 1, H, W)` of one of 4x4 patches of 8x8."""
    return patch_mask.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_masked_patches_do_not_show(vision, pixel_values):
    patch_mask = torch.rand(3, 16) < 0.5
    expected = vision(pixel_values, patch_mask)
    hidden = torch.where(pixels_of(patch_mask), torch.randn_like(pixel_values), pixel_values)
    for name, tensor in vision(hidden, patch_mask).items():
        assert torch.equal(tensor, expected[name]), name

    for patch in range(16):
        shown = torch.zeros(3, 16, dtype=torch.bool)
        shown[:, patch] = True
        changed = torch.where(pixels_of(shown), torch.randn_like(pixel_values), pixel_values)
        same = (vision(changed, patch_mask).cls_token == expected.cls_token).all(-1)
        assert torch.equal(same, patch_mask[:, patch])


@torch.no_grad()
def test_mask_token_takes_the_place_of_a_patch(vision, pixel_values, inputs_and_outputs):
    encoder = vision.vision_encoder
    patch_mask = torch.rand(3, 16) < 0.5
    [seen] = inputs_and_outputs(encoder.blocks[0])
    vision(pixel_values, patch_mask)
    patches = encoder.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
    expected = torch.where(patch_mask[..., None], encoder.mask_token[0], patches)
    assert torch.equal(seen[0][:, 1:], expected)


def test_an_empty_mask_is_none(vision, pixel_values):
    masked = vision(pixel_values, torch.zeros(3, 16, dtype=torch.bool))
    assert all(torch.equal(tensor, masked[name]) for name, tensor in vision(pixel_values).items())


@pytest.mark.parametrize(
    "patch_mask",
    [
        torch.zeros(3, 16),
        torch.zeros(3, 16, dtype=torch.int64),
        torch.zeros(3, 15, dtype=torch.bool),
        torch.zeros(1, 16, dtype=torch.bool),
        torch.zeros(3, 4, 4, dtype=torch.bool),
        torch.zeros(16, dtype=torch.bool),
    ],
)
def test_masks_are_checked(any_vtp, pixel_values, patch_mask):
    got = re.escape(f"got {patch_mask.dtype} of {tuple(patch_mask.shape)}")
    with pytest.raises(
        ValueError, match=rf"`patch_mask` must be a bool tensor of shape \(3, 16\), {got}"
    ):
        any_vtp.get_vision_features(pixel_values, patch_mask)
