"""Reference batches: statistics and images to compare generated images with, computed once."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import gather_object

from ..devices import default_device
from ..distributed import process_state
from ..hub.folders import output_file
from .adm import write_statistics
from .feature_statistics import (
    FeatureStatistics,
    ReferenceSet,
    check_feasible,
    check_same_everywhere,
)
from .image_sources import open_source
from .metric_networks import MetricNetworks
from .protocol import GAUSSIAN_METRICS, Protocol


@torch.no_grad()
def write_reference(
    data: str,
    output: str | Path,
    protocol: str | Path = "adm-256",
    overrides: Sequence[str] = (),
    split: str | None = None,
    revision: str | None = None,
    image_column: str = "image",
    num_kept: int = 10000,
    extractor_weights: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> None:
    """Writes a reference batch of a data set for `evaluate_generation` and ADM's evaluator.

    Args:
        data: See `open_dataset`.
        output: Path of the file (`.npz`). It will hold `mu` and `sigma` of all images, `mu_s` and
            `sigma_s` if the extractor has spatial features, and some of the images.
        protocol, overrides: See `Protocol.load`.
        split, revision, image_column: See `open_dataset`.
        num_kept: Number of evenly spaced images to keep for precision and recall; ADM's files have
            10,000.
        extractor_weights: See `load_extractor`.
        batch_size: Number of images per batch.
        device: Device to compute on; by default the accelerator if there is one.

    Raises:
        FileExistsError: If `output` exists.
        ValueError: If the file cannot be written there, or there are not more images than features.
    """
    output = output_file(output, [".npz"])
    if output.exists():
        raise FileExistsError(f"{output} exists already: choose another name, or delete it.")
    state = process_state()  # comes first, since it assigns each process its device
    loaded = Protocol.load(protocol, overrides)
    source = open_source(data, loaded, split, revision, image_column=image_column)
    judges = MetricNetworks.load(
        loaded, ["frechet_distance"], extractor_weights, device or default_device()
    )
    check_same_everywhere(loaded, judges, source)
    metrics = GAUSSIAN_METRICS if judges.extractor.num_spatial else GAUSSIAN_METRICS[:1]
    check_feasible(
        metrics,
        loaded,
        judges,
        source.num_images,
        labelled=False,
        reference=ReferenceSet(source, metrics),
    )
    gathered = FeatureStatistics(judges, metrics, source.num_images, loaded)
    spread = torch.zeros(source.num_images, dtype=torch.bool)
    spread[torch.arange(num_kept) * source.num_images // num_kept] = True
    kept = []
    for batch in source.progress(batch_size, "reference"):
        gathered.update(batch)
        chosen = spread[batch.indices]
        kept.append((batch.indices[chosen], batch.images[chosen]))
    gathered.reduce()
    indices, images = (torch.cat(parts) for parts in zip(*gather_object(kept), strict=True))
    if state.is_main_process:
        spatial = None if gathered.spatial is None else gathered.spatial.total()
        write_statistics(output, gathered.gaussian.total(), spatial, images[indices.argsort()])
