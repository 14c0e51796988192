"""Loads the scripts beside the package, which are no modules of it."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load_script(path):
    """Returns a script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
