"""The metrics as a module of `evaluate`: `evaluate.load(IMAGE_METRICS, "frechet_distance")`."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import torch
from PIL import Image

from titok_hf.evaluation.extractors import Judges, load_extractor
from titok_hf.evaluation.generation import measure_generation
from titok_hf.evaluation.metrics.estimate import Estimate
from titok_hf.evaluation.protocol import METRICS, PAIR_METRICS, Protocol
from titok_hf.evaluation.reconstruction import pair_metrics
from titok_hf.evaluation.sources import TensorImages, square_images
from titok_hf.evaluation.weights import load_lpips

NAMES = (*METRICS["generation"], *PAIR_METRICS)
DESCRIPTION = "One metric of images, by its configuration name. All images must be squares of one size."
INPUTS = """
Args:
    predictions: Images, PIL or uint8 arrays (H, W, 3).
    references: Images; for `accuracy` their classes; none for `inception_score`.
    extractor: Network of the features, see `titok_hf.evaluation.load_extractor`; for `accuracy` the classifier.
    extractor_weights: Its weights, if they are Inception's.
    protocol: Further fields of `titok_hf.evaluation.Protocol`, such as `precision_neighbors`.

Returns:
    The metric, and its `standard_error` (`None` where it is not known).
"""


class ImageMetrics(evaluate.Metric):
    """A metric of `titok_hf.evaluation` for `evaluate`; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in NAMES:
            raise ValueError(f"Name the metric, one of {', '.join(NAMES)}, got {self.config_name!r}.")
        features = {"predictions": datasets.Image()}
        if self.config_name == "accuracy":
            features["references"] = datasets.Value("int64")
        elif self.config_name != "inception_score":
            features["references"] = datasets.Image()
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=INPUTS, features=datasets.Features(features)
        )

    def _compute(
        self,
        predictions: Sequence[Image.Image],
        references: Sequence[Any] | None = None,
        extractor: str = "inception",
        extractor_weights: str | None = None,
        **protocol: Any,
    ) -> dict[str, float | None]:
        pictures = [image for image in (*predictions, *(references or ())) if isinstance(image, Image.Image)]
        sizes = {picture.size for picture in pictures}
        size = predictions[0].width
        if sizes != {(size, size)}:
            listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
            raise ValueError(f"All images must be squares of one size, got {listed}.")
        fields = {"source": "evaluate", "crop": "none", "rounding": "round", "reference": "originals"}
        metrics = {"generation": [self.config_name]}
        if self.config_name in PAIR_METRICS:
            metrics = {"reconstruction": [self.config_name]}
        fields |= {"name": self.config_name, "image_size": size, "extractor": extractor, "metrics": metrics}
        loaded = Protocol.from_dict(fields | protocol)
        images = square_images(predictions, loaded)
        if self.config_name in PAIR_METRICS:
            lpips = load_lpips() if self.config_name == "lpips" else None
            pairs = zip(images.split(64), square_images(references, loaded).split(64), strict=True)
            values = [pair_metrics(metrics["reconstruction"], *pair, lpips)[self.config_name] for pair in pairs]
            estimate = Estimate.mean(torch.cat(values))
        else:
            labels = against = None
            if self.config_name == "accuracy":
                labels = torch.tensor(references)
            elif references is not None:
                against = TensorImages(square_images(references, loaded))
            judges = Judges(load_extractor(extractor, extractor_weights))
            measured = measure_generation([TensorImages(images, labels)], against, loaded, judges, progress_bar=False)
            estimate = measured.metrics[self.config_name]
        return {self.config_name: estimate.value, "standard_error": estimate.standard_error}
