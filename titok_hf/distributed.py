"""The processes of a distributed run."""

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import reduce

# The main process may compute on features alone for longer than the usual 10 minutes.
PATIENCE = timedelta(hours=6)


def process_state() -> PartialState:
    """How many processes there are, and which one this is; started by `torchrun`, they talk to each
    other from now on.

    Without an accelerator accelerate must be told so, or each process takes itself for the only
    one.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, on its device, in each of them; the tensor itself if
    there is one."""
    state = process_state()
    if state.num_processes == 1:
        return values
    return reduce(values.to(state.device), "sum").to(values.device)
