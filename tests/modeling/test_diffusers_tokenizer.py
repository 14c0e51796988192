import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLTemporalDecoder,
    AutoencoderRAE,
    AutoencoderTiny,
    UNet2DModel,
    VQModel,
)
from PIL import Image
from torch.distributions import Normal, kl_divergence

from titok_hf.data import tokenize_to_folder
from titok_hf.modeling.diffusers_tokenizer import DiffusersTokenizer

BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
KL = {**BLOCKS, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 32}
RAE = {
    "encoder_type": "mae",
    "encoder_hidden_size": 64,
    "encoder_patch_size": 8,
    "encoder_num_hidden_layers": 1,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "encoder_input_size": 32,
    "patch_size": 4,
}


def make_vq(**overrides):
    vq = VQModel(
        **{**KL, "latent_channels": 3, "vq_embed_dim": 5, "num_vq_embeddings": 16, **overrides}
    ).eval()
    torch.nn.init.normal_(vq.quantize.embedding.weight, std=0.5)
    return vq


FAMILIES = {
    "kl": lambda: AutoencoderKL(**KL),
    "flux2": lambda: AutoencoderKLFlux2(**KL, latent_channels=4),
    "asymmetric": lambda: AsymmetricAutoencoderKL(
        **BLOCKS,
        down_block_out_channels=(8, 16),
        up_block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=32,
    ),
    "dc": lambda: AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
    ),
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "rae": lambda: AutoencoderRAE(**RAE),
    "vq": make_vq,
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def tokenizer(family):
    """Each family in turn, for images of 32 pixels; of an RAE, which only takes what its encoder
    says, of 16."""
    return DiffusersTokenizer(FAMILIES[family](), None if family == "rae" else 32).eval()


@pytest.fixture
def images(tokenizer):
    size = tokenizer.config.image_size
    images = torch.rand(2, 3, size, size)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 1  # both ends of the range
    return images


