"""Detection of training failures: non-finite numbers, collapsing codebooks, failing
discriminators."""

import itertools
import logging
import math
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoints import newest_whole_checkpoint

logger = logging.getLogger(__name__)


class Finiteness:
    """Finds the first step with a non-finite loss or gradient, without a device sync at each step.

    The steps are recorded on the device and read when the trainer logs or saves. All processes
    check together, so that all of them stop.

    Args:
        accelerator: The trainer's accelerator.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.first_steps: dict[tuple[str, ...], torch.Tensor] = {}

    def observe(self, step: int, values: Mapping[str, torch.Tensor]) -> None:
        """Records which scalars are not finite.

        Args:
            step: Number of the current step, from 1.
            values: `"loss"` and its terms, or the gradient norms `"grad_norm_…"`. Do not pass the
                norms where a gradient scaler skips steps with non-finite gradients.
        """
        names = tuple(values)
        scalars = torch.stack([value.detach().float() for value in values.values()])  # (n,)
        first = self.first_steps.get(names, torch.full_like(scalars, -1, dtype=torch.long))
        self.first_steps[names] = torch.where((first < 0) & ~scalars.isfinite(), step, first)

    def check(self, step: int, output_dir: str | Path, model: nn.Module | None = None) -> None:
        """Raises an error if a loss or gradient was not finite; all processes must call it.

        Args:
            step: Number of steps taken.
            output_dir: Folder of the checkpoints.
            model: If given, its weights and buffers must be finite too. Pass it before it is saved.

        Raises:
            FloatingPointError: With the step, the non-finite values, the last good checkpoint, and
                advice.
        """
        names = list(itertools.chain.from_iterable(self.first_steps))
        firsts = [*self.first_steps.values()]
        if model is not None:
            names.append("the weights")
            firsts.append(
                torch.where(weights_are_finite(model, self.accelerator.device), -1, step)[None]
            )
        if not names:
            return
        by_process = self.accelerator.gather(torch.cat(firsts)[None])  # (processes, n)
        found = {
            name: [s for s in steps if s >= 0]
            for name, steps in zip(names, by_process.T.tolist(), strict=True)
        }
        # a part of the loss may be NaN without harm, such as the accuracy when no token is masked
        decisive = [
            min(steps)
            for name, steps in found.items()
            if steps and (name in ("loss", "the weights") or name.startswith("grad_norm"))
        ]
        if not decisive:
            return
        self.first_steps.clear()
        first = min(decisive)
        culprits = ", ".join(name for name, steps in found.items() if first in steps)
        last = newest_whole_checkpoint(output_dir)
        raise FloatingPointError(
            f"Training has failed at step {first}: not finite are {culprits}. "
            + (
                f"The last good checkpoint is {last}. "
                if last
                else "There is no earlier checkpoint. "
            )
            + "An unchanged restart would fail at the same step: try a lower learning rate, a longer "
            "warm-up, a lower `max_grad_norm`, a lower `adversarial_weight` if the discriminator fails, or "
            "`bf16` instead of `fp16`."
        )


def weights_are_finite(model: nn.Module, device: torch.device) -> torch.Tensor:
    """Returns whether all weights and buffers of this process are finite, as a boolean scalar on
    `device`."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return torch.stack([tensor.detach().isfinite().all().to(device) for tensor in local]).all()


