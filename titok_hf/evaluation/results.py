"""Results: numbers with everything that they depend on, as JSON."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from ..hub.folders import whole_file
from ..hub.hashes import state_sha256
from ..version import __version__
from .extractors import INCEPTION
from .metrics.standard_error import Estimate

# Usual names of metrics on the features of FID's Inception.
INCEPTION_NAMES = {
    "frechet_distance": "FID",
    "spatial_frechet_distance": "sFID",
    "kernel_distance": "KID",
}
NAMES = {
    "frechet_distance": "Fréchet distance",
    "spatial_frechet_distance": "spatial Fréchet distance",
    "inception_score": "Inception Score",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
}
# Fields that may differ between the results of one table: what is compared, and how it was
# computed.
COMPARED = ("metrics", "tokenizer", "generator", "sampler", "seeds", "command")
COMPUTED = ("device", "processes", "versions")
# Options of the command line that are repeated for each value of an argument.
OPTIONS = {
    "compiled": "compile",
    "encoders": "encoder",
    "features": "feature",
    "overrides": "set",
    "seeds": "seed",
    "templates": "template",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A result and its protocol.

    Args:
        task: `"reconstruction"` or `"generation"`.
        metrics: Estimates by the names of the metrics.
        protocol: All fields of the `Protocol`.
        num_images: Number of evaluated images.
        data: The images: `id`, `revision` and `split` of a data set, and `fingerprint` after
            cropping; for generated images, `seed`, `classes` and `fingerprint` of the last set.
        reference: The same for the images to compare with; `file` and `sha256` of a file of ADM's.
        judges: Name, preprocessing and hash of the weights of `extractor`, `classifier` and
            `lpips`, if the metrics needed them.
        tokenizer, generator: `id`, `revision`, `class` and hash of the weights.
        sampler: Class, configuration and arguments of the sampler.
        seeds: Random seeds of the samples.
        device, dtype, processes, versions: The environment in which it was computed.
        command: The command that repeats the evaluation.
    """

    task: str
    metrics: dict[str, Estimate]
    protocol: dict[str, Any]
    num_images: int
    data: dict[str, Any] | None
    reference: dict[str, Any] | None
    judges: dict[str, dict[str, Any]]
    tokenizer: dict[str, Any] | None
    generator: dict[str, Any] | None
    sampler: dict[str, Any] | None
    seeds: list[int] | None
    device: str
    dtype: str | None
    processes: int
    versions: dict[str, str]
    command: str

    def save(self, path: str | Path) -> None:
        """Writes the result as JSON."""
        content = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        with whole_file(path) as partial:
            partial.write_text(content, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Reads a result that `save` wrote; raises `ValueError` if the file holds something else."""
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            metrics = {
                name: Estimate(**estimate) for name, estimate in fields.pop("metrics").items()
            }
            return cls(metrics=metrics, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a result of `titok evaluate`: {error}") from error

    def title(self, metric: str) -> str:
        """Returns the usual name of a metric, with the extractor if that is not Inception."""
        if metric == "frechet_ratio":
            return f"FDr{len(self.judges)}"  # a judge for each encoder
        name = NAMES.get(metric, metric.replace("_", " "))
        if metric not in INCEPTION_NAMES:
            return name
        extractor = self.judges["extractor"]["name"]
        return INCEPTION_NAMES[metric] if extractor == INCEPTION else f"{name} ({extractor})"

    def summary(self) -> str:
        """Summarizes the protocol in one line, for a model card."""
        protocol = self.protocol
        parts = [
            f"{protocol['name']}: {self.num_images} images",
            f"{protocol['image_size']}x{protocol['image_size']}",
            f"crop {protocol['crop']}"
            + (f" ({protocol['interpolation']})" if protocol["interpolation"] else ""),
            {"truncate": "truncated", "round": "rounded"}[protocol["rounding"]] + " to uint8",
            *(f"{judge['name']} ({judge['weights_sha256'][:8]})" for judge in self.judges.values()),
        ]
        if self.reference is not None:
            parts.append(f"against {place(self.reference)}")
        if self.dtype not in (None, "float32"):
            parts.append(self.dtype)
        if self.sampler is not None:
            arguments = ", ".join(
                f"{name} {value}" for name, value in self.sampler["arguments"].items()
            )
            parts.append(
                f"sampled with {arguments or 'the defaults of the pipeline'}, seeds {self.seeds}"
            )
        return ", ".join(parts)

    def card_results(self) -> list[dict[str, Any]]:
        """Returns the metrics as `results` of a provenance, see `titok_hf.hub.provenance`."""
        task = (
            "image-reconstruction"
            if self.task == "reconstruction"
            else "unconditional-image-generation"
        )
        data = (self.data if self.task == "reconstruction" else self.reference) or {}
        dataset = Path(data["file"]).name if "file" in data else data.get("id", "unknown")
        split = {"split": data["split"]} if data.get("split") else {}
        return [
            {
                "task": task,
                "dataset": dataset,
                **split,
                "metric": name,
                "name": self.title(name),
                "value": estimate.value,
                "standard_error": estimate.standard_error,
                "protocol": self.summary(),
            }
            for name, estimate in self.metrics.items()
        ]


def place(images: Mapping[str, Any]) -> str:
    """Names the file, or the data set and split, of images."""
    if "file" in images:
        return Path(images["file"]).name
    return " ".join(str(images[key]) for key in ("id", "split") if images.get(key))


def differences(results: Sequence[Evaluation]) -> dict[str, list[Any]]:
    """Returns the fields in which the protocols of results differ, with their values in each
    result.

    It compares the protocol, the images and the reference by their fingerprints, the number of
    images, and the networks and data types that more than one result names. It does not compare
    the models, their samplers and seeds, nor devices and versions.
    """
    flat = []
    for result in results:
        fields = dataclasses.asdict(result)
        for name in (*COMPARED, *COMPUTED):
            del fields[name]
        for name in ("data", "reference"):
            kept = fields[name] or {}
            fields[name] = kept.get("sha256") or kept.get("fingerprint") or fields[name]
        if result.task == "generation":  # the generated images are expected to differ
            del fields["data"]
        protocol, judges = fields.pop("protocol"), fields.pop("judges")
        for name in (
            "name",
            "source",
            "metrics",
            "num_samples",
        ):  # `num_samples` is compared as `num_images`
            protocol.pop(name, None)
        for judge in judges.values():
            judge.pop("weights", None)  # the hash identifies them, wherever they lie
        maybe = judges | {"dtype": fields.pop("dtype")}
        flat.append(
            (fields | {f"protocol.{name}": value for name, value in protocol.items()}, maybe)
        )
    different = {}
    for name in dict.fromkeys(name for fields, _ in flat for name in fields):
        values = [fields.get(name) for fields, _ in flat]
        if any(value != values[0] for value in values):
            different[name] = values
    for name in dict.fromkeys(name for _, maybe in flat for name in maybe):
        values = [maybe.get(name) for _, maybe in flat]
        known = [
            value for value in values if value is not None
        ]  # a result with fewer metrics may not have needed it
        if any(value != known[0] for value in known):
            different[name] = values
    return different


def compare_results(
    paths: Sequence[str | Path], different_protocols: bool = False
) -> tuple[list[Evaluation], dict[str, list[Any]]]:
    """Loads results to show in one table.

    Args:
        paths: JSON files of results.
        different_protocols: Whether their protocols may differ.

    Returns:
        The results, and the `differences` of their protocols.

    Raises:
        ValueError: If a file is not a result, or the protocols differ although they may not.
    """
    results = [Evaluation.load(path) for path in paths]
    different = differences(results)
    if different and not different_protocols:
        listed = "; ".join(
            f"{name}: {' | '.join(map(str, values))}" for name, values in different.items()
        )
        raise ValueError(
            "These results were not measured by one protocol, so their numbers do not compare. "
            f"They differ in {listed}. Measure them by one protocol, or show them in one table anyway "
            "with `--different-protocols`."
        )
    return results, different


def describe_model(
    model: nn.Module, path: str | Path, revision: str | None = None, subfolder: str = ""
) -> dict[str, Any]:
    """Returns the fields that describe a model in a result; the model was just loaded from a folder
    or Hub repository, or a subfolder of it."""
    commit = None
    if not Path(path).is_dir():
        config = f"{subfolder}/config.json" if subfolder else "config.json"
        cached = try_to_load_from_cache(str(path), config, revision=revision)
        parts = Path(cached).parts if isinstance(cached, str) else ()
        commit = parts[parts.index("snapshots") + 1] if parts else revision
    # a diffusers autoencoder is described itself, not its wrapper
    wrapped = getattr(model, "autoencoder", model)
    return {
        "id": str(path),
        "revision": commit,
        "subfolder": subfolder,
        "class": type(wrapped).__name__,
        "weights_sha256": state_sha256(wrapped),
    }


def command(task: str, arguments: Mapping[str, Any]) -> str:
    """Returns the command that repeats an evaluation.

    Args:
        task: Name of the subcommand of `titok evaluate`.
        arguments: Arguments of the function that evaluates, with its model or images first.
    """
    source, *options = arguments.items()
    words = ["titok", "evaluate", task, str(source[1])]
    for name, value in options:
        if value is None or value is False or value == "":
            continue
        option = "--" + OPTIONS.get(name, name).replace("_", "-")
        if value is True:
            words.append(option)
            continue
        if isinstance(value, Mapping):
            value = [f"{key}={json.dumps(part)}" for key, part in value.items()]
        for part in value if isinstance(value, list | tuple) else [value]:
            words += [option, str(part)]
    return shlex.join(words)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that numbers depend on."""
    packages = ("torch", "numpy", "pillow", "transformers", "diffusers", "datasets", "accelerate")
    optional = {"scikit-learn": "sklearn", "torchmetrics": "torchmetrics"}
    packages += tuple(
        package for package, module in optional.items() if importlib.util.find_spec(module)
    )
    return {
        "titok_hf": __version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def device_name(device: torch.device) -> str:
    """Returns the type of the device, with its model if it is a GPU."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
