"""Tests of gathered statistics against numpy on directly extracted features."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from titok_hf.evaluation.adm import ReferenceBatch
from titok_hf.evaluation.digits import DigitsExtractor
from titok_hf.evaluation.extractors import INCEPTION
from titok_hf.evaluation.feature_statistics import (
    FeatureStatistics,
    ReferenceSet,
    check_feasible,
    feature_metrics,
)
from titok_hf.evaluation.image_sources import ImageBatch, ReferenceImages, TensorImages
from titok_hf.evaluation.metric_networks import MetricNetworks
from titok_hf.evaluation.protocol import CLASS_METRICS, GAUSSIAN_METRICS, NEIGHBOR_METRICS, Protocol

from . import formulas
from .tiny_models import Colors

ALL = (*GAUSSIAN_METRICS, *NEIGHBOR_METRICS, "kernel_distance", *CLASS_METRICS)
CHANGES = (
    "inception_score_splits=4",
    "kernel_subsets=1",
    "kernel_subset_size=40",
    "density_neighbors=4",
)


@pytest.fixture
def protocol():
    return Protocol.load("demo", CHANGES)


@pytest.fixture
def images():
    """40 images of many colors."""
    return (torch.rand(40, 3, 1, 1) * torch.rand(40, 3, 8, 8) * 256).to(torch.uint8)


@pytest.fixture
def real():
    return (torch.rand(40, 3, 1, 1).sqrt() * torch.rand(40, 3, 8, 8) * 256).to(torch.uint8)


def colors(images):
    """The features of `Colors`, once more."""
    return images.numpy().astype(float).mean((2, 3)) / 255


def halves(images):
    red = images[:, 0].numpy().astype(float) / 255
    return np.stack([red[:, :, :4].mean((1, 2)), red[:, :, 4:].mean((1, 2))], 1)


def gathered(judges, metrics, source, protocol, batch_size=16):
    found = FeatureStatistics(judges, metrics, source.num_images, protocol)
    for batch in source.batches(batch_size):
        found.update(batch)
    found.reduce()
    return found


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_all_metrics_are_those_of_the_papers(images, real, protocol, batch_size):
    labels = torch.arange(40) % 3
    judges = MetricNetworks(Colors())
    ours = gathered(judges, ALL, TensorImages(images, labels), protocol, batch_size)
    reference = ReferenceSet(TensorImages(real), ALL)
    theirs = reference.gather(judges, protocol, batch_size, progress_bar=False)
    metrics = feature_metrics(ours, theirs, reference.stored, protocol, ALL, paired=False)
    assert list(metrics) == list(ALL)
    found = {name: estimate.value for name, estimate in metrics.items()}
    x, y = colors(images), colors(real)
    kept, kept_reference = x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)
    assert found == {
        "frechet_distance": pytest.approx(formulas.frechet_distance(x, y), rel=1e-9),
        "spatial_frechet_distance": pytest.approx(
            formulas.frechet_distance(halves(images), halves(real)), rel=1e-9
        ),
        "precision": formulas.precision(kept, kept_reference, 3),
        "recall": formulas.precision(kept_reference, kept, 3),
        "density": pytest.approx(formulas.density(kept, kept_reference, 4)),
        "coverage": formulas.coverage(kept, kept_reference, 4),
        "kernel_distance": pytest.approx(formulas.kernel_distance(kept, kept_reference), rel=1e-9),
        "accuracy": pytest.approx(np.mean(x.argmax(1) == labels.numpy())),
        "inception_score": pytest.approx(formulas.inception_score(20 * x, 4), rel=1e-9),
    }
    assert (
        0 < found["precision"] < 1 and 0 < found["coverage"] < 1 and found["inception_score"] > 1.5
    )


def test_images_may_come_in_any_order(images, real, protocol):
    judges, source = MetricNetworks(Colors()), TensorImages(images, torch.arange(40) % 3)
    expected = gathered(judges, ALL, source, protocol)
    mixed = FeatureStatistics(judges, ALL, 40, protocol)
    for indices in torch.randperm(40).split(9):
        mixed.update(ImageBatch(indices, images[indices], indices % 3))
    mixed.reduce()
    assert torch.equal(mixed.features, expected.features)
    assert torch.equal(mixed.features, torch.from_numpy(colors(images)).float())
    assert mixed.sha256 == expected.sha256
    reference = gathered(judges, ALL, TensorImages(real, torch.zeros(40)), protocol)
    ours, theirs = (
        feature_metrics(side, reference, {}, protocol, ALL, paired=False)
        for side in (mixed, expected)
    )
    for name, estimate in theirs.items():
        assert ours[name].value == pytest.approx(estimate.value, rel=1e-9), name


def test_digits_are_seen_by_their_own_classifier(protocol):
    """And by another one, if there is one."""
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(20) % 10
    digits, labelled = DigitsExtractor(), TensorImages(images, labels)
    expected = float((digits(images).logits.argmax(1) == labels).double().mean())
    for judges in (
        MetricNetworks(digits),
        MetricNetworks(classifier=digits),
        MetricNetworks(Colors(), digits),
    ):
        found = gathered(judges, ["accuracy"], labelled, protocol)
        assert found.accuracy.compute().value == pytest.approx(expected)
    found = gathered(
        MetricNetworks(Colors(), digits), ["accuracy", "frechet_distance"], labelled, protocol
    )
    assert found.accuracy.compute().value == pytest.approx(expected)
    assert found.gaussian.num_features == 3


def test_paired_images_have_a_smaller_error(images, protocol):
    """Errors of the distance to other images hold the spread of both; of reconstructions it cancels
    out."""
    judges = MetricNetworks(Colors())
    changed = (images.float() * 0.97).to(torch.uint8)
    first, second = (
        gathered(judges, ["frechet_distance"], TensorImages(x), protocol) for x in (changed, images)
    )
    paired, apart = (
        feature_metrics(first, second, {}, protocol, ["frechet_distance"], pairs)[
            "frechet_distance"
        ]
        for pairs in (True, False)
    )
    assert (
        paired.value
        == apart.value
        == pytest.approx(formulas.frechet_distance(colors(changed), colors(images)))
    )
    assert 0 < paired.standard_error < apart.standard_error


def test_only_what_is_needed_is_computed(images, protocol):
    judges = MetricNetworks(Colors())
    gathered(judges, [], TensorImages(images), protocol)
    assert judges.extractor.num_seen == 0
    gathered(judges, ["inception_score"], TensorImages(images), protocol)
    assert judges.extractor.num_seen == 40
    judges.extractor.num_seen = 0
    gathered(judges, ALL, TensorImages(images, torch.zeros(40)), protocol)
    assert judges.extractor.num_seen == 40  # and not twice for accuracy
    reference = ReferenceSet(TensorImages(images), ["inception_score", "accuracy"])
    assert reference.gather(judges, protocol, 16, progress_bar=False) is None


def test_nan_in_features_is_refused(images, protocol):
    class Broken(Colors):
        def __call__(self, images: torch.Tensor) -> Any:
            seen = super().__call__(images)
            return replace(seen, features=seen.features / 0 * 0)

    found = FeatureStatistics(MetricNetworks(Broken()), ["frechet_distance"], 40, protocol)
    with pytest.raises(ValueError, match="must be finite"):
        found.update(ImageBatch(torch.arange(40), images))


def kept_bytes(part, seen=None):
    """Bytes of the memory that an object's tensors hold, each counted once."""
    seen = set() if seen is None else seen
    if isinstance(part, torch.Tensor):
        part = part.untyped_storage()
        key = part.data_ptr()
    else:
        key = id(part)
    if key in seen or isinstance(part, type):
        return 0
    seen.add(key)
    if isinstance(part, torch.UntypedStorage):
        return part.nbytes()
    if isinstance(part, dict):
        return sum(kept_bytes(value, seen) for value in part.values())
    if isinstance(part, (list, tuple)):
        return sum(kept_bytes(value, seen) for value in part)
    return kept_bytes(vars(part), seen) if hasattr(part, "__dict__") else 0


