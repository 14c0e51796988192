"""The objective of a generator of latents: rectified flow (LightningDiT, arXiv 2501.01423)."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from ..devices import full_precision
from ..modeling.lightning_dit import LightningDiTModel
from ..modeling.vtp.modeling_vtp import VTPPreTrainedModel
from ..pipelines.pipeline_latent_dit import shifted
from .losses import at_least_float32
from .noise import standard_normal
from .objectives import Objective, ObjectiveOutput


def flow_losses(
    velocity: torch.Tensor, target: torch.Tensor, channel_axis: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean squared error of velocities, and one minus their cosine over channels, of each
    image `(B,)`, in float32.

    Args:
        velocity, target: Velocities `(B, C, h, w)` or `(B, K, C)`.
        channel_axis: The axis of the channels.
    """
    velocity, target = at_least_float32(velocity), at_least_float32(target)
    squared = (velocity - target).square().flatten(1).mean(1)
    cosine = 1 - F.cosine_similarity(velocity, target, dim=channel_axis)
    return squared, cosine.flatten(1).mean(1)


class LatentFlowObjective(Objective):
    """Stage `latent_generator`: the velocity of a frozen tokenizer's latents on the straight path from
    noise.

    The loss is the mean squared error of the velocity plus `cosine_weight` times one minus its
    cosine over channels. Latents are normalized by the statistics in the model's configuration.

    Args:
        model: The generator.
        tokenizer: The tokenizer that turns images into latents.
        time_distribution: Distribution of the times: `"logit_normal"`, the sigmoid of normal numbers,
            or `"uniform"`.
        time_mean, time_std: Mean and standard deviation of the normal numbers.
        time_shift: Shift of the times, see `shifted`; 1 for none.
        cosine_weight: Weight of the cosine.
        sample_posterior: Whether latents are samples of the tokenizer's posterior, if it has one, or
            its mean.
        ema_decay: See `Objective`; 0.9999 is published, which in a short run would keep the start.
    """

    def __init__(
        self,
        model: LightningDiTModel,
        tokenizer: nn.Module,
        time_distribution: Literal["logit_normal", "uniform"] = "logit_normal",
        time_mean: float = 0.0,
        time_std: float = 1.0,
        time_shift: float = 1.0,
        cosine_weight: float = 1.0,
        sample_posterior: bool = False,
        ema_decay: float = 0.9999,
    ):
        if time_distribution not in ("logit_normal", "uniform"):
            raise ValueError(
                "`time_distribution` must be 'logit_normal' or 'uniform', got "
                f"{time_distribution!r}."
            )
        for name, value in (("time_std", time_std), ("time_shift", time_shift)):
            if value <= 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        if sample_posterior and isinstance(tokenizer, VTPPreTrainedModel):
            raise ValueError("`sample_posterior` needs a posterior, but a VTP's latents have none.")
        super().__init__(model, ema_decay)
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.time_distribution = time_distribution
        self.time_mean = time_mean
        self.time_std = time_std
        self.time_shift = time_shift
        self.cosine_weight = cosine_weight
        self.sample_posterior = sample_posterior
        size = math.prod(model.config.latent_shape)
        self.num_draws = 2 + size * (2 if sample_posterior else 1)
        self.id_limits = {"class_labels": model.config.num_labels + 1}  # including "no class"
        for name in ("latent_mean", "latent_std"):
            self.register_buffer(name, torch.ones(model.config.in_channels), persistent=False)
        if model.config.latent_mean is not None:
            self.set_statistics(model.config.latent_mean, model.config.latent_std)

    def train(self, mode: bool = True) -> "LatentFlowObjective":
        """Keeps the tokenizer in evaluation mode, in which a posterior is not sampled."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def set_statistics(self, mean: list[float], std: list[float]) -> None:
        """Sets mean and standard deviation of each channel of the tokenizer's latents."""
        for network in (self.model, *([] if self.ema is None else [self.ema.module])):
            network.config.latent_mean, network.config.latent_std = list(mean), list(std)
        for buffer, values in ((self.latent_mean, mean), (self.latent_std, std)):
            buffer.copy_(torch.tensor(values))

    def check_batch(self, batch: Mapping[str, torch.Tensor]) -> None:
        if isinstance(self.tokenizer, VTPPreTrainedModel):  # normalized images have no range
            batch = {name: values for name, values in batch.items() if name != "pixel_values"}
        super().check_batch(batch)

    def encode(self, pixel_values: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Returns the latents of images, as the tokenizer makes them, without autocast."""
        posterior = {} if noise is None else {"sample_posterior": True, "noise": noise}
        with torch.no_grad(), full_precision(pixel_values.device):
            return self.tokenizer.encode(pixel_values, **posterior).latents

    def times(self, draws: torch.Tensor) -> torch.Tensor:
        """Maps uniform numbers `(B,)` to times in [0, 1]; 0 is noise."""
        times = draws
        if self.time_distribution == "logit_normal":
            times = torch.sigmoid(self.time_mean + self.time_std * standard_normal(draws))
        return shifted(times, self.time_shift)

    def forward(
        self,
        class_labels: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        draws: torch.Tensor | None = None,
        step: int = 0,
    ) -> ObjectiveOutput:
        """Maps images of the tokenizer's range, or their latents, and labels `(B,)` to the loss.

        Column 0 of `draws` sets the time, column 1 label dropout, the next ones the noise, and the
        rest that of the posterior.
        """
        config = self.model.config
        if draws is None:
            images = pixel_values if latents is None else latents
            draws = torch.rand(len(images), self.num_draws, device=images.device)
        size = math.prod(config.latent_shape)
        of_time, of_label, of_noise, of_posterior = draws.split(
            [1, 1, size, self.num_draws - 2 - size], dim=1
        )
        if latents is None:
            posterior = None
            if self.sample_posterior:
                posterior = standard_normal(of_posterior).unflatten(1, config.latent_shape)
            latents = self.encode(pixel_values, posterior)
        channel_axis, shape = (1, (-1, 1, 1)) if config.dimensions == 2 else (2, (-1,))
        data = (latents - self.latent_mean.view(shape)) / self.latent_std.view(shape)
        noise = standard_normal(of_noise).unflatten(1, config.latent_shape)  # (B, C, h, w)
        times = self.times(of_time[:, 0])  # (B,)
        of_data = times.view(-1, *[1] * (data.ndim - 1))
        noisy = of_data * data + (1 - of_data) * noise
        drop_labels = (of_label[:, 0] < config.label_dropout) if self.training else None
        velocity = self.model(noisy, times, class_labels, drop_labels).velocity
        squared, cosine = flow_losses(velocity, data - noise, channel_axis)
        logged = {"velocity_loss": squared.mean(), "cosine_loss": cosine.mean()}
        loss = logged["velocity_loss"] + self.cosine_weight * logged["cosine_loss"]
        return ObjectiveOutput(loss=loss, logged_losses=logged)
