"""Statistics of features, gathered batch by batch on any number of processes, and the metrics
computed from them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from ..distributed import check_same, process_state
from ..progress import working
from .extractors import INCEPTION
from .image_sources import Fingerprint, ImageBatch, ImageSource, ReferenceImages
from .metric_networks import MetricNetworks
from .metrics.frechet import jackknife_frechet
from .metrics.gaussian_statistics import BlockedStatistics, GaussianStatistics
from .metrics.inception_score import InceptionScore
from .metrics.kernel import kernel_distance
from .metrics.precision_recall import density_coverage, precision_recall
from .metrics.standard_error import Estimate, RunningMean
from .protocol import (
    GAUSSIAN_METRICS,
    KERNEL_METRICS,
    NEIGHBOR_METRICS,
    REFERENCE_METRICS,
    Protocol,
)


class FeatureStatistics:
    """Statistics of the features and logits of a set of images.

    Memory does not grow with the number of images, except for `precision`, `recall`, `density`,
    `coverage` and `kernel_distance`, which keep all features: 4 bytes each, 8 KiB per image with
    Inception.

    Args:
        judges: The networks that the metrics need.
        metrics: Metrics to measure; only the statistics that they need are computed.
        num_images: Number of images in the whole evaluation.
        protocol: Settings of the metrics.
        classes: The classifier's class for each label, `(L,)`, see `match_classes`; the label
            itself if not given.
    """

    def __init__(
        self,
        judges: MetricNetworks,
        metrics: Sequence[str],
        num_images: int,
        protocol: Protocol,
        classes: torch.Tensor | None = None,
    ):
        extractor = judges.extractor
        self.classes = classes
        self.judges = judges
        self.fingerprint = Fingerprint()
        self.gaussian = self.spatial = self.inception_score = self.accuracy = None
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        if "frechet_distance" in metrics:
            self.gaussian = BlockedStatistics(extractor.num_features)
        if "spatial_frechet_distance" in metrics:
            self.spatial = BlockedStatistics(extractor.num_spatial)
        if "inception_score" in metrics:
            self.inception_score = InceptionScore(
                num_images,
                extractor.num_classes,
                protocol.inception_score_splits,
                protocol.inception_score_split_size,
            )
        if "accuracy" in metrics:
            self.accuracy = RunningMean()
        if set(metrics) & {*NEIGHBOR_METRICS, *KERNEL_METRICS}:
            self.kept = []

    def update(self, batch: ImageBatch) -> None:
        """Adds a batch of images."""
        self.fingerprint.update(batch.images)
        classified_apart = self.accuracy is not None and self.judges.classifier is not None
        if classified_apart:
            self.update_accuracy(self.judges.classifier(batch.images).logits, batch.labels)
        on_features = (self.gaussian, self.spatial, self.inception_score, self.kept)
        if all(part is None for part in on_features) and (
            self.accuracy is None or classified_apart
        ):
            return
        extracted = self.judges.extractor(batch.images)
        if self.accuracy is not None and not classified_apart:
            self.update_accuracy(extracted.logits, batch.labels)
        if self.gaussian is not None:
            self.gaussian.update(extracted.features, batch.indices)
        if self.spatial is not None:
            self.spatial.update(extracted.spatial, batch.indices)
        if self.inception_score is not None:
            self.inception_score.update(extracted.logits, batch.indices)
        if self.kept is not None:
            # a copy, since features may be a view of a larger output of the network
            self.kept.append(
                (batch.indices, extracted.features.to("cpu", torch.float32, copy=True))
            )

    def update_accuracy(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds logits `(B, K)` and labels `(B,)`."""
        self.accuracy.update(
            logits.argmax(-1).cpu() == (labels if self.classes is None else self.classes[labels])
        )

    def reduce(self) -> None:
        """Joins the statistics of all processes, in every process."""
        for part in (self.gaussian, self.spatial, self.inception_score, self.accuracy):
            if part is not None:
                part.reduce()
        if self.kept is not None:
            self.kept = gather_object(self.kept)
        self.sha256 = self.fingerprint.compute(gather_object([self.fingerprint.total]))

    @property
    def features(self) -> torch.Tensor:
        """All features, `(n, D)`, in the order of the images."""
        indices, features = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        return features[indices.argsort()]


