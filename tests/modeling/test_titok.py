import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers import AutoConfig

import titok_hf
from titok_hf import MaskGitVQGANConfig, MaskGitVQGANModel, TiTokConfig, TiTokModel

SIZES = json.loads((Path(titok_hf.__file__).parent / "modeling/titok/sizes.json").read_text())


@pytest.fixture
def any_titok(any_titok_config):
    return TiTokModel(any_titok_config).eval()


@pytest.fixture
def warmup_titok(titok_config):
    return TiTokModel(titok_config).eval()


@pytest.fixture
def continuous_titok(make_titok_config):
    return TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()


@pytest.fixture
def proxy_codes():
    return torch.randint(64, (3, 16))


def count_millions(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6


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


@pytest.mark.parametrize("size", SIZES)
def test_named_sizes_are_whole_configs(size):
    config = TiTokConfig.from_size(size)
    latent_tokens = int(size.split("-")[2])
    with torch.device("meta"):
        model = TiTokModel(config)

    assert config.num_tokens == config.num_latent_tokens == latent_tokens
    assert config.image_size == (512 if size.endswith("-512") else 256)
    assert config.quantizer == ("kl" if "vae" in size else "vq")
    assert (config.head == "pixels") == ("vae" in size or "vq8k" in size)
    assert model.encoder.latent_tokens.shape[1] == latent_tokens


@pytest.mark.parametrize(
    ("size", "encoder", "decoder", "total"),
    [
        ("titok-s-128", 25.8, 27.0, 83.7),
        ("titok-b-64", 85.9, 88.1, 204.9),
        ("titok-l-32", 303.4, 306.8, 641.1),
    ],
)
def test_named_sizes_have_the_parameters_of_the_paper(size, encoder, decoder, total):
    with torch.device("meta"):
        model = TiTokModel(TiTokConfig.from_size(size, head="vqgan_decoder"))

    assert count_millions(model.encoder) == pytest.approx(encoder, abs=0.1)
    assert count_millions(model.decoder, model.head) == pytest.approx(decoder, abs=0.1)
    assert count_millions(model) == pytest.approx(total, abs=0.1)


def test_defaults_are_the_large_model_with_32_tokens():
    assert TiTokConfig().to_dict() == TiTokConfig.from_size("titok-l-32").to_dict()


def test_named_sizes_take_overrides():
    config = TiTokConfig.from_size("titok-s-128", num_latent_tokens=16, image_size=128)
    assert (config.num_tokens, config.image_size, config.vqgan_config.image_size) == (16, 128, 128)
    assert config.encoder_hidden_size == 512


def test_unknown_size_is_refused():
    with pytest.raises(
        ValueError, match=r"`size` must be one of titok-s-128, titok-b-64, .*, got 'titok-xl-8'"
    ):
        TiTokConfig.from_size("titok-xl-8")


@pytest.mark.parametrize(
    ("encoder_patch_size", "decoder_patch_size"), [(4, 8), (16, 8), (8, 4), (8, 16)]
)
@pytest.mark.parametrize("head", ["vqgan_decoder", "pixels"])
def test_encoder_and_decoder_may_have_different_patches(
    make_titok_config, vqgan_config, pixel_values, head, encoder_patch_size, decoder_patch_size
):
    fields = {"encoder_patch_size": encoder_patch_size, "decoder_patch_size": decoder_patch_size}
    if head == "vqgan_decoder":
        vqgan_config.channel_multipliers = (1,) * decoder_patch_size.bit_length()
    output = TiTokModel(make_titok_config(head, **fields))(pixel_values)

    assert output.codes.shape == (3, 8)
    assert output.reconstruction.shape == (3, 3, 32, 32)
    if head == "vqgan_decoder":
        assert output.proxy_logits.shape == (3, (32 // decoder_patch_size) ** 2, 64)


def test_encoder_reads_out_its_latent_tokens(titok, pixel_values, inputs_and_outputs):
    encoder = titok.encoder
    seen = inputs_and_outputs(encoder.norm_in, encoder.blocks[-1], encoder.norm_out)
    titok.encode(pixel_values)

    (sequence, _), (_, transformed), (read_out, _) = seen
    patches = (
        pixel_values.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(3, 16, 192)
    )
    embedded = patches @ encoder.patch_embedding.weight.flatten(1).T + encoder.patch_embedding.bias
    torch.testing.assert_close(
        sequence[:, :1], (encoder.cls_token + encoder.position_embedding[:, :1]).expand(3, 1, 32)
    )
    torch.testing.assert_close(sequence[:, 1:17], embedded + encoder.position_embedding[:, 1:])
    torch.testing.assert_close(
        sequence[:, 17:],
        (encoder.latent_tokens + encoder.latent_position_embedding).expand(3, 8, 32),
    )
    assert torch.equal(read_out, transformed[:, 17:])


def test_decoder_reads_out_its_mask_tokens(titok, inputs_and_outputs):
    decoder, latents = titok.decoder, torch.randn(3, 8, 6)
    seen = inputs_and_outputs(decoder.norm_in, decoder.blocks[-1], decoder.norm_out)
    titok.decode(latents)

    (sequence, _), (_, transformed), (read_out, _) = seen
    masks = (
        torch.cat([decoder.cls_token, decoder.mask_token.expand(1, 16, 32)], dim=1)
        + decoder.position_embedding
    )
    torch.testing.assert_close(sequence[:, :17], masks.expand(3, 17, 32))
    torch.testing.assert_close(
        sequence[:, 17:], decoder.latent_embedding(latents) + decoder.latent_position_embedding
    )
    assert torch.equal(read_out, transformed[:, 1:17])


def test_blocks_add_attention_then_a_perceptron_to_what_they_normalized(titok):
    block, x = titok.encoder.blocks[0], torch.randn(2, 5, 32)
    query, key, value = block.attention.qkv(block.attention_norm(x)).view(2, 5, 3, 2, 16).unbind(2)
    weights = (torch.einsum("bnhd,bmhd->bhnm", query, key) / 4).softmax(-1)
    attended = x + block.attention.proj(
        torch.einsum("bhnm,bmhd->bnhd", weights, value).reshape(2, 5, 32)
    )
    hidden = block.mlp_in(block.mlp_norm(attended))
    expected = attended + block.mlp_out(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))

    torch.testing.assert_close(block(x), expected)


def test_proxy_head_is_a_perceptron_with_tanh(titok):
    head, hidden_states = titok.head, torch.randn(2, 16, 32)
    expected = head.proj_in(hidden_states).tanh() @ head.proj_out.weight.T + head.proj_out.bias

    assert head.proj_in.out_features == 64
    torch.testing.assert_close(head(hidden_states), expected)


def test_pixel_head_lays_patches_out_in_raster_order(make_titok_config):
    head = TiTokModel(make_titok_config("pixels")).head
    torch.nn.init.dirac_(head.conv.weight)
    hidden_states = torch.randn(2, 16, 32)
    images, patches = head(hidden_states), head.proj(hidden_states).view(2, 16, 8, 8, 3)

    for patch in range(16):
        row, column = divmod(patch, 4)
        square = images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        torch.testing.assert_close(square, patches[:, patch].permute(0, 3, 1, 2))


def test_interleaved_latents_are_read_without_a_transpose(make_titok_config, pixel_values):
    plain = TiTokModel(make_titok_config()).eval()
    interleaved = TiTokModel(make_titok_config(interleaved_latents=True)).eval()
    interleaved.load_state_dict(plain.state_dict())
    normalized = []
    interleaved.encoder.norm_out.register_forward_hook(
        lambda module, inputs, output: normalized.append(output)
    )
    unquantized = interleaved.encode(pixel_values).unquantized

    scrambled = normalized[0].detach().numpy().reshape(3, 32, 8).swapaxes(1, 2)
    torch.testing.assert_close(
        unquantized, interleaved.encoder.proj(torch.from_numpy(scrambled.copy()))
    )
    assert not torch.allclose(unquantized, plain.encode(pixel_values).unquantized)


def test_pixel_decoder_is_the_one_of_the_vqgan(warmup_titok, vqgan, pixel_values):
    model = warmup_titok.with_pixel_decoder(vqgan)
    before, after = warmup_titok(pixel_values), model(pixel_values)

    assert model.config.head == "vqgan_decoder" and warmup_titok.config.head == "proxy_codes"
    assert torch.equal(before.codes, after.codes)
    assert torch.equal(before.proxy_logits, after.proxy_logits)
    vectors = before.proxy_logits.softmax(-1) @ vqgan.quantizer.codebook.weight
    expected = vqgan.decode(vectors.transpose(1, 2).reshape(3, 8, 4, 4)).reconstruction
    torch.testing.assert_close(after.reconstruction, expected)


def test_certain_logits_decode_as_the_vqgan_decodes_their_codes(warmup_titok, vqgan, pixel_values):
    model = warmup_titok.with_pixel_decoder(vqgan)
    model.head.proj_out.weight.data *= 1e6
    output = model(pixel_values)

    expected = vqgan.decode_codes(output.proxy_logits.argmax(-1)).reconstruction
    torch.testing.assert_close(output.reconstruction, expected)


def test_pixel_decoder_copies_its_weights(warmup_titok, vqgan, assert_same_tensors):
    model = warmup_titok.with_pixel_decoder(vqgan)
    reference = warmup_titok.with_pixel_decoder(vqgan)
    for parameter in (*warmup_titok.parameters(), *vqgan.parameters()):
        parameter.data.zero_()

    assert_same_tensors(model, reference)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_pixel_decoder_comes_from_folders_too(
    warmup_titok, vqgan, save_and_load, assert_same_tensors, tmp_path
):
    expected = warmup_titok.with_pixel_decoder(vqgan)
    vqgan.save_pretrained(tmp_path / "vqgan")
    loaded_vqgan = MaskGitVQGANModel.from_pretrained(tmp_path / "vqgan")

    assert_same_tensors(warmup_titok.with_pixel_decoder(loaded_vqgan), expected)
    assert_same_tensors(save_and_load(warmup_titok).with_pixel_decoder(loaded_vqgan), expected)


def test_pixel_decoder_may_come_in_another_dtype(
    warmup_titok, vqgan, save_and_load, assert_same_tensors
):
    expected = warmup_titok.with_pixel_decoder(vqgan)
    model = warmup_titok.with_pixel_decoder(save_and_load(vqgan, dtype=torch.bfloat16))

    assert model.dtype == torch.float32
    assert_same_tensors(model.bfloat16(), expected.bfloat16())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_pixel_decoder_keeps_the_attention(warmup_titok, vqgan, implementation):
    warmup_titok.set_attn_implementation(implementation)
    model = warmup_titok.with_pixel_decoder(vqgan)

    assert model.config._attn_implementation == implementation
    assert model.encoder.blocks[0].attention.config._attn_implementation == implementation


def test_pixel_decoder_takes_the_dtype_of_the_tokenizer(warmup_titok, vqgan):
    assert warmup_titok.bfloat16().with_pixel_decoder(vqgan).dtype == torch.bfloat16


@pytest.mark.parametrize("head", ["vqgan_decoder", "pixels"])
def test_pixel_decoder_needs_proxy_codes(make_titok_config, vqgan, head):
    with pytest.raises(ValueError, match=f"with `head=\"proxy_codes\"` is expected, got '{head}'"):
        TiTokModel(make_titok_config(head)).with_pixel_decoder(vqgan)


def test_pixel_decoder_of_another_vqgan_is_refused(warmup_titok, vqgan_config):
    other = MaskGitVQGANModel(MaskGitVQGANConfig(**{**vqgan_config.to_dict(), "codebook_size": 32}))
    with pytest.raises(
        ValueError, match=r"predicts the codes of a VQGAN with .*64.*, got one with .*32"
    ):
        warmup_titok.with_pixel_decoder(other)


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


def test_pixel_values_are_checked(titok, bad_images):
    images, error, sentence = bad_images
    with pytest.raises(error, match=sentence):
        titok.encode(images)
    with pytest.raises(error, match=sentence):
        titok(images)


def test_pixel_values_may_overshoot_a_little(titok, pixel_values):
    assert titok(1.2 * pixel_values.clamp(0, 1) - 0.1).reconstruction.isfinite().all()


@pytest.mark.parametrize(
    ("codes", "error", "sentence"),
    [
        (
            torch.full((2, 8), 64),
            ValueError,
            r"`codes` must be in \[0, 64\), got values from 64 to 64",
        ),
        (
            torch.full((2, 8), -1),
            ValueError,
            r"`codes` must be in \[0, 64\), got values from -1 to -1",
        ),
        (
            torch.zeros(2, 9, dtype=torch.int64),
            ValueError,
            r"`codes` must have shape \(batch, 8\), got \(2, 9\)",
        ),
        (
            torch.zeros(8, dtype=torch.int64),
            ValueError,
            r"`codes` must have shape \(batch, 8\), got \(8,\)",
        ),
        (torch.zeros(2, 8), TypeError, r"`codes` must be an int64 tensor, got torch.float32"),
    ],
)
def test_codes_are_checked(titok, codes, error, sentence):
    with pytest.raises(error, match=sentence):
        titok.decode_codes(codes)


@pytest.mark.parametrize("shape", [(2, 8, 5), (2, 9, 6), (8, 6)])
def test_latents_are_checked(titok, shape):
    with pytest.raises(ValueError, match=r"`latents` must have shape \(batch, 8, 6\), got"):
        titok.decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("proxy_codes", "error", "sentence"),
    [
        (
            torch.zeros(3, 8, dtype=torch.int64),
            ValueError,
            r"`proxy_codes` must have shape \(3, 16\), got \(3, 8\)",
        ),
        (
            torch.zeros(1, 16, dtype=torch.int64),
            ValueError,
            r"`proxy_codes` must have shape \(3, 16\), got \(1, 16\)",
        ),
        (
            torch.zeros(3, 16),
            TypeError,
            r"`proxy_codes` must be an int64 tensor, got torch.float32",
        ),
    ],
)
def test_proxy_codes_are_checked(warmup_titok, pixel_values, proxy_codes, error, sentence):
    with pytest.raises(error, match=sentence):
        warmup_titok(pixel_values, proxy_codes)


def test_proxy_codes_need_a_head_that_predicts_them(make_titok_config, pixel_values, proxy_codes):
    with pytest.raises(ValueError, match='this one has `head="pixels"`'):
        TiTokModel(make_titok_config("pixels"))(pixel_values, proxy_codes)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"encoder_patch_size": 5}, "`encoder_patch_size` must divide the image size 32, got 5"),
        ({"decoder_patch_size": 5}, "`decoder_patch_size` must divide the image size 32, got 5"),
        (
            {"encoder_num_attention_heads": 3},
            "`encoder_num_attention_heads` must divide .* 32, got 3",
        ),
        (
            {"decoder_num_attention_heads": 5},
            "`decoder_num_attention_heads` must divide .* 32, got 5",
        ),
        (
            {"decoder_patch_size": 4},
            "`decoder_patch_size` 4 pixels, got images of 32 and squares of 8",
        ),
        ({"image_size": 64}, "`vqgan_config` must have images of 64 pixels .* got images of 32"),
        ({"num_latent_tokens": 0}, "`num_latent_tokens` must be at least 1, got 0"),
        ({"encoder_patch_size": 0}, "`encoder_patch_size` must be at least 1, got 0"),
        (
            {"representation": "patch_tokens"},
            "must be the number of the encoder's patches .*, here 16, got 8",
        ),
        (
            {"representation": "2d"},
            "'representation' expected one of .*'latent_tokens', 'patch_tokens'.*, got 2d",
        ),
        ({"head": "pixels"}, '`vqgan_config` must be None with `head="pixels"`'),
        ({"head": "gan"}, "'head' expected one of .*'proxy_codes'.*, got gan"),
        ({"quantizer": "fsq"}, "'quantizer' expected one of .*'vq', 'kl'.*, got fsq"),
        ({"codebook_size": "64"}, "'codebook_size' expected int, got str"),
    ],
)
def test_contradictory_configs_are_refused(titok_config, fields, sentence):
    with pytest.raises(StrictDataclassError, match=sentence):
        TiTokConfig(**{**titok_config.to_dict(), **fields})