class HealthWarnings(TrainerCallback):
    """Warns when a codebook or a representation collapses, or when the discriminator wins, sees
    nothing, or explodes.

    A warning is logged once its condition has held for some logs in a row, and again only after the
    condition has ended. The first ten logs are ignored, because losses change most there. The
    conditions:

    - The codebook collapses: averaged over 10 logs, the perplexity is below a tenth of the number
      of codes, or less than a tenth of the codes are in use. A trained codebook reaches more than
      half. The perplexity is the more reliable sign: `CodebookRevival` counts a dead code as used
      for about a hundred more steps, so that with all tokens on 3 of 4,096 codes, 94% of the codes
      are in use on average while the perplexity is 1% of their number (7% of 256). In the demo's
      warm-up, which starts with few codes, it does not fall below 17% before it rises.
    - The representation collapses in self-supervision: in 5 logs, the entropy of the teacher's
      targets is above 0.98 or below 0.02 of that of equal probabilities, or its features deviate by
      less than 0.05 from their mean; unit vectors without a common direction deviate by 1.
    - The discriminator wins: its hinge loss is below 0.1, and the logits of real and fake images
      are more than 2 apart, in 5 logs. The hinge loss asks for 1 and -1, a distance of 2. Beyond
      that the loss is 0, the discriminator stops learning, and its gradient no longer helps the
      decoder.
    - The discriminator sees nothing: its hinge loss is above 0.95, and the logits are less than 0.1
      apart, in 20 logs after it started to learn. The loss is 1 if the logits are 0 for every
      image.
    - A network explodes: a gradient norm, or a logit beyond 10 (ten times the hinge's target), is
      more than 10 times its median over the last 50 logs. Steady training varies by a factor of 2
      or 3.
    """

    WARM_UP = 10
    MEMORY = 50
    PATIENCE = {"winning": 5, "blind": 20, "uniform": 5, "certain": 5, "constant": 5}

    def __init__(self) -> None:
        self.reset(0)

    def reset(self, codebook_size: int) -> None:
        """Clears the history; `codebook_size` is 0 if no codebook is trained."""
        self.codebook_size = codebook_size
        self.num_logs = 0
        self.lasting: Counter[str] = Counter()
        self.recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=self.MEMORY))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        """Replays the log of a resumed run, so that it warns as an uninterrupted one would."""
        revival = getattr(model, "codebook_revival", None)
        self.reset(0 if revival is None else len(revival.shares))
        for entry in state.log_history:
            self.warnings(entry)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        warnings = self.warnings(logs)
        if state.is_world_process_zero:
            for warning in warnings:
                logger.warning("Step %d: %s", state.global_step, warning)

    def warnings(self, logs: Mapping[str, float]) -> list[str]:
        """Returns the warnings after a new log; a log without training loss gives none."""
        if "loss" not in logs:
            return []
        self.num_logs += 1
        found = {
            **self.collapse(logs),
            **self.collapsing_representation(logs),
            **self.failing_discriminator(logs),
            **self.explosions(logs),
        }
        if self.num_logs <= self.WARM_UP:
            return []
        self.lasting = Counter({name: self.lasting[name] + 1 for name in found})
        return [
            text for name, text in found.items() if self.lasting[name] == self.PATIENCE.get(name, 1)
        ]

    def collapse(self, logs: Mapping[str, float]) -> dict[str, str]:
        """Returns the warning by name if the codebook collapses."""
        means = {}
        for name in ("codebook_usage", "codebook_perplexity"):
            if name not in logs:
                return {}
            self.recent[name].append(logs[name])
            means[name] = statistics.fmean([*self.recent[name]][-10:])
        usage, perplexity = means.values()
        if usage >= 0.1 and perplexity >= 0.1 * self.codebook_size:
            return {}
        text = (
            f"the codebook collapses: codebook_usage is {usage:.2f} in the last logs, "
            f"codebook_perplexity {perplexity:.3g} of {self.codebook_size}. Lower the learning "
            "rate or lengthen its warm-up; if that does not help, use fewer codes or a smaller "
            "`latent_dim`."
        )
        return {"collapse": text}

    def collapsing_representation(self, logs: Mapping[str, float]) -> dict[str, str]:
        """Returns the warnings by name if the features of self-supervision collapse."""
        if "teacher_entropy" not in logs:
            return {}
        entropy, deviation = logs["teacher_entropy"], logs["feature_deviation"]
        what = (
            f"the representation collapses: teacher_entropy is {entropy:.3g} of its largest value"
        )
        found = {}
        if entropy > 0.98:
            found["uniform"] = (
                f"{what}, so that all prototypes are equally likely. Lower `teacher_temperature`, or "
                "the learning rate, or enlarge the batch."
            )
        if entropy < 0.02:
            found["certain"] = (
                f"{what}, so that one prototype has all. Raise `teacher_temperature`, or use "
                "`centering: sinkhorn`."
            )
        if deviation < 0.05:
            found["constant"] = (
                f"the representation collapses: all features are alike, feature_deviation is "
                f"{deviation:.3g}. Lower the learning rate, raise `koleo_weight`, or enlarge the batch."
            )
        return found

    def failing_discriminator(self, logs: Mapping[str, float]) -> dict[str, str]:
        """Returns the warning by name if the discriminator wins or sees nothing."""
        # without a gradient, the discriminator has not started to learn
        if not logs.get("grad_norm_discriminator"):
            return {}
        loss, real, fake = (
            logs[name] for name in ("discriminator_loss", "real_logit", "fake_logit")
        )
        values = f"discriminator_loss is {loss:.3g}, real_logit {real:.3g}, fake_logit {fake:.3g}"
        if loss < 0.1 and real - fake > 2:
            advice = (
                "Lower `discriminator_learning_rate`, raise `lecam_weight`, or let it start later."
            )
            return {"winning": f"the discriminator wins: {values}. {advice}"}
        if loss > 0.95 and abs(real - fake) < 0.1:
            advice = "Raise `discriminator_learning_rate`, or lower `lecam_weight`."
            return {"blind": f"the discriminator sees nothing: {values}. {advice}"}
        return {}

    def explosions(self, logs: Mapping[str, float]) -> dict[str, str]:
        """Returns a warning for each gradient norm and logit that explodes."""
        found = {}
        norms = ("grad_norm_model", "grad_norm_head", "grad_norm_discriminator")
        for name in (*norms, "real_logit", "fake_logit"):
            # 0: the network does not learn yet; not finite: the float16 scaler skipped the step
            size = abs(logs.get(name, 0.0))
            if size == 0 or not math.isfinite(size):
                continue
            earlier = self.recent[name]
            median = statistics.median(earlier) if len(earlier) >= self.WARM_UP else size
            if size > 10 * median and (name.startswith("grad_norm") or size > 10):
                network, rate = name.removeprefix("grad_norm_"), "learning_rate"
                if network not in ("model", "head"):
                    network, rate = "discriminator", "discriminator_learning_rate"
                found[f"explosion of {name}"] = (
                    f"the {network} explodes: {name} is {logs[name]:.3g}, where the median of the "
                    f"last logs was {median:.3g}. If it does not come down, go back to an earlier "
                    f"checkpoint and lower `{rate}` or `max_grad_norm`."
                )
            earlier.append(size)
        return found