class ReferenceSet:
    """The set that images are compared with: other images, or statistics from a file of ADM's.

    Args:
        source: The images; a file of ADM's may hold statistics only.
        metrics: All metrics to be measured.
    """

    def __init__(self, source: ImageSource, metrics: Sequence[str]):
        self.source = source
        self.stored: dict[str, GaussianStatistics] = {}
        if isinstance(source, ReferenceImages):
            statistics = (source.batch.statistics, source.batch.spatial_statistics)
            named = zip(GAUSSIAN_METRICS, statistics, strict=True)
            self.stored = {name: found for name, found in named if found is not None}
        self.metrics = [
            name for name in metrics if name in REFERENCE_METRICS and name not in self.stored
        ]
        self.gathered_by: tuple[MetricNetworks, Protocol] | None = None
        self.gathered: FeatureStatistics | None = None

    def gather(
        self, judges: MetricNetworks, protocol: Protocol, batch_size: int, progress_bar: bool
    ) -> FeatureStatistics | None:
        """Gathers the statistics that the metrics need; `None` if they need none of the images.

        They are kept for further calls with the same networks and protocol.
        """
        if self.metrics and self.gathered_by != (judges, protocol):
            gathered = FeatureStatistics(judges, self.metrics, self.source.num_images, protocol)
            for batch in self.source.progress(batch_size, "reference", progress_bar):
                gathered.update(batch)
            gathered.reduce()
            self.gathered, self.gathered_by = gathered, (judges, protocol)
        return self.gathered

    def describe(self, gathered: FeatureStatistics | None) -> dict[str, Any]:
        """Returns the fields that describe it in a result."""
        return self.source.describe() | (
            {} if gathered is None else {"fingerprint": gathered.sha256}
        )


def check_same_everywhere(
    protocol: Protocol, judges: MetricNetworks, *sources: ImageSource | None
) -> None:
    """Checks that all processes, each of which measures a share, have the same protocol, the same
    networks of the metrics, and as many images.

    Raises:
        ValueError: In every process, if one has others.
    """
    check_same(
        protocol=protocol.to_dict(),
        images=[None if source is None else source.num_images for source in sources],
        extractors={name: judge["weights_sha256"] for name, judge in judges.identities().items()},
    )


@working("metrics")
def feature_metrics(
    images: FeatureStatistics,
    reference: FeatureStatistics | None,
    stored: Mapping[str, GaussianStatistics],
    protocol: Protocol,
    metrics: Sequence[str],
    paired: bool,
) -> dict[str, Estimate]:
    """Computes the metrics on features in the main process, and returns them in every process.

    Args:
        images: Statistics of the evaluated images.
        reference: Statistics of the reference, if a metric compares with one.
        stored: Statistics that replace those of the reference.
        protocol: Settings of the metrics.
        metrics: Names of metrics; those that are not on features are left out.
        paired: Whether the evaluated images were made from those of the reference, in the same
            order.
    """
    state = process_state()
    # the other processes wait here for the results that the main one broadcasts at the end
    if not state.is_main_process:
        return broadcast_object_list([None])[0]
    if state.num_processes > 1:
        torch.set_num_threads(
            os.cpu_count()
        )  # torchrun allows each process one thread, and the other processes only wait
    results: dict[str, Estimate] = {}
    for name, part in zip(GAUSSIAN_METRICS, ("gaussian", "spatial"), strict=True):
        if name in metrics:
            of_reference = stored[name] if name in stored else getattr(reference, part)
            results[name] = jackknife_frechet(
                getattr(images, part), of_reference, paired and name not in stored
            )
    if "inception_score" in metrics:
        results["inception_score"] = images.inception_score.compute()
    if "accuracy" in metrics:
        results["accuracy"] = images.accuracy.compute()
    if set(metrics) & {"precision", "recall"}:
        results |= precision_recall(
            images.features, reference.features, protocol.precision_neighbors
        )
    if set(metrics) & {"density", "coverage"}:
        results |= density_coverage(images.features, reference.features, protocol.density_neighbors)
    if "kernel_distance" in metrics:
        results["kernel_distance"] = kernel_distance(
            images.features,
            reference.features,
            protocol.kernel_subsets,
            protocol.kernel_subset_size,
        )
    return broadcast_object_list([{name: results[name] for name in metrics if name in results}])[0]


