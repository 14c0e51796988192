"""Labels of all kinds as classes, and the held-out fifth."""

import logging
import math

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, List, Value
from PIL import Image as PILImage

from titok_hf.data import open_images

from .sources import make_images

pytestmark = pytest.mark.usefixtures("caches")


@pytest.fixture
def opened(tmp_path):
    """Opens the split `train` of a saved data set with given labels, and others to test."""

    def opened(labels, feature, test=None, test_feature=None):
        splits = {"train": make_images(labels, feature)}
        test = labels if test is None else test
        splits["test"] = make_images(test, test_feature or feature, first=100)
        DatasetDict(splits).save_to_disk(tmp_path / "saved")
        return open_images(str(tmp_path / "saved"))

    return opened


@pytest.mark.parametrize(
    ("labels", "feature", "names", "ids"),
    [
        ([0.0, 2.0, 1.0], Value("float32"), ["0", "1", "2"], [0, 2, 1]),
        ([True, False, True], Value("bool"), ["0", "1"], [1, 0, 1]),
        ([3, 0, 1], Value("uint8"), ["0", "1", "2", "3"], [3, 0, 1]),
        (["10", "9", "1"], Value("string"), ["1", "9", "10"], [2, 1, 0]),
        (["b", "10", "a"], Value("string"), ["10", "a", "b"], [2, 0, 1]),
    ],
)
def test_labels_become_classes(opened, labels, feature, names, ids):
    samples = opened(labels, feature)["train"]
    assert samples.class_names == names
    assert [samples[i].label for i in range(len(samples))] == ids


@pytest.mark.parametrize(
    ("labels", "feature", "sentence"),
    [
        ([0.5, 1.0], Value("float64"), r"column 'label' of .* holds numbers such as 0.5"),
        (
            [[0], [1]],
            List(Value("int64")),
            r"one for each image; the column 'label' of .* holds List",
        ),
        ([0, None, None], Value("int64"), r"no label in the column 'label': 2 of 3"),
        (["a", None], Value("string"), r"no label in the column 'label': 1 of 2"),
        ([-1, 0, -1], Value("int64"), r"0 or more in 'label'; 2 of the 3 samples"),
        ([-1, 0], ClassLabel(names=["a", "b"]), r"0 or more in 'label'; 1 of the 2 samples"),
        ([None, 0], ClassLabel(names=["a", "b"]), r"0 or more in 'label'; 1 of the 2 samples"),
    ],
)
def test_labels_that_are_none_are_refused(opened, labels, feature, sentence):
    with pytest.raises(ValueError, match=sentence):
        opened(labels, feature)["train"]


def test_a_missing_label_of_the_test_split_is_not_the_last_class(opened):
    names = ClassLabel(names=["a", "b"]), ClassLabel(names=["b", "a"])
    splits = opened([0, 1], names[0], [0, -1], names[1])
    with pytest.raises(ValueError, match="1 of the 2 samples"):
        splits["test"]


def test_a_class_that_only_the_test_split_has_is_named(opened):
    with pytest.raises(ValueError, match=r"A split of .* has the classes 'c', 'd', which"):
        opened(["a", "b"], Value("string"), ["a", "d", "c"])["test"]


def test_ids_of_which_few_occur_are_said(opened, caplog):
    caplog.set_level(logging.WARNING, "titok_hf.data")
    assert len(opened([5, 489], Value("int64"))["train"].class_names) == 490
    assert "ids up to 489, of which only 2 occur: there are 490 classes" in caplog.text
    caplog.clear()
    assert len(opened([0, 3, 1], Value("int64"))["train"].class_names) == 4
    assert not caplog.text


def test_a_set_without_images_is_an_error(opened):
    with pytest.raises(ValueError, match="holds no images"):
        opened([], Value("string"), ["a"])["train"]


def test_images_without_a_class_do_not_change_the_held_out_fifth(tmp_path):
    """A tokenizer, which needs no labels, must not train on what its generator is tested on."""
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("L", (8, 8), i).save(path)
    PILImage.new("L", (8, 8), 200).save(tmp_path / "images" / "cover.png")

    def grays(split, label_column):
        images = open_images(str(tmp_path / "images"), label_column=label_column)
        return {image.getpixel((0, 0)) for image in images.dataset(split)["image"]}

    assert grays("test", None) == grays("test", "label")
    assert grays("train", None) == grays("train", "label") | {200}


def test_a_data_set_with_a_format_is_opened(tmp_path):
    images = make_images([0, 1] * 10, Value("int64"))
    images.with_format("torch").save_to_disk(tmp_path / "saved")
    assert isinstance(images, Dataset)
    splits = open_images(str(tmp_path / "saved"))
    assert len(splits["train"]) == 16 and len(splits["test"]) == 4


AB = ClassLabel(names=["a", "b"])


@pytest.mark.parametrize(
    ("labels", "feature", "test", "test_feature", "unknown"),
    [
        ([0, 1], Value("int64"), [2], Value("int64"), "2"),
        ([0, 1], AB, [2.0], Value("float32"), "2"),
        (["a", "b"], Value("string"), [0], Value("int64"), "0"),
        (["5", "7"], Value("string"), [7, 0], Value("int64"), "0"),
    ],
)
def test_a_number_without_class_is_named(opened, labels, feature, test, test_feature, unknown):
    with pytest.raises(ValueError, match=f"A split of .* has the classes '{unknown}', which"):
        opened(labels, feature, test, test_feature)["test"]


def test_numbers_are_names_beside_strings(opened):
    samples = opened(["5", "10", "7"], Value("string"), [7, 10], Value("int64"))["test"]
    assert [samples[i].label for i in range(2)] == [1, 2]


@pytest.mark.parametrize(
    ("labels", "feature"),
    [(["a", "", None], Value("string")), ([0.0, math.nan, None], Value("float64"))],
)
def test_empty_names_and_nan_are_missing_labels(opened, labels, feature):
    with pytest.raises(ValueError, match=r"no label in the column 'label': 2 of 3"):
        opened(labels, feature)["train"]


def test_a_column_of_nothing_has_no_labels(opened):
    with pytest.raises(ValueError, match=r"no label in the column 'label': 2 of 2"):
        opened([None, None], Value("null"))["train"]


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([[0], [1]], List(Value("int64"))),
        ([0.5, 1.0], Value("float64")),
        ([b"a", b"b"], Value("binary")),
    ],
)
def test_a_column_that_holds_no_labels_matters_only_where_they_are_wanted(
    tmp_path, labels, feature
):
    DatasetDict(train=make_images(labels * 10, feature)).save_to_disk(tmp_path / "saved")
    splits = open_images(str(tmp_path / "saved"), label_column=None)
    assert list(splits) == ["train"] and len(splits["train"]) == 20
    with pytest.raises(ValueError, match="Labels must be names, classes or integers"):
        open_images(str(tmp_path / "saved"))["train"]


def test_missing_labels_are_counted_before_a_fifth_is_held_out(tmp_path):
    images = make_images([0, 1, -1, -1] * 5, Value("int64"))
    DatasetDict(train=images).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="10 of the 20 samples"):
        open_images(str(tmp_path / "saved"))["train"]


@pytest.mark.parametrize("largest", [10**6, 10**9])
def test_hashes_are_no_numbers_of_classes(opened, largest):
    with pytest.raises(ValueError, match=f"at most 1,000,000 classes, got {largest}; store"):
        opened([3, largest], Value("int64"))["train"]
