import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers import AutoConfig

from titok_hf import MaskGitVQGANConfig, MaskGitVQGANModel
from titok_hf.modeling.maskgit_vqgan.modeling_maskgit_vqgan import ResidualBlock

from .unfit_codes import unfit_codes


def test_encoding_gives_a_grid_of_latents_and_a_raster_of_codes(vqgan, pixel_values):
    encoded = vqgan.encode(pixel_values)

    assert encoded.latents.shape == encoded.unquantized.shape == (3, 8, 4, 4)
    assert encoded.codes.shape == (3, 16)
    assert encoded.codes.dtype == torch.int64
    assert encoded.codes.min() >= 0 and encoded.codes.max() < 64
    assert encoded.quantizer_loss.shape == ()
    raster = vqgan.quantizer.codebook.weight[encoded.codes].view(3, 4, 4, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoded.latents, raster)


def test_codes_decode_as_their_latents_do(vqgan, pixel_values):
    encoded = vqgan.encode(pixel_values)
    reconstruction = vqgan.decode(encoded.latents).reconstruction

    assert reconstruction.shape == pixel_values.shape
    torch.testing.assert_close(vqgan.decode_codes(encoded.codes).reconstruction, reconstruction)


def test_different_codes_decode_to_different_images(vqgan):
    codes = torch.zeros(1, 16, dtype=torch.int64)
    changed = codes.clone()
    changed[0, 5] = 1

    assert not torch.allclose(
        vqgan.decode_codes(codes).reconstruction, vqgan.decode_codes(changed).reconstruction
    )


def test_forward_encodes_decodes_and_adds_both_losses(vqgan, pixel_values):
    output, encoded = vqgan(pixel_values), vqgan.encode(pixel_values)

    reconstruction = vqgan.decode(encoded.latents).reconstruction
    assert torch.equal(output.reconstruction, reconstruction)
    assert torch.equal(output.codes, encoded.codes)
    torch.testing.assert_close(
        output.loss, (reconstruction - pixel_values).square().mean() + encoded.quantizer_loss
    )


def test_forward_without_loss(vqgan, pixel_values):
    assert vqgan(pixel_values, return_loss=False).loss is None


def test_images_do_not_depend_on_their_batch(vqgan, pixel_values):
    together, alone = vqgan(pixel_values), vqgan(pixel_values[1:2])

    assert torch.equal(together.codes[1:2], alone.codes)
    torch.testing.assert_close(together.reconstruction[1:2], alone.reconstruction)


def test_same_seed_makes_the_same_model(vqgan_config, assert_same_tensors):
    torch.manual_seed(5)
    first = MaskGitVQGANModel(vqgan_config)
    torch.manual_seed(5)

    assert_same_tensors(first, MaskGitVQGANModel(vqgan_config))


def test_folder_keeps_every_bit(vqgan, pixel_values, save_and_load, assert_same_tensors):
    loaded = save_and_load(vqgan)

    assert type(loaded) is MaskGitVQGANModel and not loaded.training
    assert_same_tensors(vqgan, loaded)
    before, after = vqgan(pixel_values), loaded(pixel_values)
    assert torch.equal(before.codes, after.codes)
    assert torch.equal(before.reconstruction, after.reconstruction)


def test_folder_loads_as_bfloat16(vqgan, pixel_values, save_and_load, assert_same_tensors):
    loaded = save_and_load(vqgan, dtype=torch.bfloat16)

    assert_same_tensors(vqgan.bfloat16(), loaded)
    output = loaded(pixel_values.bfloat16())
    assert output.reconstruction.dtype == torch.bfloat16
    assert output.reconstruction.isfinite().all()


def test_config_survives_a_folder(vqgan_config, tmp_path):
    vqgan_config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)

    assert type(loaded) is MaskGitVQGANConfig
    assert tuple(loaded.channel_multipliers) == (1, 1, 2, 2)
    assert (loaded.image_size, loaded.codebook_size, loaded.num_res_blocks) == (32, 64, 1)


def test_reconstruction_reaches_encoder_and_decoder_but_not_the_codebook(
    vqgan, pixel_values, parameter_gradients
):
    reconstruction = vqgan(pixel_values).reconstruction
    gradients = parameter_gradients(vqgan, F.mse_loss(reconstruction, pixel_values))

    assert gradients.pop("quantizer.codebook.weight") is None
    assert [
        name for name, gradient in gradients.items() if gradient is None or not gradient.any()
    ] == []


