"""The embedded data set: scikit-learn's 1,797 handwritten digits, from the UCI repository.

It requires scikit-learn, which contains the images: `pip install "titok_hf[demo]"`.
"""

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

try:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise ImportError('The digits come with scikit-learn: pip install "titok_hf[demo]".') from error

DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def split_rows() -> dict[str, np.ndarray]:
    """Returns the row numbers of the fixed splits: a stratified fifth is `test`, the rest
    `train`."""
    labels = load_digits().target
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels
    )
    return {"train": np.sort(train), "test": np.sort(test)}


def load_digits_pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the digits of a split as arrays: pixels `(n, 64)` in [0, 1], in steps of 1/16, and
    labels `(n,)`."""
    digits, rows = load_digits(), split_rows()[split]
    return digits.data[rows] / 16, digits.target[rows]


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
