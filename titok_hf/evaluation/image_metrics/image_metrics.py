"""The metrics as a module of `evaluate`: `evaluate.load(IMAGE_METRICS, "frechet_distance")`."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from PIL import Image

from titok_hf.evaluation.generation import measure_generation
from titok_hf.evaluation.image_sources import TensorImages, square_images
from titok_hf.evaluation.metric_networks import MetricNetworks, load_extractor
from titok_hf.evaluation.metrics.codebook import CodebookUsage
from titok_hf.evaluation.metrics.standard_error import Estimate
from titok_hf.evaluation.protocol import CODE_METRICS, METRICS, PAIR_METRICS, Protocol
from titok_hf.evaluation.reconstruction import pair_metrics
from titok_hf.perceptual.published_weights import load_lpips

NAMES = (*METRICS["generation"], *PAIR_METRICS, *CODE_METRICS)
IMAGES = "images, PIL with 8 bits a channel or uint8 arrays (H, W, 3)"
CLASSES = "classes, integers"
CODES = "sequences of codes, integers"
DESCRIPTION = (
    "One metric of images, by its configuration name. All images must be squares of one size."
)
INPUTS = """
Args:
    predictions: Images, PIL with 8 bits per channel or uint8 arrays (H, W, 3); for `codebook_...` the codes of each
        image, a sequence of integers.
    references: Images; for `accuracy` the classes of the predictions; none for `inception_score` and `codebook_...`.
    codebook_size: Number of codes; for `codebook_...` only, which take no other argument.
    extractor: Network of the features, see `titok_hf.evaluation.load_extractor`; for `accuracy` the classifier.
    extractor_weights: Weights of an Inception extractor.
    protocol: Further fields of `titok_hf.evaluation.Protocol`, such as `precision_neighbors`.

Returns:
    The metric and its `standard_error` (`None` where it is not known).
