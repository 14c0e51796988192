"""Tokenizers and pipelines for images of 32 pixels, and an extractor whose features can be computed
by hand."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
    VQModel,
)

from titok_hf import TiTokModel
from titok_hf.evaluation.extractors import Extracted, FeatureExtractor
from titok_hf.modeling.diffusers_tokenizer import DiffusersTokenizer
from titok_hf.modeling.vtp import VTPForImageReconstruction

AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "sample_size": 32,
    "latent_channels": 4,
}


class Colors(FeatureExtractor):
    """Features are the mean of each color in [0, 1]; spatial ones those of red, left and right;
    logits 20 features."""

    name = "colors"
    num_features = 3
    num_spatial = 2
    num_classes = 3
    input_size = 1

    def __init__(self) -> None:
        self.num_seen = 0

    def __call__(self, images: torch.Tensor) -> Extracted:
        self.num_seen += len(images)
        pixels = images.double() / 255
        features = pixels.mean((2, 3))
        return Extracted(features, pixels[:, 0].unflatten(-1, (2, -1)).mean((1, 3)), 20 * features)

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": "none",
            "weights_sha256": "0" * 64,
            "preprocessing": "none",
        }


class CountingTiTok(TiTokModel):
    """Counts the images that it encodes."""

    num_encoded = 0

    def encode(self, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.num_encoded += len(pixel_values)
        return super().encode(pixel_values, *args, **kwargs)


def make_kl() -> AutoencoderKL:
    return AutoencoderKL(**AUTOENCODER).eval()


def make_vq() -> VQModel:
    vq = VQModel(**AUTOENCODER, num_vq_embeddings=16).eval()
    torch.nn.init.normal_(vq.quantize.embedding.weight, std=0.5)
    return vq


def make_ddpm(sample_size: int = 32) -> DDPMPipeline:
    """Draws noise at each step."""
    unet = UNet2DModel(
        sample_size=sample_size,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    return DDPMPipeline(unet.eval(), DDPMScheduler(num_train_timesteps=20))


def make_dit() -> DiTPipeline:
    """Returns a DiT of 10 classes. Guidance would need 1000, since diffusers' empty class is number
    1000."""
    transformer = DiTTransformer2DModel(
        sample_size=16,
        num_layers=1,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=10,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        attention_bias=True,
        activation_fn="gelu-approximate",
    )
    return DiTPipeline(
        transformer.eval(), make_kl(), DDIMScheduler(), id2label={str(i): str(i) for i in range(10)}
    )


# Tokenizers by name, from `make_titok_config` and `make_vtp_config`.
FAMILIES = {
    "titok-vq": lambda make, _: TiTokModel(make("vqgan_decoder")),
    "titok-pixels": lambda make, _: TiTokModel(make("pixels")),
    "titok-kl": lambda make, _: TiTokModel(make("pixels", quantizer="kl")),
    "vtp": lambda _, make: VTPForImageReconstruction(make()),
    "diffusers-kl": lambda *_: DiffusersTokenizer(make_kl()),
    "diffusers-vq": lambda *_: DiffusersTokenizer(make_vq()),
}
