"""How fast a run is: images a second, and the share of what its devices reach in a plain matrix product."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

aten = torch.ops.aten

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Throughput(TrainerCallback):
    """Counts images and time for the log, and keeps the learning rates of each step for it.

    Nothing waits for the device, except around a pause; at a log it has been waited for, as the loss was read.

    Args:
        accelerator: The trainer's.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.flops_per_image: float | None = None
        self.since: float | None = None  # when the clock was started; `None` if it stands
        self.learning_rates: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Counts from zero."""
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
        """Around the forward and backward pass of a batch of this process; those of the first one are counted.

        They are counted as they run, in matrix products, convolutions and attention, those of frozen networks and
        what gradient checkpointing computes again included.
        """
        self.num_images += num_images
        if self.flops_per_image is not None:
            yield
            return
        with self.paused():
            self.peak = matmul_flops(self.accelerator.device, PRECISIONS[self.accelerator.mixed_precision])
        with FlopCounter() as counter:
            yield
        self.flops_per_image = counter.flops / num_images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training, such as evaluation and saving; its time is not counted."""
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
        """For the log, since the last one; all processes must ask.

        Returns:
            `images_per_second` of all processes, `peak_share`, the floating point operations a second of this process
            as a share of those that `matmul_flops` measured on its device, and `learning_rate_…` of each network but
            the model, whose learning rate `Trainer` logs.
        """
        now = time.perf_counter()
        seconds = self.seconds + now - self.since
        num_images = torch.tensor([self.num_images], device=self.accelerator.device)
        entries = {
            "images_per_second": int(self.accelerator.gather(num_images).sum()) / seconds,
            "peak_share": self.num_images * self.flops_per_image / seconds / self.peak,
        }
        entries |= {f"learning_rate_{name}": rate for name, rate in self.learning_rates.items() if name != "model"}
        self.reset()
        self.since = now
        return entries


class FlopCounter(TorchDispatchMode):
    """Counts the floating point operations of what runs inside it, by the formulas of `FlopCounterMode`.

    That one also takes operations apart, which changes the last bits of the results. It does not know attention on
    CPUs, and counts products that attention computes again in the backward pass, which here do not count.
    """

    def __init__(self) -> None:
        from .flops import convolution_backward_flops  # which imports the recipes, and they the trainer's arguments

        super().__init__()
        self.flops = 0
        formulas: dict[Any, Any] = {aten.convolution_backward: convolution_backward_flops}
        for kernel in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
            formulas[getattr(aten, f"_scaled_dot_product_{kernel}")] = attention_flops
        for kernel in ("flash_attention", "efficient_attention", "cudnn_attention"):
            formulas[getattr(aten, f"_scaled_dot_product_{kernel}_backward")] = attention_backward_flops
        formulas[aten._scaled_dot_product_flash_attention_for_cpu_backward] = attention_backward_flops
        self.formulas = FlopCounterMode(display=False, custom_mapping=formulas).flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


def attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *arguments: Any, **kwargs: Any
) -> int:
    """Of attention's two products, from the shapes `(B, heads, tokens, channels)`."""
    return sdpa_flop_count(query, key, value)


def attention_backward_flops(gradient: Sequence[int], *shapes: Any, **kwargs: Any) -> int:
    """Of their gradients, two products for each."""
    return 2 * attention_flops(*shapes)


@functools.cache
def matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Floating point operations a second that a large matrix product reaches on a device: measured, so that it is what
    this device does in this process, and not the figure of its vendor.

    Args:
        device: On which to measure.
        dtype: Of the matrices.
        seconds: How long to measure, once in each process; the best time counts.
    """
    size = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)
    first, second = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        started = time.perf_counter()
        product = first @ second
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
