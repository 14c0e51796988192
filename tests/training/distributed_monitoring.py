"""Two processes, one of which meets a loss that is not finite; part of `distributed_parts.py`."""

import torch
from accelerate import Accelerator

from titok_hf.distributed import process_state
from titok_hf.training.monitoring import Finiteness


def main(folder):
    rank = process_state().process_index
    finiteness = Finiteness(Accelerator(cpu=True))
    for step in range(1, 10):
        loss = float("nan") if rank == 1 and step == 7 else 1.0
        finiteness.observe(step, {"loss": torch.tensor(loss), "accuracy": torch.tensor(0.5)})
    try:
        finiteness.check(9, folder)
    except FloatingPointError as error:
        (folder / f"{rank}.txt").write_text(str(error))
