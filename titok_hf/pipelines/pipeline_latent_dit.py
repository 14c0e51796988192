"""Class labels to images: a transformer carries noise along a flow to latents, the tokenizer decodes
them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import nn

from ..modeling.diffusers_tokenizer import DiffusersTokenizer
from ..modeling.lightning_dit import LightningDiTModel
from ..modeling.titok import TiTokImageProcessor, TiTokModel
from ..modeling.vtp import VTPForImageReconstruction, VTPImageProcessor, VTPModel
from ..modeling.vtp.modeling_vtp import VTPPreTrainedModel
from .class_conditional import (
    ClassConditionalPipeline,
    ClassLabel,
    decode_latents,
    in_evaluation_mode,
    random_generators,
    unwrapped,
)
from .scheduling_flow_match_heun import FlowMatchHeunScheduler
from .scheduling_maskgit import positive_integer


def shifted(times: torch.Tensor, shift: float) -> torch.Tensor:
    """Returns times in [0, 1], shifted towards noise by a shift below 1: `s * t / (1 + (s - 1) * t)`."""
    return shift * times / (1 + (shift - 1) * times)


def flow_times(num_inference_steps: int, timestep_shift: float = 1.0) -> torch.Tensor:
    """Returns the times `(num_inference_steps + 1,)` of a flow from 0, noise, to 1, data.

    Equal steps are `shifted`: a shift below 1 has more steps near noise. The reference's 250 points
    are 249 steps. diffusers' `shift` is the inverse.

    Raises:
        ValueError: If the shift is not positive.
    """
    if not 0 < timestep_shift < math.inf:
        raise ValueError(f"`timestep_shift` must be a positive number, got {timestep_shift!r}.")
    times = torch.linspace(0, 1, num_inference_steps + 1, dtype=torch.float64)
    return shifted(times, timestep_shift)


def checked_latents(latents: torch.Tensor | np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns latents as a tensor.

    Raises:
        ValueError: If they have another shape.
    """
    if np.shape(latents) != shape:
        raise ValueError(f"`latents` must have shape {shape}, got {tuple(np.shape(latents))}.")
    return torch.as_tensor(latents)


