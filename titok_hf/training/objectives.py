"""Training objectives: networks, frozen helpers and moving averages in one module for `Trainer`.

An objective maps a batch to a loss and scalars to log, defines which parameters are optimized
together, and is updated after each optimizer step. One backward pass serves the tokenizer and its
discriminator: the tokenizer's loss uses detached discriminator parameters, and the discriminator's
loss uses detached reconstructions.

The random numbers of a sample, such as those that mask its tokens, come with the batch as `draws`,
uniform in [0, 1), so that they do not depend on how samples are split over processes and
accumulated batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..devices import full_precision
from ..hub.provenance import drop_results
from ..modeling.checks import check_id_range, check_unit_range
from ..modeling.maskgit import MaskGitModel, MaskGitUViTModel
from ..modeling.maskgit_vqgan import MaskGitVQGANModel
from ..modeling.outputs import TokenizerEncoderOutput
from ..modeling.titok import TiTokModel
from ..modeling.vtp import VTPModel
from ..pipelines.scheduling_maskgit import MaskGitScheduler
from .codebook import CodebookRevival
from .losses import (
    adaptive_weight,
    hinge_discriminator_loss,
    lecam_loss,
    mean_over_processes,
)
from .moving_average import MovingAverage
from .noise import standard_normal
from .perceptual import PerceptualLoss


@dataclass
class ObjectiveOutput(ModelOutput):
    """Output of an objective.

    Args:
        loss (`torch.FloatTensor` of shape `()`):
            The loss to minimize.
        logged_losses (`dict[str, torch.Tensor]`):
            Scalars for the log: terms of the loss, accuracies and the like.
    """

    loss: torch.FloatTensor | None = None
    logged_losses: dict[str, torch.Tensor] | None = None


class Objective(nn.Module):
    """Base class of objectives.

    `num_draws` is the number of random numbers per sample; `id_limits` maps each column of ids in a
    batch to the number of ids; `start_steps` maps a network to the optimizer step at which its training
    starts, if that is not 0; `num_steps` is the number of optimizer steps of the training, set when it
    begins. `predict`, if defined, maps a batch to predictions and targets for `compute_metrics`.

    Args:
        model: The network that the stage trains.
        ema_decay: Decay, per optimizer step, of the moving average of its weights; 0 for none.
    """

    num_draws: int = 0
    predict: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]] | None = None

    def __init__(self, model: PreTrainedModel, ema_decay: float = 0.0):
        super().__init__()
        drop_results(model)
        self.model = model
        self.ema = None
        if ema_decay:
            self.ema = MovingAverage(model, ema_decay).requires_grad_(False)
        self.codebook_revival = None
        self.id_limits: dict[str, int] = {}
        self.start_steps: dict[str, int] = {}
        self.num_steps = 0
        classes = {type(module).__name__ for module in model.modules()}
        # FSDP reads its units from here; it fails on class names that the model lacks
        self._no_split_modules = [
            name for name in getattr(model, "_no_split_modules", None) or () if name in classes
        ]

    @property
    def result(self) -> PreTrainedModel:
        """The network to save, in evaluation mode; with averaged weights if there is an average."""
        return (self.model if self.ema is None else self.ema.module).eval()

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields name and module of each network with its own optimizer settings and clipping."""
        yield "model", self.model

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recomputes the model's activations in the backward pass; `Trainer` calls this."""
        self.model.activation_checkpointing_enable(**kwargs)

    def check_batch(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Checks the values of a batch while it is still on the host.

        `forward` does not check them, because that would wait for the device. Only the first image
        is checked: that suffices to find an image processor of another range, and is cheap.

        Raises:
            ValueError: If images are not in [0, 1], or ids are out of range.
        """
        if "pixel_values" in batch:
            check_unit_range(batch["pixel_values"][0])
        for name, limit in self.id_limits.items():
            if name in batch:
                check_id_range(batch[name], name, limit)

    def batch_weights(self, batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor | None:
        """Returns the weights of accumulated batches in the mean of their losses; `None` if all are
        equal."""
        return None

    def before_optimizer_step(self, step: int) -> None:
        """Removes the gradients of what is not trained yet.

        Args:
            step: Number of optimizer steps taken.
        """
        for name, network in self.networks():
            if step < self.start_steps.get(name, 0):
                network.zero_grad()  # the optimizer skips parameters without a gradient

    def after_optimizer_step(self, step: int) -> None:
        """Updates what is trained without a gradient: dead codes and moving averages.

        Args:
            step: Number of optimizer steps taken.
        """
        if self.codebook_revival is not None:
            self.codebook_revival.after_optimizer_step(step)
        if self.ema is not None:
            self.ema.update_parameters(self.model, step)

    def statistics(self) -> dict[str, torch.Tensor]:
        """Returns scalars for the log that belong to no batch: usage and perplexity of a trained
        codebook."""
        return {} if self.codebook_revival is None else self.codebook_revival.statistics()

    def observe_codes(self, encoded: TokenizerEncoderOutput) -> None:
        """Passes a training batch to the codebook revival, if the stage trains a codebook."""
        if self.codebook_revival is None or not self.training:
            return
        unquantized = encoded.unquantized
        if unquantized.ndim == 4:
            unquantized = unquantized.flatten(2).transpose(1, 2)  # (B, C, h, w) to (B, N, C)
        self.codebook_revival.observe(encoded.codes, unquantized)


def posterior_size(model: TiTokModel | MaskGitVQGANModel | VTPModel) -> int:
    """Returns the random numbers per sample of the tokenizer's posterior; 0 if it has none."""
    config = model.config
    return (
        config.num_latent_tokens * config.latent_dim
        if getattr(config, "quantizer", "vq") == "kl"
        else 0
    )


def posterior_noise(model: TiTokModel, draws: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Returns the posterior's noise from draws `(B, K * C)`, as an argument of `encode`."""
    if draws is None:
        return {}
    return {
        "noise": standard_normal(draws).unflatten(1, (model.config.num_latent_tokens, -1))
    }  # (B, K, C)


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
        self.num_draws = posterior_size(model)
        if model.config.quantizer == "vq":
            self.codebook_revival = CodebookRevival(model.quantizer.codebook)

    def reconstruct(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encodes images `(B, 3, H, W)` and decodes them from the most likely proxy codes."""
        decoded = self.result.decode(self.result.encode(pixel_values).latents)
        return self.vqgan.decode_codes(decoded.proxy_logits.argmax(-1)).reconstruction

    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns reconstructions `(B, 3, H, W)` and the images."""
        return self.reconstruct(inputs["pixel_values"]), inputs["pixel_values"]

    def forward(
        self, pixel_values: torch.Tensor, draws: torch.Tensor | None = None, step: int = 0
    ) -> ObjectiveOutput:
        """Maps images `(B, 3, H, W)` in [0, 1] to cross-entropy plus the quantizer's loss."""
        with torch.no_grad(), full_precision(pixel_values.device):  # as in the reference's trainer
            proxy_codes = self.vqgan.encode(pixel_values).codes  # (B, P)
        output = self.model(pixel_values, proxy_codes, **posterior_noise(self.model, draws))
        self.observe_codes(output)
        accuracy = (output.proxy_logits.argmax(-1) == proxy_codes).float().mean()
        logged = {
            "proxy_code_loss": output.loss - output.quantizer_loss,
            "proxy_code_accuracy": accuracy,
            "quantizer_loss": output.quantizer_loss,
        }
        return ObjectiveOutput(loss=output.loss, logged_losses=logged)


class ReconstructionObjective(Objective):
    """Stages `vqgan`, `decoder_finetuning` and `single_stage`: reconstruction of images.

    The tokenizer minimizes `reconstruction_weight * reconstruction + perceptual_weight * perceptual
    + adversarial_weight * adversarial + quantizer_weight * quantizer`, the discriminator the hinge
    loss plus `lecam_weight * LeCam`. LeCam uses the mean logits over all processes, but of each
    accumulated batch alone.

    Args:
        model: The tokenizer: a TiTok that ends in pixels, a VQGAN, or a VTP in a subclass.
        freeze_encoder: Whether encoder and quantizer keep their weights, as in
            `decoder_finetuning`.
        perceptual: Required if `perceptual_weight` is not 0.
        discriminator: Maps images in [0, 1] to logits; required if `adversarial_weight` is not 0.
        distance: The reconstruction loss: mean squared (`"l2"`) or mean absolute error (`"l1"`).
        reconstruction_weight, perceptual_weight, adversarial_weight, quantizer_weight, lecam_weight:
            Loss weights.
        discriminator_start: Optimizer step from which the adversarial losses count; the
            discriminator's learning rate schedule, including warm-up, starts there.
        adaptive_weight: Whether `adversarial_weight` is also multiplied by
            `titok_hf.training.losses.adaptive_weight`.
        lecam_decay: Decay of the moving averages of the discriminator's mean logits.
        ema_decay: See `Objective`.
    """

    def __init__(
        self,
        model: TiTokModel | MaskGitVQGANModel | VTPModel,
        freeze_encoder: bool = False,
        perceptual: PerceptualLoss | None = None,
        discriminator: nn.Module | None = None,
        distance: Literal["l1", "l2"] = "l2",
        reconstruction_weight: float = 1.0,
        perceptual_weight: float = 0.0,
        adversarial_weight: float = 0.0,
        quantizer_weight: float = 1.0,
        lecam_weight: float = 0.0,
        discriminator_start: int = 0,
        adaptive_weight: bool = False,
        lecam_decay: float = 0.999,
        ema_decay: float = 0.0,
    ):
        distances = {"l1": F.l1_loss, "l2": F.mse_loss}
        if distance not in distances:
            raise ValueError(f"`distance` must be 'l1' or 'l2', got {distance!r}.")
        discrete = hasattr(model, "quantizer")
        if freeze_encoder:
            self.freeze(model)
        super().__init__(model, ema_decay)
        self.num_draws = posterior_size(model)
        self.freeze_encoder = freeze_encoder
        self.perceptual = perceptual
        self.discriminator = discriminator
        self.distance = distances[distance]
        self.reconstruction_weight = reconstruction_weight
        self.perceptual_weight = perceptual_weight
        self.adversarial_weight = adversarial_weight
        self.quantizer_weight = quantizer_weight
        self.lecam_weight = lecam_weight
        self.start_steps = {"discriminator": discriminator_start}
        self.adaptive_weight = adaptive_weight
        self.lecam_decay = lecam_decay
        self.mean_logits: list[torch.Tensor] = []
        self.register_buffer("real_average", torch.zeros((), dtype=torch.float32))
        self.register_buffer("fake_average", torch.zeros((), dtype=torch.float32))
        if discrete and not freeze_encoder:
            self.codebook_revival = CodebookRevival(model.quantizer.codebook)

    def freeze(self, model: PreTrainedModel) -> None:
        """Freezes all but the decoder."""
        model.encoder.requires_grad_(False)
        if hasattr(model, "quantizer"):
            model.quantizer.requires_grad_(False)

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().networks()
        if self.discriminator is not None:
            yield "discriminator", self.discriminator

    def reconstruct(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encodes and decodes images `(B, 3, H, W)`."""
        return self.result.decode(self.result.encode(pixel_values).latents).reconstruction

    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns reconstructions `(B, 3, H, W)` and the images."""
        return self.reconstruct(inputs["pixel_values"]), inputs["pixel_values"]

    def forward(
        self, pixel_values: torch.Tensor, draws: torch.Tensor | None = None, step: int = 0
    ) -> ObjectiveOutput:
        """Maps images `(B, 3, H, W)` in [0, 1] to the summed loss of tokenizer and discriminator;
        `step` counts from 0. Before `discriminator_start`, no adversarial loss is computed or logged."""
        # reconstruction
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            encoded = self.encode(pixel_values, draws)
        self.observe_codes(encoded)
        reconstruction = self.in_unit_range(self.model.decode(encoded.latents).reconstruction)
        pixel_values = self.in_unit_range(pixel_values)  # (B, 3, H, W)
        logged = {"reconstruction_loss": self.distance(reconstruction, pixel_values)}
        loss = self.reconstruction_weight * logged["reconstruction_loss"]

        # perceptual loss
        if self.perceptual is not None:
            logged["perceptual_loss"] = self.perceptual(reconstruction, pixel_values)
            loss = loss + self.perceptual_weight * logged["perceptual_loss"]

        # adversarial losses
        if self.discriminator is not None and step < self.start_steps["discriminator"]:
            # distributed training needs a gradient of every parameter in every step: one image is enough
            loss = loss + 0.0 * self.discriminator(pixel_values[:1]).sum()
        elif self.discriminator is not None:
            frozen = {
                name: parameter.detach()
                for name, parameter in self.discriminator.named_parameters()
            }
            logged["adversarial_loss"] = -torch.func.functional_call(
                self.discriminator, frozen, reconstruction
            ).mean()
            weight = self.adversarial_weight
            if self.adaptive_weight and torch.is_grad_enabled():
                logged["adaptive_weight"] = adaptive_weight(
                    loss, logged["adversarial_loss"], self.last_layer
                )
                weight = weight * logged["adaptive_weight"]
            loss = loss + weight * logged["adversarial_loss"]
            loss = loss + self.discriminator_loss(pixel_values, reconstruction.detach(), logged)

        # quantizer loss
        if not self.freeze_encoder:
            logged["quantizer_loss"] = encoded.quantizer_loss
            loss = loss + self.quantizer_weight * encoded.quantizer_loss
        return ObjectiveOutput(loss=loss, logged_losses=logged)

    def encode(
        self, pixel_values: torch.Tensor, draws: torch.Tensor | None
    ) -> TokenizerEncoderOutput:
        """Returns the latents to decode."""
        return self.model.encode(pixel_values, **posterior_noise(self.model, draws))

    def in_unit_range(self, images: torch.Tensor) -> torch.Tensor:
        """Returns images of the tokenizer's range in [0, 1], that of all losses."""
        return images

    @property
    def last_layer(self) -> nn.Parameter:
        """The kernel of the last trained convolution, for the adaptive weight."""
        return [p for p in self.model.parameters() if p.ndim == 4 and p.requires_grad][-1]

    def discriminator_loss(
        self,
        real: torch.Tensor,
        fake: torch.Tensor,
        logged: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Returns the hinge plus LeCam loss of real and fake images `(B, 3, H, W)`, and adds its
        terms to `logged`."""
        real_logits, fake_logits = self.discriminator(torch.cat([real, fake])).chunk(2)
        logged["discriminator_loss"] = hinge_discriminator_loss(real_logits, fake_logits)
        mean_logits = mean_over_processes(
            torch.stack([real_logits.mean(), fake_logits.mean()]).float()
        )  # (2,)
        logged["real_logit"], logged["fake_logit"] = mean_logits
        logged["lecam_loss"] = lecam_loss(*mean_logits, self.real_average, self.fake_average)
        if self.training:
            self.mean_logits.append(mean_logits.detach())
        return logged["discriminator_loss"] + self.lecam_weight * logged["lecam_loss"]

    def after_optimizer_step(self, step: int) -> None:
        super().after_optimizer_step(step)
        if self.mean_logits:
            real_mean, fake_mean = torch.stack(self.mean_logits).mean(0)
            self.real_average.lerp_(real_mean, 1 - self.lecam_decay)
            self.fake_average.lerp_(fake_mean, 1 - self.lecam_decay)
            self.mean_logits.clear()


class MaskedTokenObjective(Objective):
    """Stage `generator`: prediction of masked codes of a frozen tokenizer.

    Args:
        model: The generator.
        tokenizer: The tokenizer that turns images into codes.
        scheduler: Masks codes by the same `mask_schedule` as the sampler.
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
        self.num_draws = 2 + model.config.num_tokens
        self.id_limits = {
            "codes": model.config.codebook_size,
            "class_labels": model.config.num_labels + 1,  # including "no class"
        }

    def batch_weights(self, batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Returns the sum of token weights of each batch; its loss is their weighted mean."""
        config = self.model.config
        masked = torch.stack(
            [
                self.scheduler.num_masked(batch["draws"][:, 0], config.num_tokens).sum()
                for batch in batches
            ]
        )  # (batches,)
        tokens = torch.tensor([batch["draws"].shape[0] * config.num_tokens for batch in batches])
        return masked + config.unmasked_weight * (tokens - masked)

    def forward(
        self,
        class_labels: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        draws: torch.Tensor | None = None,
        step: int = 0,
    ) -> ObjectiveOutput:
        """Maps images `(B, 3, H, W)` in [0, 1], or their codes `(B, N)`, and labels `(B,)` to the
        masked-token loss.

        Column 0 of `draws` sets the mask ratio, column 1 label dropout, and columns 2 and up which
        tokens are masked.
        """
        if codes is None:  # without autocast, for the same codes as in a token data set
            with torch.no_grad(), full_precision(pixel_values.device):
                codes = self.tokenizer.encode(pixel_values).codes  # (B, N)
        if draws is None:
            draws = torch.rand(len(codes), self.num_draws, device=codes.device)
        progress, label_draws, noise = draws[:, 0], draws[:, 1], draws[:, 2:]
        masked_codes = self.scheduler.add_noise(codes, progress, noise=noise)  # (B, N)
        drop_labels = (label_draws < self.model.config.label_dropout) if self.training else None
        output = self.model(masked_codes, class_labels, codes, drop_labels)
        masked = masked_codes != codes
        accuracy = ((output.logits.argmax(-1) == codes) & masked).sum() / masked.sum()
        return ObjectiveOutput(loss=output.loss, logged_losses={"masked_token_accuracy": accuracy})


class ClassifierObjective(Objective):
    """Stage `classifier`: cross-entropy of an image classifier, for use in a perceptual loss.

    Images are normalized with `MEAN` and `STD`.
    """

    MEAN = (0.5, 0.5, 0.5)
    STD = (0.5, 0.5, 0.5)

    def __init__(self, model: PreTrainedModel, ema_decay: float = 0.0):
        super().__init__(model, ema_decay)
        self.id_limits = {"class_labels": model.config.num_labels}
        for name, values in (("mean", self.MEAN), ("std", self.STD)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(
        self,
        pixel_values: torch.Tensor,
        class_labels: torch.Tensor,
        draws: torch.Tensor | None = None,
        step: int = 0,
    ) -> ObjectiveOutput:
        """Maps images `(B, 3, H, W)` in [0, 1] and labels `(B,)` to cross-entropy."""
        logits = self.model((pixel_values - self.mean) / self.std).logits  # (B, num_labels)
        accuracy = (logits.argmax(-1) == class_labels).float().mean()
        return ObjectiveOutput(
            loss=F.cross_entropy(logits, class_labels), logged_losses={"accuracy": accuracy}
        )

    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(B, num_labels)` and the labels."""
        images = (inputs["pixel_values"] - self.mean) / self.std
        return self.result(images).logits, inputs["class_labels"]