def match_classes(
    source: ImageSource, judges: MetricNetworks, protocol: Protocol
) -> torch.Tensor | None:
    """Returns the classifier's class for each label of a source, `(L,)`; `None` if they are the
    same.

    Raises:
        ValueError: If both name their classes, and the classifier lacks one of the source's.
    """
    classifier = judges.classifier or judges.extractor
    names, known = source.class_names, list(classifier.class_names or ())
    if (
        protocol.class_matching == "ids"
        or not names
        or not known
        or list(names) == known[: len(names)]
    ):
        return None
    if missing := [name for name in names if name not in known]:
        raise ValueError(
            f"The classes of the images are not those of {classifier.name}: it has no "
            f"{missing[0]!r}, but {', '.join(map(repr, known[:5]))} and so on. If the ids mean the "
            "same classes, set `class_matching=ids`."
        )
    return torch.tensor([known.index(name) for name in names])


def check_feasible(
    metrics: Sequence[str],
    protocol: Protocol,
    judges: MetricNetworks,
    num_images: int,
    labelled: bool,
    reference: ReferenceSet | None,
) -> None:
    """Raises `ValueError` if the metrics cannot be computed, before any of the work is done.

    Args:
        metrics, protocol, judges: Same as in `FeatureStatistics`.
        num_images: Number of evaluated images.
        labelled: Whether the images have labels.
        reference: The set that they are compared with.
    """
    extractor = judges.extractor
    if "accuracy" in metrics:
        classifier = judges.classifier or extractor
        if not labelled:
            raise ValueError("accuracy needs labels: name their column, or leave the metric out.")
        if classifier.num_classes is None or classifier.name == INCEPTION:
            raise ValueError(
                f"accuracy needs a classifier of the data set's classes, which {classifier.name} "
                "is not: name one with `classifier=owner/model`."
            )
    if reference is None and (comparing := [name for name in metrics if name in REFERENCE_METRICS]):
        raise ValueError(
            f"{comparing[0]} needs images to compare with: name a file of ADM's, a folder or a "
            "data set as reference."
        )
    for name, smallest in (("ssim", 11), ("lpips", 16)):
        if name in metrics and protocol.image_size < smallest:
            raise ValueError(
                f"{name} needs images of at least {smallest} pixels, got {protocol.image_size}."
            )
    if extractor is None:
        return
    # fewest images of each metric, such as for a covariance of full rank
    needed = {
        "frechet_distance": extractor.num_features + 1,
        "spatial_frechet_distance": (extractor.num_spatial or 0) + 1,
        "inception_score": 1
        if protocol.inception_score_split_size
        else protocol.inception_score_splits,
        "precision": protocol.precision_neighbors + 1,
        "recall": protocol.precision_neighbors + 1,
        "density": protocol.density_neighbors + 1,
        "coverage": protocol.density_neighbors + 1,
        "kernel_distance": protocol.kernel_subset_size,
    }
    for name in metrics:
        if name == "spatial_frechet_distance" and extractor.num_spatial is None:
            raise ValueError(
                f"{name} needs spatial features, which only Inception has, not {extractor.name}."
            )
        if name == "inception_score" and extractor.num_classes is None:
            raise ValueError(
                f"{name} needs an extractor that classifies, which {extractor.name} does not."
            )
        if reference is not None and name in reference.stored:
            expected = (
                extractor.num_features if name == "frechet_distance" else extractor.num_spatial
            )
            if (got := reference.stored[name].num_features) != expected:
                raise ValueError(
                    f"The reference holds statistics of {got} features, and {extractor.name} has "
                    f"{expected}: they are of another extractor."
                )
        numbers = {"judged": num_images}
        if reference is not None and name in reference.metrics:
            numbers["reference"] = reference.source.num_images
        for which, number in numbers.items():
            if number < needed.get(name, 0):
                raise ValueError(
                    f"{name} with {extractor.name} needs at least {needed[name]} {which} images, "
                    f"got {number}. Use more images or an extractor with fewer features, or leave "
                    "the metric out."
                )