@dataclass
class LatentDiTPipelineOutput(BaseOutput):
    """Result of `LatentDiTPipeline`.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            The images, in the format of `output_type`; the latents for `"latent"`.
        latents (`torch.FloatTensor`):
            Their latents `(B, C, h, w)` or `(B, K, C)`, as the tokenizer makes them.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    latents: torch.FloatTensor


def velocity_of(transformer: LightningDiTModel, *inputs: torch.Tensor) -> torch.Tensor:
    """Returns the velocity that a transformer predicts."""
    return transformer(*inputs).velocity


class LatentDiTPipeline(ClassConditionalPipeline):
    """Generates images of given classes by a flow on a tokenizer's latents (LightningDiT, arXiv
    2501.01423).

    Args:
        tokenizer: Decodes the latents: a VTP, a TiTok with continuous latents, or an image
            autoencoder of diffusers.
        transformer: Predicts the velocity; its `config.id2label` holds the class names, and its
            `latent_mean` and `latent_std` the statistics of the latents.
        scheduler: Takes the steps, by Euler's or Heun's method. It gets the noise levels, so that its
            own shift and its other options of levels are not used.
        guidance_transformer: A weaker transformer for autoguidance (arXiv 2406.02507), which takes
            the place of "no class".
        num_inference_steps, guidance_scale, guidance_interval, guidance_channels, timestep_shift:
            Defaults of `__call__`.

    Raises:
        TypeError: If a component is of another kind.
        ValueError: If the components do not fit each other, or a default is not valid.
    """

    model_cpu_offload_seq = "transformer->guidance_transformer->tokenizer"
    _optional_components: ClassVar[list[str]] = ["guidance_transformer"]
    sampling_defaults = (
        "num_inference_steps",
        "guidance_scale",
        "guidance_interval",
        "guidance_channels",
        "timestep_shift",
    )
    component_classes = (
        LightningDiTModel,
        TiTokModel,
        VTPForImageReconstruction,
        VTPModel,
        FlowMatchHeunScheduler,
    )

    def __init__(
        self,
        tokenizer: nn.Module,
        transformer: LightningDiTModel,
        scheduler: FlowMatchEulerDiscreteScheduler | FlowMatchHeunScheduler,
        guidance_transformer: LightningDiTModel | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: list[float] | tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        timestep_shift: float = 1.0,
    ):
        super().__init__()
        of_tokenizer = unwrapped(tokenizer)
        if not isinstance(of_tokenizer, TiTokModel | VTPPreTrainedModel | ModelMixin):
            raise TypeError(
                "A tokenizer of continuous latents is expected, got a "
                f"{type(of_tokenizer).__name__}."
            )
        if isinstance(of_tokenizer, ModelMixin):
            of_tokenizer = DiffusersTokenizer(of_tokenizer)
        if isinstance(of_tokenizer, TiTokModel) and (
            of_tokenizer.config.quantizer != "kl" or of_tokenizer.config.head == "proxy_codes"
        ):
            raise ValueError(
                "The tokenizer must decode continuous latents to pixels: `quantizer='kl'` and a head "
                f"other than 'proxy_codes', got {of_tokenizer.config.quantizer!r} and "
                f"{of_tokenizer.config.head!r}."
            )
        if isinstance(of_tokenizer, VTPPreTrainedModel) and not of_tokenizer.config.has_decoder:
            raise ValueError("The tokenizer has no pixel decoder: `has_decoder=False`.")
        for name, model in (
            ("transformer", transformer),
            ("guidance_transformer", guidance_transformer),
        ):
            if model is not None and not isinstance(unwrapped(model), LightningDiTModel):
                raise TypeError(
                    f"`{name}` must be a LightningDiTModel, got a {type(model).__name__}."
                )
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunScheduler):
            raise TypeError(
                "`scheduler` must be a FlowMatchEulerDiscreteScheduler of diffusers or a "
                f"FlowMatchHeunScheduler of titok_hf, got a {type(scheduler).__name__}."
            )
        config = transformer.config
        if config.latent_mean is None:
            raise ValueError(
                "The transformer's configuration lacks `latent_mean` and `latent_std`, the statistics "
                "of the latents that it was trained on: set them, for example from the "
                "`latent_statistics.json` of `titok tokenize`."
            )
        if guidance_transformer is not None:
            other = guidance_transformer.config
            for name in ("latent_shape", "num_labels"):
                if getattr(other, name) != getattr(config, name):
                    raise ValueError(
                        f"`guidance_transformer` must have the `{name}` of the transformer, "
                        f"{getattr(config, name)}, got {getattr(other, name)}."
                    )
        side = config.sample_size  # 2D tokenizers take images of any size
        if isinstance(of_tokenizer, TiTokModel):
            expected = (of_tokenizer.config.num_latent_tokens, of_tokenizer.config.latent_dim)
        elif isinstance(of_tokenizer, VTPPreTrainedModel):
            expected = (of_tokenizer.config.latent_dim, side, side)
        else:
            expected = (of_tokenizer.latent_channels, side, side)
        if expected != config.latent_shape:
            raise ValueError(
                f"The transformer generates latents of shape {config.latent_shape}, the tokenizer "
                f"decodes {expected}."
            )
        self.register_modules(
            tokenizer=tokenizer,
            transformer=transformer,
            scheduler=scheduler,
            guidance_transformer=guidance_transformer,
        )
        self.check_sampling(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_channels=guidance_channels,
            timestep_shift=timestep_shift,
        )
        self.register_to_config(  # plain numbers, as those of numpy cannot be saved
            num_inference_steps=int(num_inference_steps),
            guidance_scale=float(guidance_scale),
            guidance_interval=[float(time) for time in guidance_interval],
            guidance_channels=None if guidance_channels is None else int(guidance_channels),
            timestep_shift=float(timestep_shift),
        )

    def check_sampling(
        self,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_interval: Sequence[float],
        guidance_channels: int | None,
        timestep_shift: float,
    ) -> None:
        """Raises `ValueError` if the scheduler or an argument of the sampling is not valid."""
        options = self.scheduler.config
        if options.get("stochastic_sampling") or options.get("invert_sigmas"):
            raise ValueError(
                "`scheduler` must have `stochastic_sampling=False` and `invert_sigmas=False`: a flow "
                "goes from noise to data and draws no further noise."
            )
        positive_integer(num_inference_steps, "num_inference_steps")
        flow_times(num_inference_steps, timestep_shift)
        if not isinstance(guidance_scale, Real) or not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` must be a finite number, got {guidance_scale!r}.")
        interval = guidance_interval
        if np.shape(interval) != (2,) or not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(
                "`guidance_interval` must be two times in [0, 1], the first the earlier one, got "
                f"{interval}."
            )
        channels = self.transformer.config.in_channels
        if guidance_channels is not None and not (
            isinstance(guidance_channels, Integral) and 1 <= guidance_channels <= channels
        ):
            raise ValueError(
                f"`guidance_channels` must be from 1 to the {channels} channels of the latents, or "
                f"None for all, got {guidance_channels!r}."
            )

    def networks(self) -> dict[str, tuple[nn.Module, Callable[..., torch.Tensor]]]:
        """See the base class."""
        tokenizer = self.tokenizer
        if isinstance(unwrapped(tokenizer), ModelMixin):
            tokenizer = DiffusersTokenizer(unwrapped(tokenizer))
        networks = {
            "transformer": (self.transformer, velocity_of),
            "guidance_transformer": (self.guidance_transformer, velocity_of),
            "tokenizer": (tokenizer, decode_latents),
        }
        return {name: pair for name, pair in networks.items() if pair[0] is not None}

    @torch.no_grad()
    @in_evaluation_mode
    def __call__(
        self,
        class_labels: ClassLabel | Sequence[ClassLabel] | torch.Tensor,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        guidance_channels: int | None = None,
        timestep_shift: float | None = None,
        sigmas: Sequence[float] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images_per_label: int = 1,
        latents: torch.Tensor | np.ndarray | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[
            ["LatentDiTPipeline", int, torch.Tensor, dict], dict[str, Any] | None
        ]
        | None = None,
    ) -> LatentDiTPipelineOutput | tuple:
        """Generates images.

        Args:
            class_labels: Classes, by id or name; one image each by default.
            num_inference_steps: Number of steps; defaults to the pipeline's, as do the next four.
            guidance_scale: `s` in `unconditional + s * (conditional - unconditional)`; 1 for none.
            guidance_interval: Times in [0, 1], from noise to data, between which there is guidance.
            guidance_channels: The first so many channels are guided, the others are conditional;
                all if `None` here and in the pipeline. Published scales of LightningDiT are of 3
                channels.
            timestep_shift: See `flow_times`.
            sigmas: Noise levels of the steps instead, falling from at most 1 to above 0.
            generator: A `torch.Generator`, or a list or tuple with one per image. A single one draws
                a seed for each image, so images never depend on the batch size.
            num_images_per_label: Images of each label.
            latents: Noise to start from, of torch or numpy, `(B, C, h, w)` or `(B, K, C)`; drawn if not given.
            output_type: `"pil"` for PIL images, `"np"` for a float array `(B, H, W, 3)` in [0, 1],
                `"pt"` for a float tensor `(B, 3, H, W)` in [0, 1], `"latent"` for the latents.
            return_dict: Whether to return a `LatentDiTPipelineOutput` or the tuple `(images,)`.
            callback_on_step_end: Called after each velocity with the pipeline, the step, the scheduler's
                timestep and a dict of the normalized `"latents"`; may return a dict with changed
                `"latents"`.

        Raises:
            ValueError, TypeError: If an argument is not valid.
        """
        config, device = self.transformer.config, self._execution_device
        sampling = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "guidance_channels": guidance_channels,
            "timestep_shift": timestep_shift,
        }
        sampling = {
            name: self.config[name] if value is None else value for name, value in sampling.items()
        }
        self.check_sampling(**sampling)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(
                f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}."
            )
        num_images_per_label = positive_integer(num_images_per_label, "num_images_per_label")
        labels = self.repeated_labels(class_labels, num_images_per_label, device)  # (B,)
        if sigmas is None:
            times = flow_times(sampling["num_inference_steps"], sampling["timestep_shift"])
            sigmas = (1 - times[:-1]).tolist()
        else:
            sigmas = [float(level) for level in sigmas]
            falling = sigmas == sorted(set(sigmas), reverse=True)
            if not (sigmas and falling and sigmas[-1] > 0 and sigmas[0] <= 1):
                raise ValueError(
                    "`sigmas` must be noise levels that fall from at most 1 to above 0, got "
                    f"{sigmas}."
                )
        # noise
        generators = random_generators(generator, len(labels))
        if len(generators) != len(labels):
            raise ValueError(
                f"`generator` must have one `torch.Generator` for each of the {len(labels)} images, "
                f"got {len(generators)}."
            )
        if latents is None:
            noise = [
                torch.randn(config.latent_shape, generator=one, device=one.device).to(device)
                for one in generators
            ]
            latents = torch.stack(noise)
        shape = (len(labels), *config.latent_shape)  # (B, C, h, w) or (B, K, C)
        latents = checked_latents(latents, shape).to(device, torch.float32)

        # flow
        # a scheduler of its own, whose options leave the levels as they are: calls in other threads may
        # take other steps
        scheduler = type(self.scheduler)(self.scheduler.config.num_train_timesteps)
        scheduler.set_timesteps(sigmas=sigmas, device=device)
        if scheduler.order == 2:  # each level but the first is that of two velocities
            sigmas = [sigmas[0], *(level for level in sigmas[1:] for _ in range(2))]
        start, stop = sampling["guidance_interval"]
        networks = {name: self.network(name) for name in self.networks()}
        for step, timestep in enumerate(self.progress_bar(scheduler.timesteps)):
            time = 1 - sigmas[step]
            guided = sampling["guidance_scale"] != 1 and start <= time <= stop
            velocity = self.velocity(
                latents,
                time,
                labels,
                networks,
                scale=sampling["guidance_scale"] if guided else 1.0,
                channels=sampling["guidance_channels"],
            )
            # the scheduler's direction is from data to noise
            latents = scheduler.step(-velocity, timestep, latents, return_dict=False)[0]
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, step, timestep, {"latents": latents}) or {}
                latents = checked_latents(changed.get("latents", latents), shape)

        # decode the latents
        latents = self.denormalized(latents)
        images = latents if output_type == "latent" else self.decode(latents, output_type)
        self.maybe_free_model_hooks()
        return LatentDiTPipelineOutput(images, latents) if return_dict else (images,)

    def velocity(
        self,
        latents: torch.Tensor,
        time: float,
        labels: torch.Tensor,
        networks: dict[str, Callable[..., torch.Tensor]],
        scale: float,
        channels: int | None,
    ) -> torch.Tensor:
        """Returns the guided velocity of latents at a time by the functions of the networks."""
        times = torch.full((len(latents),), time, device=latents.device)
        transformer = networks["transformer"]
        if scale == 1:
            return transformer(latents, times, labels).float()
        if self.guidance_transformer is not None:
            conditional = transformer(latents, times, labels).float()
            weaker = networks["guidance_transformer"](latents, times, labels).float()
        else:
            none = torch.full_like(labels, self.transformer.config.null_label)
            both = transformer(
                torch.cat([latents, latents]), times.repeat(2), torch.cat([labels, none])
            ).float()
            conditional, weaker = both.chunk(2)
        guided = weaker + scale * (conditional - weaker)
        if channels is None:
            return guided
        axis = 1 if self.transformer.config.dimensions == 2 else 2
        rest = conditional.shape[axis] - channels
        first = guided.split([channels, rest], axis)[0]
        return torch.cat([first, conditional.split([channels, rest], axis)[1]], axis)

    def denormalized(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns latents with the mean and standard deviation of each channel that the tokenizer's
        have."""
        config = self.transformer.config
        shape = (-1, 1, 1) if config.dimensions == 2 else (-1,)
        mean, std = (
            torch.tensor(values, device=latents.device).view(shape)
            for values in (config.latent_mean, config.latent_std)
        )
        return latents * std + mean

    def decode(
        self, latents: torch.Tensor, output_type: str
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Decodes latents to images."""
        is_vtp = isinstance(unwrapped(self.tokenizer), VTPPreTrainedModel)
        processor = VTPImageProcessor() if is_vtp else TiTokImageProcessor()
        self.onload_tokenizer()
        return processor.postprocess(self.network("tokenizer")(latents), output_type)


__all__ = ["LatentDiTPipeline", "LatentDiTPipelineOutput", "flow_times", "shifted"]
