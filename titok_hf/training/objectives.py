"""What each stage minimizes: networks, frozen helpers and moving averages in one module that
`Trainer` can hold.

An objective maps a batch to a loss and its parts, says which parameters are optimized together, and
is told after each optimizer step. One backward pass serves a generator and its discriminator: the
generator's loss sees the discriminator with detached parameters, the discriminator's loss sees the
reconstruction detached.

The random numbers that a sample needs, such as those that mask its tokens, come with the batch as
`draws`, uniform in [0, 1), so that they do not depend on how samples are spread over processes and
accumulated batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..hub.provenance import drop_results
from ..modeling.checks import check_id_range, check_unit_range
from ..modeling.maskgit import MaskGitModel, MaskGitUViTModel
from ..modeling.maskgit_vqgan import MaskGitVQGANModel
from ..modeling.outputs import TokenizerEncoderOutput
from ..modeling.titok import TiTokModel
from ..pipelines.scheduling_maskgit import MaskGitScheduler
from .codebook import CodebookRevival
from .discriminator import PatchDiscriminator
from .losses import (
    adaptive_weight,
    full_precision,
    hinge_discriminator_loss,
    lecam_loss,
    mean_over_processes,
)
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


def standard_normal(draws: torch.Tensor) -> torch.Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2^-24, to standard normal ones."""
    return torch.special.ndtri(draws.clamp_min(2.0**-25))


class MovingAverage(AveragedModel):
    """The exponential moving average of a model's weights; its buffers are the model's.

    torch's own `update_parameters` asks the buffer `n_averaged` whether the step is the first, and
    so waits for the device. Here the host knows.
    """

    def __init__(self, model: PreTrainedModel, decay: float):
        super().__init__(model)
        self.decay = decay
        self.has_begun = False

    @torch.no_grad()
    def update_parameters(self, model: PreTrainedModel, step: int) -> None:
        """Follows the model; `step` is how many optimizer steps there have been."""
        averages, weights = [*self.module.parameters()], [*model.parameters()]
        if step == 1 and not self.has_begun:  # a run that is resumed begins at a later step
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        self.has_begun = True
        for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
        self.n_averaged += 1


