"""Tells how well a generator will learn on a tokenizer's latents, without training one.

The measures are those whose correlation with generation was studied on 86 tokenizers (arXiv
2606.03578). Latents are normalized to mean 0 and standard deviation 1 in each channel first, as a
generator sees them; the effective rank alone is of the channels as they are.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset, Image
from torch import nn
from torch.nn import functional as F

from ..data.decoding import decoder_for
from ..data.opening import dataset_commit, open_images
from ..devices import default_device
from ..modeling.auto import load_tokenizer
from ..modeling.titok import TiTokImageProcessor
from ..progress import index_batches, working
from .extractors import FeatureExtractor
from .image_sources import Fingerprint, decode_row, encoded_images, to_uint8
from .interpolation import interpolated_frechet_distance
from .metric_networks import load_extractor
from .metrics.standard_error import Estimate
from .representations import local_spatial_similarity, region_self_similarity
from .results import command, describe_model, device_name, versions

CUTOFFS = (0.25, 0.5)
LEAST_IMAGES = 4  # of a class, for its covariance
OF_2D = (
    "spatial_similarity",
    "region_similarity",
    *(f"high_frequencies_{cutoff:g}" for cutoff in CUTOFFS),
)


def velocity_variance(latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns for each class the variance of the velocity of a flow that no generator can explain,
    per dimension, if the latents of a class were Gaussian (VIV).

    It is `pi / 2` times the mean root of the eigenvalues of the class's covariance, over times from 0
    to 1. The covariance is taken as the Kronecker product of one over places and one over channels,
    estimated in turn, of the class's total variance. White latents have pi / 2, constant ones 0. It
    is not comparable between latents of different sizes.

    Args:
        latents: `(B, N, C)`.
        labels: `(B,)`.

    Returns:
        `(classes,)` in float64, of the classes with at least `LEAST_IMAGES` images.
    """
    values = []
    for label in labels.unique():
        of_class = latents[labels == label].double()
        count, places, channels = of_class.shape
        if count < LEAST_IMAGES:
            continue
        centered = of_class - of_class.mean(0)
        variance = centered.square().sum() / (count - 1) / (places * channels)
        if variance == 0:
            values.append(torch.zeros((), dtype=torch.float64))
            continue
        of_channels = torch.eye(channels, dtype=torch.float64)
        for _ in range(5):
            of_places = torch.einsum("bnc,cd,bmd->nm", centered, inverse(of_channels), centered)
            of_places = of_places / of_places.trace() * places
            of_channels = torch.einsum("bnc,nm,bmd->cd", centered, inverse(of_places), centered)
            of_channels = of_channels / of_channels.trace() * channels
        roots = [
            torch.linalg.eigvalsh(matrix).clamp_min(0).sqrt() for matrix in (of_places, of_channels)
        ]
        values.append(math.pi / 2 * variance.sqrt() * roots[0].mean() * roots[1].mean())
    return torch.stack(values)


def inverse(matrix: torch.Tensor, share: float = 1e-3) -> torch.Tensor:
    """Returns the inverse of a covariance to which a share of its mean variance is added."""
    size = len(matrix)
    return torch.linalg.inv(matrix + share * matrix.trace() / size * torch.eye(size).to(matrix))


def same_class_neighbors(features: torch.Tensor, labels: torch.Tensor, k: int = 20) -> torch.Tensor:
    """Returns for each image the share of its `k` nearest other images, by cosine, that have its class
    (LNC).

    Args:
        features: Mean latents `(B, C)`.
        labels: `(B,)`.
        k: Number of neighbors.

    Returns:
        `(B,)`.
    """
    unit = F.normalize(features.double(), dim=1)
    nearest = []
    for start in range(0, len(unit), 1024):
        cosines = unit[start : start + 1024] @ unit.T
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = -2  # not itself
        nearest.append(cosines.topk(k, dim=1).indices)
    return (labels[torch.cat(nearest)] == labels[:, None]).double().mean(1)


