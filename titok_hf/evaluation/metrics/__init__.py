"""Metrics: from features or pairs of images to numbers with their uncertainty; they know no
networks."""

from .codebook import CodebookUsage
from .estimate import Estimate
from .fidelity import peak_signal_to_noise_ratio, structural_similarity
from .frechet import frechet_distance, jackknife_frechet
from .inception_score import InceptionScore
from .kernel import kernel_distance, kernel_distances
from .manifold import density_coverage, precision_recall
from .statistics import BlockedStatistics, GaussianStatistics

__all__ = [
    "BlockedStatistics",
    "CodebookUsage",
    "Estimate",
    "GaussianStatistics",
    "InceptionScore",
    "density_coverage",
    "frechet_distance",
    "jackknife_frechet",
    "kernel_distance",
    "kernel_distances",
    "peak_signal_to_noise_ratio",
    "precision_recall",
    "structural_similarity",
]
