import numpy as np
import pytest
import torch

from titok_hf import TiTokImageProcessor
from titok_hf.data import ImageCollator
from titok_hf.data.digits import load_digits_dataset, load_digits_pixels
from titok_hf.evaluation.digits import DigitsJudge

pytestmark = pytest.mark.xdist_group("judge")


@pytest.fixture(scope="module")
def batches():
    """All images and labels of each split."""
    collate = ImageCollator(TiTokImageProcessor.from_image_size(32), label_column="label")
    return {split: collate(list(rows)) for split, rows in load_digits_dataset().items()}


@pytest.fixture(scope="module")
def judge(batches):
    return DigitsJudge(batches["train"]["pixel_values"], batches["test"]["pixel_values"])


def test_pixels_are_block_means_of_gray(judge):
    images = torch.rand(2, 3, 32, 32)
    expected = images.numpy().reshape(2, 3, 8, 4, 8, 4).mean((1, 3, 5)).reshape(2, 64)
    assert judge.pixels(images) == pytest.approx(expected, abs=1e-6)


def test_pixels_are_clamped_before_they_are_averaged(judge):
    images = torch.zeros(1, 3, 32, 32)
    images[..., ::2] = 9.0
    images[..., 1::2] = -9.0
    assert judge.pixels(images) == pytest.approx(np.full((1, 64), 0.5))


def test_real_held_out_digits_are_read(judge, batches):
    images, labels = batches["test"]["pixel_values"], batches["test"]["class_labels"]
    assert judge.accuracy(images, labels) > 0.97
    assert judge.accuracy(images, labels.tolist()) == judge.accuracy(images, labels)
    assert judge.accuracy(images, (labels + 1) % 10) < 0.03


def test_accuracy_is_a_share(judge, batches):
    images, labels = batches["train"]["pixel_values"][:4], batches["train"]["class_labels"][:4].tolist()
    assert judge.accuracy(images, labels) == 1
    labels[2] = (labels[2] + 1) % 10
    assert judge.accuracy(images, labels) == 0.75


def test_its_classifier_knows_the_training_digits_only(judge):
    training, labels = load_digits_pixels("train")
    assert judge.classifier.score(training * 16, labels) == 1
    support = {tuple(row) for row in judge.classifier.support_vectors_}
    assert support <= {tuple(row) for row in training * 16}


def test_distances_are_to_the_training_images(judge, batches):
    for known, split in ((judge.training_pixels, "train"), (judge.held_out_pixels, "test")):
        assert np.array_equal(known, judge.pixels(batches[split]["pixel_values"]))
    assert judge.nearest_distances(judge.held_out_pixels).min() > 0


def test_frechet_distance_tells_real_digits_from_others(judge, batches):
    assert judge.frechet_distance(batches["train"]["pixel_values"]) == pytest.approx(0, abs=1e-6)
    held_out = judge.frechet_distance(batches["test"]["pixel_values"])
    assert 0 < held_out < 0.2
    assert judge.frechet_distance(torch.rand(100, 3, 32, 32)) > 10 * held_out
    one_class = batches["test"]["pixel_values"][batches["test"]["class_labels"] == 0]
    assert judge.frechet_distance(one_class) > 10 * held_out


def test_copies_of_training_digits_are_memorized(judge, batches):
    found = judge.memorization(batches["train"]["pixel_values"][:50])
    assert found == {"nearest_neighbor_ratio": pytest.approx(0, abs=1e-6), "share_nearer_than_held_out": 1}


def test_new_real_digits_are_not_memorized(judge, batches):
    found = judge.memorization(batches["test"]["pixel_values"])
    assert found["nearest_neighbor_ratio"] == pytest.approx(1)
    assert found["share_nearer_than_held_out"] == pytest.approx(0.5, abs=0.01)


def test_noise_is_far_from_every_digit(judge):
    found = judge.memorization(torch.rand(20, 3, 32, 32))
    assert found["nearest_neighbor_ratio"] > 1.5
    assert found["share_nearer_than_held_out"] == 0


def test_nearest_distances_are_euclidean(judge):
    pixels = np.random.default_rng(0).random((5, 64))
    expected = [min(np.linalg.norm(row - other) for other in judge.training_pixels) for row in pixels]
    assert judge.nearest_distances(pixels) == pytest.approx(expected)
