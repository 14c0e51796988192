"""Atomic writes of folders."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `folder` once everything is written.

    Args:
        folder: The target; must not exist, or be empty and not the current directory.

    Raises:
        FileExistsError: If the target already holds something.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (folder == Path.cwd() or not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already: choose another name, or delete it.")
    partial = folder.with_name(folder.name + ".partial")
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
