"""Batches of VTP's pre-training (arXiv 2512.13687): images, captions, crops and masks.

What is drawn for a batch as a whole is drawn for the global batch, and each process takes its part,
so that training does not depend on the number of processes.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..modeling.vtp import VTPImageProcessor
from .augmentation import Augmentation
from .collator import ImageCollator
from .loader import Sample
from .masking import block_mask, masked_counts
from .multi_crop import MultiCrop
from .samples import captions_of

# Kinds of random numbers of a global batch.
RECONSTRUCTION, SELF_SUPERVISION = range(2)


@dataclass(frozen=True)
class Masking:
    """Masks of the patches of global crops: blocks, in numbers that are stratified over a batch.

    Args:
        probability: Share of the global crops that are masked.
        least, largest: Least and largest share of masked patches of a masked crop.
    """

    probability: float = 0.5
    least: float = 0.1
    largest: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"`probability` must be a share in [0, 1], got {self.probability}.")
        if not 0 <= self.least <= self.largest < 1:
            raise ValueError(
                "`least` and `largest` must be shares in [0, 1), the least first, got "
                f"{self.least} and {self.largest}."
            )


@dataclass(frozen=True)
class Subset:
    """A random subset of every global batch, of which each batch of a process holds as many images.

    The global batch is divided into `size` equal runs of images, and one image of each is drawn.

    Args:
        name: Name of the size, for errors.
        size: Number of images in the subset.
        global_batch_size: Number of images in an optimizer step of all processes.
        batch_size: Number of images that a process takes at once.
        kind: Makes subsets of the same batch independent.

    Raises:
        ValueError: If the subset is larger than the batch, or cannot be shared equally.
    """

    name: str
    size: int
    global_batch_size: int
    batch_size: int
    kind: int

    def __post_init__(self) -> None:
        parts = self.global_batch_size // self.batch_size
        if not 0 < self.size <= self.global_batch_size:
            raise ValueError(
                f"`{self.name}` must be from 1 to the {self.global_batch_size} images of an optimizer "
                f"step, got {self.size}."
            )
        if self.size % parts:
            raise ValueError(
                f"`{self.name}` must be a multiple of {parts}, so that the {parts} batches of "
                f"{self.batch_size} images in an optimizer step (processes times accumulated batches) "
                f"hold as many each, got {self.size}."
            )

    def rng(self, seed: int, batch: int) -> np.random.Generator:
        """Returns the generator of a global batch."""
        return np.random.default_rng((seed, batch, self.kind))

    def places(self, rng: np.random.Generator) -> np.ndarray:
        """Draws the places of the images in the global batch, `(size,)` in ascending order."""
        edges = np.arange(self.size + 1) * self.global_batch_size // self.size
        return rng.integers(edges[:-1], edges[1:])

    def part(self, first_place: int) -> slice:
        """Returns the part of the subset in the batch that starts at a place."""
        count = self.size * self.batch_size // self.global_batch_size
        start = first_place // self.batch_size * count
        return slice(start, start + count)


class PretrainingCollator(ImageCollator):
    """Turns samples with captions into batches for `VTPPretrainingObjective`.

    Of an image, contrast and reconstruction see the same crop, made by `augmentation`; of images in
    the subset for self-supervision, `multi_crop` makes further ones. What an objective does not need
    is not made.

    Args:
        processor: Image processor of the tokenizer.
        image_column: Name of the column of images.
        text_column: Name of the column of captions, a text or a list of texts.
        augmentation: Augmentation of the crop of contrast and reconstruction.
        tokenizer: Text tokenizer; without one there is no contrast.
        context_length: Largest number of tokens of a caption.
        reconstruction: Subset for reconstruction; `None` for no reconstruction.
        self_supervision: Subset for self-supervision; `None` for no self-supervision.
        multi_crop: Crops of self-supervision.
        masking: Masks of its global crops.
        seed: Seed of the subsets and masks.
    """

    def __init__(
        self,
        processor: VTPImageProcessor,
        image_column: str = "image",
        text_column: str = "text",
        augmentation: Augmentation | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        context_length: int = 77,
        reconstruction: Subset | None = None,
        self_supervision: Subset | None = None,
        multi_crop: MultiCrop | None = None,
        masking: Masking | None = None,
        seed: int = 0,
    ):
        super().__init__(processor, image_column, None, augmentation)
        # a copy, since calls change its settings, which are saved with it
        self.tokenizer = copy.deepcopy(tokenizer)
        self.text_column = None if tokenizer is None else text_column
        self.context_length = context_length
        self.reconstruction = reconstruction
        self.self_supervision = self_supervision
        self.multi_crop = multi_crop or MultiCrop()
        self.masking = masking or Masking()
        self.seed = seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns a batch for evaluation: no augmentation, the first caption of each image, and no
        crops of self-supervision."""
        batch = super().__call__(rows)
        if self.tokenizer is not None:
            captions = [captions_of(row[self.text_column]) for row in rows]
            batch |= self.tokenize([texts[0] if texts else "" for texts in captions])
        return batch

    def tokenize(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """Returns `input_ids` `(B, context_length)`, padded, and `captions_cut` `(B,)`, which is true
        where a caption was longer."""
        length = self.context_length
        # one token more shows which captions are too long; the last of them is the end of the text
        encoded = self.tokenizer(captions, truncation=True, max_length=length + 1)["input_ids"]
        padding = self.tokenizer.pad_token_id
        rows = [
            [*ids[: length - 1], ids[-1]]
            if len(ids) > length
            else [*ids, *[padding] * (length - len(ids))]
            for ids in encoded
        ]
        return {
            "input_ids": torch.tensor(rows),
            "captions_cut": torch.tensor([len(ids) > length for ids in encoded]),
        }

    def collate(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """Returns a batch for training.

        Returns:
            `pixel_values` `(B, 3, H, W)`, or `(R, 3, H, W)` of the subset for reconstruction if there
            is no contrast;

            with contrast, `input_ids` `(B, context_length)` of a random caption of each image, and
            `captions_cut` `(B,)`; with reconstruction, `reconstruction_rows` `(R,)`, the images in
            its subset;

            with self-supervision, `ssl_rows` `(S,)`, the images in its subset, `global_crops` `(2, S,
            3, G, G)`, `local_crops` `(L, S, 3, l, l)`, `patch_mask` `(2, S, N)`, `masked_indices`
            `(M,)`, the masked among the `2 * S * N` patches, and `mask_weights` `(M,)`, one over the
            number of masked patches of the crop;

            `draws` `(B, num_draws)`, if the loader draws any.
        """
        batch: dict[str, torch.Tensor] = {}
        if self.tokenizer is not None:
            batch |= self.tokenize([choose_caption(sample) for sample in samples])
        first, rows = samples[0].position, np.arange(len(samples))
        if self.reconstruction is not None:
            subset = self.reconstruction
            number, start = divmod(first, subset.global_batch_size)
            places = subset.places(subset.rng(self.seed, number))
            rows = places[subset.part(start)] - start
            batch["reconstruction_rows"] = torch.from_numpy(rows)
        if self.tokenizer is not None or self.reconstruction is not None:
            seen = range(len(samples)) if self.tokenizer is not None else rows
            batch["pixel_values"] = torch.stack([self.augmented(samples[row]) for row in seen])
        if self.self_supervision is not None:
            batch |= self.crops(samples)
        if samples[0].draws.size:
            batch["draws"] = torch.from_numpy(np.stack([sample.draws for sample in samples]))
        return batch

    def augmented(self, sample: Sample) -> torch.Tensor:
        return self.augmentation(sample.image, self.processor, sample.rng)

    def crops(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """Returns the inputs of self-supervision; see `collate`."""
        subset, multi_crop = self.self_supervision, self.multi_crop
        number, start = divmod(samples[0].position, subset.global_batch_size)
        rng = subset.rng(self.seed, number)
        part = subset.part(start)
        rows = subset.places(rng)[part] - start  # (S,)
        side = multi_crop.global_size // multi_crop.patch_size
        counts = masked_counts(
            2 * subset.size,
            side**2,
            rng,
            probability=self.masking.probability,
            ratios=(self.masking.least, self.masking.largest),
        )
        counts = counts.reshape(2, -1)[:, part]  # (2, S)
        global_crops, local_crops, masks = [], [], []
        for row, of_crops in zip(rows, counts.T, strict=True):
            sample = samples[row]
            of_image = multi_crop(sample.image, self.processor, sample.rng)
            global_crops.append(of_image[0])
            local_crops.append(of_image[1])
            masks.append([block_mask((side, side), count, sample.rng) for count in of_crops])
        patch_mask = torch.from_numpy(np.array(masks)).transpose(0, 1)  # (2, S, N)
        weights = 1 / patch_mask.sum(-1, keepdim=True).clamp_min(1)
        return {
            "ssl_rows": torch.from_numpy(rows),
            "global_crops": torch.stack(global_crops, 1),
            "local_crops": torch.stack(local_crops, 1),
            "patch_mask": patch_mask,
            "masked_indices": patch_mask.flatten().nonzero()[:, 0],
            "mask_weights": weights.expand_as(patch_mask)[patch_mask],
        }


def choose_caption(sample: Sample) -> str:
    """Draws one of the captions of a sample."""
    captions = sample.stored.captions
    return captions[int(sample.rng.random() * len(captions))]


__all__ = ["Masking", "PretrainingCollator", "Subset"]
