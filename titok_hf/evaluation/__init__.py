"""Metrics, and pictures of what models do."""

from .files import generate_to_file, reconstruct_files
from .frechet import frechet_distance
from .linear_probe import linear_probe, vision_features
from .reconstruction import codebook_statistics, reconstruct
from .zero_shot import class_embeddings, clip_templates, zero_shot_files, zero_shot_probabilities

__all__ = [
    "class_embeddings",
    "clip_templates",
    "codebook_statistics",
    "frechet_distance",
    "generate_to_file",
    "linear_probe",
    "reconstruct",
    "reconstruct_files",
    "vision_features",
    "zero_shot_files",
    "zero_shot_probabilities",
]
