"""Atomic writes of files and folders, and a check before the work that a file can be written."""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def output_file(path: str | Path, extensions: Collection[str] = ()) -> Path:
    """Returns the path of a file that is still to be computed; its folder is made if need be.

    Args:
        path: The path.
        extensions: Extensions that it may have, such as `".npz"`; any if not given.

    Raises:
        ValueError: If no such file can be written there.
    """
    path = Path(path).expanduser()
    if extensions and path.suffix.lower() not in extensions:
        *others, last = sorted(extensions)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"The output file must end in {expected}, got {str(path)!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path.parent} must be a folder to write into: {error}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path} must be a file that can be written; it is a folder or protected.")
    return path


@contextmanager
def whole_file(path: str | Path, shared: bool = False) -> Iterator[Path]:
    """A path to write a file to, which takes its place in one rename when all is written.

    Args:
        path: Path of the finished file, which replaces an earlier one. Its folder is made if need be.
        shared: Whether several processes may write the file at the same time.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + (f".{uuid4().hex}" if shared else "") + ".partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder, `.NAME.writing` beside `folder`, that is renamed to it once everything is
    written. What a killed process left there is deleted.

    Args:
        folder: The target; must not exist, or be empty and not the current directory.

    Raises:
        FileExistsError: If the target already holds something.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (folder == Path.cwd() or not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already: choose another name, or delete it.")
    partial = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
