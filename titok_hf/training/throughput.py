"""Speed of a run: images per second, and FLOPs relative to a large matrix product."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..devices import matmul_flops
from .flop_counter import FlopCounter

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Throughput(TrainerCallback):
    """Measures images and time for the log, and keeps the latest learning rates.

    It synchronizes with the device around pauses only; at a log, reading the loss has already done
    so.

    Args:
        accelerator: The trainer's accelerator.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.flops_per_image: float | None = None
        self.since: float | None = None  # start of the clock; `None` while it is stopped
        self.learning_rates: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Sets the counters to zero."""
        self.num_images = 0
        self.seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.reset()
        self.since = time.perf_counter()

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer,
        **kwargs: Any,
    ) -> None:
        self.learning_rates = {group["network"]: group["lr"] for group in optimizer.param_groups}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.since = None

    @contextmanager
    def batch(self, num_images: int) -> Iterator[None]:
        """Context of the forward and backward pass of a batch; counts the FLOPs of the first one.

        Matrix products, convolutions and attention count, including those of frozen networks and
        those that gradient checkpointing recomputes.
        """
        self.num_images += num_images
        if self.flops_per_image is not None:
            yield
            return
        with self.paused():
            self.peak = matmul_flops(
                self.accelerator.device, PRECISIONS[self.accelerator.mixed_precision]
            )
        # compiled kernels would hide their operations from the counter
        with torch.compiler.set_stance("force_eager"), FlopCounter() as counter:
            yield
        self.flops_per_image = counter.flops / num_images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context of anything but training, such as evaluation; its time does not count."""
        if self.since is None:
            yield
            return
        if self.accelerator.device.type != "cpu":
            torch.accelerator.synchronize()
        self.seconds += time.perf_counter() - self.since
        self.since = None
        try:
            yield
        finally:
            self.since = time.perf_counter()

    def entries(self) -> dict[str, float]:
        """Returns the entries since the last log; all processes must call it.

        Returns:
            `images_per_second` of all processes; `peak_share`, the FLOPs per second of this process
            divided by those that `matmul_flops` measured on its device; and `learning_rate_…` of
            each network except the model, whose learning rate `Trainer` logs.
        """
        now = time.perf_counter()
        seconds = self.seconds + now - self.since
        num_images = torch.tensor([self.num_images], device=self.accelerator.device)
        entries = {
            "images_per_second": int(self.accelerator.gather(num_images).sum()) / seconds,
            "peak_share": self.num_images * self.flops_per_image / seconds / self.peak,
        }
        entries |= {
            f"learning_rate_{name}": rate
            for name, rate in self.learning_rates.items()
            if name != "model"
        }
        self.reset()
        self.since = now
        return entries
