"""The stages of recipes, one file each.

Importing the package imports every module in its folder, which registers the module's stage.
"""

from importlib import import_module
from pkgutil import iter_modules

from .base import STAGES, Columns, Stage, keys_of, recipe_objectives, register_stage

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["STAGES", "Columns", "Stage", "keys_of", "recipe_objectives", "register_stage"]
