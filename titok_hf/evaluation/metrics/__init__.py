"""Metrics: functions and accumulators that turn features or pairs of images into numbers with
standard errors. They know no networks."""

from .codebook import CodebookUsage
from .frechet import frechet_distance, jackknife_frechet
from .gaussian_statistics import BlockedStatistics, GaussianStatistics
from .inception_score import InceptionScore
from .kernel import kernel_distance, kernel_distances
from .precision_recall import density_coverage, precision_recall
from .psnr_ssim import peak_signal_to_noise_ratio, structural_similarity
from .standard_error import Estimate

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
