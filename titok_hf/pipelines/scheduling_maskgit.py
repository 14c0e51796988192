"""The masked-token scheduler: how many tokens stay masked, and which codes are drawn and kept."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from ..hub.errors import explain_loading_errors
from ..hub.publish import PublishMixin
from ..version import __version__

MaskSchedule = Literal["arccos", "cosine", "linear", "root"]
Generators = torch.Generator | Sequence[torch.Generator] | None


def mask_ratio(progress: torch.Tensor | float, schedule: MaskSchedule) -> torch.Tensor:
    """Returns the share of masked tokens at `progress`, from 1 at 0 to 0 at 1.

    Sampling passes the share of steps done, training a uniform random number.

    Args:
        progress: In [0, 1], any shape.
        schedule: `"arccos"`: `2 / pi * arccos(r)`, TiTok's; `"cosine"`: `cos(pi / 2 * r)`,
            MaskGIT's; `"linear"`: `1 - r`; `"root"`: `1 - sqrt(r)`.

    Returns:
        A float32 tensor of the shape of `progress`, exact at both ends.

    Raises:
        ValueError: If the schedule is none of these.
    """
    progress = torch.as_tensor(progress, dtype=torch.float32)
    if schedule == "arccos":
        return progress.acos() / (math.pi / 2)
    if schedule == "cosine":
        return (progress * (math.pi / 2)).cos().clamp_min(0)
    if schedule == "linear":
        return 1 - progress
    if schedule == "root":
        return 1 - progress.sqrt()
    raise ValueError(
        f"`mask_schedule` must be one of {', '.join(get_args(MaskSchedule))}, got {schedule!r}."
    )


def positive_integer(value: Any, name: str) -> int:
    """Returns a number of steps or images, which may be an integer of numpy.

    Raises:
        ValueError: If it is no integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    return int(value)


def uniform(shape: tuple[int, ...], generator: Generators, device: torch.device) -> torch.Tensor:
    """Draws uniform float32 noise in [0, 1) of `shape`; with several generators, row i uses the
    i-th only.

    Raises:
        ValueError: If there is not one generator per row.
    """
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(
                f"`generator` must be one, or one for each of {shape[0]} images, got "
                f"{len(generator)}."
            )
        return torch.stack([uniform(shape[1:], row, device) for row in generator])
    source = generator.device if generator is not None else device
    noise = torch.rand(shape, generator=generator, device=source, dtype=torch.float32)
    return noise.to(device, non_blocking=True)


def gumbel(shape: tuple[int, ...], generator: Generators, device: torch.device) -> torch.Tensor:
    """Draws standard Gumbel noise in float32."""
    # rand includes 0 but not 1; both logarithms need the open interval
    noise = uniform(shape, generator, device).clamp_min(torch.finfo(torch.float32).tiny)
    return -(-noise.log()).log()


@dataclass
class MaskGitSchedulerOutput(BaseOutput):
    """Result of one step.

    Args:
        prev_sample (`torch.LongTensor` of shape `(B, N)`):
            Codes, fewer of them masked than before.
        pred_original_sample (`torch.LongTensor` of shape `(B, N)`):
            Codes with every masked one drawn, before the least confident are masked again.
    """

    prev_sample: torch.LongTensor
    pred_original_sample: torch.LongTensor


