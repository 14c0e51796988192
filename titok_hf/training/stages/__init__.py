"""The stages of recipes, one file each. Every module of this folder is imported, and so registers
its stage."""

from importlib import import_module
from pkgutil import iter_modules

from .base import STAGES, Stage, keys_of, recipe_objectives, register_stage

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["STAGES", "Stage", "keys_of", "recipe_objectives", "register_stage"]
