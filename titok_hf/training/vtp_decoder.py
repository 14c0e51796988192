"""The objective of VTP's second stage: the pixel decoder alone, with an adversarial loss."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..modeling.outputs import TokenizerEncoderOutput
from ..modeling.vtp import VTPModel
from .noise import noisy_latents
from .objectives import ReconstructionObjective
from .perceptual import PerceptualLoss


class VTPDecoderObjective(ReconstructionObjective):
    """Stage `vtp_decoder_finetuning`: reconstruction by a VTP whose encoder and bottleneck keep their
    weights (VTP, arXiv 2512.13687, section 3).

    All losses are those of `ReconstructionObjective` on images in [0, 1].

    Args:
        model: A VTP with a decoder.
        perceptual, discriminator, distance, reconstruction_weight, perceptual_weight,
            adversarial_weight, lecam_weight, discriminator_start, adaptive_weight, lecam_decay,
            ema_decay: See `ReconstructionObjective`.
        latent_noise: Largest standard deviation of noise on the latents, in multiples of that of the
            image's latents; that of an image is uniform below. It makes the decoder robust against
            what a generator misses (RAE, arXiv 2510.11690, which has 0.8).
    """

    def __init__(
        self,
        model: VTPModel,
        perceptual: PerceptualLoss | None = None,
        discriminator: nn.Module | None = None,
        distance: Literal["l1", "l2"] = "l1",
        reconstruction_weight: float = 1.0,
        perceptual_weight: float = 0.0,
        adversarial_weight: float = 0.0,
        lecam_weight: float = 0.0,
        discriminator_start: int = 0,
        adaptive_weight: bool = False,
        lecam_decay: float = 0.999,
        ema_decay: float = 0.0,
        latent_noise: float = 0.0,
    ):
        super().__init__(
            model,
            freeze_encoder=True,
            perceptual=perceptual,
            discriminator=discriminator,
            distance=distance,
            reconstruction_weight=reconstruction_weight,
            perceptual_weight=perceptual_weight,
            adversarial_weight=adversarial_weight,
            lecam_weight=lecam_weight,
            discriminator_start=discriminator_start,
            adaptive_weight=adaptive_weight,
            lecam_decay=lecam_decay,
            ema_decay=ema_decay,
        )
        self.latent_noise = latent_noise
        if latent_noise:
            side = model.config.image_size // model.config.patch_size
            self.num_draws = 1 + model.config.latent_dim * side**2
        for name, values in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def freeze(self, model: VTPModel) -> None:
        model.requires_grad_(False)
        model.pixel_decoder.requires_grad_(True)

    def check_batch(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Checks nothing: images are normalized, so that they have no range."""

    def encode(
        self, pixel_values: torch.Tensor, draws: torch.Tensor | None
    ) -> TokenizerEncoderOutput:
        encoded = self.model.encode(pixel_values)
        if self.latent_noise and draws is not None:
            encoded.latents = noisy_latents(encoded.latents, draws, self.latent_noise)
        return encoded

    def in_unit_range(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.std + self.mean

    @property
    def last_layer(self) -> nn.Parameter:
        return self.model.pixel_decoder.proj_out.weight
