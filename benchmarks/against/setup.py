"""The arguments of a side of a comparison, and the inputs that all sides share."""

import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Parts = dict[str, Callable[[], torch.Tensor | None]]  # what is timed, with an output to compare


@dataclass(frozen=True)
class Setup:
    """Arguments of a side.

    Args:
        checkout: Checkout of the reference.
        model: Name of the model, a key of the family's `GFLOP`.
        side: Kind of the side (`reference`, `eager`, `fast` or `compiled`), with a data type after a
            hyphen where it has one.
        device: Name of the device.
        batch_size: Number of images.
        folder: Folder where the reference leaves its weights, and each side its outputs.
    """

    checkout: str
    model: str
    side: str
    device: str
    batch_size: int
    folder: str

    @property
    def kind(self) -> str:
        """The side without its data type."""
        return self.side.partition("-")[0]

    @property
    def dtype(self) -> str | None:
        """The name of the side's data type, if it has one."""
        return self.side.partition("-")[2] or None

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    def autocast(self) -> AbstractContextManager:
        """Returns autocast to the side's data type, or nothing without one."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, getattr(torch, self.dtype))

    def inference(self, parts: Parts) -> Parts:
        """Returns parts that compute no gradients, under autocast unless their weights are in the
        side's data type."""

        def wrapped(part: Callable[[], torch.Tensor | None]) -> Callable[[], torch.Tensor | None]:
            def run() -> torch.Tensor | None:
                with torch.no_grad(), self.autocast() if uses_autocast else nullcontext():
                    return part()

            return run

        uses_autocast = self.kind in ("reference", "eager")
        return {name: wrapped(part) for name, part in parts.items()}

    def uniform(self, *shape: int) -> torch.Tensor:
        """Returns numbers `(batch_size, *shape)` in [0, 1), the same for each side."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(self.batch_size, *shape, generator=generator).to(self.device)

    def ids(self, limit: int, *shape: int) -> torch.Tensor:
        """Returns integers `(batch_size, *shape)` below a limit, the same for each side."""
        return (limit * self.uniform(*shape)).long()


def stand_in(name: str, **members: Any) -> None:
    """Puts a module with these members in the place of one that a reference imports, but does not need."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        module = sys.modules.setdefault(path, types.ModuleType(path))
        if end > 1:
            setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)
    vars(module).update(members)
