"""A lock on a folder that one process at a time writes to."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

NAME = "run.lock"


held: set[Path] = set()  # files of the locks that this process holds


@contextlib.contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Holds the lock on a folder, which is created if it does not exist; a process that already
    holds it may take it again.

    The operating system releases the lock when the process ends, however it ends, so that the file
    `run.lock` that a killed process leaves behind does not matter. It is a POSIX lock: these also
    work on network file systems, and worker processes do not inherit them. Where there are no
    locks, or a machine has left its file behind that may not share them, a warning is given.

    Raises:
        BlockingIOError: If another process holds the lock.
    """
    path = Path(folder).resolve() / NAME
    if path in held:
        yield
        return
    file = take_lock(path)
    held.add(path)
    try:
        file.seek(0)
        host = file.read().partition(" ")[0]
        if host not in ("", socket.gethostname()):
            logger.warning(
                "A run on the machine %s used %s and has not ended properly: make sure that it "
                "does not run any more.",
                host,
                folder,
            )
        file.truncate(0)
        file.write(f"{socket.gethostname()} {os.getpid()}")
        file.flush()
        yield
    finally:
        held.remove(path)
        path.unlink(missing_ok=True)
        file.close()


def take_lock(path: Path) -> TextIO:
    """Locks a file and returns it; see `locked_folder`."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+")
        except FileNotFoundError:
            continue  # the process that held the lock has deleted the folder in between
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            host, _, process = file.read().partition(" ")
            file.close()
            holder = f" (process {process} on {host})" if host else ""
            raise BlockingIOError(
                f"{path.parent} is in use by a run that has not ended{holder}: wait for it, stop it, "
                "or choose another folder."
            ) from None
        except OSError as error:
            logger.warning(
                "%s lies on a file system without locks (%s): make sure that no other run uses it.",
                path.parent,
                error,
            )
        # else the process that held the lock has deleted the file in between
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


__all__ = ["locked_folder"]
