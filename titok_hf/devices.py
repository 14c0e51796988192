"""The default device and how fast it multiplies matrices, data types by name, and a context of full precision."""

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def default_device() -> torch.device:
    """Returns the accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def parse_dtype(name: str) -> torch.dtype:
    """Returns a dtype that weights may have, by name.

    Raises:
        ValueError: If it is not the name of one.
    """
    dtypes = {
        str(dtype).removeprefix("torch."): dtype
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    if name not in dtypes:
        raise ValueError(f"The dtype must be one of {', '.join(dtypes)}, got {name!r}.")
    return dtypes[name]


def with_dtypes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of `from_pretrained` with a dtype for the name of one, which diffusers ignores.

    Raises:
        ValueError: If it is not the name of one.
    """
    named = {name: arguments.get(name) for name in ("dtype", "torch_dtype")}
    return dict(arguments) | {
        name: parse_dtype(dtype) for name, dtype in named.items() if isinstance(dtype, str)
    }


def full_precision(device: torch.device) -> AbstractContextManager:
    """Returns a context that disables autocast on a device; the device "meta" has no autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@functools.cache
def matmul_flops(
    device: torch.device,
    dtype: torch.dtype,
    seconds: float = 0.2,
    clock: Callable[[], float] = time.perf_counter,
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.mm,
) -> float:
    """Measures the FLOPs per second of a large matrix product on a device.

    A measured peak shows what the device does in this process, unlike the vendor's figure.

    Args:
        device: The device.
        dtype: Data type of the matrices.
        seconds: Duration of the measurement, made once per process; the best time counts.
        clock: Returns the time in seconds.
        multiply: Multiplies two square matrices.
    """
    size = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)
    first, second = (
        torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2)
    )
    best, end = float("inf"), clock() + seconds
    while best == float("inf") or clock() < end:
        started = clock()
        product = multiply(first, second)
        product[0, 0].item()  # waits for the device
        best = min(best, clock() - started)
    return 2 * size**3 / best


def int8_is_exact() -> bool:
    """Whether this CPU adds products of int8 without overflow, which takes VNNI or the like: the sums of older
    instructions are of 16 bits."""
    largest = torch.full((64, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest) == 64 * 127**2).all())


def check_backend(backend: str, device: torch.device) -> None:
    """Raises `OSError` if `torch.compile` cannot compile for a device, `ValueError` if it has no such backend."""
    try:
        torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(2, device=device))
    except torch._dynamo.exc.InvalidBackend as error:
        raise ValueError(
            f"`torch.compile` has no backend {backend!r} but {', '.join(torch._dynamo.list_backends())}."
        ) from error
    except Exception as error:  # each backend raises its own
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"`torch.compile` cannot compile for {device} with the backend {backend!r} ({reason}): "
            "install a C++ compiler, such as g++, or leave the networks uncompiled: without `--compile`, "
            "or with `backend=None` in `pipe.compile`."
        ) from error
