"""The networks of a TiTok have the sizes of the paper, and compute what is written out here."""

import json
from pathlib import Path

import pytest
import torch

import titok_hf
from titok_hf import MaskGitVQGANConfig, MaskGitVQGANModel, TiTokConfig, TiTokModel

SIZES = json.loads((Path(titok_hf.__file__).parent / "modeling/titok/sizes.json").read_text())


def count_millions(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6


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
