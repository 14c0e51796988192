"""Random trees of files, whose images and classes are known because they were made so.

300 trees of up to 60 files each, from seed 0. Names are split words, numbers, words in other scripts
and signs; there are images of several formats and modes, a tenth of them broken, capitals, links,
circles, archives, hidden and other files, and wrapping folders. The opener must find exactly the
images that were made; training, tokenizing and evaluating must see the same ones. See
`tests/cli/test_random_trees.py` for the commands.
"""

import logging
import re
from collections import Counter

import numpy as np
import pytest

from titok_hf.data import open_images
from titok_hf.data.decoding import UnreadableImageError, decode_image
from titok_hf.data.loader import TrainingLoader
from titok_hf.data.tokenize import open_splits
from titok_hf.evaluation.image_sources import open_dataset
from titok_hf.evaluation.protocol import Protocol

from .random_tree import Tree

pytestmark = pytest.mark.usefixtures("caches")


def width_of(image):
    """Returns the width of a stored image; 0 if it cannot be read."""
    try:
        return decode_image(image).width
    except UnreadableImageError:
        return 0


def width_evaluated(images, index):
    try:
        return images.open(index).width
    except ValueError:
        return 0


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
            for sample in samples.read(0, len(samples)):
                found.append((name, samples.class_names[sample.label], width_of(sample.image)))
        made = [image for image in tree.images if image[1] is not None]
        assert Counter(found) == Counter(
            (split, name, tree.seen(width)) for split, name, width in made
        )
        line = caplog.records[-1].getMessage().partition("left out")[2]
        left_out = sum(int(number) for number in re.findall(r" (\d+) \([^()]*\)[,.]", line))
        assert left_out == tree.left_out + len(beside), line

        # training sees each readable image of `train` in an epoch
        train = [width for split, _, width in made if split == "train"]
        if set(train) - tree.broken:
            loader = TrainingLoader(
                splits["train"], lambda batch: [x.image.width for x in batch], len(train), seed=0
            )
            seen = set(next(iter(loader)))
            assert seen == set(train) - tree.broken
            assert len(loader.unreadable) == len(set(train) & tree.broken)

        # without labels: without other splits, tokenizing holds out a fifth of `train` as `test`
        tokenized = open_splits(
            str(tree.root),
            split=None,
            image_column="image",
            label_column=None,
            revision=None,
            streaming=False,
        )
        assert Counter(tree.seen(width) for _, _, width in tree.images) == Counter(
            width_of(sample.image)
            for samples in tokenized.values()
            for sample in samples.read(0, len(samples))
        )
        for name in splits:
            images = open_dataset(str(tree.root), protocol, split=name, crop="center")
            assert Counter(
                tree.seen(width) for split, _, width in tree.images if split == name
            ) == Counter(width_evaluated(images, i) for i in range(images.num_images))
