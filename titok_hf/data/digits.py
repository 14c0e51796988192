"""The embedded data set: scikit-learn's 1,797 handwritten digits, from the UCI repository.

It requires scikit-learn, which contains the images: `pip install "titok_hf[demo]"`.
"""

import functools

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

try:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise ImportError('The digits come with scikit-learn: pip install "titok_hf[demo]".') from error

DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@functools.cache
def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Reads the text file that scikit-learn has: pixels `(1797, 64)` from 0 to 16, and labels `(1797,)`."""
    return load_digits(return_X_y=True)


def split_rows() -> dict[str, np.ndarray]:
    """Returns the row numbers of the fixed splits: a stratified fifth is `test`, the rest
    `train`."""
    _, labels = read_digits()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels
    )
    return {"train": np.sort(train), "test": np.sort(test)}


def load_digits_pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the digits of a split as arrays: pixels `(n, 64)` in [0, 1], in steps of 1/16, and
    labels `(n,)`."""
    (pixels, labels), rows = read_digits(), split_rows()[split]
    return pixels[rows] / 16, labels[rows]


def load_digits_dataset() -> DatasetDict:
    """Returns the digits as labelled 8x8 gray images, white on black; image processors enlarge
    them."""
    features = Features({"image": Image(), "label": ClassLabel(names=DIGIT_NAMES)})
    splits = {}
    for split in ("train", "test"):
        pixels, labels = load_digits_pixels(split)
        images = (pixels * 255).round().astype(np.uint8).reshape(-1, 8, 8)
        splits[split] = Dataset.from_dict(
            {"image": list(images), "label": labels.tolist()}, features=features
        )
    return DatasetDict(splits)
