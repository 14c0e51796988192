"""The judge of the demo's digits, which is fitted to real digits and knows no network."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..data.digits import DIGIT_NAMES, load_digits_pixels
from .extractors import Extracted, FeatureExtractor


class DigitsExtractor(FeatureExtractor):
    """Extracts the 8x8 pixels, in [0, 1], in which the digits were published: images are averaged
    to gray and over blocks.

    The classifier is a support vector machine (RBF kernel, gamma 0.001 on the scale of 0 to 16, C
    10) fitted to the 8x8 training digits. Its logits are the decision function: only their order
    has a meaning.
    """

    name = "digits-8x8"
    num_features = 64
    num_classes = 10
    class_names = DIGIT_NAMES
    input_size = 8

    def __init__(self) -> None:
        from sklearn.svm import SVC

        pixels, labels = load_digits_pixels("train")
        self.classifier = SVC(gamma=0.001, C=10, break_ties=True).fit(pixels * 16, labels)

    def __call__(self, images: torch.Tensor) -> Extracted:
        """Extracts features of uint8 images `(B, 3, H, W)`."""
        gray = images.cpu().double().mean(1, keepdim=True) / 255  # (B, 1, H, W)
        pixels = F.adaptive_avg_pool2d(gray, self.input_size).flatten(1)  # (B, 64)
        return Extracted(
            pixels, logits=torch.from_numpy(self.classifier.decision_function(pixels.numpy() * 16))
        )

    def identity(self) -> dict[str, Any]:
        parts = (
            self.classifier.support_vectors_,
            self.classifier.dual_coef_,
            self.classifier.intercept_,
        )
        return {
            "name": self.name,
            "weights": "support vector machine fitted to scikit-learn's digits, see titok_hf.data.digits.split_rows",
            "weights_sha256": hashlib.sha256(
                b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
            ).hexdigest(),
            "preprocessing": "averaged to gray and over blocks to 8x8 pixels in [0, 1]",
        }
