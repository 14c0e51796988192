"""Samples that tell their numbers, and loaders of them, for the tests of loading."""

import io
import tarfile
from itertools import islice

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from titok_hf import TiTokImageProcessor
from titok_hf.data import Augmentation, ImageCollator
from titok_hf.data.loader import TrainingLoader
from titok_hf.data.opening import open_images
from titok_hf.data.samples import IndexedSamples

SIZES = (5, 1, 9, 2, 6)  # samples of the shards
N = sum(SIZES)


def encode(number):
    """A PNG whose pixels tell its number; below 0 bytes that are no image."""
    if number < 0:
        return b"not an image"
    pixels = np.random.default_rng(number).integers(0, 256, (8, 9, 3), np.uint8)
    file = io.BytesIO()
    PILImage.fromarray(pixels).save(file, "png")
    return file.getvalue()


def make_indexed(numbers=range(N)):
    rows = {
        "image": [{"bytes": encode(number)} for number in numbers],
        "label": [i % 4 for i in range(len(numbers))],
    }
    return IndexedSamples(
        Dataset.from_dict(rows, Features({"image": Image(), "label": Value("int64")}))
    )


def make_sharded(folder, numbers=range(N), sizes=SIZES):
    start = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for index in range(start, start + size):
                for extension, content in (
                    ("png", encode(numbers[index])),
                    ("cls", str(index % 4).encode()),
                ):
                    member = tarfile.TarInfo(f"{index:04}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        start += size
    rows = open_images(str(folder / "*.tar"))["train"]
    assert rows.sizes == list(sizes)
    return rows


class NumberedCollator(ImageCollator):
    """Tells of each sample which it is, too, and what its next random number would be."""

    def collate(self, samples):
        return super().collate(samples) | {
            "epoch": torch.tensor([sample.epoch for sample in samples]),
            "index": torch.tensor([sample.stored.index for sample in samples]),
            "next": torch.tensor([sample.rng.random() for sample in samples], dtype=torch.float64),
            "threads": torch.tensor([torch.get_num_threads()]),
        }


COLLATOR = NumberedCollator(
    TiTokImageProcessor.from_image_size(8),
    label_column="label",
    augmentation=Augmentation("random", enlarge=1.2, horizontal_flip=True, rotation=5),
)


def make_loader(rows, batch_size=3, **arguments):
    return TrainingLoader(
        rows, COLLATOR.collate, batch_size, **{"num_draws": 2, "shuffle_buffer": 4, **arguments}
    )


def take(loader, count):
    batches = iter(loader)
    try:
        return list(islice(batches, count))
    finally:
        batches.close()


def seen(batches):
    """Epoch and number of the samples, in order."""
    return [
        pair
        for batch in batches
        for pair in zip(batch["epoch"].tolist(), batch["index"].tolist(), strict=True)
    ]


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            assert torch.equal(batch[name], other[name]), name