def high_frequencies(latents: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Returns the share of each image's energy above a frequency (SEC): of the coefficients of the
    two-dimensional discrete cosine transform at `u + v > cutoff * (h - 1 + w - 1)`.

    White latents have the share of such coefficients.

    Args:
        latents: `(B, C, h, w)`.
        cutoff: Share of the highest frequency.

    Returns:
        `(B,)`.
    """
    height, width = latents.shape[2:]
    rows, columns = cosine_transform(height), cosine_transform(width)
    energy = (rows @ latents.double() @ columns.T).square().sum(1)  # (B, h, w)
    frequencies = torch.arange(height)[:, None] + torch.arange(width)
    high = frequencies > cutoff * (height - 1 + width - 1)
    return energy[:, high].sum(1) / energy.flatten(1).sum(1)


def cosine_transform(size: int) -> torch.Tensor:
    """Returns the orthonormal matrix `(size, size)` of the discrete cosine transform of type II."""
    numbers = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * numbers[:, None] * (numbers + 0.5))
    matrix[0] /= math.sqrt(2)
    return matrix * math.sqrt(2 / size)


def effective_rank(channels: torch.Tensor) -> float:
    """Returns the effective number of channels, `(sum of eigenvalues)^2 / (sum of their squares)` of
    the covariance of vectors `(n, C)`."""
    covariance = torch.cov(channels.double().T)  # a scalar of one channel
    eigenvalues = torch.linalg.eigvalsh(torch.atleast_2d(covariance))
    return float(eigenvalues.sum().square() / eigenvalues.square().sum())


@working("metrics")
def measure_learnability(
    latents: torch.Tensor,
    labels: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    k: int = 20,
) -> dict[str, Any]:
    """Measures latents; see the module.

    Args:
        latents: Latents `(B, N, C)` of a 1D tokenizer, or `(B, C, h, w)` of a 2D one.
        labels: Classes `(B,)`; without them, there are neither `velocity_variance` nor
            `same_class_neighbors`.
        masks: `(B, h, w)`, true where a latent of a 2D tokenizer is in the foreground; without them,
            there is no `region_similarity`.
        k: Number of neighbors of `same_class_neighbors`; at most all other images.

    Returns:
        `metrics` by name; `undefined`, the names of those that these latents do not have, each with
        the reason; `shape` of the latents; and `channels`, the `mean` and `std` of each before
        normalization.

    Raises:
        ValueError: If a channel is constant, or a label negative, which marks a missing one in many
            data sets.
    """
    is_2d = latents.ndim == 4
    vectors = latents.flatten(2).transpose(1, 2) if is_2d else latents  # (B, N, C)
    channels = vectors.flatten(0, 1).double()  # (B * N, C)
    mean, std = channels.mean(0), channels.std(0, correction=0)
    if not std.all():
        raise ValueError(f"The channels {(std == 0).nonzero().flatten().tolist()} are constant.")
    normalized = (vectors - mean) / std
    metrics: dict[str, Estimate] = {}
    undefined: dict[str, str] = {}
    if labels is None:
        undefined |= dict.fromkeys(("velocity_variance", "same_class_neighbors"), "no labels")
    elif (labels < 0).any():
        raise ValueError(f"Every image must have a label of 0 or more, got {labels.min()}.")
    else:
        if labels.bincount().max() < LEAST_IMAGES:
            undefined["velocity_variance"] = f"no class has {LEAST_IMAGES} images"
        else:
            metrics["velocity_variance"] = Estimate.mean(velocity_variance(normalized, labels))
        if len(labels) == 1:
            undefined["same_class_neighbors"] = "one image has no neighbors"
        else:
            metrics["same_class_neighbors"] = Estimate.mean(
                same_class_neighbors(normalized.mean(1), labels, min(k, len(labels) - 1))
            )
    far = min(6, sum(latents.shape[2:]) - 2) if is_2d else 0
    if far >= 2:
        grid = normalized.transpose(1, 2).unflatten(2, latents.shape[2:])  # (B, C, h, w)
        # in parts, since the cosines of all images would not fit in memory
        similarity = [local_spatial_similarity(part, far) for part in grid.split(256)]
        metrics["spatial_similarity"] = Estimate.mean(torch.cat(similarity))
        for cutoff in CUTOFFS:
            metrics[f"high_frequencies_{cutoff:g}"] = Estimate.mean(high_frequencies(grid, cutoff))
        if masks is None:
            undefined["region_similarity"] = "no masks"
        else:
            parts = zip(grid.split(256), masks.split(256), strict=True)
            similarity = torch.cat([region_self_similarity(*part, far) for part in parts])
            similarity = similarity[~similarity.isnan()]
            if len(similarity):
                metrics["region_similarity"] = Estimate.mean(similarity)
            else:
                reason = f"no foreground has a background {far} latents away"
                undefined["region_similarity"] = reason
    else:
        undefined |= dict.fromkeys(OF_2D, "these latents are no grid")
    metrics["effective_rank"] = Estimate(effective_rank(channels))
    return {
        "metrics": {
            name: {"value": measured.value, "standard_error": measured.standard_error}
            for name, measured in metrics.items()
        },
        "undefined": undefined,
        "shape": list(latents.shape[1:]),
        "channels": {"mean": mean.tolist(), "std": std.tolist()},
    }


@dataclass(frozen=True)
class EncodedImages:
    """The latents of the images of a data set.

    Args:
        latents: `(B, N, C)` or `(B, C, h, w)`, in float32.
        labels: `(B,)`, if there are labels.
        masks: `(B, h, w)`, true in the foreground, if there are masks and the latents are a grid.
        features: Features of the images themselves `(B, D)`, if there was an extractor.
        fingerprint: Hash of the images, as the tokenizer takes them.
    """

    latents: torch.Tensor
    labels: torch.Tensor | None
    masks: torch.Tensor | None
    features: torch.Tensor | None
    fingerprint: str

    @property
    def mean(self) -> torch.Tensor:
        """The mean latents of the images, `(B, C)`."""
        return self.latents.mean(1) if self.latents.ndim == 3 else self.latents.mean((2, 3))

    @classmethod
    @torch.no_grad()
    def encode(
        cls,
        tokenizer: nn.Module,
        processor: TiTokImageProcessor,
        dataset: Dataset,
        image_column: str = "image",
        label_column: str | None = "label",
        mask_column: str | None = None,
        extractor: FeatureExtractor | None = None,
        batch_size: int = 64,
    ) -> "EncodedImages":
        """Encodes the images of a data set, batch by batch.

        Masks are images, bright in the foreground. They are resized and cropped like the images they
        belong to; a latent is in the foreground if more than half of its area is.

        Raises:
            ValueError: If the tokenizer is discrete, or there is no such column of masks.
        """
        if mask_column is not None and not isinstance(dataset.features.get(mask_column), Image):
            columns = [name for name, kind in dataset.features.items() if isinstance(kind, Image)]
            raise ValueError(
                f"Masks must be a column of images, got {mask_column!r}: the data has "
                f"{', '.join(columns)}."
            )
        encoded, decode = encoded_images(dataset, image_column), decoder_for(processor)
        latents, masks, features, fingerprint = [], [], [], Fingerprint()
        for indices in index_batches(len(dataset), batch_size, "latents"):
            images = [decode_row(encoded[i][image_column], i, decode) for i in indices.tolist()]
            pixel_values = processor(images, return_tensors="pt")["pixel_values"]
            shown = to_uint8(processor.postprocess(pixel_values, "pt"), "round")
            fingerprint.update(shown)
            if extractor is not None:
                features.append(extractor(shown).features.cpu())
            output = tokenizer.encode(pixel_values.to(tokenizer.device, tokenizer.dtype))
            if output.codes is not None:
                name = getattr(tokenizer, "name_or_path", type(tokenizer).__name__)
                raise ValueError(
                    f"{name} is discrete; what is measured is of continuous latents, on which a flow "
                    "is trained."
                )
            latents.append(output.latents.float().cpu())
            if mask_column is not None and output.latents.ndim == 4:
                drawn = [mask.convert("RGB") for mask in dataset[indices.tolist()][mask_column]]
                pixel_values = processor(drawn, return_tensors="pt")["pixel_values"]
                shown = processor.postprocess(pixel_values, "pt")[:, :1]
                masks.append(F.adaptive_avg_pool2d(shown, output.latents.shape[2:])[:, 0] > 0.5)
        labels = None if label_column is None else torch.tensor(dataset[label_column])
        return cls(
            latents=torch.cat(latents),
            labels=labels,
            masks=torch.cat(masks) if masks else None,
            features=torch.cat(features) if features else None,
            fingerprint=fingerprint.compute([fingerprint.total]),
        )


def evaluate_learnability(
    tokenizer: str | Path,
    data: str,
    split: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    data_revision: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    mask_column: str | None = None,
    num_images: int | None = None,
    k: int = 20,
    extractor: str | None = None,
    extractor_weights: str | Path | None = None,
    num_training_images: int = 10_000,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Measures how well a generator will learn on a tokenizer's latents of images.

    Args:
        tokenizer: Folder or Hub repository of a tokenizer of any family with continuous latents.
        data: Images, see `open_images`.
        split: The split; `test` if not given.
        revision: Branch, tag or commit of the tokenizer, if it is on the Hub.
        subfolder: Folder of the tokenizer in its repository.
        data_revision: Branch, tag or commit of the data, if they are on the Hub.
        image_column, label_column: Columns of the images; `label_column=None` without labels.
        mask_column: Column of masks, images that are bright in the foreground.
        num_images: The first so many; all if not given.
        k: Number of neighbors of `same_class_neighbors`.
        extractor: Network of `interpolated_frechet_distance` (iFID), see `load_extractor`; without one,
            it is not measured. Its neighbors are images of the split `train`.
        extractor_weights: See `load_extractor`.
        num_training_images: Number of training images among which neighbors are looked for, spread
            evenly; at most all.
        batch_size: Number of images per batch.
        device: Device to compute on; by default the accelerator if there is one.

    Returns:
        The result of `measure_learnability`, with iFID in `metrics` or in `undefined`, and with
        `tokenizer`, `data`, `num_images`, the `fingerprint` of the images, the `extractor`, `device`,
        `versions`, and the `command` that repeats it.

    Raises:
        ValueError: If the tokenizer is discrete, or there is no such column of masks.
    """
    arguments = dict(locals())
    network = None if extractor is None else load_extractor(extractor, extractor_weights, device)
    model, processor = load_tokenizer(tokenizer, revision=revision or "main", subfolder=subfolder)
    described = describe_model(model, tokenizer, revision, subfolder)
    device = torch.device(device or default_device())
    model.to(device)
    columns = {"image_column": image_column, "label_column": label_column}
    splits = open_images(data, **columns, revision=data_revision)
    split = splits.resolve(split)
    dataset = splits.dataset(split)
    dataset = dataset if num_images is None else dataset.select(range(num_images))
    reason = None
    if network is None:
        reason = "no extractor"
    elif len(dataset) <= network.num_features:
        reason = f"{len(dataset)} images are too few for {network.num_features} features"
    encoded = EncodedImages.encode(
        model,
        processor,
        dataset,
        **columns,
        mask_column=mask_column,
        extractor=None if reason else network,
        batch_size=batch_size,
    )
    measured = measure_learnability(encoded.latents, encoded.labels, encoded.masks, k)
    if reason:
        measured["undefined"]["interpolated_frechet_distance"] = reason
    else:
        train = splits.dataset("train")
        places = torch.linspace(0, len(train) - 1, min(len(train), num_training_images))
        train = train.select(places.round().long().tolist())
        known = EncodedImages.encode(model, processor, train, **columns, batch_size=batch_size)
        distance = interpolated_frechet_distance(
            model,
            processor,
            network,
            features=encoded.features,
            latents=encoded.latents,
            known=known.latents,
            batch_size=batch_size,
        )
        measured["metrics"]["interpolated_frechet_distance"] = {
            "value": distance,
            "standard_error": None,
        }
    commit = dataset_commit(data, data_revision)
    arguments |= {"revision": described["revision"], "data_revision": commit}
    return {
        "tokenizer": described,
        "data": {"id": data, "revision": commit, "split": split, **columns},
        "num_images": len(dataset),
        "fingerprint": encoded.fingerprint,
        **measured,
        "extractor": None if network is None else network.identity(),
        "device": device_name(device),
        "versions": versions(),
        "command": command("learnability", arguments) + ("" if label_column else " --no-labels"),
    }


@dataclass(frozen=True)
class Learnability:
    """A stored result of `evaluate_learnability`, for a model card.

    Args:
        tokenizer, data, num_images, metrics: See `evaluate_learnability`.
    """

    tokenizer: dict[str, Any]
    data: dict[str, Any]
    num_images: int
    metrics: dict[str, dict[str, float | None]]
    task: ClassVar[str] = "learnability"
    generator: ClassVar[None] = None

    @classmethod
    def load(cls, path: str | Path) -> "Learnability":
        """Reads a result of one tokenizer; raises `ValueError` if the file holds something else."""
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is not a result of `titok evaluate learnability` for one tokenizer: {error!r}"
            ) from error

    def card_results(self) -> list[dict[str, Any]]:
        """Returns the metrics as `results` of a provenance, see `titok_hf.hub.provenance`."""
        split = {"split": self.data["split"]} if self.data["split"] else {}
        return [
            {
                "task": "image-feature-extraction",
                "dataset": self.data["id"],
                **split,
                "metric": name,
                "name": name.replace("_", " "),
                "value": measured["value"],
                "standard_error": measured["standard_error"],
                "protocol": f"learnability of latents, {self.num_images} images",
            }
            for name, measured in self.metrics.items()
        ]


def comparable(results: Sequence[Mapping[str, Any]], metric: str) -> bool:
    """Whether a metric ranks the tokenizers of these results: that of velocity does not rank latents
    of different sizes."""
    return metric != "velocity_variance" or len({math.prod(r["shape"]) for r in results}) == 1


__all__ = ["Learnability", "comparable", "evaluate_learnability", "measure_learnability"]
