"""What each stage minimizes: networks, frozen helpers and moving averages in one module that `Trainer` can hold.

An objective maps a batch to a loss and its parts, says which parameters are optimized together, and is told after
each optimizer step. One backward pass serves a generator and its discriminator: the generator's loss sees the
discriminator with detached parameters, the discriminator's loss sees the reconstruction detached.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..modeling.maskgit import MaskGitModel, MaskGitUViTModel
from ..modeling.maskgit_vqgan import MaskGitVQGANModel
from ..modeling.outputs import TokenizerEncoderOutput
from ..modeling.titok import TiTokModel
from ..pipelines.scheduling_maskgit import MaskGitScheduler
from .codebook import CodebookRevival
from .discriminator import PatchDiscriminator
from .losses import hinge_discriminator_loss, lecam_loss
from .perceptual import PerceptualLoss


@dataclass
class ObjectiveOutput(ModelOutput):
    """Result of an objective.

    Args:
        loss (`torch.FloatTensor` of shape `()`):
            What is minimized.
        parts (`dict[str, torch.Tensor]`):
            Scalars for the log.
    """

    loss: torch.FloatTensor | None = None
    parts: dict[str, torch.Tensor] | None = None


class Objective(nn.Module):
    """Base of all objectives.

    Args:
        model: The network that the stage trains.
        ema_decay: Decay, per optimizer step, of the moving average of its weights; 0 for none.
    """

    def __init__(self, model: PreTrainedModel, ema_decay: float = 0.0):
        super().__init__()
        if provenance := getattr(model.config, "provenance", None):  # trained on, it is not what was measured any more
            model.config.provenance = {key: value for key, value in provenance.items() if key != "results"}
        self.model = model
        self.ema = None
        if ema_decay:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).requires_grad_(False)
        self.codebook_revival = None

    @property
    def result(self) -> PreTrainedModel:
        """The network to keep: the averaged one if there is an average, in evaluation mode."""
        return (self.model if self.ema is None else self.ema.module).eval()

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of each network that has an optimizer's learning rate and gradient clipping of its own."""
        yield "model", self.model

    def after_optimizer_step(self) -> None:
        """Updates what follows the weights without a gradient."""
        if self.codebook_revival is not None:
            self.codebook_revival.after_optimizer_step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def observe_codes(self, encoded: TokenizerEncoderOutput) -> dict[str, torch.Tensor]:
        """Usage and perplexity of the codebook for the log, where the stage trains one."""
        if self.codebook_revival is None or not self.training:
            return {}
        unquantized = encoded.unquantized
        if unquantized.ndim == 4:
            unquantized = unquantized.flatten(2).transpose(1, 2)  # (B, C, h, w) to (B, N, C)
        return self.codebook_revival.observe(encoded.codes, unquantized)


class WarmupObjective(Objective):
    """Stage `warmup`: TiTok predicts the codes of a frozen VQGAN (TiTok, section 3.3).

    Args:
        model: A tokenizer with `head="proxy_codes"`.
        vqgan: The VQGAN whose codes are the target.
        ema_decay: See `Objective`.
    """

    def __init__(self, model: TiTokModel, vqgan: MaskGitVQGANModel, ema_decay: float = 0.0):
        super().__init__(model, ema_decay)
        self.vqgan = vqgan.eval().requires_grad_(False)
        if model.config.quantizer == "vq":
            self.codebook_revival = CodebookRevival(model.quantizer.codebook)

    def forward(self, pixel_values: torch.Tensor, step: int = 0) -> ObjectiveOutput:
        """Images `(B, 3, H, W)` in [0, 1] to cross-entropy plus the quantizer's loss."""
        with torch.no_grad():
            proxy_codes = self.vqgan.encode(pixel_values).codes  # (B, P)
        output = self.model(pixel_values, proxy_codes)
        accuracy = (output.proxy_logits.argmax(-1) == proxy_codes).float().mean()
        parts = {
            "proxy_code_loss": output.loss - output.quantizer_loss,
            "proxy_code_accuracy": accuracy,
            "quantizer_loss": output.quantizer_loss,
        }
        return ObjectiveOutput(loss=output.loss, parts=parts | self.observe_codes(output))


