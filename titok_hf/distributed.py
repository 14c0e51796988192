"""The processes of a distributed run."""

import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce

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


def check_same(**values: Any) -> None:
    """Checks that all processes of a run have the same values; all of them must call it.

    Machines may differ in what lies on their own disks, and each process reads only its share.

    Args:
        values: The values of this process, by names that an error can list.

    Raises:
        ValueError: In every process, if one has another value than the first process.
    """
    if process_state().num_processes == 1:
        return
    gathered = gather_object([(socket.gethostname(), values)])
    first_host, expected = gathered[0]
    for number, (host, found) in enumerate(gathered):
        if different := [name for name in expected if found[name] != expected[name]]:
            raise ValueError(
                f"All processes of a run must have the same {' and '.join(different)}, but process "
                f"{number} on the machine {host} has other ones than process 0 on {first_host}: start the "
                "same command on every machine, with copies of the same files."
            )


def check_shared(folder: str | Path) -> None:
    """Makes a folder for the output of a run, and checks that all processes see the same one; all of
    them must call it.

    Raises:
        OSError: In every process, if one does not see what the first process writes there.
    """
    state, folder = process_state(), Path(folder)
    if state.num_processes == 1:
        return
    named = [str(folder.resolve()), f".seen-by-all-{uuid4().hex}"]
    first_path, name = broadcast_object_list(named)  # of the first process
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    state.wait_for_everyone()
    # a network file system may remember that there was no folder, but not while it makes one
    folder.mkdir(parents=True, exist_ok=True)
    seen = gather_object([(socket.gethostname(), (folder / name).exists())])
    if state.is_main_process:
        (folder / name).unlink()
    for number, (host, sees) in enumerate(seen):
        if not sees:
            raise OSError(
                f"All processes of a run must share the folder {first_path}, but process {number} "
                f"on the machine {host} does not see what process 0 on {seen[0][0]} writes there: choose "
                "a folder on a file system that all machines share."
            )


def gather_by_machine(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that the processes of all machines have by name, with the machine added to the
    names if there are several processes; all of them must call it."""
    if process_state().num_processes == 1:
        return dict(values)
    gathered = gather_object([(socket.gethostname(), dict(values))])
    return {
        f"{name} (on the machine {host})": value
        for host, found in gathered
        for name, value in found.items()
    }