class Objective(nn.Module):
    """Base of all objectives.

    `num_draws` is how many random numbers a sample needs; `id_limits` holds the columns of a batch
    that are ids, and how many ids there are; `starts` holds the optimizer step at which a network's
    training begins, where that is not 0. `predict`, if an objective has it, makes of a batch the
    predictions, and what they are compared with, for a `compute_metrics`.

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
        self.starts: dict[str, int] = {}
        classes = {type(module).__name__ for module in model.modules()}  # of which FSDP's units are
        self._no_split_modules = [
            name for name in getattr(model, "_no_split_modules", None) or () if name in classes
        ]

    @property
    def result(self) -> PreTrainedModel:
        """The network to keep: the averaged one if there is an average, in evaluation mode."""
        return (self.model if self.ema is None else self.ema.module).eval()

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of each network that has an optimizer's learning rate and gradient
        clipping of its own."""
        yield "model", self.model

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recomputes the model's activations in the backward pass; `Trainer` calls this."""
        self.model.activation_checkpointing_enable(**kwargs)

    def check_batch(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Looks at the values of a batch, in training while it is on the host: `forward` does not,
        since on the device it would wait for them.

        Of the images the first one is looked at. It tells whether the image processor gives what
        the networks take, and costs nothing against all of them.

        Raises:
            ValueError: If images are not in [0, 1], or ids out of range.
        """
        if "pixel_values" in batch:
            check_unit_range(batch["pixel_values"][0])
        for name, limit in self.id_limits.items():
            if name in batch:
                check_id_range(batch[name], name, limit)

    def batch_weights(self, batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor | None:
        """How much the loss of each of some batches counts in their mean; `None` if all count the
        same."""
        return None

    def after_optimizer_step(self, step: int) -> None:
        """Updates what follows the weights without a gradient.

        Args:
            step: How many optimizer steps there have been.
        """
        if self.codebook_revival is not None:
            self.codebook_revival.after_optimizer_step(step)
        if self.ema is not None:
            self.ema.update_parameters(self.model, step)

    def statistics(self) -> dict[str, torch.Tensor]:
        """Scalars for the log that belong to no batch: usage and perplexity of a codebook that is
        trained."""
        return {} if self.codebook_revival is None else self.codebook_revival.statistics()

    def observe_codes(self, encoded: TokenizerEncoderOutput) -> None:
        """Tells the revival of the codebook of a training batch, where the stage trains one."""
        if self.codebook_revival is None or not self.training:
            return
        unquantized = encoded.unquantized
        if unquantized.ndim == 4:
            unquantized = unquantized.flatten(2).transpose(1, 2)  # (B, C, h, w) to (B, N, C)
        self.codebook_revival.observe(encoded.codes, unquantized)


def posterior_size(model: TiTokModel | MaskGitVQGANModel) -> int:
    """Random numbers that a sample of the posterior takes, if the tokenizer has one."""
    config = model.config
    return (
        config.num_latent_tokens * config.latent_dim
        if getattr(config, "quantizer", "vq") == "kl"
        else 0
    )


def posterior_noise(model: TiTokModel, draws: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The noise of the posterior's sample from draws `(B, K * C)`, as an argument of `encode`."""
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
        """Images `(B, 3, H, W)`, encoded, and decoded from the most likely proxy codes."""
        decoded = self.result.decode(self.result.encode(pixel_values).latents)
        return self.vqgan.decode_codes(decoded.proxy_logits.argmax(-1)).reconstruction

    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstructions `(B, 3, H, W)` and the images."""
        return self.reconstruct(inputs["pixel_values"]), inputs["pixel_values"]

    def forward(
        self, pixel_values: torch.Tensor, draws: torch.Tensor | None = None, step: int = 0
    ) -> ObjectiveOutput:
        """Images `(B, 3, H, W)` in [0, 1] to cross-entropy plus the quantizer's loss."""
        with torch.no_grad():
            proxy_codes = self.vqgan.encode(pixel_values).codes  # (B, P)
        output = self.model(pixel_values, proxy_codes, **posterior_noise(self.model, draws))
        self.observe_codes(output)
        accuracy = (output.proxy_logits.argmax(-1) == proxy_codes).float().mean()
        parts = {
            "proxy_code_loss": output.loss - output.quantizer_loss,
            "proxy_code_accuracy": accuracy,
            "quantizer_loss": output.quantizer_loss,
        }
        return ObjectiveOutput(loss=output.loss, parts=parts)


class ReconstructionObjective(Objective):
    """Stages `decoder_finetuning` and `single_stage`, and the VQGAN's own training: images from
    images.

    `reconstruction + perceptual_weight * perceptual + adversarial_weight * adversarial +
    quantizer_weight * quantizer` for the tokenizer; hinge loss plus `lecam_weight * LeCam` for the
    discriminator. Of several processes, LeCam sees the mean logits of all; of accumulated batches,
    each has its own.

    Args:
        model: The tokenizer: TiTok ending in pixels, or a VQGAN.
        freeze_encoder: Whether encoder and quantizer keep their weights, as in
            `decoder_finetuning`.
        perceptual: Needed if `perceptual_weight` is not 0.
        discriminator: Needed if `adversarial_weight` is not 0.
        distance: The reconstruction loss: mean squared (`"l2"`) or mean absolute error (`"l1"`).
        reconstruction_weight, perceptual_weight, adversarial_weight, quantizer_weight,
            lecam_weight: Weights.
        discriminator_start: Optimizer step from which the adversarial losses count; the
            discriminator's schedule of the learning rate, warm-up included, begins there.
        adaptive_weight: Whether `adversarial_weight` is also multiplied by
            `titok_hf.training.losses.adaptive_weight`.
        lecam_decay: Of the moving averages of the discriminator's mean logits.
        ema_decay: See `Objective`.

    Raises:
        ValueError: If the distance is neither of the two.
    """

    def __init__(
        self,
        model: TiTokModel | MaskGitVQGANModel,
        freeze_encoder: bool = False,
        perceptual: PerceptualLoss | None = None,
        discriminator: PatchDiscriminator | None = None,
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
            model.encoder.requires_grad_(False)
            if discrete:
                model.quantizer.requires_grad_(False)
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
        self.starts = {"discriminator": discriminator_start}
        self.adaptive_weight = adaptive_weight
        self.lecam_decay = lecam_decay
        self.mean_logits: list[torch.Tensor] = []
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))
        if discrete and not freeze_encoder:
            self.codebook_revival = CodebookRevival(model.quantizer.codebook)

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().networks()
        if self.discriminator is not None:
            yield "discriminator", self.discriminator

    def reconstruct(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, H, W)`, encoded and decoded."""
        return self.result.decode(self.result.encode(pixel_values).latents).reconstruction

    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstructions `(B, 3, H, W)` and the images."""
        return self.reconstruct(inputs["pixel_values"]), inputs["pixel_values"]

    def forward(
        self, pixel_values: torch.Tensor, draws: torch.Tensor | None = None, step: int = 0
    ) -> ObjectiveOutput:
        """Images `(B, 3, H, W)` in [0, 1] to the loss of tokenizer and discriminator; `step` counts
        from 0."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            encoded = self.model.encode(pixel_values, **posterior_noise(self.model, draws))
        self.observe_codes(encoded)
        reconstruction = self.model.decode(encoded.latents).reconstruction  # (B, 3, H, W)
        parts = {"reconstruction_loss": self.distance(reconstruction, pixel_values)}
        loss = self.reconstruction_weight * parts["reconstruction_loss"]
        if self.perceptual is not None:
            parts["perceptual_loss"] = self.perceptual(reconstruction, pixel_values)
            loss = loss + self.perceptual_weight * parts["perceptual_loss"]
        if self.discriminator is not None:
            # a factor, not a branch: every parameter must get a gradient in every step of
            # distributed training
            started = float(step >= self.starts["discriminator"])
            frozen = {
                name: parameter.detach()
                for name, parameter in self.discriminator.named_parameters()
            }
            parts["adversarial_loss"] = -torch.func.functional_call(
                self.discriminator, frozen, reconstruction
            ).mean()
            weight = self.adversarial_weight * started
            if self.adaptive_weight and torch.is_grad_enabled():
                last_layer = [
                    p for p in self.model.parameters() if p.ndim == 4 and p.requires_grad
                ][-1]
                parts["adaptive_weight"] = adaptive_weight(
                    loss, parts["adversarial_loss"], last_layer
                )
                weight = weight * parts["adaptive_weight"]
            loss = loss + weight * parts["adversarial_loss"]
            loss = loss + started * self.discriminator_loss(
                pixel_values, reconstruction.detach(), started, parts
            )
        if not self.freeze_encoder:
            parts["quantizer_loss"] = encoded.quantizer_loss
            loss = loss + self.quantizer_weight * encoded.quantizer_loss
        return ObjectiveOutput(loss=loss, parts=parts)

    def discriminator_loss(
        self, real: torch.Tensor, fake: torch.Tensor, started: float, parts: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Hinge and LeCam loss of real and fake images `(B, 3, H, W)`; adds the parts to the log."""
        real_logits, fake_logits = self.discriminator(torch.cat([real, fake])).chunk(2)
        parts["discriminator_loss"] = hinge_discriminator_loss(real_logits, fake_logits)
        mean_logits = mean_over_processes(
            torch.stack([real_logits.mean(), fake_logits.mean()]).float()
        )  # (2,)
        parts["real_logit"], parts["fake_logit"] = mean_logits
        parts["lecam_loss"] = lecam_loss(*mean_logits, self.real_average, self.fake_average)
        if self.training and started:
            self.mean_logits.append(mean_logits.detach())
        return parts["discriminator_loss"] + self.lecam_weight * parts["lecam_loss"]

    def after_optimizer_step(self, step: int) -> None:
        super().after_optimizer_step(step)
        if self.mean_logits:
            real_mean, fake_mean = torch.stack(self.mean_logits).mean(0)
            self.real_average.lerp_(real_mean, 1 - self.lecam_decay)
            self.fake_average.lerp_(fake_mean, 1 - self.lecam_decay)
            self.mean_logits.clear()


class MaskedTokenObjective(Objective):
    """The generator's training: codes of a frozen tokenizer, some of them masked, to the codes that
    were masked.

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
        self.num_draws = 2 + model.config.num_tokens
        self.id_limits = {
            "codes": model.config.codebook_size,
            "class_labels": model.config.num_labels + 1,  # "no class" among them
        }

    def batch_weights(self, batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """The sum of the tokens' weights in each batch, since the loss is their weighted mean."""
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
        """Images `(B, 3, H, W)` in [0, 1], or their codes `(B, N)`, and labels `(B,)` to the
        masked-token loss.

        Of a sample's draws, one says how many tokens are masked, N which, and one whether its label
        is dropped.
        """
        if codes is None:  # in the tokenizer's own precision, as a data set of tokens is made
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
        return ObjectiveOutput(loss=output.loss, parts={"masked_token_accuracy": accuracy})


class ClassifierObjective(Objective):
    """Cross-entropy of an image classifier, for a perceptual loss where no pretrained classifier
    fits.

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
        """Images `(B, 3, H, W)` in [0, 1] and labels `(B,)` to cross-entropy."""
        logits = self.model((pixel_values - self.mean) / self.std).logits  # (B, num_labels)
        accuracy = (logits.argmax(-1) == class_labels).float().mean()
        return ObjectiveOutput(
            loss=F.cross_entropy(logits, class_labels), parts={"accuracy": accuracy}
        )

    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(B, num_labels)` and the labels."""
        images = (inputs["pixel_values"] - self.mean) / self.std
        return self.result(images).logits, inputs["class_labels"]