@pytest.mark.parametrize(
    ("metrics", "grows_by"),
    [
        ((*GAUSSIAN_METRICS, *CLASS_METRICS), 0),
        *(
            ((name,), 3 * 4 + 8) for name in (*NEIGHBOR_METRICS, "kernel_distance")
        ),  # float32 features, and the index
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_memory_grows_only_where_features_are_needed(protocol, metrics, grows_by):

    class Parts(Colors):
        """Features are a part of a larger tensor."""

        def __call__(self, images: torch.Tensor) -> Any:
            seen = super().__call__(images)
            return replace(
                seen, features=torch.cat([seen.features, seen.features], 1).float()[:, :3]
            )

    number, batch_size = 30000, 250
    found = FeatureStatistics(MetricNetworks(Parts()), metrics, number, protocol)
    images = torch.randint(0, 256, (batch_size, 3, 2, 2), dtype=torch.uint8)
    sizes = []
    for start in range(0, number, batch_size):
        indices = torch.arange(start, start + batch_size)
        found.update(ImageBatch(indices, images, indices % 3))
        sizes.append(kept_bytes(found))
    if grows_by:
        assert np.diff(sizes).tolist() == [grows_by * batch_size] * (len(sizes) - 1)
    else:
        assert max(sizes[60:]) <= max(sizes[:60]) * 1.02
        assert (
            max(sizes) < 10 * 8 * (512 + batch_size) * (3 + 2) + 10000
        )  # rows that wait to be multiplied


class TestReference:
    def test_statistics_of_a_file_take_the_place_of_images(self, tmp_path, images, real, protocol):
        x, y = colors(images), colors(real)
        pixels = np.ascontiguousarray(real.numpy().transpose(0, 2, 3, 1))
        mu, sigma = y.mean(0) + 0.1, np.cov(y.T) * 2
        np.savez(tmp_path / "reference.npz", arr_0=pixels, mu=mu, sigma=sigma)
        source = ReferenceImages(
            ReferenceBatch.load(tmp_path / "reference.npz"), replace(protocol, image_size=8)
        )
        judges, metrics = (
            MetricNetworks(Colors()),
            ("frechet_distance", "spatial_frechet_distance", "recall"),
        )
        reference = ReferenceSet(source, metrics)
        assert list(reference.stored) == ["frechet_distance"]
        check_feasible(metrics, protocol, judges, 40, False, reference)
        theirs = reference.gather(judges, protocol, 16, progress_bar=False)
        assert theirs.gaussian is None
        ours = gathered(judges, metrics, TensorImages(images), protocol)
        found = feature_metrics(ours, theirs, reference.stored, protocol, metrics, paired=False)
        expected = formulas.frechet_distance(x, mu + 2**0.5 * (y - y.mean(0)))
        assert found["frechet_distance"].value == pytest.approx(expected)
        spatial = formulas.frechet_distance(halves(images), halves(real))
        assert found["spatial_frechet_distance"].value == pytest.approx(spatial)
        described = reference.describe(theirs)
        assert (
            described["file"].endswith("reference.npz")
            and described["fingerprint"] == theirs.sha256
        )

    def test_statistics_alone_need_no_images(self, tmp_path, images, protocol):
        np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
        source = ReferenceImages(ReferenceBatch.load(tmp_path / "statistics.npz"), protocol)
        judges, reference = MetricNetworks(Colors()), ReferenceSet(source, ["frechet_distance"])
        assert reference.gather(judges, protocol, 16, progress_bar=False) is None
        assert "fingerprint" not in reference.describe(None)
        assert judges.extractor.num_seen == 0

    def test_it_is_gathered_once_for_the_same_networks_and_protocol(self, real, protocol):
        reference = ReferenceSet(TensorImages(real), ["frechet_distance"])
        judges, others = MetricNetworks(Colors()), MetricNetworks(Colors())
        first = reference.gather(judges, protocol, 16, progress_bar=False)
        assert reference.gather(judges, replace(protocol), 8, progress_bar=False) is first
        assert judges.extractor.num_seen == len(real)
        assert reference.gather(others, protocol, 16, progress_bar=False) is not first
        other = replace(protocol, image_size=2 * protocol.image_size)
        second = reference.gather(others, other, 16, progress_bar=False)
        assert others.extractor.num_seen == 2 * len(real)

        class Interrupted(Colors):
            def __call__(self, images):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reference.gather(MetricNetworks(Interrupted()), other, 16, progress_bar=False)
        assert reference.gather(others, other, 16, progress_bar=False) is second


class TestCheckFeasible:
    def check(
        self,
        protocol,
        *metrics,
        judges=None,
        num_images=100,
        labelled=True,
        reference_images=100,
        stored=None,
    ):
        reference = None
        if reference_images is not None:
            reference = ReferenceSet(
                TensorImages(torch.zeros(reference_images, 3, 8, 8, dtype=torch.uint8)), metrics
            )
        if stored is not None:
            reference = ReferenceSet(
                ReferenceImages(ReferenceBatch.load(stored), protocol), metrics
            )
        check_feasible(
            metrics, protocol, judges or MetricNetworks(Colors()), num_images, labelled, reference
        )

    @pytest.mark.parametrize(
        ("metric", "needed"),
        [
            ("frechet_distance", 4),
            ("spatial_frechet_distance", 3),
            ("precision", 4),
            ("recall", 4),
            ("density", 5),
            ("coverage", 5),
            ("kernel_distance", 40),
        ],
    )
    def test_few_images(self, protocol, metric, needed):
        self.check(protocol, metric, num_images=needed, reference_images=needed)
        sentence = f"{metric} with colors needs at least {needed} {{}} images, got {needed - 1}. Use more images"
        with pytest.raises(ValueError, match=sentence.format("judged")):
            self.check(protocol, metric, num_images=needed - 1)
        with pytest.raises(ValueError, match=sentence.format("reference")):
            self.check(protocol, metric, reference_images=needed - 1)

    def test_fewer_images_than_parts(self, protocol):
        self.check(protocol, "inception_score", num_images=4, reference_images=None)
        with pytest.raises(
            ValueError, match="inception_score with colors needs at least 4 judged images, got 3"
        ):
            self.check(protocol, "inception_score", num_images=3, reference_images=1)

    def test_metrics_of_classes_need_no_reference(self, protocol):
        self.check(protocol, "accuracy", "inception_score", reference_images=None)
        self.check(
            protocol,
            "accuracy",
            judges=MetricNetworks(classifier=DigitsExtractor()),
            reference_images=None,
        )

    def test_no_labels(self, protocol):
        with pytest.raises(
            ValueError, match="accuracy needs labels: name their column, or leave the metric out"
        ):
            self.check(protocol, "accuracy", labelled=False)

    @pytest.mark.parametrize("name", ["dinov2", INCEPTION])
    def test_no_classifier(self, protocol, name):
        extractor = Colors()
        extractor.name, extractor.num_classes = name, 1008 if name == INCEPTION else None
        with pytest.raises(
            ValueError, match=f"accuracy needs a classifier of the data set's classes, which {name}"
        ):
            self.check(protocol, "accuracy", judges=MetricNetworks(extractor))
        self.check(protocol, "accuracy", judges=MetricNetworks(extractor, DigitsExtractor()))

    def test_no_logits_and_no_spatial_features(self, protocol):
        extractor = Colors()
        extractor.num_classes = extractor.num_spatial = None
        judges = MetricNetworks(extractor)
        with pytest.raises(
            ValueError, match="inception_score needs an extractor that classifies, which colors do"
        ):
            self.check(protocol, "inception_score", judges=judges)
        with pytest.raises(
            ValueError, match="spatial_frechet_distance needs spatial features, which only In"
        ):
            self.check(protocol, "spatial_frechet_distance", judges=judges)

    @pytest.mark.parametrize(
        "metric", ["frechet_distance", "spatial_frechet_distance", "recall", "kernel_distance"]
    )
    def test_no_reference(self, protocol, metric):
        with pytest.raises(
            ValueError,
            match=f"{metric} needs images to compare with: name a file of ADM's, a folder",
        ):
            self.check(protocol, "accuracy", metric, reference_images=None)

    @pytest.mark.parametrize(
        ("metric", "names", "expected"),
        [
            ("frechet_distance", ("mu", "sigma"), 3),
            ("spatial_frechet_distance", ("mu_s", "sigma_s"), 2),
        ],
    )
    def test_statistics_of_another_extractor(self, protocol, tmp_path, metric, names, expected):
        np.savez(tmp_path / "other.npz", **dict(zip(names, (np.zeros(7), np.eye(7)), strict=True)))
        sentence = f"The reference holds statistics of 7 features, and colors has {expected}: they are of another extr"
        with pytest.raises(ValueError, match=sentence):
            self.check(protocol, metric, stored=tmp_path / "other.npz")
        np.savez(
            tmp_path / "ours.npz",
            **dict(zip(names, (np.zeros(expected), np.eye(expected)), strict=True)),
        )
        self.check(protocol, metric, stored=tmp_path / "ours.npz")

    def test_statistics_without_the_images_that_a_metric_needs(self, protocol, tmp_path):
        np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
        with pytest.raises(
            ValueError, match="recall with colors needs at least 4 reference images, got 0"
        ):
            self.check(protocol, "frechet_distance", "recall", stored=tmp_path / "statistics.npz")
