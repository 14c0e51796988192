"""A TiTok's outputs, losses, gradients and folders are those of its head and quantizer."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig

from titok_hf import MaskGitVQGANConfig, TiTokConfig, TiTokModel


@pytest.fixture
def any_titok(any_titok_config):
    return TiTokModel(any_titok_config).eval()


@pytest.fixture
def continuous_titok(make_titok_config):
    return TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()


def test_outputs_are_those_of_head_and_quantizer(any_titok, pixel_values):
    config, output = any_titok.config, any_titok(pixel_values)

    shapes = {"latents": (3, 8, 6), "quantizer_loss": ()}
    if config.quantizer == "vq":
        shapes |= {"codes": (3, 8), "unquantized": (3, 8, 6)}
    if config.head != "pixels":
        shapes |= {"proxy_logits": (3, 16, 64)}
    if config.head != "proxy_codes":
        shapes |= {"reconstruction": (3, 3, 32, 32), "loss": ()}
    assert {name: tuple(tensor.shape) for name, tensor in output.items()} == shapes


def test_codes_are_int64_within_the_codebook(titok, pixel_values):
    codes = titok.encode(pixel_values).codes

    assert codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 64


def test_forward_is_encoding_then_decoding(any_titok, pixel_values):
    output, encoded = any_titok(pixel_values), any_titok.encode(pixel_values)
    decoded = any_titok.decode(encoded.latents)

    for part in (encoded, decoded):
        assert all(torch.equal(tensor, output[name]) for name, tensor in part.items())


@pytest.mark.parametrize("normalize_codes", [True, False])
def test_codes_decode_as_their_latents_do(make_titok_config, pixel_values, normalize_codes):
    titok = TiTokModel(make_titok_config("vqgan_decoder", normalize_codes=normalize_codes)).eval()
    encoded = titok.encode(pixel_values)
    from_codes, from_latents = titok.decode_codes(encoded.codes), titok.decode(encoded.latents)

    is_unit = torch.allclose(encoded.latents.norm(dim=-1), torch.ones(3, 8))
    assert is_unit == normalize_codes

    torch.testing.assert_close(from_codes.reconstruction, from_latents.reconstruction)
    torch.testing.assert_close(from_codes.proxy_logits, from_latents.proxy_logits)


def test_images_do_not_depend_on_their_batch(any_titok, pixel_values):
    together, alone = any_titok(pixel_values), any_titok(pixel_values[1:2])

    for name in together.keys() - {"loss", "quantizer_loss"}:
        torch.testing.assert_close(together[name][1:2], alone[name], msg=name)


def test_every_token_and_every_pixel_counts(titok):
    codes = torch.zeros(9, 8, dtype=torch.int64)
    codes[torch.arange(8), torch.arange(8)] = 1
    reconstruction = titok.decode_codes(codes).reconstruction
    assert all(not torch.allclose(reconstruction[8], changed) for changed in reconstruction[:8])

    images = torch.zeros(17, 3, 32, 32)
    for patch in range(16):
        row, column = divmod(patch, 4)
        images[patch, :, 8 * row + 3, 8 * column + 5] = 1
    unquantized = titok.encode(images).unquantized
    assert all(not torch.allclose(unquantized[16], changed) for changed in unquantized[:16])


def test_loss_is_cross_entropy_of_proxy_codes_plus_the_quantizer_loss(
    warmup_titok, pixel_values, proxy_codes
):
    output = warmup_titok(pixel_values, proxy_codes)

    log_probabilities = output.proxy_logits.log_softmax(-1).gather(-1, proxy_codes[..., None])
    torch.testing.assert_close(output.loss, -log_probabilities.mean() + output.quantizer_loss)


@pytest.mark.parametrize("head", ["vqgan_decoder", "pixels"])
def test_loss_is_squared_error_of_pixels_plus_the_quantizer_loss(
    make_titok_config, pixel_values, head
):
    output = TiTokModel(make_titok_config(head))(pixel_values)

    error = (output.reconstruction - pixel_values).square().mean()
    torch.testing.assert_close(output.loss, error + output.quantizer_loss)


def test_loss_is_left_out_without_a_target_or_on_request(
    titok, warmup_titok, pixel_values, proxy_codes
):
    assert titok(pixel_values, return_loss=False).loss is None
    assert warmup_titok(pixel_values).loss is None
    assert warmup_titok(pixel_values, proxy_codes, return_loss=False).loss is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_proxy_codes_of_either_integer_type_give_the_same_loss(
    warmup_titok, pixel_values, proxy_codes, dtype
):
    expected = warmup_titok(pixel_values, proxy_codes).loss
    assert torch.equal(warmup_titok(pixel_values, proxy_codes.to(dtype)).loss, expected)


def test_folder_keeps_every_bit(any_titok, pixel_values, save_and_load, assert_same_tensors):
    loaded = save_and_load(any_titok)

    assert type(loaded) is TiTokModel and not loaded.training
    assert_same_tensors(any_titok, loaded)
    before, after = any_titok(pixel_values), loaded(pixel_values)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_folder_loads_as_bfloat16(any_titok, pixel_values, save_and_load, assert_same_tensors):
    loaded = save_and_load(any_titok, dtype=torch.bfloat16)

    assert_same_tensors(any_titok.bfloat16(), loaded)
    latents = loaded(pixel_values.bfloat16()).latents
    assert latents.dtype == torch.bfloat16
    assert latents.isfinite().all()


def test_config_survives_a_folder(any_titok_config, tmp_path):
    any_titok_config.save_pretrained(tmp_path / "first")
    loaded = AutoConfig.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")

    assert type(loaded) is TiTokConfig
    assert isinstance(loaded.vqgan_config, MaskGitVQGANConfig) == (loaded.head != "pixels")
    first, second = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second")
    )
    assert first == second
    assert (first["head"], first["quantizer"]) == (
        any_titok_config.head,
        any_titok_config.quantizer,
    )


def test_same_seed_makes_the_same_model(any_titok_config, assert_same_tensors):
    torch.manual_seed(5)
    first = TiTokModel(any_titok_config)
    torch.manual_seed(5)

    assert_same_tensors(first, TiTokModel(any_titok_config))


@pytest.mark.parametrize("initializer_range", [0.02, 0.2])
def test_weights_start_with_the_configured_deviation(make_titok_config, initializer_range):
    model = TiTokModel(
        make_titok_config(encoder_hidden_size=64, initializer_range=initializer_range)
    )
    block = model.encoder.blocks[0]

    assert block.attention.qkv.weight.std().item() == pytest.approx(initializer_range, rel=0.05)
    assert block.attention.qkv.bias.abs().max() == 0
    assert model.encoder.position_embedding.std().item() == pytest.approx(64**-0.5, rel=0.1)


def test_eager_attention_equals_sdpa(titok, pixel_values, save_and_load):
    eager = save_and_load(titok, attn_implementation="eager")
    expected = titok(pixel_values)
    output = eager(pixel_values)

    assert (titok.config._attn_implementation, eager.config._attn_implementation) == (
        "sdpa",
        "eager",
    )
    assert torch.equal(output.codes, expected.codes)
    torch.testing.assert_close(output.unquantized, expected.unquantized)
    torch.testing.assert_close(output.reconstruction, expected.reconstruction)


def test_only_eager_attention_returns_its_weights(titok):
    attention, x = titok.encoder.blocks[0].attention, torch.randn(2, 5, 32)
    assert attention(x)[1] is None

    titok.set_attn_implementation("eager")
    weights = attention(x)[1]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5))


def test_gradient_checkpointing_recomputes_blocks_and_keeps_gradients(
    titok, pixel_values, parameter_gradients
):
    titok.train()
    calls = []
    titok.encoder.blocks[1].mlp_in.register_forward_hook(lambda *_: calls.append("encoder"))
    titok.decoder.blocks[0].mlp_in.register_forward_hook(lambda *_: calls.append("decoder"))
    expected = parameter_gradients(titok, titok(pixel_values).loss)
    assert calls == ["encoder", "decoder"]

    calls.clear()
    titok.activation_checkpointing_enable()
    gradients = parameter_gradients(titok, titok(pixel_values).loss)
    assert calls == ["encoder", "decoder", "decoder", "encoder"]
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_loss_reaches_every_parameter(any_titok, pixel_values, proxy_codes, parameter_gradients):
    targets = proxy_codes if any_titok.config.head == "proxy_codes" else None
    gradients = parameter_gradients(any_titok, any_titok(pixel_values, targets).loss)

    assert [
        name for name, gradient in gradients.items() if gradient is None or not gradient.any()
    ] == []


@pytest.mark.parametrize("head", ["vqgan_decoder", "pixels"])
def test_reconstruction_reaches_the_encoder_but_not_the_codebook(
    make_titok_config, pixel_values, parameter_gradients, head
):
    model = TiTokModel(make_titok_config(head))
    gradients = parameter_gradients(
        model, F.mse_loss(model(pixel_values).reconstruction, pixel_values)
    )

    assert gradients.pop("quantizer.codebook.weight") is None
    assert [
        name for name, gradient in gradients.items() if gradient is None or not gradient.any()
    ] == []


def test_quantizer_loss_stops_before_the_decoder(warmup_titok, pixel_values, parameter_gradients):
    gradients = parameter_gradients(warmup_titok, warmup_titok(pixel_values).quantizer_loss)

    reached = {
        name.split(".")[0]
        for name, gradient in gradients.items()
        if gradient is not None and gradient.any()
    }
    assert reached == {"encoder", "quantizer"}


def test_proxy_codes_send_no_gradient_to_their_model(warmup_titok, vqgan, pixel_values):
    proxy_codes = vqgan.encode(pixel_values).codes
    warmup_titok(pixel_values, proxy_codes).loss.backward()

    assert not proxy_codes.requires_grad
    assert all(parameter.grad is None for parameter in vqgan.parameters())


def test_model_on_the_meta_device_has_no_storage(any_titok_config, any_titok):
    with torch.device("meta"):
        model = TiTokModel(any_titok_config)

    assert all(tensor.is_meta for tensor in model.state_dict().values())
    shapes = {name: tensor.shape for name, tensor in any_titok.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


@pytest.mark.parametrize("training", [True, False])
def test_no_value_is_read(any_titok, pixel_values, proxy_codes, training):
    """A tensor of the meta device has no value that could be read."""
    titok = any_titok.to("meta").train(training)
    images, proxy_codes = pixel_values.to("meta"), proxy_codes.to("meta")

    output = titok(images)
    assert titok.decode(titok.encode(images).latents).keys() <= output.keys()
    if titok.config.head != "pixels":
        titok(images, proxy_codes).loss.backward()
    if titok.config.quantizer == "vq":
        decoded = titok.decode(titok.code_latents(output.codes))
        assert decoded.keys() <= output.keys()
        if training:
            assert titok.decode_codes(output.codes).keys() == decoded.keys()


def test_codes_out_of_range_are_not_looked_for_in_training(titok):
    codes = torch.full((2, 8), 64)
    with pytest.raises(IndexError):
        titok.train().decode_codes(codes)


def test_posterior_is_sampled_in_training_unless_told_otherwise(continuous_titok, pixel_values):
    mode = continuous_titok.encode(pixel_values).latents
    assert torch.equal(continuous_titok(pixel_values).latents, mode)

    continuous_titok.train()
    assert not torch.allclose(continuous_titok.encode(pixel_values).latents, mode)
    assert not torch.allclose(continuous_titok(pixel_values).latents, mode)
    assert torch.equal(continuous_titok.encode(pixel_values, sample_posterior=False).latents, mode)


def test_posterior_is_sampled_on_request(continuous_titok, pixel_values):
    mode = continuous_titok.encode(pixel_values)
    generator = torch.Generator().manual_seed(1)
    sample = continuous_titok.encode(pixel_values, sample_posterior=True, generator=generator)

    assert torch.equal(mode.latents, continuous_titok.encoder(pixel_values)[..., :6])
    assert not torch.allclose(sample.latents, mode.latents)
    assert torch.equal(sample.quantizer_loss, mode.quantizer_loss)


def test_posterior_samples_depend_on_the_generator_alone(continuous_titok, pixel_values):
    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        return continuous_titok.encode(
            pixel_values, sample_posterior=True, generator=generator
        ).latents

    state = torch.get_rng_state()
    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_given_noise_is_the_samples(continuous_titok, pixel_values):
    noise = torch.randn(len(pixel_values), 8, 6)
    mean, logvar = continuous_titok.encoder(pixel_values).split(6, dim=-1)
    expected = mean + (logvar / 2).exp() * noise
    state = torch.get_rng_state()
    torch.testing.assert_close(
        continuous_titok(pixel_values, sample_posterior=True, noise=noise).latents, expected
    )
    assert torch.equal(
        continuous_titok.encode(pixel_values, noise=noise).latents, mean
    )  # the mode takes none
    torch.testing.assert_close(
        continuous_titok.train().encode(pixel_values, noise=noise).latents, expected
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_forward_passes_the_sampling_on(continuous_titok, pixel_values):
    torch.manual_seed(7)
    sampled = continuous_titok(pixel_values, sample_posterior=True)
    torch.manual_seed(7)
    expected = continuous_titok.encode(pixel_values, sample_posterior=True)

    assert torch.equal(sampled.latents, expected.latents)
    assert torch.equal(
        sampled.reconstruction, continuous_titok.decode(expected.latents).reconstruction
    )


def test_divergence_is_that_of_the_encoded_posterior(continuous_titok, pixel_values):
    mean, logvar = continuous_titok.encoder(pixel_values).split(6, dim=-1)
    expected = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2)).mean()

    torch.testing.assert_close(continuous_titok.encode(pixel_values).quantizer_loss, expected)


def test_continuous_tokenizers_have_no_codes_to_decode(continuous_titok):
    with pytest.raises(ValueError, match='`decode_codes` needs a tokenizer with `quantizer="vq"`'):
        continuous_titok.decode_codes(torch.zeros(1, 8, dtype=torch.int64))
