import numpy as np
import pytest
from sklearn.datasets import load_digits

from titok_hf import TiTokImageProcessor
from titok_hf.data import ImageCollator, open_images
from titok_hf.data.digits import DIGIT_NAMES, load_digits_dataset, load_digits_pixels, split_rows

SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def dataset():
    return load_digits_dataset()


def test_the_splits_hold_every_digit_once():
    rows = split_rows()
    assert (len(rows["train"]), len(rows["test"])) == (1437, 360)
    assert sorted([*rows["train"], *rows["test"]]) == list(range(1797))


def test_the_test_split_holds_a_fifth_of_every_class():
    labels, rows = load_digits().target, split_rows()
    shares = np.bincount(labels[rows["test"]]) / np.bincount(labels)
    assert shares == pytest.approx(np.full(10, 0.2), abs=0.005)


def test_the_splits_are_the_same_in_every_version():
    assert split_rows()["test"][:10].tolist() == [21, 24, 28, 34, 35, 37, 39, 42, 45, 51]


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_are_those_of_scikit_learn_between_0_and_1(split):
    pixels, labels = load_digits_pixels(split)
    rows = split_rows()[split]
    assert np.array_equal(pixels * 16, load_digits().data[rows])
    assert np.array_equal(labels, load_digits().target[rows])
    assert (pixels.min(), pixels.max()) == (0, 1)


@pytest.mark.parametrize("split", SPLITS)
def test_images_are_the_published_digits(dataset, split):
    images = np.stack([np.asarray(image) for image in dataset[split]["image"]])
    pixels, labels = load_digits_pixels(split)
    assert (images.shape, images.dtype) == ((len(pixels), 8, 8), np.uint8)
    assert images.reshape(-1, 64) / 255 == pytest.approx(pixels, abs=0.5 / 255)
    assert np.array_equal(
        (images.reshape(-1, 64) / 255 * 16).round(), pixels * 16
    )  # nothing is lost
    assert list(dataset[split]["label"]) == labels.tolist()


def test_the_collator_enlarges_them(dataset):
    batch = ImageCollator(TiTokImageProcessor.from_image_size(32), label_column="label")(
        list(dataset["test"])
    )
    pixel_values = batch["pixel_values"]
    assert pixel_values.shape == (360, 3, 32, 32)
    assert pixel_values[..., 0].mean() < 0.05 and pixel_values.max() > 0.9  # white on black
    means = (
        pixel_values.unflatten(-1, (8, 4)).unflatten(2, (8, 4)).mean((1, 3, 5)).flatten(1).numpy()
    )
    published, labels = load_digits_pixels("test")
    # smoothed, and yet each digit is nearest to itself
    distances = np.linalg.norm(means[:, None] - published[None], axis=-1)
    assert np.array_equal(distances.argmin(1), np.arange(360))
    assert batch["class_labels"].tolist() == labels.tolist()


def test_classes_are_named(dataset):
    assert dataset["train"].features["label"].names == DIGIT_NAMES
    assert dataset["test"].features == dataset["train"].features
    assert DIGIT_NAMES[3] == "three"


def test_digits_are_a_data_set_like_any_other(dataset):
    loaded = open_images("digits")
    assert {split: len(loaded[split]) for split in loaded} == {"train": 1437, "test": 360}
    first, expected = loaded.dataset("test")[0], dataset["test"][0]
    assert (first["image"].tobytes(), first["label"]) == (
        expected["image"].tobytes(),
        expected["label"],
    )