class MaskGitScheduler(PublishMixin, SchedulerMixin, ConfigMixin):
    """Parallel decoding of masked tokens (MaskGIT, arXiv 2202.04200, section 3.2).

    A step draws a code for every masked token, keeps the most confident and masks the others again.
    Both choices are noisy. With `g` Gumbel noise and `r` the share of steps done after this one:

    - `code = argmax(logits + token_temperature * g)`, which is a draw from `softmax(logits /
      token_temperature)`;
    - `confidence = log p(code) + choice_temperature * (1 - r) * g`;
    - `floor(mask_ratio(r) * M)` of the `M` tokens masked at first stay masked: at least one, and at
      least one fewer than before; none after the last step.

    Args:
        mask_token_id: Id of a masked token; `config.mask_token_id` of the generator.
        mask_schedule: See `mask_ratio`.
        token_temperature: Randomness of the codes; 0 takes the most likely.
        choice_temperature: Randomness of the order in which tokens are kept; fades linearly over
            the steps.
        anneal_token_temperature: Whether `token_temperature` fades in the same way, as in TiTok's
            sampler.
        confidence: `"log_prob"`, or TiTok's `"logit"`: the unnormalized logit of the code.
        softmax_temperature_annealing: Whether logits are divided by `0.5 + 0.8 * (1 - r)` first, as
            in TiTok's sampler.

    Raises:
        ValueError: If the mask schedule is unknown, or a temperature negative, infinite or NaN.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        mask_schedule: MaskSchedule = "arccos",
        token_temperature: float = 1.0,
        choice_temperature: float = 4.5,
        anneal_token_temperature: bool = False,
        confidence: Literal["log_prob", "logit"] = "log_prob",
        softmax_temperature_annealing: bool = False,
    ):
        mask_ratio(0.0, mask_schedule)
        if not all(0 <= value < math.inf for value in (token_temperature, choice_temperature)):
            raise ValueError(
                f"Temperatures must not be negative, got {token_temperature} for tokens and "
                f"{choice_temperature} for the choice; each is a finite number."
            )
        if confidence not in ("log_prob", "logit"):
            raise ValueError(f"`confidence` must be 'log_prob' or 'logit', got {confidence!r}.")
        self.timesteps: torch.Tensor | None = None
        self.num_inference_steps: int | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None = None, *args: Any, **kwargs: Any
    ) -> Self:
        """Same as in diffusers.

        Raises:
            OSError: If the folder or repository does not exist, or the connection broke.
        """
        with explain_loading_errors(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def extract_init_dict(
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> tuple[dict, dict, dict]:
        """Same as in diffusers, but refuses unknown fields.

        Raises:
            ValueError: If there are fields that this version does not know.
        """
        known = set(inspect.signature(cls).parameters)
        if unknown := sorted(
            name for name in config_dict if not name.startswith("_") and name not in known
        ):
            raise ValueError(
                f"This scheduler has fields that titok_hf {__version__} does not know: "
                f"{', '.join(unknown)}. Install a newer version."
            )
        return super().extract_init_dict(config_dict, **kwargs)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Plans `num_inference_steps` steps; `timesteps` counts them from 0.

        Args:
            num_inference_steps: Number of steps.
            device: Unused, for diffusers' interface: `step` needs the timestep as a number, so
                `timesteps` stays on the CPU, where reading it does not synchronize with an
                accelerator.

        Raises:
            ValueError: If the number of steps is not an integer of at least 1.
        """
        self.num_inference_steps = positive_integer(num_inference_steps, "num_inference_steps")
        self.timesteps = torch.arange(num_inference_steps, device="cpu")

    def step(
        self,
        logits: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        num_masked_at_first: torch.Tensor | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> MaskGitSchedulerOutput | tuple[torch.Tensor]:
        """Draws codes for the masked tokens of `sample` and masks the least confident of them
        again.

        Args:
            logits: `(B, N, codebook_size)` for `sample`, guidance applied.
            timestep: An element of `timesteps`, or its number.
            sample: Codes `(B, N)`, with `mask_token_id` where masked. The others never change.
            num_masked_at_first: `(B,)` masked tokens of each image before the first step; all N if
                not given. The reference uses the first image's count for the whole batch, which is
                the same only if all images start with as many masked tokens.
            generator: A `torch.Generator`, or a list with one per image.
            return_dict: Whether to return a `MaskGitSchedulerOutput` or a tuple of its first field.

        Raises:
            ValueError: If `set_timesteps` was not called, the timestep is out of range, or shapes
                do not match.
        """
        if self.num_inference_steps is None:
            raise ValueError("Call `set_timesteps` before `step`.")
        timestep = int(timestep)
        if not 0 <= timestep < self.num_inference_steps:
            raise ValueError(
                f"`timestep` must be in [0, {self.num_inference_steps}), got {timestep}."
            )
        if logits.shape[:-1] != sample.shape:
            raise ValueError(
                "`logits` must be (B, N, codebook_size) for a sample (B, N) of "
                f"{tuple(sample.shape)}, got {tuple(logits.shape)}."
            )
        config, device = self.config, sample.device
        masked = sample == config.mask_token_id  # (B, N)
        progress = (timestep + 1) / self.num_inference_steps
        fade = 1 - progress

        # draw the codes
        logits = logits.float()
        if config.softmax_temperature_annealing:
            logits = logits / (0.5 + 0.8 * fade)
        token_temperature = config.token_temperature * (
            fade if config.anneal_token_temperature else 1
        )
        noise = gumbel(logits.shape, generator, device)
        drawn = torch.where(
            masked, (logits + token_temperature * noise).argmax(-1), sample
        )  # (B, N)
        if timestep == self.num_inference_steps - 1:
            # All tokens are final. The code below would keep one of them masked, and draw noise for
            # an order that no longer matters.
            return MaskGitSchedulerOutput(drawn, drawn) if return_dict else (drawn,)

        # rank them by confidence and mask the least confident again
        scores = logits.log_softmax(-1) if config.confidence == "log_prob" else logits
        confidence = scores.gather(-1, drawn.clamp(max=logits.shape[-1] - 1)[..., None])[
            ..., 0
        ]  # (B, N)
        confidence = confidence + config.choice_temperature * fade * gumbel(
            sample.shape, generator, device
        )
        confidence = confidence.masked_fill(~masked, math.inf)
        num_masked = masked.sum(-1)  # (B,)
        if num_masked_at_first is None:
            num_masked_at_first = torch.full_like(num_masked, sample.shape[1])
        # `stay` tokens stay masked: the schedule's share of those masked at first, but at least one,
        # as the last step is still to come, and at most one fewer than now, so that each step keeps
        # a code. If nothing is masked this is -1, and no rank is below it.
        # The ratio is a scalar on the CPU, which works with tensors of any device.
        stay = (num_masked_at_first * mask_ratio(progress, config.mask_schedule)).floor().long()
        stay = torch.minimum(stay.clamp_min(1), num_masked - 1)  # (B,)
        # The first argsort sorts positions by confidence; the second inverts this permutation, which
        # gives each position its rank, 0 for the least confident.
        rank = confidence.argsort(-1).argsort(-1)  # (B, N)
        remasked = torch.where(rank < stay[:, None], config.mask_token_id, drawn)
        return MaskGitSchedulerOutput(remasked, drawn) if return_dict else (remasked,)

    def num_masked(self, progress: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Returns how many of `num_tokens` tokens training masks: `max(1,
        round(mask_ratio(progress) * num_tokens))`."""
        return (mask_ratio(progress, self.config.mask_schedule) * num_tokens).round().clamp_min(1)

    def add_noise(
        self,
        original_samples: torch.Tensor,
        progress: torch.Tensor,
        generator: Generators = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Masks random tokens, as in training.

        Args:
            original_samples: Codes `(B, N)`.
            progress: `(B,)` in [0, 1]; sets the number of masked tokens per image, see
                `num_masked`.
            generator: A `torch.Generator`, or a list with one per image.
            noise: `(B, N)`; the tokens where it is lowest are masked. Drawn if not given.

        Returns:
            The codes `(B, N)`, with `mask_token_id` where masked.
        """
        device, num_tokens = original_samples.device, original_samples.shape[1]
        num_masked = self.num_masked(progress, num_tokens).to(device)  # (B,)
        if noise is None:
            noise = uniform(tuple(original_samples.shape), generator, device)
        rank = noise.argsort(-1).argsort(-1)  # (B, N)
        return torch.where(rank < num_masked[:, None], self.config.mask_token_id, original_samples)


__all__ = ["MaskGitScheduler", "MaskGitSchedulerOutput", "mask_ratio"]
