import hashlib

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

from titok_hf.data.digits import load_digits_pixels
from titok_hf.evaluation.digits import DigitsExtractor
from titok_hf.evaluation.extractors import FeatureExtractor
from titok_hf.evaluation.image_sources import open_source
from titok_hf.evaluation.neighbors import nearest_neighbors
from titok_hf.evaluation.protocol import Protocol


@pytest.fixture(scope="module")
def extractor():
    return DigitsExtractor()


@pytest.fixture(scope="module")
def digits():
    """All images of each split, as an evaluation sees them."""
    protocol = Protocol.load("demo")
    return {
        split: torch.cat(
            [batch.images for batch in open_source("digits", protocol, split).batches(512)]
        )
        for split in ("train", "test")
    }


def distances(images, others):
    """Returns the distance of each image to its nearest one."""
    return np.array([np.sqrt(((others - image) ** 2).sum(1)).min() for image in images])


def test_it_keeps_the_contract(extractor):
    assert isinstance(extractor, FeatureExtractor)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    seen = extractor(images)
    assert seen.features.shape == (3, extractor.num_features) and seen.logits.shape == (
        3,
        extractor.num_classes,
    )
    assert seen.spatial is None and extractor.num_spatial is None
    assert extractor.input_size == 8


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_features_are_block_means_of_gray(extractor, size):
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    block = size // 8
    expected = (
        images.numpy()
        .astype(float)
        .reshape(2, 3, 8, block, 8, block)
        .mean((1, 3, 5))
        .reshape(2, 64)
        / 255
    )
    np.testing.assert_allclose(extractor(images).features, expected, atol=1e-12)


def test_digits_of_8_pixels_come_back(extractor):
    pixels, labels = load_digits_pixels("test")
    images = (
        torch.from_numpy((pixels * 255).round().astype(np.uint8))
        .view(-1, 1, 8, 8)
        .expand(-1, 3, -1, -1)
    )
    seen = extractor(images)
    np.testing.assert_allclose(seen.features, pixels, atol=0.5 / 255 + 1e-9)
    assert (seen.logits.argmax(1).numpy() == labels).mean() > 0.98


def test_real_held_out_digits_are_read(extractor, digits):
    _, labels = load_digits_pixels("test")
    read = extractor(digits["test"]).logits.argmax(1).numpy()
    assert (read == labels).mean() > 0.97
    assert (read == (labels + 1) % 10).mean() < 0.03


def test_its_classifier_is_the_one_that_it_says(extractor, digits):
    """The largest logit is what scikit-learn predicts, with ties broken by the decision function."""
    pixels, labels = load_digits_pixels("train")
    judge = SVC(gamma=0.001, C=10, break_ties=True).fit(pixels * 16, labels)
    for images in (digits["test"], torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8)):
        seen = extractor(images)
        assert np.array_equal(seen.logits.argmax(1), judge.predict(seen.features.numpy() * 16))


def test_it_knows_the_training_digits_only(extractor):
    training, labels = load_digits_pixels("train")
    assert extractor.classifier.score(training * 16, labels) == 1
    support = {tuple(row) for row in extractor.classifier.support_vectors_}
    assert support <= {tuple(row) for row in training * 16}


def test_an_image_is_seen_as_if_alone(extractor, digits):
    together, alone = extractor(digits["test"][:5]), extractor(digits["test"][3:4])
    assert torch.equal(together.features[3:4], alone.features)
    torch.testing.assert_close(together.logits[3:4], alone.logits)


def test_its_identity_is_always_the_same_and_that_of_its_weights(extractor):
    identity = extractor.identity()
    assert identity == DigitsExtractor().identity()
    classifier = extractor.classifier
    content = classifier.support_vectors_.tobytes() + classifier.dual_coef_.tobytes("C")
    content += classifier.intercept_.tobytes()
    assert identity["weights_sha256"] == hashlib.sha256(content).hexdigest()
    assert identity.keys() == {"name", "weights", "weights_sha256", "preprocessing"}
    assert identity["name"] == extractor.name


class TestNearestNeighbors:
    def test_distances_are_euclidean_and_medians_are_medians(self, extractor, digits):
        """The numbers of images are even and odd."""
        for number in (20, 21):
            images = digits["test"][:number] // 4 * 3
            training, held_out = digits["train"][:100], digits["test"][100 : 100 + number]
            features = [extractor(part).features.numpy() for part in (images, training, held_out)]
            ours, new = distances(features[0], features[1]), distances(features[2], features[1])
            found = nearest_neighbors(extractor, images, training, held_out)
            assert 0 < found["share_nearer_than_held_out"] < 1
            assert found == {
                "nearest_neighbor_ratio": pytest.approx(np.median(ours) / np.median(new), rel=1e-9),
                "share_nearer_than_held_out": pytest.approx((ours < np.median(new)).mean()),
            }

    def test_copies_are_memorized(self, extractor, digits):
        found = nearest_neighbors(extractor, digits["train"][:50], digits["train"], digits["test"])
        assert found == {
            "nearest_neighbor_ratio": pytest.approx(0, abs=1e-6),
            "share_nearer_than_held_out": 1,
        }

    def test_new_real_digits_are_not(self, extractor, digits):
        found = nearest_neighbors(extractor, digits["test"], digits["train"], digits["test"])
        assert found["nearest_neighbor_ratio"] == pytest.approx(1)
        assert found["share_nearer_than_held_out"] == pytest.approx(0.5, abs=0.01)

    def test_noise_is_far_from_every_digit(self, extractor, digits):
        noise = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
        found = nearest_neighbors(extractor, noise, digits["train"], digits["test"])
        assert found["nearest_neighbor_ratio"] > 1.5
        assert found["share_nearer_than_held_out"] == 0