def test_quantizer_loss_reaches_codebook_and_encoder_but_not_the_decoder(
    vqgan, pixel_values, parameter_gradients
):
    gradients = parameter_gradients(vqgan, vqgan.encode(pixel_values).quantizer_loss)

    reached = {
        name.split(".")[0]
        for name, gradient in gradients.items()
        if gradient is not None and gradient.any()
    }
    assert reached == {"encoder", "quantizer"}


def test_model_on_the_meta_device_has_no_storage(vqgan_config, vqgan):
    with torch.device("meta"):
        model = MaskGitVQGANModel(vqgan_config)

    assert all(tensor.is_meta for tensor in model.state_dict().values())
    shapes = {name: tensor.shape for name, tensor in vqgan.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


@pytest.mark.parametrize("training", [True, False])
def test_no_value_is_read(vqgan, pixel_values, training):
    """A tensor of the meta device has no value that could be read."""
    vqgan = vqgan.to("meta").train(training)
    output = vqgan(pixel_values.to("meta"))
    output.loss.backward()
    decoded = vqgan.decode(vqgan.code_latents(output.codes))
    assert decoded.reconstruction.shape == (3, 3, 32, 32)


@pytest.mark.parametrize(
    ("channel_multipliers", "patch_size", "num_tokens"),
    [((2,), 1, 64), ((1, 2), 2, 16), ((1, 2, 4), 4, 4)],
)
@pytest.mark.parametrize("num_res_blocks", [1, 2])
def test_every_resolution_but_the_last_halves_the_image(
    channel_multipliers, patch_size, num_tokens, num_res_blocks
):
    config = MaskGitVQGANConfig(
        image_size=8,
        hidden_channels=4,
        channel_multipliers=channel_multipliers,
        num_res_blocks=num_res_blocks,
        norm_num_groups=2,
        latent_channels=4,
        codebook_size=8,
    )
    model = MaskGitVQGANModel(config)
    output = model(torch.rand(2, 3, 8, 8))

    stacks = (*model.encoder.down, model.encoder.mid, model.decoder.mid, *model.decoder.up)
    assert [len(blocks) for blocks in stacks] == [num_res_blocks] * 2 * (
        1 + len(channel_multipliers)
    )
    assert (config.patch_size, config.num_tokens) == (patch_size, num_tokens)
    assert output.codes.shape == (2, num_tokens)
    assert output.reconstruction.shape == (2, 3, 8, 8)


def test_gray_images_are_a_matter_of_the_config(vqgan_config):
    vqgan_config.num_channels = 1
    images = torch.rand(2, 1, 32, 32)

    assert MaskGitVQGANModel(vqgan_config)(images).reconstruction.shape == images.shape


@pytest.mark.parametrize("shortcut_of_output", [False, True])
def test_shortcut_of_a_block_comes_from_its_input_or_from_its_output(
    vqgan_config, shortcut_of_output
):
    vqgan_config.shortcut_of_output = shortcut_of_output
    block, x = ResidualBlock(vqgan_config, 4, 8), torch.rand(2, 4, 6, 6)

    h = block.conv2(F.silu(block.norm2(block.conv1(F.silu(block.norm1(x))))))
    source = h if shortcut_of_output else x
    expected = torch.einsum("oi,bihw->bohw", block.shortcut.weight[:, :, 0, 0], source) + h
    torch.testing.assert_close(block(x), expected)


def test_pixel_values_are_checked(vqgan, bad_images):
    images, error, sentence = bad_images
    with pytest.raises(error, match=sentence):
        vqgan(images)


@pytest.mark.parametrize(("codes", "error", "sentence"), unfit_codes(16))
def test_codes_are_checked(vqgan, codes, error, sentence):
    with pytest.raises(error, match=sentence):
        vqgan.decode_codes(codes)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"image_size": 36},
            "`image_size` must be a multiple of 8, as 4 `channel_multipliers` .* got 36",
        ),
        ({"norm_num_groups": 0}, "`norm_num_groups` must be at least 1, got 0"),
        (
            {"norm_num_groups": 3},
            "`norm_num_groups` must divide the 8 channels of every resolution, got 3",
        ),
        ({"channel_multipliers": []}, r"one or more integers of at least 1, got \[\]"),
        ({"channel_multipliers": [0, 1, 1, 1]}, "integers of at least 1, got"),
        ({"codebook_size": "64"}, "'codebook_size' expected int, got str"),
    ],
)
def test_contradictory_configs_are_refused(vqgan_config, fields, sentence):
    with pytest.raises(StrictDataclassError, match=sentence):
        MaskGitVQGANConfig(**{**vqgan_config.to_dict(), **fields})
