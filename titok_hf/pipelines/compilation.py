"""Copies of networks for sampling: in fixed batches, in bfloat16 or by oneDNN where that is faster, or with
linear layers in int8."""

import copy
from collections.abc import Callable
from types import FunctionType

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..devices import matmul_flops

# Parts of tokenizers that decoding does not need.
ENCODERS = (
    "encoder",
    "vision_encoder",
    "text_encoder",
    "autoencoder.encoder",
    "autoencoder.quant_conv",
)
FASTER = 1.3  # how much faster bfloat16 or oneDNN must be to be taken


@torch.library.custom_op("titok_hf::onednn_linear", mutates_args=())
def onednn_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Computes a linear layer on the CPU by oneDNN. In float32, torch takes its BLAS, which is slower on some
    processors (see docs/sampling.md)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@onednn_linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


class OneDNNLinear(nn.Linear):
    """A linear layer that oneDNN computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return onednn_linear(x, self.weight, self.bias)


@torch.library.custom_op("titok_hf::int8_linear", mutates_args=())
def int8_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Computes a linear layer on the CPU in int8. Each input row is scaled so that its largest absolute value
    is 127, and rounded.

    Args:
        x: `(…, in)`, of a floating-point type.
        weight: `(out, in)`, int8.
        scale: `(out,)`, what one step of each weight row stands for.
        bias: `(out,)`.
    """
    rows = x.reshape(-1, x.shape[-1])
    output = x.new_empty(len(rows), len(weight))
    # few rows at a time, whose int32 sums stay in the processor's cache
    for part, result in zip(rows.split(512), output.split(512), strict=True):
        part_scale = part.abs().amax(1, keepdim=True).float().clamp_min(1e-20) / 127
        sums = torch._int_mm((part / part_scale).round_().to(torch.int8), weight.T)
        product = sums.float().mul_(part_scale).mul_(scale)
        result.copy_(product if bias is None else product.add_(bias))
    return output.view(*x.shape[:-1], len(weight))


@int8_linear.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


class Int8Linear(nn.Module):
    """A linear layer with weights in int8, each row with a scale of its own (see `int8_linear`).

    Its tensors are neither parameters nor buffers, so that `to` does not change their data types.

    Args:
        linear: The layer that it replaces, which stays as it is.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1).clamp_min(1e-20) / 127
        self.weight = (weight / self.scale[:, None]).round().to(torch.int8)
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return int8_linear(x, self.weight, self.scale, self.bias)


def onednn_flops() -> float:
    """Measures the FLOPs per second of a large matrix product in float32 by oneDNN; 0 without it."""
    if not torch.backends.mkldnn.is_available():
        return 0.0
    return matmul_flops(torch.device("cpu"), torch.float32, multiply=onednn_linear)


class FixedBatches:
    """A function of tensors with equally many rows, called with one of two numbers of rows: that of a
    batch, or twice as many with guidance. Fewer rows are padded, more are split.

    Args:
        function: Takes tensors, and returns one.
        batch_size: Number of images of a batch.
        reuses_outputs: Whether a call overwrites the result of the last one, as CUDA graphs do.
    """

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        batch_size: int,
        reuses_outputs: bool,
    ):
        self.function = function
        self.batch_size = batch_size
        self.reuses_outputs = reuses_outputs

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        count = len(tensors[0])
        rows = self.batch_size if count <= self.batch_size else 2 * self.batch_size
        results = []
        for start in range(0, count, rows):
            parts = [tensor[start : start + rows] for tensor in tensors]
            given = len(parts[0])
            if given < rows:
                parts = [
                    torch.cat([part, part[:1].expand(rows - given, *part.shape[1:])])
                    for part in parts
                ]
            result = self.function(*parts)[:given]
            results.append(result.clone() if self.reuses_outputs else result)
        return results[0] if len(results) == 1 else torch.cat(results)


def compiled(
    network: nn.Module,
    function: Callable[..., torch.Tensor],
    *,
    batch_size: int,
    dtype: torch.dtype,
    backend: str | None,
    int8: bool = False,
) -> FixedBatches:
    """Returns a function of a copy of a network in another data type, compiled.

    Args:
        network: The network, which stays as it is.
        function: Takes the copy and tensors, and returns one.
        batch_size: See `FixedBatches`.
        dtype: Data type of the copy.
        backend: Backend of `torch.compile`; `None` to leave the copy uncompiled.
        int8: Whether the linear layers of transformer blocks compute in int8.
    """
    left_out = {id(part): None for name, part in network.named_modules() if name in ENCODERS}
    fast = copy.deepcopy(network, left_out).eval()
    if int8:
        for block in fast.modules():
            if isinstance(block, GradientCheckpointingLayer):
                for name, module in [*block.named_modules()]:
                    if type(module) is nn.Linear:
                        block.set_submodule(name, Int8Linear(module))
    fast.to(dtype)
    device = next(fast.parameters()).device
    if device.type == "cpu":
        fast = fast.to(memory_format=torch.channels_last)  # of the convolutions
        if dtype == torch.float32 and onednn_flops() > FASTER * matmul_flops(device, dtype):
            for module in fast.modules():
                if type(module) is nn.Linear:
                    module.__class__ = OneDNNLinear

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        return function(fast, *tensors)

    graphs = backend == "inductor" and device.type == "cuda"
    if backend is not None:
        # a code object of its own: torch counts and limits what it compiles by code object
        call = FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)
        options = {"mode": "reduce-overhead"} if graphs else {}
        call = torch.compile(call, fullgraph=True, dynamic=False, backend=backend, **options)
    return FixedBatches(call, batch_size, reuses_outputs=graphs)


def faster_dtype(device: torch.device) -> torch.dtype:
    """Returns bfloat16 if a matrix product is at least 1.3 times as fast in it on a device, else
    float32."""
    exact = matmul_flops(device, torch.float32)
    if device.type == "cpu":
        exact = max(exact, onednn_flops())
    wins = matmul_flops(device, torch.bfloat16) > FASTER * exact
    return torch.bfloat16 if wins else torch.float32
