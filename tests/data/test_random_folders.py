"""Random trees of files, whose images and classes are known because they were made so.

300 trees of up to 60 files each, from seed 0. Names are split words, numbers, words in other scripts
and signs; there are capitals, links, circles, archives, hidden and other files, files that are no
images, and wrapping folders. The opener must find exactly the images that were made; training,
tokenizing and evaluating must see the same ones.
"""

import logging
import os
import re
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image as PILImage

from titok_hf.data import open_images
from titok_hf.data.decoding import decode_image
from titok_hf.data.tokenize import open_splits
from titok_hf.evaluation.image_sources import open_dataset
from titok_hf.evaluation.protocol import Protocol

pytestmark = pytest.mark.usefixtures("caches")

SPLIT_WORDS = {"train": ["train", "Train", "training"], "test": ["test", "TESTING", "eval"]}
SPLIT_WORDS["validation"] = ["val", "Valid", "dev", "validation"]
WORDS = [
    "cat",
    "test-tube",
    "img_train",
    "1",
    "02",
    "10",
    "set[1]",
    "a b",
    "é",
    "画像",
    "%41",
    "x.y",
]
EXTENSIONS = [".png", ".PNG", ".jpg", ".JPEG", ".webp", ".bmp"]


class Tree:
    """Makes a tree of files and records what it holds.

    `images` are split, class (`None` outside of class folders) and size of each image; sizes tell
    images apart. `left_out` counts the files that must be named as left out.
    """

    def __init__(self, root, rng):
        self.root, self.rng = root, rng
        self.images = []
        self.left_out = 0
        wrapper = root.joinpath(*rng.choice(["data", "images", "2024"], rng.integers(3), False))
        splits = [
            None,
            *rng.choice(list(SPLIT_WORDS), rng.integers(1, 4), replace=False),
        ]
        splits = splits[1:] if rng.random() < 0.5 else splits[:1]
        self.words = list(rng.choice(WORDS, rng.integers(2, 5), replace=False))
        for split in splits:
            folder = wrapper if split is None else wrapper / rng.choice(SPLIT_WORDS[split])
            self.fill(folder, split or "train", deep=split is None)
        self.clutter()

    def fill(self, folder, split, deep):
        rng = self.rng
        names = list(self.words)
        if deep and rng.random() < 0.5:  # class folders with names of splits, beside another one
            names.append(str(rng.choice(["train", "test", "Val"])))
        for name in names:
            for _ in range(rng.integers(1, 4)):
                self.draw(folder / name, split, name)
            if deep and rng.random() < 0.2:
                inner = f"{name}/{rng.choice(['in', 'test'])}"
                self.draw(folder / inner, split, inner)
            if deep and rng.random() < 0.2:
                linked = self.root.parent / f"linked{len(self.images)}"
                self.draw(linked, split, f"{name}-linked")
                (folder / f"{name}-linked").symlink_to(linked)
            if rng.random() < 0.2:
                (folder / name / "circle").symlink_to(self.root)
        if rng.random() < 0.3:
            self.draw(folder, split, None)

    def draw(self, folder, split, name):
        folder.mkdir(parents=True, exist_ok=True)
        width = len(self.images) + 8
        stem = self.rng.choice(["test_", "img.", "valid ", "#", "é"])
        path = folder / f"{stem}{width}{self.rng.choice(EXTENSIONS)}"
        PILImage.new("RGB", (width, 8)).save(path)
        self.images.append((split, name, width))

    def clutter(self):
        folders = [folder for folder, _, _ in os.walk(self.root)]
        for i in range(self.rng.integers(4)):
            folder = self.root / self.rng.choice(folders)
            match self.rng.integers(5):
                case 0:
                    (folder / f"notes{i}.txt").write_text("no image")
                    self.left_out += 1
                case 1:
                    with zipfile.ZipFile(folder / f"{i}.zip", "w") as archive:
                        archive.writestr("0.png", b"")
                    self.left_out += 1
                case 2:
                    (folder / f"gone{i}.png").symlink_to(self.root / "nowhere")
                    self.left_out += 1
                case 3:
                    (folder / f"._{i}.png").write_bytes(b"")
                case 4:
                    (folder / f".hidden{i}").mkdir()
                    (folder / f".hidden{i}" / "0.png").write_bytes(b"")


def counted(images):
    return Counter((split, name, width) for split, name, width in images)


@pytest.mark.parametrize("block", range(3))
def test_what_is_found_is_what_was_made(tmp_path, caplog, block):
    caplog.set_level(logging.INFO, "titok_hf.data")
    rng = np.random.default_rng((0, block))
    protocol = Protocol.load("demo")
    for number in range(100):
        tree = Tree(tmp_path / f"{number}" / "root", rng)
        beside = [image for image in tree.images if image[1] is None]
        caplog.clear()

        # with labels
        splits = open_images(str(tree.root), hold_out=False)
        found = []
        for name in splits:
            samples = splits[name]
            for i in range(len(samples)):
                sample = samples[i]
                width = decode_image(sample.image).width
                found.append((name, samples.class_names[sample.label], width))
        assert counted(found) == counted(image for image in tree.images if image[1] is not None)
        line = caplog.records[-1].getMessage().partition("left out")[2]
        left_out = sum(int(number) for number in re.findall(r" (\d+) \([^()]*\)[,.]", line))
        assert left_out == tree.left_out + len(beside), line

        # without labels, as each user of the opener sees the images
        made = Counter((split, width) for split, _, width in tree.images)
        tokenized = open_splits(
            str(tree.root),
            split=None,
            image_column="image",
            label_column=None,
            revision=None,
            streaming=False,
        )
        # without other splits, tokenizing and training hold out a fifth of `train` as `test`
        assert sorted(width for _, width in made.elements()) == sorted(
            decode_image(sample.image).width
            for samples in tokenized.values()
            for sample in samples.read(0, len(samples))
        )
        for name in splits:
            crop = {"crop": "center"}
            evaluated = open_dataset(str(tree.root), protocol, split=name, **crop)
            assert Counter(width for split, width in made if split == name) == Counter(
                evaluated.open(i).width for i in range(evaluated.num_images)
            )
