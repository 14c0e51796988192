"""Metrics of tokenizers and generators, and pictures of their results."""

from pathlib import Path

from .extractors import FeatureExtractor
from .files import generate_to_file, probe_files, reconstruct_files
from .frechet_ratio import evaluate_frechet_ratio, write_ratio_reference
from .generation import evaluate_generation, measure_generation
from .learnability import evaluate_learnability, measure_learnability
from .metric_networks import MetricNetworks, load_extractor
from .metrics.frechet import frechet_distance
from .neighbors import evaluate_neighbors
from .pictures import plot_run
from .probe import knn_probe, linear_probe, probe_tokenizer, token_features, vision_features
from .protocol import Protocol
from .reconstruction import (
    codebook_statistics,
    evaluate_reconstruction,
    measure_reconstruction,
    reconstruct,
)
from .reference import write_reference
from .representations import (
    evaluate_representations,
    local_spatial_similarity,
    measure_representations,
    region_self_similarity,
)
from .results import Evaluation, compare_results
from .retrieval import retrieval_recall
from .trainer_metrics import ReconstructionMetrics
from .zero_shot import class_embeddings, clip_templates, zero_shot_files, zero_shot_probabilities

IMAGE_METRICS = str(Path(__file__).parent / "image_metrics")  # for `evaluate.load`

__all__ = [
    "IMAGE_METRICS",
    "Evaluation",
    "FeatureExtractor",
    "MetricNetworks",
    "Protocol",
    "ReconstructionMetrics",
    "class_embeddings",
    "clip_templates",
    "codebook_statistics",
    "compare_results",
    "evaluate_frechet_ratio",
    "evaluate_generation",
    "evaluate_learnability",
    "evaluate_neighbors",
    "evaluate_reconstruction",
    "evaluate_representations",
    "frechet_distance",
    "generate_to_file",
    "knn_probe",
    "linear_probe",
    "load_extractor",
    "local_spatial_similarity",
    "measure_generation",
    "measure_learnability",
    "measure_reconstruction",
    "measure_representations",
    "plot_run",
    "probe_files",
    "probe_tokenizer",
    "reconstruct",
    "reconstruct_files",
    "region_self_similarity",
    "retrieval_recall",
    "token_features",
    "vision_features",
    "write_ratio_reference",
    "write_reference",
    "zero_shot_files",
    "zero_shot_probabilities",
]
