from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from huggingface_hub import HfApi
from PIL import Image as PILImage

from titok_hf.data import open_images
from titok_hf.data.digits import load_digits_pixels

pytestmark = pytest.mark.usefixtures("caches")


def draw(color, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", (8, 8), color).save(path)


def make_split(labels, feature, label_column="label"):
    """A data set whose i-th image has the gray value i."""
    images = [np.full((8, 8), i, np.uint8) for i in range(len(labels))]
    features = Features({"image": Image(), label_column: feature, "note": Value("string")})
    return Dataset.from_dict(
        {"image": images, label_column: labels, "note": ["?"] * len(labels)}, features=features
    )


@pytest.fixture
def save(tmp_path):
    def save(**splits):
        DatasetDict(splits).save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")

    return save


@pytest.fixture
def image_folder(tmp_path):
    """Ten red and ten blue images."""
    for i in range(10):
        draw((i, 0, 0), tmp_path / "folder" / "red" / f"{i}.png")
        draw((0, 0, i), tmp_path / "folder" / "blue" / f"{i}.png")
    return tmp_path / "folder"


def load_splits(source, **columns):
    """The images to train and to test on."""
    splits = open_images(source, **columns)
    return {split: splits.dataset(split) for split in ("train", "test")}


def load_split(source, split=None, **arguments):
    """The images to measure on, of which none are held out, and the name of their split."""
    splits = open_images(source, label_column=None, hold_out=False, **arguments)
    name = splits.resolve(split)
    return splits.dataset(name), name


def class_names(splits, label_column="label"):
    return splits["train"].features[label_column].names


def grays(split):
    return [image.getpixel((0, 0)) for image in split["image"]]


def test_subfolders_are_classes_and_a_fifth_of_each_is_held_out(image_folder):
    dataset = load_splits(str(image_folder))
    assert class_names(dataset) == ["blue", "red"]
    assert Counter(dataset["train"]["label"]) == {0: 8, 1: 8}
    assert Counter(dataset["test"]["label"]) == {0: 2, 1: 2}
    for split in dataset.values():
        for image, label in zip(split["image"], split["label"], strict=True):
            red, _, blue = image.getpixel((0, 0))
            assert red == 0 if label == 0 else blue == 0, (label, image.getpixel((0, 0)))
    colors = [image.getpixel((0, 0)) for split in dataset.values() for image in split["image"]]
    assert sorted(colors) == sorted([(i, 0, 0) for i in range(10)] + [(0, 0, i) for i in range(10)])


@pytest.mark.parametrize("sizes", [(9, 1), (3, 3, 3)])
def test_too_few_images_to_hold_a_fifth_out_are_an_error(save, sizes):
    labels = [name for name, size in zip("abc", sizes, strict=False) for _ in range(size)]
    with pytest.raises(
        ValueError,
        match=r"2 images of every class and 5 per class on average: add images, or a split 'test'",
    ):
        load_splits(save(train=make_split(labels, Value("string"))))


def test_the_held_out_fifth_is_always_the_same(save):
    source = save(train=make_split([0, 1] * 20, ClassLabel(names=["a", "b"])))
    first, second = (load_splits(source) for _ in range(2))
    assert grays(first["test"]) == grays(second["test"])
    assert sorted(grays(first["train"]) + grays(first["test"])) == list(range(40))


@pytest.mark.parametrize("folder", ["test", "validation"])
def test_a_folder_of_held_out_images_is_the_test_split(tmp_path, folder):
    for label in ("a", "b"):
        for i in range(3):
            draw((i, i, i), tmp_path / "folder" / "train" / label / f"{i}.png")
        draw((100, 100, 100), tmp_path / "folder" / folder / label / "0.png")
    dataset = load_splits(str(tmp_path / "folder"))
    assert {split: len(dataset[split]) for split in dataset} == {"train": 6, "test": 2}
    assert {image.getpixel((0, 0)) for image in dataset["test"]["image"]} == {(100, 100, 100)}


def test_test_takes_precedence_over_validation(save):
    feature = ClassLabel(names=["a", "b"])
    source = save(
        train=make_split([0, 1] * 3, feature),
        validation=make_split([0] * 3, feature),
        test=make_split([1], feature),
    )
    dataset = load_splits(source)
    assert {split: len(dataset[split]) for split in dataset} == {"train": 6, "test": 1}


def test_string_labels_become_classes(save):
    dataset = load_splits(save(train=make_split(["owl", "cat", "eel"] * 10, Value("string"))))
    assert class_names(dataset) == ["cat", "eel", "owl"]
    assert Counter(dataset["train"]["label"]) == {0: 8, 1: 8, 2: 8}
    for split in dataset.values():
        assert [gray % 3 for gray in grays(split)] == [
            {0: 1, 1: 2, 2: 0}[label] for label in split["label"]
        ]


@pytest.mark.parametrize(
    ("labels", "feature", "test_labels", "test_feature"),
    [
        (["a", "b", "c"], Value("string"), ["c", "b"], Value("string")),
        ([0, 1, 2], ClassLabel(names=["a", "b", "c"]), [1, 0], ClassLabel(names=["b", "c"])),
    ],
    ids=["strings", "classes"],
)
def test_labels_mean_the_same_in_both_splits(save, labels, feature, test_labels, test_feature):
    """The test split has only the classes c and b."""
    train, test = make_split(labels * 2, feature), make_split(test_labels, test_feature)
    dataset = load_splits(save(train=train, test=test))
    assert class_names(dataset) == ["a", "b", "c"]
    assert dataset["test"].features == dataset["train"].features
    assert list(dataset["test"]["label"]) == [2, 1]


def test_a_label_that_training_lacks_is_an_error(save):
    train, test = (make_split(labels, Value("string")) for labels in (["a", "b"] * 2, ["a", "owl"]))
    with pytest.raises(ValueError, match="owl"):
        load_splits(save(train=train, test=test))


def test_an_image_without_label_never_gets_the_class_of_another_split(save):
    train = make_split([0, 1] * 2, ClassLabel(names=["a", "b"]))
    test = make_split([0, -1], ClassLabel(names=["b", "a"]))
    with pytest.raises(ValueError, match="in 'label'; 1 of the 2 samples"):
        load_splits(save(train=train, test=test))


@pytest.mark.parametrize("numbers", [range(2), range(12), range(1, 4), (7, 3)], ids=str)
def test_integer_labels_keep_their_numbers(save, numbers):
    labels, feature = list(numbers) * 2, Value("int64")
    dataset = load_splits(save(train=make_split(labels, feature), test=make_split(labels, feature)))
    names = class_names(dataset)
    for split in dataset.values():
        assert list(split["label"]) == labels
        assert [names[label] for label in split["label"]] == list(map(str, labels))


def test_columns_may_have_other_names_and_others_are_kept(save):
    train = make_split([0, 1] * 5, ClassLabel(names=["a", "b"]), "kind").rename_column(
        "image", "picture"
    )
    dataset = load_splits(save(train=train), image_column="picture", label_column="kind")
    assert [split.column_names for split in dataset.values()] == [["picture", "kind", "note"]] * 2
    assert class_names(dataset, "kind") == ["a", "b"]


def test_encoded_images_in_a_plain_column_are_decoded(save, tmp_path):
    draw((9, 9, 9), tmp_path / "a.png")
    paths = Dataset.from_dict({"image": [str(tmp_path / "a.png")] * 4, "label": ["x", "y"] * 2})
    dataset = load_splits(save(train=paths, test=paths))
    assert dataset["train"][0]["image"].getpixel((0, 0)) == (9, 9, 9)


def test_a_folder_of_parquet_files(tmp_path):
    make_split(["owl", "cat"] * 5, Value("string")).to_parquet(tmp_path / "train.parquet")
    make_split(["cat"], Value("string")).to_parquet(tmp_path / "test.parquet")
    dataset = load_splits(str(tmp_path))
    assert {split: len(dataset[split]) for split in dataset} == {"train": 10, "test": 1}
    assert class_names(dataset) == ["cat", "owl"] and dataset["test"]["label"] == [0]


def test_an_image_folder_may_describe_its_images_in_parquet(tmp_path):
    for i in range(4):
        draw((i, 0, 0), tmp_path / "folder" / f"{i}.png")
    columns = {"file_name": [f"{i}.png" for i in range(4)], "label": ["owl", "cat"] * 2}
    Dataset.from_dict(columns).to_parquet(tmp_path / "folder" / "metadata.parquet")
    images, _ = load_split(str(tmp_path / "folder"))
    assert [image.getpixel((0, 0))[0] for image in images["image"]] == [0, 1, 2, 3]
    assert images["label"] == ["owl", "cat"] * 2


def test_images_without_label_are_an_error(save):
    source = save(train=make_split(["owl", None] * 5, Value("string")))
    with pytest.raises(
        ValueError, match=r"Some images of '.*saved' have no label in the column 'label'"
    ):
        load_splits(source)


def test_a_single_saved_split_is_the_training_split(tmp_path):
    make_split([0, 1] * 5, ClassLabel(names=["a", "b"])).save_to_disk(tmp_path / "saved")
    dataset = load_splits(str(tmp_path / "saved"))
    assert {split: len(dataset[split]) for split in dataset} == {"train": 8, "test": 2}


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_a_missing_column_is_named_with_those_that_are_there(save, option):
    source = save(train=make_split([0, 1] * 5, ClassLabel(names=["a", "b"])))
    with pytest.raises(
        ValueError, match=rf"no column 'klass' but image, label, note; .* `{option}`"
    ):
        load_splits(source, **{option: "klass"})


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_a_column_that_the_digits_lack_is_named(option):
    with pytest.raises(ValueError, match=rf"no column 'klass' but image, label; .* `{option}`"):
        load_splits("digits", **{option: "klass"})


def test_a_folder_without_classes_lacks_the_label_column(tmp_path):
    for i in range(4):
        draw((i, 0, 0), tmp_path / "folder" / f"{i}.png")
    with pytest.raises(ValueError, match="no column 'label' but image"):
        load_splits(str(tmp_path / "folder"))


def test_a_data_set_without_training_split_is_an_error(save):
    with pytest.raises(ValueError, match="no split 'train' but test"):
        load_splits(save(test=make_split([0], ClassLabel(names=["a"]))))


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_splits(str(tmp_path / "nowhere"))


class TestImagesToMeasure:
    """Images to measure on, labelled or not."""

    LABELS = ClassLabel(names=["a", "b"])

    def test_a_flat_folder(self, tmp_path):
        for i in (3, 1, 2):
            draw((i, 0, 0), tmp_path / "folder" / f"{i}.png")
        images, split = load_split(str(tmp_path / "folder"))
        assert split == "train"
        assert [image.getpixel((0, 0))[0] for image in images["image"]] == [1, 2, 3]

    def test_a_folder_of_classes_keeps_them(self, image_folder):
        images, split = load_split(str(image_folder))
        assert (split, len(images)) == ("train", 20)
        assert images.column_names == ["image", "label"]
        assert Counter(images["label"]) == {0: 10, 1: 10}

    def test_folders_of_splits(self, tmp_path):
        for split, number in (("train", 3), ("validation", 2)):
            for i in range(number):
                draw((i, 0, 0), tmp_path / "folder" / split / "a" / f"{i}.png")
        images, split = load_split(str(tmp_path / "folder"))
        assert (split, len(images)) == ("validation", 2)
        assert len(load_split(str(tmp_path / "folder"), "train")[0]) == 3

    def test_the_embedded_digits(self):
        for given, expected in ((None, "test"), ("train", "train")):
            images, split = load_split("digits", given)
            pixels, labels = load_digits_pixels(expected)
            assert split == expected and images["label"] == labels.tolist()
            assert np.array_equal(np.asarray(images[5]["image"]).ravel(), (pixels[5] * 255).round())

    @pytest.mark.parametrize(
        ("splits", "expected"),
        [
            (["train", "validation", "test"], "test"),
            (["validation", "train"], "validation"),
            (["extra"], "extra"),
            (["train"], "train"),
        ],
    )
    def test_the_split_is_test_or_validation_or_the_only_one(self, save, splits, expected):
        numbers = {split: number for number, split in enumerate(splits, 1)}
        source = save(
            **{split: make_split([0] * number, self.LABELS) for split, number in numbers.items()}
        )
        images, split = load_split(source)
        assert (split, len(images)) == (expected, numbers[expected])
        assert images.column_names == ["image", "label", "note"]

    def test_a_single_saved_split(self, tmp_path):
        make_split([0, 1], self.LABELS).save_to_disk(tmp_path / "saved")
        images, split = load_split(str(tmp_path / "saved"))
        assert (split, grays(images)) == ("train", [0, 1])

    def test_encoded_images_in_a_plain_column_are_decoded(self, save, tmp_path):
        draw((9, 8, 7), tmp_path / "a.png")
        source = save(test=Dataset.from_dict({"picture": [str(tmp_path / "a.png")]}))
        images, _ = load_split(source, image_column="picture")
        assert images[0]["picture"].getpixel((0, 0)) == (9, 8, 7)

    def test_a_revision_of_a_data_set_on_the_hub(self, hub):
        for number in (2, 3):
            DatasetDict(test=make_split([0] * number, self.LABELS)).push_to_hub("user/set")
            if number == 2:
                HfApi().create_tag("user/set", tag="first", repo_type="dataset")
        assert len(load_split("user/set")[0]) == 3
        images, split = load_split("user/set", revision="first")
        assert (split, grays(images)) == ("test", [0, 1])

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({}, r"has no split test or validation but a, b; name one of these"),
            ({"split": "train"}, "has no split 'train' but a, b; name one of these"),
            (
                {"split": "a", "image_column": "picture"},
                r"no column 'picture' but image, label, note; .*`image_column`",
            ),
        ],
        ids=["ambiguous", "split", "column"],
    )
    def test_what_is_not_there_is_named(self, save, given, sentence):
        source = save(a=make_split([0, 1], self.LABELS), b=make_split([0], self.LABELS))
        with pytest.raises(ValueError, match=sentence):
            load_split(source, **given)

    @pytest.mark.parametrize("content", ["nothing", "text"])
    def test_a_folder_without_images_is_named(self, tmp_path, content):
        (tmp_path / "folder").mkdir()
        if content == "text":
            (tmp_path / "folder" / "notes.txt").write_text("no image")
        with pytest.raises(
            ValueError,
            match=rf"The folder {tmp_path / 'folder'} must hold images, .* but holds only "
            r"(hidden files or none|other files \(1\))",
        ):
            load_split(str(tmp_path / "folder"))

    def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load_split(str(tmp_path / "nowhere"))

    def test_a_column_of_something_else_is_named(self, save):
        source = save(test=make_split([0, 1], self.LABELS))
        with pytest.raises(
            ValueError, match=r"The column 'label' of '.*' holds no images but ClassLabel\("
        ):
            load_split(source, image_column="label")
