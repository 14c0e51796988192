"""FDr6: the mean ratio of a generator's Fréchet distances to those of real validation images, over six
encoders (arXiv 2604.28190). With fewer encoders, it is FDr of as many."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch

from ..devices import default_device
from ..distributed import check_shared, process_state
from ..hub.folders import whole_file
from ..settings import check_keys
from .generation import evaluate_generation, is_image_source, measure_generation
from .image_sources import open_source
from .metric_networks import ENCODERS, MetricNetworks
from .metrics.standard_error import Estimate
from .protocol import Protocol
from .reference import write_reference
from .results import Evaluation, command

PROTOCOL = "fdr6"
CONSTANTS = "validation.json"


def write_ratio_reference(
    data: str,
    output: str | Path,
    protocol: str | Path = PROTOCOL,
    overrides: Sequence[str] = (),
    train_split: str = "train",
    validation_split: str = "validation",
    encoders: Sequence[str] | None = None,
    revision: str | None = None,
    image_column: str = "image",
    extractor_weights: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> dict[str, float]:
    """Writes what `evaluate_frechet_ratio` compares with: for each encoder, the statistics of the
    training images, and the Fréchet distance of the validation images to them.

    A second call with the same folder computes what is missing.

    Args:
        data: A data set with both splits, see `open_dataset`.
        output: Folder of the statistics, `ENCODER.npz`, and the distances, `validation.json`.
        protocol, overrides: See `Protocol.load`.
        train_split, validation_split: Names of the splits.
        encoders: Names of encoders; all six if not given.
        revision, image_column: See `open_dataset`.
        extractor_weights: Weights of Inception, see `load_extractor`.
        batch_size: Number of images per batch.
        device: Device to compute on; by default the accelerator if there is one.

    Returns:
        The distance by encoder.

    Raises:
        OSError: If a process does not see the folder of the others.
        ValueError: If there are fewer images than features.
    """
    folder, device = Path(output), device or default_device()
    check_shared(folder)
    path = folder / CONSTANTS
    constants = json.loads(path.read_text()) if path.exists() else {}
    for name in named_encoders(encoders):
        if name in constants:
            continue
        changes = [*overrides, f"extractor={PROTOCOL}:{name}"]
        arguments = {"revision": revision, "image_column": image_column}
        if not (folder / f"{name}.npz").exists():
            write_reference(
                data,
                folder / f"{name}.npz",
                protocol,
                changes,
                split=train_split,
                num_kept=1,
                extractor_weights=extractor_weights,
                batch_size=batch_size,
                device=device,
                **arguments,
            )
            process_state().wait_for_everyone()
        loaded = Protocol.load(protocol, changes)
        measured = measure_generation(
            [open_source(data, loaded, validation_split, **arguments)],
            open_source(str(folder / f"{name}.npz"), loaded),
            loaded,
            MetricNetworks.load(loaded, ["frechet_distance"], extractor_weights, device),
            batch_size=batch_size,
        )
        constants[name] = measured.values["frechet_distance"]
        if process_state().is_main_process:
            with whole_file(path) as partial:
                partial.write_text(json.dumps(constants, indent=2) + "\n")
    return constants


def named_encoders(names: Sequence[str] | None) -> list[str]:
    """Returns the names of encoders, by default of all; raises `ValueError` if one is unknown."""
    if names is None:
        return list(ENCODERS)
    check_keys("encoders", dict.fromkeys(names), ENCODERS)
    return list(names)


def validation_distances(reference: str | Path, names: Sequence[str]) -> dict[str, float]:
    """Returns the Fréchet distance of validation images by encoder: those in a folder of
    `write_ratio_reference`, else the published ones.

    Raises:
        ValueError: If the folder lacks one, or a published one has a single digit.
    """
    path = Path(reference) / CONSTANTS
    if path.exists():
        stored = json.loads(path.read_text())
        if missing := [name for name in names if name not in stored]:
            raise ValueError(
                f"{path} lacks the distance of validation images by {missing[0]}: run `titok evaluate "
                "fdr6-reference` on this folder again, which computes what is missing."
            )
        return {name: stored[name] for name in names}
    published = {name: ENCODERS[name]["validation"] for name in names}
    coarse = [
        name for name, value in published.items() if len(Decimal(value).as_tuple().digits) < 2
    ]
    if coarse:
        raise ValueError(
            f"{reference} has no {CONSTANTS}, and the published distance of validation images by "
            f"{coarse[0]}, {published[coarse[0]]}, has a single digit, by which no ratio can be computed: "
            "run `titok evaluate fdr6-reference DATA --output FOLDER` on ImageNet, and pass its folder."
        )
    return {name: float(value) for name, value in published.items()}


def evaluate_frechet_ratio(
    source: str | Path,
    reference: str | Path,
    samples: str | Path | None = None,
    protocol: str | Path = PROTOCOL,
    overrides: Sequence[str] = (),
    encoders: Sequence[str] | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    sampler: Mapping[str, Any] | None = None,
    revision: str | None = None,
    extractor_weights: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    dtype: str = "float32",
) -> Evaluation:
    """Measures FDr6 of generated images.

    Args:
        source: Folder or Hub repository of a pipeline, or images made before, see
            `evaluate_generation`.
        reference: A folder of `write_ratio_reference`.
        samples: File (`.npz`) for the images of a pipeline, which are made once for all encoders.
        protocol, overrides: See `Protocol.load`.
        encoders: Names of encoders; all six if not given.
        num_samples, seed, sampler, revision, extractor_weights, batch_size, device, dtype: See
            `evaluate_generation`.

    Returns:
        The result, the same in every process, with the metrics `frechet_ratio`, the mean, and
        `frechet_ratio_ENCODER`. Its reference holds the distances of the validation images.

    Raises:
        FileNotFoundError: If the folder lacks the statistics of an encoder.
        ValueError: If `samples` is missing for a pipeline, or a distance of validation images is too
            coarse.
    """
    arguments = dict(locals())
    names = named_encoders(encoders)
    constants = validation_distances(reference, names)
    if missing := [name for name in names if not (Path(reference) / f"{name}.npz").exists()]:
        raise FileNotFoundError(
            f"{reference} lacks {missing[0]}.npz: `titok evaluate fdr6-reference` writes the statistics "
            "of all encoders."
        )
    made_before = is_image_source(source)
    if not made_before and samples is None:
        raise ValueError(
            "FDr6 measures the same images with several encoders: name a file for those of the pipeline by "
            "`samples`, such as samples.npz."
        )
    ratios: dict[str, float] = {}
    judges: dict[str, dict[str, Any]] = {}
    for name in names:
        of_pipeline: dict[str, Any] = {}
        if not made_before:
            of_pipeline = {
                "num_samples": num_samples,
                "seeds": [seed],
                "sampler": sampler,
                "samples": samples,
                "revision": revision,
                "dtype": dtype,
            }
        evaluation = evaluate_generation(
            source,
            protocol,
            [*overrides, f"extractor={PROTOCOL}:{name}"],
            reference=str(Path(reference) / f"{name}.npz"),
            extractor_weights=extractor_weights,
            batch_size=batch_size,
            device=device,
            **of_pipeline,
        )
        ratios[name] = evaluation.metrics["frechet_distance"].value / constants[name]
        judges[name] = evaluation.judges["extractor"]
    mean = sum(ratios.values()) / len(ratios)
    return dataclasses.replace(
        evaluation,
        metrics={
            "frechet_ratio": Estimate(mean),
            **{f"frechet_ratio_{name}": Estimate(ratio) for name, ratio in ratios.items()},
        },
        protocol=Protocol.load(protocol, overrides).to_dict(),
        reference={"id": str(reference), "validation": constants},
        judges=judges,
        command=command(PROTOCOL, arguments),
    )


__all__ = ["evaluate_frechet_ratio", "write_ratio_reference"]
