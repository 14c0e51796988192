"""Folders, shards and data sets for the tests of this room to read."""

import io
import tarfile

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from torch.utils.data import IterableDataset, get_worker_info

from titok_hf.data.decoding import decode_image


def png(gray):
    file = io.BytesIO()
    PILImage.new("L", (2, 2), gray).save(file, "PNG")
    return file.getvalue()


def gray_of(row):
    return decode_image(row.image).getpixel((0, 0))[0]


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def samples(first, number, extension="png"):
    """Members of samples whose gray value is their number, and whose label is that modulo 3."""
    members = []
    for i in range(first, first + number):
        members += [(f"{i:04d}.{extension}", png(i)), (f"{i:04d}.cls", b"%d" % (i % 3))]
    return members


def contents(rows):
    return [(row.index, row.key, gray_of(row), row.label) for row in rows]


def expected(start, stop):
    """Returns the `contents` of `samples(0, …)`."""
    return [(i, f"{i:04d}", i, i % 3) for i in range(start, stop)]


def draw(gray, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(gray))


def make_images(labels, feature, label_column="label", first=0):
    """A data set whose i-th image has the gray value i."""
    features = Features({"image": Image(), label_column: feature, "note": Value("string")})
    images = [{"bytes": png(first + i), "path": f"{first + i}.png"} for i in range(len(labels))]
    return Dataset.from_dict(
        {"image": images, label_column: labels, "note": ["?"] * len(labels)}, features=features
    )


def make_tokens(number, copies=None, names=("a", "b")):
    """A data set of tokens as `titok tokenize` writes it."""
    shape = (number, 4) if copies is None else (number, copies, 4)
    codes = np.arange(np.prod(shape)).reshape(shape) % 4096
    feature = List(Value("uint16"), length=4) if copies is None else Array2D((copies, 4), "uint16")
    features = Features(
        {"key": Value("string"), "label": ClassLabel(names=list(names)), "codes": feature}
    )
    columns = {"key": [f"k{i}" for i in range(number)], "label": [i % 2 for i in range(number)]}
    return Dataset.from_dict(
        {**columns, "codes": codes.astype(np.uint16)}, features=features
    ), codes


AB = ClassLabel(names=["a", "b"])


def picture(number, size=(40, 36)):
    """A picture that no other number has: bright patches, so that an encoder tells most of them
    apart."""
    patches = np.random.default_rng(number).choice(np.array([0, 255], np.uint8), (4, 4, 3))
    return PILImage.fromarray(patches).resize(size, PILImage.Resampling.NEAREST)


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_images(folder, counts, classes=("cat", "dog")):
    """PNG files, in turn of each class, `{"train": 7, "test": 3}`; returns the pictures by split
    and key."""
    pictures, number = {}, 0
    for split, count in counts.items():
        pictures[split] = {}
        for i in range(count):
            name = classes[i % len(classes)]
            path = folder / split / name / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(path)
            pictures[split][f"{split}/{name}/{i:03d}.png"] = picture(number)
            number += 1
    return pictures


def write_shards(folder, sizes, split="train"):
    """Tar files with classes 0, 1, 2, 0, …; returns the pictures by key."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"{split}-{shard:04d}.tar", "w") as archive:
            for _ in range(size):
                key = f"{len(pictures):05d}"
                pictures[key] = picture(len(pictures))
                for extension, content in (
                    ("png", encoded(pictures[key])),
                    ("cls", b"%d" % (len(pictures) % 3)),
                ):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return pictures


class WorkerSamples(IterableDataset):
    """Each worker reads all rows."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        for row in self.rows.read(0, len(self.rows)):
            yield get_worker_info().id, row.index, row.key, gray_of(row), row.label
