"""The meta device in the part of an accelerator: what would wait for it is found."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# The shape of what they give depends on values.
DEPENDENT = {
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.equal,
    aten.is_nonzero,
}


class DeviceReads(TorchDispatchMode):
    """Finds where a program waits for an accelerator, whose part the meta device plays.

    Found are values that are read (`item`, `if`), copies to the host (`tolist`, `cpu`), and results
    whose shape depends on values (`nonzero`, `masked_select`, boolean indexing). On a machine
    without an accelerator the meta device tells its tensors from those that are on the host
    anyway, such as random numbers that are drawn there: only the former count. Zeros stand for the
    values that are read, so that the program goes on.

    Attributes:
        found: How often each operation was found at each place in the code, the innermost that is
            not torch's own: `{("_local_scalar_dense", "training/trainer.py:log"): 1}`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        operation = func.overloadpacket
        if operation is aten._local_scalar_dense and args[0].is_meta:
            self.note(operation)
            return torch.zeros((), dtype=args[0].dtype).item()
        if operation is aten._to_copy and args[0].is_meta:
            device = kwargs.get("device")
            if device is not None and device.type != "meta":
                self.note(operation)
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if operation is aten.copy_ and args[1].is_meta and not args[0].is_meta:
            self.note(operation)
            return args[0].zero_()
        if operation in DEPENDENT and any(
            leaf.is_meta for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)
        ):
            self.note(operation)
        if operation in (aten.index, aten.index_put, aten.index_put_) and args[0].is_meta:
            indices = (index for index in args[1] if index is not None)
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.note(operation)
        return func(*args, **kwargs)

    def note(self, operation: Any) -> None:
        """Notes an operation and its place."""
        frame = sys._getframe(1)
        while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        place = "/".join(path.parts[-2:])
        self.found[operation.__name__, f"{place}:{frame.f_code.co_name}"] += 1