class ReconstructionObjective(Objective):
    """Stages `decoder_finetuning` and `single_stage`, and the VQGAN's own training: images from images.

    `reconstruction + perceptual_weight * perceptual + adversarial_weight * adversarial + quantizer_weight * quantizer`
    for the tokenizer; hinge loss plus `lecam_weight * LeCam` for the discriminator.

    Args:
        model: The tokenizer: TiTok ending in pixels, or a VQGAN.
        freeze_encoder: Whether encoder and quantizer keep their weights, as in `decoder_finetuning`.
        perceptual: Needed if `perceptual_weight` is not 0.
        discriminator: Needed if `adversarial_weight` is not 0.
        reconstruction_weight, perceptual_weight, adversarial_weight, quantizer_weight, lecam_weight: Weights.
        discriminator_start: Optimizer step from which the adversarial losses count.
        lecam_decay: Of the moving averages of the discriminator's mean logits.
        ema_decay: See `Objective`.
    """

    def __init__(
        self,
        model: TiTokModel | MaskGitVQGANModel,
        freeze_encoder: bool = False,
        perceptual: PerceptualLoss | None = None,
        discriminator: PatchDiscriminator | None = None,
        reconstruction_weight: float = 1.0,
        perceptual_weight: float = 0.0,
        adversarial_weight: float = 0.0,
        quantizer_weight: float = 1.0,
        lecam_weight: float = 0.0,
        discriminator_start: int = 0,
        lecam_decay: float = 0.999,
        ema_decay: float = 0.0,
    ):
        discrete = hasattr(model, "quantizer")
        if freeze_encoder:
            model.encoder.requires_grad_(False)
            if discrete:
                model.quantizer.requires_grad_(False)
        super().__init__(model, ema_decay)
        self.freeze_encoder = freeze_encoder
        self.perceptual = perceptual
        self.discriminator = discriminator
        self.reconstruction_weight = reconstruction_weight
        self.perceptual_weight = perceptual_weight
        self.adversarial_weight = adversarial_weight
        self.quantizer_weight = quantizer_weight
        self.lecam_weight = lecam_weight
        self.discriminator_start = discriminator_start
        self.lecam_decay = lecam_decay
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))
        if discrete and not freeze_encoder:
            self.codebook_revival = CodebookRevival(model.quantizer.codebook)

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().networks()
        if self.discriminator is not None:
            yield "discriminator", self.discriminator

    def forward(self, pixel_values: torch.Tensor, step: int = 0) -> ObjectiveOutput:
        """Images `(B, 3, H, W)` in [0, 1] to the loss of tokenizer and discriminator; `step` counts from 0."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            encoded = self.model.encode(pixel_values)
        reconstruction = self.model.decode(encoded.latents).reconstruction  # (B, 3, H, W)
        parts = {"reconstruction_loss": F.mse_loss(reconstruction, pixel_values)}
        loss = self.reconstruction_weight * parts["reconstruction_loss"]
        if not self.freeze_encoder:
            parts["quantizer_loss"] = encoded.quantizer_loss
            loss = loss + self.quantizer_weight * encoded.quantizer_loss
        if self.perceptual is not None:
            parts["perceptual_loss"] = self.perceptual(reconstruction, pixel_values)
            loss = loss + self.perceptual_weight * parts["perceptual_loss"]
        if self.discriminator is not None:
            # a factor, not a branch: every parameter must get a gradient in every step of distributed training
            started = float(step >= self.discriminator_start)
            frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
            parts["adversarial_loss"] = -torch.func.functional_call(self.discriminator, frozen, reconstruction).mean()
            loss = loss + started * self.adversarial_weight * parts["adversarial_loss"]
            loss = loss + started * self.discriminator_loss(pixel_values, reconstruction.detach(), started, parts)
        return ObjectiveOutput(loss=loss, parts=parts | self.observe_codes(encoded))

    def discriminator_loss(
        self, real: torch.Tensor, fake: torch.Tensor, started: float, parts: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Hinge and LeCam loss of real and fake images `(B, 3, H, W)`; adds the parts to the log."""
        real_logits, fake_logits = self.discriminator(torch.cat([real, fake])).chunk(2)
        parts["discriminator_loss"] = hinge_discriminator_loss(real_logits, fake_logits)
        real_mean, fake_mean = real_logits.mean(), fake_logits.mean()
        parts["real_logit"], parts["fake_logit"] = real_mean, fake_mean
        lecam = lecam_loss(real_mean, fake_mean, self.real_average, self.fake_average)
        if self.training:
            self.real_average = torch.lerp(self.real_average, real_mean.detach(), started * (1 - self.lecam_decay))
            self.fake_average = torch.lerp(self.fake_average, fake_mean.detach(), started * (1 - self.lecam_decay))
        return parts["discriminator_loss"] + self.lecam_weight * lecam


class MaskedTokenObjective(Objective):
    """The generator's training: codes of a frozen tokenizer, some of them masked, to the codes that were masked.

    Args:
        model: The generator.
        tokenizer: Turns images into codes.
        scheduler: Masks codes; its `mask_schedule` is the sampler's.
        ema_decay: See `Objective`.
    """

    def __init__(
        self,
        model: MaskGitModel | MaskGitUViTModel,
        tokenizer: TiTokModel | MaskGitVQGANModel,
        scheduler: MaskGitScheduler,
        ema_decay: float = 0.0,
    ):
        super().__init__(model, ema_decay)
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.scheduler = scheduler

    def forward(self, pixel_values: torch.Tensor, class_labels: torch.Tensor, step: int = 0) -> ObjectiveOutput:
        """Images `(B, 3, H, W)` in [0, 1] and labels `(B,)` to the masked-token loss."""
        with torch.no_grad():
            codes = self.tokenizer.encode(pixel_values).codes  # (B, N)
        progress = torch.rand(len(codes), device=codes.device)
        masked_codes = self.scheduler.add_noise(codes, progress)  # (B, N)
        output = self.model(masked_codes, class_labels, target_codes=codes)
        masked = masked_codes != codes
        accuracy = ((output.logits.argmax(-1) == codes) & masked).sum() / masked.sum()
        return ObjectiveOutput(loss=output.loss, parts={"masked_token_accuracy": accuracy})


class ClassifierObjective(Objective):
    """Cross-entropy of an image classifier, for a perceptual loss where no pretrained classifier fits.

    Images are normalized with `MEAN` and `STD`.
    """

    MEAN = (0.5, 0.5, 0.5)
    STD = (0.5, 0.5, 0.5)

    def forward(self, pixel_values: torch.Tensor, class_labels: torch.Tensor, step: int = 0) -> ObjectiveOutput:
        """Images `(B, 3, H, W)` in [0, 1] and labels `(B,)` to cross-entropy."""
        mean = pixel_values.new_tensor(self.MEAN).view(1, -1, 1, 1)
        std = pixel_values.new_tensor(self.STD).view(1, -1, 1, 1)
        logits = self.model((pixel_values - mean) / std).logits  # (B, num_labels)
        accuracy = (logits.argmax(-1) == class_labels).float().mean()
        return ObjectiveOutput(loss=F.cross_entropy(logits, class_labels), parts={"accuracy": accuracy})
