"""A counter of the floating point operations that run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

aten = torch.ops.aten


class FlopCounter(TorchDispatchMode):
    """Context manager that counts the floating point operations inside it, by the formulas of
    `FlopCounterMode`.

    Unlike `FlopCounterMode`, it does not decompose operations, which would change the last bits of
    the results. It also knows attention on CPUs, and does not count the products that attention
    recomputes in the backward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        formulas: dict[Any, Any] = {aten.convolution_backward: convolution_backward_flops}
        for kernel in (
            "flash_attention",
            "flash_attention_for_cpu",
            "efficient_attention",
            "cudnn_attention",
        ):
            formulas[getattr(aten, f"_scaled_dot_product_{kernel}")] = attention_flops
        for kernel in ("flash_attention", "efficient_attention", "cudnn_attention"):
            formulas[getattr(aten, f"_scaled_dot_product_{kernel}_backward")] = (
                attention_backward_flops
            )
        formulas[aten._scaled_dot_product_flash_attention_for_cpu_backward] = (
            attention_backward_flops
        )
        self.formulas = FlopCounterMode(display=False, custom_mapping=formulas).flop_registry

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
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
    """FLOPs of attention's two products, from the shapes `(B, heads, tokens, channels)`."""
    return sdpa_flop_count(query, key, value)


def attention_backward_flops(gradient: Sequence[int], *shapes: Any, **kwargs: Any) -> int:
    """FLOPs of the gradients of attention: two products for each product."""
    return 2 * attention_flops(*shapes)


def convolution_backward_flops(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    *arguments: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    """FLOPs of the gradients of a convolution; each takes as many as the forward pass.

    torch's own formula overcounts the weight gradient of a grouped convolution by a factor of the
    number of groups.
    """
    transposed, output_mask = arguments[4], arguments[-1]
    positions = math.prod((x_shape if transposed else grad_shape)[2:])
    return sum(output_mask[:2]) * 2 * grad_shape[0] * positions * math.prod(weight_shape)
