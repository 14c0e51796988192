"""The embedded data set: scikit-learn's 1,797 handwritten digits, from the UCI repository.

Needs scikit-learn, which carries them: `pip install "titok_hf[demo]"`.
"""

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def upsample_preserving_means(images: torch.Tensor, factor: int, iterations: int = 30) -> torch.Tensor:
    """Smooth upsampling whose `factor` x `factor` block means are the pixels of the input.

    Bicubic interpolation blurs; here what the block means miss is added to the input and interpolated again (Van
    Cittert's deconvolution), with values kept in [0, 1].

    Args:
        images: `(B, 1, H, W)` in [0, 1].
        factor: Of the side.
        iterations: Interpolations.

    Returns:
        `(B, 1, factor * H, factor * W)` in [0, 1].
    """
    corrected = images
    for _ in range(iterations):
        padded = F.pad(corrected, (1, 1, 1, 1))  # the paper around the digit is empty
        upsampled = F.interpolate(padded, scale_factor=factor, mode="bicubic")
        upsampled = upsampled[..., factor:-factor, factor:-factor].clamp(0, 1)
        corrected = corrected + images - F.avg_pool2d(upsampled, factor)
    return upsampled


def split_rows() -> dict[str, np.ndarray]:
    """Row numbers of the fixed splits: a stratified fifth is `test`, the rest `train`."""
    labels = load_digits().target
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    return {"train": np.sort(train), "test": np.sort(test)}


def load_published_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The 8x8 digits of a split as published: pixels `(n, 64)` in [0, 1], in steps of 1/16, and labels `(n,)`."""
    digits, rows = load_digits(), split_rows()[split]
    return digits.data[rows] / 16, digits.target[rows]


def load_digits_dataset() -> DatasetDict:
    """The digits as 32x32 gray images with labels, white on black.

    The digits were scanned as 32x32 bitmaps and published as the number of set pixels, 0 to 16, in each 4x4 block. The
    images are a smooth guess at the scans that has these very block sums: averaging 4x4 blocks gives the published
    digits back, to within 0.05.
    """
    features = Features({"image": Image(), "label": ClassLabel(names=DIGIT_NAMES)})
    splits = {}
    for split in ("train", "test"):
        pixels, labels = load_published_digits(split)
        digits = torch.from_numpy(pixels).float().view(-1, 1, 8, 8)
        scans = (upsample_preserving_means(digits, factor=4) * 255).round().to(torch.uint8)  # (n, 1, 32, 32)
        columns = {"image": list(scans[:, 0].numpy()), "label": labels.tolist()}
        splits[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)
