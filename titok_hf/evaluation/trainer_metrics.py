"""Metrics of reconstructions for `compute_metrics` of a `Trainer`."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import EvalPrediction

from ..modeling.titok import TiTokImageProcessor
from ..perceptual.published_weights import load_lpips
from ..settings import suggestion
from .extractors import FeatureExtractor
from .feature_statistics import FeatureStatistics, ReferenceSet, check_feasible, feature_metrics
from .image_sources import ImageBatch, TensorImages, to_uint8
from .metric_networks import MetricNetworks
from .metrics.standard_error import RunningMean
from .protocol import (
    CLASS_METRICS,
    CODE_METRICS,
    METRICS,
    PAIR_METRICS,
    REFERENCE_METRICS,
    Protocol,
)
from .reconstruction import pair_metrics


class ReconstructionMetrics:
    """Computes metrics of a trainer's predictions, which are reconstructions, against its labels,
    which are the images themselves.

    With `TrainingArguments(batch_eval_metrics=True)` images come batch by batch, and memory does
    not grow with their number, except for metrics that keep features (see `FeatureStatistics`).

    Metrics of codes and labels are not supported, since predictions hold neither. A tokenizer's
    training log has the use of its codebook. `evaluate_reconstruction` measures it, accuracy and
    Inception Score on a data set; `evaluate.load(IMAGE_METRICS, "codebook_usage")` measures it on
    codes, and `"accuracy"` on images with labels.

    Args:
        processor: Image processor of the tokenizer, which converts its range to that of images.
        metrics: Names from `titok_hf.evaluation.protocol` of metrics of pairs or on features.
        extractor: Network for metrics on features.
        protocol: Further fields of a `Protocol`, such as `kernel_subset_size`, or the `rounding` of
            reconstructions, `"truncate"` if not given.

    Raises:
        ValueError: If a metric is not supported or needs an extractor.
    """

    def __init__(
        self,
        processor: TiTokImageProcessor,
        metrics: Sequence[str] = ("mean_squared_error", "psnr"),
        extractor: FeatureExtractor | None = None,
        **protocol: Any,
    ):
        known = [
            name for name in METRICS["reconstruction"] if name not in CLASS_METRICS + CODE_METRICS
        ]
        for name in metrics:
            if name not in known:
                raise ValueError(f"Unknown metric {name!r} of a trainer: {suggestion(name, known)}")
            if name in REFERENCE_METRICS and extractor is None:
                raise ValueError(f"{name} needs an extractor: `extractor=load_extractor(...)`.")
        self.processor = processor
        self.metrics = tuple(metrics)
        self.judges = MetricNetworks(extractor, lpips=load_lpips() if "lpips" in metrics else None)
        fields = {
            "name": "trainer",
            "source": "",
            "image_size": 1,
            "crop": "none",
            "rounding": "truncate",
        }
        fields |= {
            "extractor": "",
            "reference": "originals",
            "metrics": {"reconstruction": self.metrics},
        }
        self.protocol = Protocol.from_dict(fields | protocol)
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self.num_images = 0
        self.means = {name: RunningMean() for name in self.metrics if name in PAIR_METRICS}
        on_features = [name for name in self.metrics if name in REFERENCE_METRICS]
        self.sides = [
            FeatureStatistics(self.judges, on_features, 0, self.protocol) for _ in range(2)
        ]

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Adds images `(n, 3, H, W)`.

        Args:
            prediction: The predictions, of which the first are the reconstructions, and the images
                as labels.
            compute_result: Whether this is the last batch.

        Returns:
            The metrics of all images since the last result or error; empty unless `compute_result`.

        Raises:
            ValueError: If there were fewer images than a metric needs.
        """
        with ExitStack() as ending:
            ending.callback(self.reset)  # an error ends the evaluation, too
            predictions = prediction.predictions
            predictions = predictions[0] if isinstance(predictions, tuple) else predictions
            both = [
                torch.as_tensor(images).split(64) for images in (predictions, prediction.label_ids)
            ]
            for batch in zip(*both, strict=True):
                images, targets = (
                    to_uint8(self.processor.postprocess(part, "pt"), rounding)
                    for part, rounding in zip(batch, (self.protocol.rounding, "round"), strict=True)
                )
                indices = torch.arange(self.num_images, self.num_images + len(images))
                self.num_images += len(images)
                for name, values in pair_metrics(
                    self.means, images, targets, self.judges.lpips
                ).items():
                    self.means[name].update(values)
                for side, part in zip(self.sides, (images, targets), strict=True):
                    side.update(ImageBatch(indices, part))
            if not compute_result:
                ending.pop_all()
                return {}
            seen = ReferenceSet(TensorImages(torch.empty(self.num_images, 0)), self.metrics)
            protocol = dataclasses.replace(self.protocol, image_size=prediction.label_ids.shape[-1])
            check_feasible(
                self.metrics, protocol, self.judges, self.num_images, labelled=False, reference=seen
            )
            results = feature_metrics(*self.sides, {}, self.protocol, self.metrics, paired=True)
            results |= {name: mean.compute() for name, mean in self.means.items()}
        return {name: results[name].value for name in self.metrics}