@torch.no_grad()
def test_images_to_latents_and_back(tokenizer, images, family):
    encoded = tokenizer.encode(images)
    assert encoded.latents.shape[0] == 2 and encoded.latents.ndim == 4
    side = {"rae": 4}.get(family, 16)
    assert encoded.latents.shape[2:] == (side, side) and tokenizer.config.num_tokens == side**2
    assert (encoded.codes is not None) == (encoded.unquantized is not None) == (family == "vq")
    decoded = tokenizer.decode(encoded.latents).reconstruction
    assert decoded.shape == images.shape
    alone = tokenizer.decode(tokenizer.encode(images[1:]).latents).reconstruction
    torch.testing.assert_close(alone, decoded[1:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_networks_see_and_draw_their_own_range(tokenizer, images, family):
    """[-1, 1] for all but TAESD's layers, which see [0, 1], and RAE, normalized by ImageNet's
    statistics."""
    seen, drawn = [], []
    model = tokenizer.autoencoder
    first = model.encoder.layers if family == "tiny" else model.encoder
    first.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    last = model.decoder.layers if family == "tiny" else model.decoder
    last.register_forward_hook(lambda _, inputs, output: drawn.append(output))
    decoded = tokenizer.decode(tokenizer.encode(images).latents).reconstruction

    mean, std = (
        torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    if family == "rae":
        larger = torch.nn.functional.interpolate(
            images, size=(32, 32), mode="bicubic"
        )  # its own encoder's size
        torch.testing.assert_close(seen[0], (larger - mean) / std)
        patches = drawn[0].logits.view(2, 4, 4, 4, 4, 3)  # (B, h, w, p, p, 3)
        picture = patches.permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 16, 16)
        torch.testing.assert_close(decoded, picture * std + mean)
    elif family == "tiny":
        torch.testing.assert_close(seen[0], images)
        torch.testing.assert_close(decoded, drawn[0])
    else:
        assert (seen[0].min(), seen[0].max()) == (-1, 1)
        torch.testing.assert_close(seen[0], images / 0.5 - 1)
        torch.testing.assert_close(decoded, drawn[0] / 2 + 0.5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["kl", "flux2", "asymmetric"])
def test_a_posterior_gives_its_mode_or_a_sample(tokenizer, images):
    model = tokenizer.autoencoder
    mean, logvar = model.quant_conv(model.encoder(2 * images - 1)).chunk(2, dim=1)
    encoded = tokenizer.encode(images)
    torch.testing.assert_close(encoded.latents, mean)
    divergence = (
        kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    )
    torch.testing.assert_close(encoded.quantizer_loss, divergence)

    sample = tokenizer.encode(
        images, sample_posterior=True, generator=torch.Generator().manual_seed(3)
    ).latents
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sample, mean + (logvar / 2).exp() * noise)


@torch.no_grad()
def test_codes_are_the_nearest_in_raster_order():
    tokenizer = DiffusersTokenizer(make_vq()).eval()
    images = torch.rand(2, 3, 12, 8)
    encoded = tokenizer.encode(images)
    codebook = tokenizer.autoencoder.quantize.embedding.weight.double().numpy()
    unquantized = encoded.unquantized.double().numpy()
    assert encoded.codes.shape == (2, 6 * 4) and encoded.codes.dtype == torch.int64
    for b in range(2):
        for row in range(6):
            for column in range(4):
                distances = ((unquantized[b, :, row, column] - codebook) ** 2).sum(1)
                code = int(encoded.codes[b, 4 * row + column])
                assert code == distances.argmin()
                np.testing.assert_allclose(
                    encoded.latents[b, :, row, column], codebook[code], atol=1e-6
                )
    assert len(encoded.codes.unique()) > 1
    assert tokenizer.decode(encoded.latents).reconstruction.shape == images.shape


@torch.no_grad()
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"norm_type": "spatial", "vq_embed_dim": 3, "block_out_channels": (32, 32)},
        {"lookup_from_codebook": True},
    ],
    ids=["plain", "spatial", "lookup"],
)
def test_codes_decode_as_diffusers_decodes_them(overrides):
    model = make_vq(**overrides)
    tokenizer = DiffusersTokenizer(model).eval()
    encoded = tokenizer.encode(torch.rand(2, 3, 32, 32))
    expected = model.decode(encoded.unquantized).sample / 2 + 0.5
    torch.testing.assert_close(
        tokenizer.decode(encoded.latents).reconstruction, expected, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        tokenizer.decode_codes(encoded.codes).reconstruction, expected, atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_latents_between_codes_are_not_quantized_again():
    model = make_vq()
    latents = torch.randn(1, 5, 4, 4)
    expected = model.decode(latents, force_not_quantize=True).sample / 2 + 0.5
    torch.testing.assert_close(DiffusersTokenizer(model).decode(latents).reconstruction, expected)


def test_no_value_is_read(tokenizer, images):
    """A tensor of the meta device has no value that could be read."""
    encoded = tokenizer.to("meta").encode(images.to("meta"))
    assert tokenizer.decode(encoded.latents).reconstruction.shape == images.shape


def test_any_size_of_whole_latents_goes_through(tokenizer, family):
    if family == "rae":
        with pytest.raises(
            ValueError, match=r"\(batch, 3, 16, 16\), got \(1, 3, 32, 32\); the image processor"
        ):
            tokenizer.encode(torch.rand(1, 3, 32, 32))
        return
    images = torch.rand(1, 3, 16, 24)
    assert tokenizer.decode(tokenizer.encode(images).latents).reconstruction.shape == images.shape
    with pytest.raises(
        ValueError, match=r"with sides that are multiples of 2, got \(1, 3, 16, 25\)"
    ):
        tokenizer.encode(torch.rand(1, 3, 16, 25))


@pytest.mark.parametrize(
    ("images", "error", "sentence"),
    [
        (
            torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
            TypeError,
            "must be float images, got torch.uint8",
        ),
        (
            torch.rand(1, 1, 32, 32),
            ValueError,
            r"shape \(batch, 3, height, width\).* got \(1, 1, 32, 32\)",
        ),
        (
            torch.rand(3, 32, 32),
            ValueError,
            r"shape \(batch, 3, height, width\).* got \(3, 32, 32\)",
        ),
    ],
)
def test_bad_images_are_refused(images, error, sentence):
    with pytest.raises(error, match=sentence):
        DiffusersTokenizer(FAMILIES["kl"]()).encode(images)


def test_bad_codes_are_refused():
    tokenizer = DiffusersTokenizer(make_vq())
    with pytest.raises(ValueError, match=r"must be in \[0, 16\), got values from 16 to 16"):
        tokenizer.decode_codes(torch.full((1, 16), 16))
    with pytest.raises(ValueError, match="must have a square number of tokens per image, got 12"):
        tokenizer.decode_codes(torch.zeros(1, 12, dtype=torch.int64))
    with pytest.raises(
        ValueError, match="needs a discrete tokenizer, a VQModel; this AutoencoderKL is continuous"
    ):
        DiffusersTokenizer(FAMILIES["kl"]()).decode_codes(torch.zeros(1, 16, dtype=torch.int64))


def test_image_size_is_asked_for_or_the_autoencoders():
    assert DiffusersTokenizer(FAMILIES["kl"]()).config.image_size == 32  # its `sample_size`
    assert DiffusersTokenizer(FAMILIES["kl"](), 48).config.image_size == 48
    assert DiffusersTokenizer(FAMILIES["tiny"]()).config.image_size == 256
    assert DiffusersTokenizer(FAMILIES["rae"]()).config.image_size == 16
    assert DiffusersTokenizer(make_vq(), 8).config.num_tokens == 16
    assert DiffusersTokenizer(make_vq()).config.codebook_size == 16
    assert DiffusersTokenizer(FAMILIES["dc"]()).config.codebook_size is None
    with pytest.raises(ValueError, match="must be a multiple of 2 for this AutoencoderKL, got 33"):
        DiffusersTokenizer(FAMILIES["kl"](), 33)
    with pytest.raises(
        ValueError, match="This AutoencoderRAE takes images of 16 pixels, got `image_size` 32"
    ):
        DiffusersTokenizer(FAMILIES["rae"](), 32)


def test_other_models_are_refused():
    unet = UNet2DModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    video = AutoencoderKLTemporalDecoder(block_out_channels=(32,))
    for model in (unet, video):
        sentence = f"one of AutoencoderKL, .*VQModel; got a {type(model).__name__}"
        with pytest.raises(TypeError, match=sentence):
            DiffusersTokenizer(model)
    with pytest.raises(
        ValueError, match="RGB images is expected; this AutoencoderKL takes 4 channels"
    ):
        DiffusersTokenizer(AutoencoderKL(**KL, in_channels=4, out_channels=4))


@torch.no_grad()
@pytest.mark.parametrize("family", ["kl", "vq", "rae"])
def test_half_precision(tokenizer, images):
    exact = tokenizer.decode(tokenizer.encode(images).latents).reconstruction
    tokenizer.to(torch.bfloat16)
    assert tokenizer.dtype == torch.bfloat16 and tokenizer.device == torch.device("cpu")
    encoded = tokenizer.encode(images)
    assert encoded.latents.dtype == torch.bfloat16
    decoded = tokenizer.decode(encoded.latents.float()).reconstruction
    assert decoded.dtype == torch.bfloat16
    assert (decoded - exact).abs().median() < 0.05


@pytest.mark.parametrize(
    ("family", "column", "shape"), [("vq", "codes", (256,)), ("kl", "latents", (4, 16, 16))]
)
def test_data_sets_are_tokenized(tokenizer, family, column, shape, tmp_path):
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 36, 3), np.uint8))
        for i in range(3)
    ]
    dataset = Dataset.from_dict({"image": pictures, "label": [0, 1, 0]})
    DatasetDict(train=dataset, test=dataset).save_to_disk(tmp_path / "images")
    tokenizer.autoencoder.save_pretrained(tmp_path / "autoencoder")
    tokenize_to_folder(
        str(tmp_path / "images"), tmp_path / "autoencoder", tmp_path / "tokens", batch_size=2
    )
    tokens = load_dataset(str(tmp_path / "tokens"))["train"]
    assert np.asarray(tokens[0][column]).shape == shape and tokens["label"] == [0, 1, 0]
