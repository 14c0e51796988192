"""Heun's method for flows, at given noise levels."""

from collections.abc import Sequence

import torch
from diffusers import FlowMatchHeunDiscreteScheduler, SchedulerMixin


# diffusers looks for `SchedulerMixin` in the module of a scheduler
class FlowMatchHeunScheduler(FlowMatchHeunDiscreteScheduler, SchedulerMixin):
    """Takes the steps of a flow by Heun's method: diffusers' scheduler, which takes no noise levels.

    Each step but the last takes two velocities, so that N levels take 2N - 1. Its error falls with
    the square of the number of steps, that of Euler's method in proportion to it.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Sets the steps.

        Args:
            num_inference_steps: Number of steps at diffusers' own levels, if there are no `sigmas`.
            device: Device of the levels.
            sigmas: Noise levels from at most 1 to above 0, used as they are.
        """
        super().set_timesteps(num_inference_steps or len(sigmas), device)
        if sigmas is not None:
            levels = torch.tensor([*sigmas, 0.0], device=device)
            self.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
            self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps


__all__ = ["FlowMatchHeunScheduler"]
