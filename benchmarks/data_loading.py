"""Images per second of the training loader and of a plain torch DataLoader on the same JPEG files.

    OMP_NUM_THREADS=1 python benchmarks/data_loading.py
    OMP_NUM_THREADS=1 python benchmarks/data_loading.py --quick

The benchmark writes JPEG files to a temporary folder, as single files and as tar shards: windows of
scikit-learn's two photographs, of 256x256 and of 500x375 pixels, which is about ImageNet's size.
All loaders make batches of 32 images of 256x256 with TiTok's image processor. The plain loader
shuffles, decodes with PIL and calls the processor on each image. The printed speeds are medians of
three rounds, in which the loaders take turns; timing starts after the first batch. The times of the
parts of one batch without workers follow, also for 32x32 pixels. `--quick` uses few images of
256x256 and one round.
"""

import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from datasets import disable_progress_bars
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset

from titok_hf import TiTokImageProcessor
from titok_hf.data.collator import ImageCollator
from titok_hf.data.decoding import decode_image
from titok_hf.data.loader import BatchStream, DecodedSample, TrainingLoader
from titok_hf.data.opening import open_images
from titok_hf.data.shuffling import permutation

BATCH_SIZE = 32


def write_images(folder: Path, width: int, height: int, count: int) -> None:
    """Writes JPEG files to `files/` and, in shards of a hundred, to `tars/`."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]  # 640x427
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "files" / str(number % 10) / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        left, top = rng.integers(160), rng.integers(107)
        window = photos[number % 2].crop((left, top, left + 480, top + 320))
        window.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    files = sorted((folder / "files").rglob("*.jpg"), key=lambda path: path.name)
    (folder / "tars").mkdir()
    for shard in range(0, count, 100):
        with tarfile.open(folder / "tars" / f"train-{shard // 100:03}.tar", "w") as tar:
            for path in files[shard : shard + 100]:
                tar.add(path, path.name)


class PlainImages(Dataset):
    """The data set that one would write by hand."""

    def __init__(self, folder: Path, processor: TiTokImageProcessor):
        self.files = sorted(folder.rglob("*.jpg"))
        self.processor = processor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(self.files[index]).convert("RGB")
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


def images_per_second(loader: Iterable, num_batches: int) -> float:
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    for _ in islice(batches, num_batches):
        pass
    return num_batches * BATCH_SIZE / (time.perf_counter() - start)


def compare(
    folder: Path, name: str, num_batches: int, num_rounds: int, workers: tuple[int, ...]
) -> None:
    """Prints the speed of each loader on a folder of images."""
    processor = TiTokImageProcessor.from_image_size(256)
    collate = ImageCollator(processor).collate
    plain = PlainImages(folder / "files", processor)
    indexed = open_images(str(folder / "files"), label_column=None)["train"]
    sharded = open_images(str(folder / "tars" / "*.tar"), label_column=None)["train"]
    for num_workers in workers:
        loaders: dict[str, Callable[[], Iterable]] = {
            "plain": lambda k=num_workers: DataLoader(
                plain, BATCH_SIZE, shuffle=True, num_workers=k
            ),
            "indexed": lambda k=num_workers: TrainingLoader(
                indexed, collate, BATCH_SIZE, num_workers=k
            ),
            "tar shards": lambda k=num_workers: TrainingLoader(
                sharded, collate, BATCH_SIZE, num_workers=k
            ),
        }
        speeds: dict[str, list[float]] = {loader: [] for loader in loaders}
        for _ in range(num_rounds):
            for loader, make in loaders.items():
                speeds[loader].append(images_per_second(make(), num_batches))
        for loader, values in speeds.items():
            ratio = median(
                mine / theirs for mine, theirs in zip(values, speeds["plain"], strict=True)
            )
            print(
                f"{name}, {num_workers} workers, {loader}: {median(values):.0f} images/s, "
                f"{ratio:.2f} of plain",
                flush=True,
            )


def parts(folder: Path, name: str, image_size: int, num_rounds: int) -> None:
    """Prints the times of the parts of a batch."""
    rows = open_images(str(folder / "files"), label_column=None)["train"]
    collate = ImageCollator(TiTokImageProcessor.from_image_size(image_size)).collate
    stream = BatchStream(TrainingLoader(rows, collate, BATCH_SIZE, num_draws=256))
    seconds: dict[str, list[float]] = {"read": [], "decode": [], "draws": [], "process": []}
    for _ in range(num_rounds):
        marks = [time.perf_counter()]
        read = [rows[int(index)] for index in permutation(len(rows), 0, 0)[:BATCH_SIZE]]
        marks.append(time.perf_counter())
        decoded = [DecodedSample(row, decode_image(row.image)) for row in read]
        marks.append(time.perf_counter())
        samples = [stream.sample(0, row.stored.index, row) for row in decoded]
        marks.append(time.perf_counter())
        collate(samples)
        marks.append(time.perf_counter())
        for part, values in enumerate(seconds.values()):
            values.append(marks[part + 1] - marks[part])
    times = ", ".join(f"{part} {1000 * median(values):.1f} ms" for part, values in seconds.items())
    print(
        f"{name} to {image_size}x{image_size}, a batch of {BATCH_SIZE} without workers: {times}",
        flush=True,
    )


def main(quick: bool = False) -> None:
    torch.set_num_threads(1)
    disable_progress_bars()
    num_rounds, num_batches = (1, 2) if quick else (3, 20)
    count = BATCH_SIZE * (num_batches + 1) + 28
    with TemporaryDirectory() as temporary:
        for width, height, image_size in ((256, 256, 256), (500, 375, 256), (32, 32, 32))[
            : 1 if quick else 3
        ]:
            folder, name = Path(temporary) / str(width), f"{width}x{height}"
            write_images(folder, width, height, count)
            if width > 32:
                compare(folder, name, num_batches, num_rounds, (0, 1) if quick else (0, 1, 2))
            parts(folder, name, image_size, 2 if quick else 20)


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
