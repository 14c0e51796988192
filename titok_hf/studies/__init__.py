"""Studies of the paper's claims in miniature: variants of a recipe, each trained with several seeds
and compared."""

from .run import run_study
from .study import Study, study_names

__all__ = ["Study", "run_study", "study_names"]
