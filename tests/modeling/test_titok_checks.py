"""Inputs and configurations that do not fit a TiTok are refused."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from titok_hf import TiTokConfig, TiTokModel

from .unfit_codes import unfit_codes


def test_pixel_values_are_checked(titok, bad_images):
    images, error, sentence = bad_images
    with pytest.raises(error, match=sentence):
        titok.encode(images)
    with pytest.raises(error, match=sentence):
        titok(images)


def test_pixel_values_may_overshoot_a_little(titok, pixel_values):
    assert titok(1.2 * pixel_values.clamp(0, 1) - 0.1).reconstruction.isfinite().all()


@pytest.mark.parametrize(("codes", "error", "sentence"), unfit_codes(8))
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
