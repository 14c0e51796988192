"""Metrics, and pictures of what models do."""

from .files import generate_to_file, reconstruct_files
from .frechet import frechet_distance
from .reconstruction import codebook_statistics, reconstruct

__all__ = ["codebook_statistics", "frechet_distance", "generate_to_file", "reconstruct", "reconstruct_files"]
