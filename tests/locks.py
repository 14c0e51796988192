"""A process that holds the lock on a folder."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

HOLD = """
import os, sys, time
from titok_hf.hub.lock import locked_folder
with locked_folder(sys.argv[1]):
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(60)  # as a worker that outlives its parent
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts a process that holds the lock on a folder until it is told to end, or killed."""
    processes = []

    def start(folder, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        processes.append(process)
        assert int(process.stdout.readline()) == process.pid
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
