"""Nearest training images of generated ones: whether a generator copies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..data.grids import image_grid
from ..data.opening import dataset_commit, open_images
from ..devices import default_device
from ..distributed import process_state
from ..modeling.titok import TiTokImageProcessor
from ..progress import index_batches
from .extractors import FeatureExtractor
from .files import picture_file
from .generation import describe_pipeline, load_pipeline
from .image_sources import DatasetImages, GeneratedImages, TensorImages
from .metric_networks import load_extractor
from .protocol import Protocol
from .results import command, device_name, versions

COLUMNS = 8  # images of a class in the picture


def nearest_neighbors(
    extractor: FeatureExtractor,
    images: torch.Tensor,
    training: torch.Tensor,
    held_out: torch.Tensor,
) -> dict[str, float]:
    """Compares the distances from images and from held-out images to their nearest training images.

    Args:
        extractor: Gives the features between which distances are computed.
        images, training, held_out: uint8 `(n, 3, H, W)`.

    Returns:
        `nearest_neighbor_ratio`: the median distance of an image to its nearest training image,
        divided by that median of the held-out images; `share_nearer_than_held_out`: the share of
        images that are nearer to a training image than the median held-out image is. Copies of
        training images would give 0 and 1, new real images 1 and 0.5.
    """
    return compared(*(features_of(extractor, part) for part in (images, training, held_out)))


def compared(features: torch.Tensor, known: torch.Tensor, new: torch.Tensor) -> dict[str, float]:
    """Returns the result of `nearest_neighbors` from the features `(n, D)` of images, of training images
    and of held-out ones."""
    distances = torch.cdist(features, known).amin(1)
    held_out_median = torch.cdist(new, known).amin(1).quantile(0.5)
    return {
        "nearest_neighbor_ratio": float(distances.quantile(0.5) / held_out_median),
        "share_nearer_than_held_out": float((distances < held_out_median).double().mean()),
    }


def features_of(extractor: FeatureExtractor, images: torch.Tensor) -> torch.Tensor:
    """Returns the features `(n, D)` of uint8 images `(n, 3, H, W)` on the CPU, in batches."""
    batches = index_batches(len(images), 256, "features")
    return torch.cat([extractor(images[indices]).features.cpu() for indices in batches])


def evaluate_neighbors(
    source: str | Path,
    data: str,
    protocol: str | Path = "demo",
    overrides: Sequence[str] = (),
    num_samples: int | None = None,
    seed: int = 0,
    sampler: Mapping[str, Any] | None = None,
    revision: str | None = None,
    data_revision: str | None = None,
    image_column: str = "image",
    extractor_weights: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """Compares generated images with their nearest training images, by an extractor's features.

    Args:
        source: Folder or Hub repository of a class-conditional pipeline.
        data: The data that it was trained on, with a held-out split, see `open_images`.
        protocol, overrides: See `Protocol.load`.
        num_samples: Number of images to generate, cycling through the classes; the protocol's
            number if not given.
        seed: Random seed.
        sampler: Arguments of the pipeline's call; its defaults if not given.
        revision: Branch, tag or commit of the pipeline on the Hub.
        data_revision: Branch, tag or commit of the data on the Hub.
        image_column: Column of the images.
        extractor_weights: See `load_extractor`.
        batch_size: Number of images per batch.
        device: Device to compute on; by default the accelerator if there is one.
        picture: Picture to draw: generated images of each class above their nearest training images.

    Returns:
        `metrics` (see `nearest_neighbors`), `num_images`, and what they depend on: `tokenizer`,
        `generator`, `sampler`, `seed`, `data`, `protocol`, `extractor`, `device`, `versions`, and the
        `command` that repeats it.

    Raises:
        ValueError: If the protocol names no number of images, or does not fit them.
    """
    arguments = dict(locals())
    picture = None if picture is None else picture_file(picture)
    count = [] if num_samples is None else [f"num_samples={num_samples}"]
    loaded_protocol = Protocol.load(protocol, [*overrides, *count])
    if loaded_protocol.num_samples is None:
        raise ValueError("The protocol names no number of images: give `num_samples`.")
    splits = open_images(data, image_column, revision=data_revision)
    training, held_out = (
        DatasetImages(splits.dataset(split), loaded_protocol, image_column).whole().images
        for split in ("train", "test")
    )
    device = torch.device(device or default_device())
    extractor = load_extractor(loaded_protocol.extractor, extractor_weights, device)
    pipeline = load_pipeline(source, revision)
    tokenizer, generator, described = describe_pipeline(pipeline, source, revision, sampler or {})
    pipeline.to(device)
    generated = GeneratedImages(
        pipeline, loaded_protocol.num_samples, loaded_protocol, seed, **(sampler or {})
    )
    generated = generated.whole(batch_size)
    features, known, new = (
        features_of(extractor, images) for images in (generated.images, training, held_out)
    )
    if picture is not None and process_state().is_main_process:
        nearest = torch.cdist(features, known).argmin(1)
        draw_neighbors(generated, training[nearest]).save(picture)
    commit = dataset_commit(data, data_revision)
    arguments |= {"data_revision": commit, "revision": (generator or {}).get("revision")}
    return {
        "metrics": {
            name: {"value": value, "standard_error": None}
            for name, value in compared(features, known, new).items()
        },
        "num_images": generated.num_images,
        "tokenizer": tokenizer,
        "generator": generator,
        "sampler": described,
        "seed": seed,
        "data": {"id": data, "revision": commit, "image_column": image_column},
        "protocol": loaded_protocol.to_dict(),
        "extractor": extractor.identity(),
        "device": device_name(device),
        "versions": versions(),
        "command": command("neighbors", arguments),
    }


def draw_neighbors(generated: TensorImages, nearest: torch.Tensor) -> Image.Image:
    """Draws generated images above their nearest training images `nearest`, uint8 `(n, 3, H, W)`: two
    rows for each class, or for all images if they have none."""
    labels = torch.zeros(generated.num_images) if generated.labels is None else generated.labels
    rows, titles = [], []
    processor = TiTokImageProcessor()
    for label in labels.unique().int().tolist():
        places = (labels == label).nonzero()[:COLUMNS, 0]
        rows += [
            processor.postprocess(images[places] / 255) for images in (generated.images, nearest)
        ]
        names = generated.class_names
        titles += [
            "generated" if generated.labels is None else names[label] if names else str(label)
        ]
        titles += ["nearest"]
    return image_grid(rows, titles, zoom=max(1, 64 // nearest.shape[-1]))


__all__ = ["evaluate_neighbors", "nearest_neighbors"]
