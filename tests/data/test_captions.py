"""Captions beside images: in columns, metadata, and members of tar shards as img2dataset writes them."""

import json

import pytest
from datasets import Dataset, Features, Image, List, Value

from titok_hf.data import open_images
from titok_hf.data.collator import FeatureCollator
from titok_hf.data.loader import TrainingLoader

from .sources import png, write_tar

pytestmark = pytest.mark.usefixtures("caches")

CAPTIONS = ["a cat", None, "  ", "two dogs", "an owl: brown", "a fish"]


def captions_of(samples):
    return [sample.captions for sample in samples.read(0, len(samples))]


def expected(captions):
    return [[text] if text and text.strip() else [] for text in captions]


@pytest.fixture
def dataset():
    features = Features({"image": Image(), "text": Value("string"), "label": Value("int64")})
    images = [{"bytes": png(i), "path": None} for i in range(6)]
    return Dataset.from_dict({"image": images, "text": CAPTIONS, "label": [0] * 6}, features)


@pytest.fixture(params=["saved", "parquet", "streamed parquet", "txt", "json"])
def source(request, dataset, tmp_path):
    """The same six images and captions, and how to open them."""
    kind, folder = request.param, tmp_path / "set"
    arguments = {"text_column": "text", "label_column": None, "hold_out": False}
    if kind == "saved":
        dataset.save_to_disk(folder)
    elif "parquet" in kind:
        folder.mkdir()
        dataset.to_parquet(folder / "train.parquet")
        arguments["streaming"] = "streamed" in kind
    else:
        members = []
        for i, text in enumerate(CAPTIONS):
            members.append((f"{i:04d}.png", png(i)))
            described = {"caption": text, "url": "https://example.org"}
            if kind == "txt" and text is not None:
                members.append((f"{i:04d}.txt", text.encode()))
            members.append((f"{i:04d}.json", json.dumps(described).encode()))
        write_tar(folder / "train-0000.tar", members)
        arguments["text_column"] = "caption"
    return str(folder), arguments


def test_captions_come_with_the_images(source):
    folder, arguments = source
    assert captions_of(open_images(folder, **arguments)["train"]) == expected(CAPTIONS)
    without = open_images(folder, **{**arguments, "text_column": None})["train"]
    assert captions_of(without) == [None] * 6


def test_images_without_a_caption_are_skipped_and_listed(source):
    """Another image takes the place of each of them."""
    folder, arguments = source
    samples = open_images(folder, **arguments)["train"]
    loader = TrainingLoader(
        samples,
        lambda batch: {"captions": [x.stored.captions for x in batch]},
        batch_size=6,
        seed=0,
    )
    batch = next(iter(loader))
    assert len(batch["captions"]) == 6 and [] not in batch["captions"]
    assert len(loader.unreadable) == 2
    assert set(loader.unreadable.values()) == {"The image has no caption."}


def test_a_collator_of_ones_own_gets_the_captions_of_shards(tmp_path):
    members = []
    for i in range(4):
        members += [(f"{i}.png", png(i)), (f"{i}.txt", b"number %d" % i)]
    write_tar(tmp_path / "train-0.tar", members)
    rows = open_images(str(tmp_path), label_column=None, text_column="text")["train"]
    collator = FeatureCollator(lambda features: {"features": features}, rows)
    loader = TrainingLoader(rows, collator.collate, batch_size=4)
    features = next(iter(loader))["features"]
    for feature in features:
        assert feature["text"] == [f"number {feature['image'].getpixel((0, 0))[0]}"]


def test_an_image_may_have_several(dataset, tmp_path):
    features = Features({"image": Image(), "text": List(Value("string"))})
    texts = [["a cat", " ", "a pet"], [], None, ["an owl"]]
    images = [{"bytes": png(i), "path": None} for i in range(4)]
    Dataset.from_dict({"image": images, "text": texts}, features).save_to_disk(tmp_path / "set")
    samples = open_images(str(tmp_path / "set"), label_column=None, text_column="text")["train"]
    assert captions_of(samples) == [["a cat", "a pet"], [], [], ["an owl"]]


def test_metadata_of_a_folder_holds_captions(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "metadata.csv").write_text('file_name,text\n0.png,a cat\n2.png,"one, two"\n')
    samples = open_images(str(tmp_path), label_column=None, text_column="text")["train"]
    assert captions_of(samples) == [["a cat"], [], ["one, two"]]


def test_captions_that_are_none_are_refused(dataset, tmp_path):
    dataset.save_to_disk(tmp_path / "saved")
    write_tar(tmp_path / "tars" / "0.tar", [("0.png", png(0)), ("0.cls", b"0")])
    for folder, column, sentence in (
        ("saved", "caption", r"no column 'caption' but image, .* name the right one with `text_c"),
        ("saved", "label", r"Captions must be texts .* the column 'label' holds"),
        (
            "tars",
            "text",
            r"hold no captions, which are members .txt, or 'text' in .* but .cls, .png",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_images(str(tmp_path / folder), label_column=None, text_column=column)["train"]
