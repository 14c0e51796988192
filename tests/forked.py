"""Scripts and commands in processes of their own.

A new process imports torch, transformers and datasets for seconds before it starts to work. The
processes of these functions are forks of one that has imported them, and that runs nothing itself.
"""

import functools
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing import connection, forkserver
from pathlib import Path

import torch

import titok_hf

TIMEOUT = 240  # seconds
# `torch._dynamo` is imported by the first optimizer
IMPORTED = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "datasets",
    "diffusers",
    "sklearn.datasets",
    "transformers.trainer",
    "titok_hf.cli",
    "titok_hf.evaluation",
    "titok_hf.training",
]


@functools.cache
def server() -> multiprocessing.context.ForkServerContext:
    """Starts the process that the others are forked from; it finds no Hub but the cache."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    before = dict(os.environ)
    os.environ |= {
        "COLUMNS": "200",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(titok_hf.__file__).parents[1]),
    }
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ |= before
    return context


def run_here(
    program: str | Path,
    arguments: list[str],
    environment: Mapping[str, str],
    folder: str | Path,
    outputs: list[Path],
) -> None:
    """Runs in a new process, which becomes `python program arguments`."""
    for stream, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ |= environment
    os.chdir(folder)
    torch.set_num_threads(1)
    gc.freeze()  # it need not go through all that has been imported
    sys.argv = [str(program), *arguments]
    if isinstance(program, Path):
        sys.path.insert(0, str(program.parent))
        runpy.run_path(str(program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def start(
    program: str | Path,
    *arguments: object,
    outputs: list[Path],
    environment: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
) -> multiprocessing.Process:
    """Starts a process that runs a file, or a module if its name is given.

    Args:
        outputs: Files that get what it prints, and what it prints as errors.
        environment: Variables that are read after the imports, beside those of `server`.
        folder: Where it runs; by default here.
    """
    process = server().Process(
        target=run_here,
        args=(
            program,
            [*map(str, arguments)],
            environment or {},
            folder or os.getcwd(),
            outputs,
        ),
    )
    process.start()
    return process


def run(
    program: str | Path,
    *arguments: object,
    num_processes: int = 1,
    folder: str | Path | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess:
    """Runs a file, or a module, in one process, or in several that `torch.distributed` joins.

    If one of them fails the others are ended, as `torchrun` does it. Of several, output and errors
    are in the order of the processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as temporary:
        processes, files = [], []
        for rank in range(num_processes):
            files.append([Path(temporary, f"{rank}.{kind}") for kind in ("out", "err")])
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_processes),
                "LOCAL_WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            processes.append(
                start(
                    program,
                    *arguments,
                    outputs=files[rank],
                    environment=environment if num_processes > 1 else {},
                    folder=folder,
                )
            )
        code = _wait(processes)
        stdout, stderr = (
            "".join(path.read_text() for path in kind) for kind in zip(*files, strict=True)
        )
    assert code == 0 or not check, f"{program} ended with {code}:\n{stdout}\n{stderr}"
    return subprocess.CompletedProcess([str(program), *arguments], code, stdout, stderr)


def _wait(processes: list[multiprocessing.Process]) -> int:
    """The exit code of the first process that fails, or 0."""
    deadline = time.monotonic() + TIMEOUT
    running, code = list(processes), 0
    while running and code == 0:
        ended = connection.wait([each.sentinel for each in running], deadline - time.monotonic())
        if not ended:
            code = -signal.SIGALRM
        for process in [each for each in running if each.sentinel in ended]:
            process.join()
            running.remove(process)
            code = code or process.exitcode
    for process in running:
        process.kill()
        process.join()
    return code
