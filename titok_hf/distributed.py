"""The processes of a distributed run."""

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import reduce

# The default of 10 minutes is too short if the main process computes metrics while others wait.
PATIENCE = timedelta(hours=6)


def process_state() -> PartialState:
    """Returns this process's rank and the number of processes, and connects those that `torchrun`
    started.

    Without an accelerator, accelerate needs `cpu=True`; otherwise each process believes it is
    alone.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Returns the sum of a tensor over all processes, on its device; the tensor itself if there is
    one process."""
    state = process_state()
    if state.num_processes == 1:
        return values
    return reduce(values.to(state.device), "sum").to(values.device)