"""


class ImageMetrics(evaluate.Metric):
    """A metric of `titok_hf.evaluation` for `evaluate`; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in NAMES:
            raise ValueError(
                f"Name the metric, one of {', '.join(NAMES)}, got {self.config_name!r}."
            )
        features = {"predictions": datasets.Image()}
        if self.config_name in CODE_METRICS:
            features["predictions"] = datasets.List(datasets.Value("int64"))
        elif self.config_name == "accuracy":
            features["references"] = datasets.Value("int64")
        elif self.config_name != "inception_score":
            features["references"] = datasets.Image()
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds predictions and references; see `INPUTS`."""
        expected = CODES if self.config_name in CODE_METRICS else IMAGES
        predictions = check_inputs("predictions", predictions, expected)
        if "references" in self._feature_names():
            expected = CLASSES if self.config_name == "accuracy" else IMAGES
            references = check_inputs("references", references, expected)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one prediction and its reference; see `add_batch`."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def _compute(self, predictions: Sequence[Any], **arguments: Any) -> dict[str, float | None]:
        estimate = (self.of_codes if self.config_name in CODE_METRICS else self.of_images)(
            predictions, **arguments
        )
        return {self.config_name: estimate.value, "standard_error": estimate.standard_error}

    def of_codes(self, codes: Sequence[Sequence[int]], **arguments: Any) -> Estimate:
        """Computes a metric of codes; `codebook_size` is its only argument."""
        size = arguments.get("codebook_size")
        if set(arguments) != {"codebook_size"} or not isinstance(size, int) or size < 1:
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise ValueError(
                f"{self.config_name} needs the number of codes, `codebook_size=4096`, and no other "
                f"argument, got {given or 'none'}."
            )
        lengths = torch.tensor([len(row) for row in codes])
        flat = torch.tensor([code for row in codes for code in row])[:, None]  # (codes, 1)
        usage = CodebookUsage(size)
        usage.update(flat, torch.arange(len(codes)).repeat_interleave(lengths))
        return usage.estimates()[self.config_name.removeprefix("codebook_")]

    def of_images(
        self,
        predictions: Sequence[Image.Image],
        references: Sequence[Any] | None = None,
        extractor: str = "inception",
        extractor_weights: str | None = None,
        **protocol: Any,
    ) -> Estimate:
        """Computes a metric of images; see `INPUTS`."""
        pictures = [
            image for image in (*predictions, *(references or ())) if isinstance(image, Image.Image)
        ]
        sizes = {picture.size for picture in pictures}
        size = predictions[0].width
        if sizes != {(size, size)}:
            listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
            raise ValueError(f"All images must be squares of one size, got {listed}.")
        fields = {
            "source": "evaluate",
            "crop": "none",
            "rounding": "round",
            "reference": "originals",
        }
        metrics = {"generation": [self.config_name]}
        if self.config_name in PAIR_METRICS:
            metrics = {"reconstruction": [self.config_name]}
        fields |= {
            "name": self.config_name,
            "image_size": size,
            "extractor": extractor,
            "metrics": metrics,
        }
        loaded = Protocol.from_dict(fields | protocol)
        images = square_images(predictions, loaded)
        if self.config_name in PAIR_METRICS:
            lpips = load_lpips() if self.config_name == "lpips" else None
            pairs = zip(images.split(64), square_images(references, loaded).split(64), strict=True)
            values = [
                pair_metrics(metrics["reconstruction"], *pair, lpips)[self.config_name]
                for pair in pairs
            ]
            return Estimate.mean(torch.cat(values))
        labels = against = None
        if self.config_name == "accuracy":
            labels = torch.tensor(references)
        elif references is not None:
            against = TensorImages(square_images(references, loaded))
        judges = MetricNetworks(load_extractor(extractor, extractor_weights))
        num_classes = judges.extractor.num_classes
        if (
            labels is not None
            and num_classes
            and not (labels.min() >= 0 and labels.max() < num_classes)
        ):
            raise ValueError(
                f"`references` must be the classes of {judges.extractor.name}, in [0, "
                f"{num_classes}), got values from {labels.min()} to {labels.max()}."
            )
        measured = measure_generation(
            [TensorImages(images, labels)], against, loaded, judges, progress_bar=False
        )
        return measured.metrics[self.config_name]


def check_inputs(name: str, values: Any, expected: str) -> list[Any]:
    """Returns the values as a list of PIL images, lists of codes, or classes.

    Args:
        name: Name of the argument, for errors.
        values: Value of the argument.
        expected: `IMAGES`, `CODES` or `CLASSES`.
    """
    try:
        rows = list(values)
    except TypeError:
        raise ValueError(
            f"`{name}` must be a list of {expected}, got {described(values)}."
        ) from None
    if not rows:
        raise ValueError(f"`{name}` must be a list of {expected}, got an empty one.")
    checked = [
        as_picture(row) if expected == IMAGES else as_integers(row, int(expected == CODES))
        for row in rows
    ]
    for index, value in enumerate(checked):
        if value is None:
            raise ValueError(
                f"`{name}` must be {expected}, got {described(rows[index])} at index {index}."
            )
    return checked


def as_picture(value: Any) -> Image.Image | None:
    """Returns a PIL image; `None` if the value is not an image with 8 bits per channel."""
    if (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and value.ndim == 3
        and value.shape[2] == 3
    ):
        return Image.fromarray(value)
    return value if isinstance(value, Image.Image) and value.mode[0] not in "FI" else None


def as_integers(value: Any, ndim: int) -> int | list[int] | None:
    """Returns an integer (`ndim` 0) or a list of integers (`ndim` 1); `None` for other values."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    return (
        array.tolist() if array.ndim == ndim and array.size and array.dtype.kind in "iu" else None
    )


def described(value: Any) -> str:
    """Describes a wrong value in a few words, for an error."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} values of shape {tuple(value.shape)}"
    if isinstance(value, Image.Image):
        return f"a PIL image of mode {value.mode}"
    return "none" if value is None else f"{type(value).__name__} {str(value)[:40]}"
