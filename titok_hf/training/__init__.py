"""Training on HF `Trainer`: objectives of the stages, the trainer, and recipes."""

from .arguments import TiTokTrainingArguments
from .codebook import CodebookRevival
from .discriminator import PatchDiscriminator
from .objectives import (
    ClassifierObjective,
    MaskedTokenObjective,
    Objective,
    ReconstructionObjective,
    WarmupObjective,
)
from .perceptual import PerceptualLoss
from .recipe import Recipe
from .recipe_run import RecipeRun
from .trainer import TiTokTrainer

__all__ = [
    "ClassifierObjective",
    "CodebookRevival",
    "MaskedTokenObjective",
    "Objective",
    "PatchDiscriminator",
    "PerceptualLoss",
    "Recipe",
    "RecipeRun",
    "ReconstructionObjective",
    "TiTokTrainer",
    "TiTokTrainingArguments",
    "WarmupObjective",
]
