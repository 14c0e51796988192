"""Evaluation of generated images."""

import dataclasses
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ..devices import default_device, parse_dtype
from ..distributed import check_same, check_shared, process_state
from ..hub.errors import explain_hub_errors
from ..hub.folders import whole_file
from ..pipelines import ClassConditionalPipeline
from ..progress import working
from .adm import ReferenceBatch, SampleWriter
from .feature_statistics import (
    FeatureStatistics,
    ReferenceSet,
    check_feasible,
    check_same_everywhere,
    feature_metrics,
    match_classes,
)
from .image_sources import (
    RESERVED,
    GeneratedImages,
    ImageBatch,
    ImageSource,
    ReferenceImages,
    is_ours,
    open_dataset,
    open_source,
)
from .metric_networks import MetricNetworks
from .metrics.standard_error import Estimate
from .protocol import Protocol
from .reconstruction import Measured
from .results import Evaluation, command, describe_model, device_name, versions


class KeptImages(ImageSource):
    """Generated images whose batches are saved as soon as they are made, so that a run that was
    stopped makes only the missing ones.

    Args:
        source: Generates the images.
        path: ADM sample batch (`.npz`) that `join` writes. The batches are kept in a folder beside
            it until then; a JSON file beside it records how the images were made.
        made_by: Everything that the images depend on.

    Raises:
        FileExistsError: If the file exists without a record of how its images were made.
        OSError: If a process does not see the folder of the others.
        ValueError: If file or folder hold images that were made differently.
    """

    def __init__(self, source: GeneratedImages, path: Path, made_by: Mapping[str, Any]):
        check_shared(path.parent)
        self.source = source
        self.path = path
        self.folder = path.with_name(f"{path.name}.parts")
        self.num_images = source.num_images
        self.labelled, self.class_names = source.labelled, source.class_names
        self.joined = path.exists()
        made_by = json.loads(json.dumps(made_by, default=str))  # as a saved record reads
        self.record = record_of(path) if self.joined else self.folder / "made_by.json"
        if self.record.exists():
            if others := different_parts(json.loads(self.record.read_text()), made_by):
                raise ValueError(
                    f"{self.record.parent if not self.joined else path} holds samples with another "
                    f"{', '.join(others)} (see {self.record.name}): choose another name, or delete "
                    "it."
                )
        elif self.joined:
            raise FileExistsError(
                f"{path} exists already: measure it instead, choose another name, or delete it."
            )
        else:
            with whole_file(self.record, shared=True) as partial:
                partial.write_text(json.dumps(made_by, indent=2) + "\n")

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        if self.joined:
            for batch in ReferenceImages(
                ReferenceBatch.load(self.path), self.source.protocol
            ).batches(batch_size):
                yield dataclasses.replace(batch, labels=self.source.labels(batch.indices))
            return
        for number, indices in enumerate(torch.arange(self.num_images).split(batch_size)):
            if is_ours(number):
                file = self.folder / f"{indices[0]:09d}.npy"
                if not file.exists():
                    with whole_file(file) as partial, partial.open("wb") as stream:
                        np.save(stream, self.source.make(indices).images.numpy())
                yield ImageBatch(
                    indices, torch.from_numpy(np.load(file)), self.source.labels(indices)
                )

    def describe(self) -> dict[str, Any]:
        return self.source.describe()

    def join(self) -> None:
        """Writes the file and deletes the folder, on the main process, for which the others wait."""
        state = process_state()
        state.wait_for_everyone()
        if state.is_main_process and not self.joined:
            shutil.copy(self.record, record_of(self.path))
            with SampleWriter(
                self.path, self.num_images, self.source.protocol.image_size
            ) as writer:
                for file in sorted(self.folder.glob("*.npy")):
                    writer.write(torch.from_numpy(np.load(file)))
        if state.is_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)
        state.wait_for_everyone()


@dataclasses.dataclass(frozen=True)
class MadeBy:
    """A record of how samples were made, as far as it is known; the fields are those of `Evaluation`."""

    tokenizer: dict[str, Any] | None = None
    generator: dict[str, Any] | None = None
    sampler: dict[str, Any] | None = None
    seeds: list[int] | None = None
    dtype: str | None = None

    @classmethod
    def of(cls, samples: Path) -> "MadeBy":
        """Reads the record beside a file of samples; empty if there is none."""
        record = record_of(samples)
        if not record.exists():
            return cls()
        content = json.loads(record.read_text())
        return cls(**{field.name: content[field.name] for field in dataclasses.fields(cls)})


def record_of(samples: Path) -> Path:
    """Returns the path of the record of how samples were made."""
    return samples.with_name(f"{samples.name}.json")


def different_parts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Lists the parts in which two records of samples differ. Models are compared by their weights,
    not by where they lie."""

    def essence(part: Any) -> Any:
        places = ("id", "revision", "subfolder")  # a model is identified by its weights' hash
        return (
            {key: value for key, value in part.items() if key not in places}
            if isinstance(part, dict)
            else part
        )

    return [key for key in {**one, **other} if essence(one.get(key)) != essence(other.get(key))]


@torch.no_grad()
def measure_generation(
    sets: Sequence[ImageSource],
    reference: ImageSource | ReferenceSet | None,
    protocol: Protocol,
    judges: MetricNetworks | None = None,
    batch_size: int = 64,
    progress_bar: bool = True,
) -> Measured:
    """Compares generated images with a reference.

    Every process measures its share of the batches, and all get the same result.

    Args:
        sets: The images; several sets, such as those of several seeds, give means and their
            standard errors.
        reference: Images or statistics to compare with, if a metric compares. A `ReferenceSet` is
            gathered once for several calls.
        protocol: Metrics and their settings.
        judges: Networks of the metrics; those of the protocol if not given.
        batch_size: Number of images per batch.
        progress_bar: Whether to show a progress bar.

    Raises:
        ValueError: If the protocol does not fit the images, before anything is computed.
    """
    metrics = protocol.metrics_of("generation")
    judges = judges or MetricNetworks.load(protocol, metrics)
    against = reference
    if isinstance(reference, ImageSource):
        against = ReferenceSet(reference, metrics)
    check_same_everywhere(protocol, judges, *sets, against and against.source)
    for images in sets:
        check_feasible(
            metrics,
            protocol,
            judges,
            images.num_images,
            labelled=images.labelled,
            reference=against,
        )
    classes = match_classes(sets[0], judges, protocol) if "accuracy" in metrics else None
    gathered, measured = None, []
    for number, images in enumerate(sets):
        seen = FeatureStatistics(judges, metrics, images.num_images, protocol, classes=classes)
        for batch in images.progress(batch_size, "samples", progress_bar):
            seen.update(batch)
        seen.reduce()
        # all sets share one reference
        if number == 0 and against is not None:
            gathered = against.gather(judges, protocol, batch_size, progress_bar)
        stored = {} if against is None else against.stored
        measured.append(
            feature_metrics(seen, gathered, stored, protocol, metrics=metrics, paired=False)
        )
    results = measured[0]
    if len(sets) > 1:
        values = {name: [results[name].value for results in measured] for name in metrics}
        results = {
            name: Estimate.mean(
                torch.tensor(of_sets, dtype=torch.float64), f"over {len(sets)} seeds"
            )
            for name, of_sets in values.items()
        }
    described = None if against is None else against.describe(gathered)
    return Measured(results, seen.sha256, described)


def evaluate_generation(
    source: str | Path,
    protocol: str | Path = "adm-256",
    overrides: Sequence[str] = (),
    reference: str | None = None,
    reference_split: str | None = None,
    reference_revision: str | None = None,
    image_column: str = "image",
    num_samples: int | None = None,
    seeds: Sequence[int] | None = None,
    sampler: Mapping[str, Any] | None = None,
    samples: str | Path | None = None,
    revision: str | None = None,
    extractor_weights: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    compiled: bool = False,
) -> Evaluation:
    """Evaluates generated images.

    Args:
        source: Folder or Hub repository of a pipeline that takes `class_labels` or `batch_size`; or
            images made before: a folder, or an ADM sample batch (`.npz`).
        protocol, overrides: See `Protocol.load`.
        reference: Images to compare with: a file of ADM's (`.npz`), or a data set, see
            `open_dataset`.
        reference_split: Split of the reference; if not given, `train` where the protocol says so,
            else see `open_dataset`.
        reference_revision: Branch, tag or commit of a reference on the Hub.
        image_column: Column of the images, in data sets with columns.
        num_samples: Number of images to generate, cycling through the classes; the protocol's
            number if not given.
        seeds: Random seeds, `[0]` if not given; several give means over as many sets.
        sampler: Arguments of the pipeline's call, such as `num_inference_steps`; its defaults if
            not given.
        samples: ADM sample batch (`.npz`) to write. A run that was stopped resumes where it was.
        revision: Branch, tag or commit of the pipeline on the Hub.
        extractor_weights: See `load_extractor`.
        batch_size: Number of images per batch.
        device: Device to compute on; by default the accelerator if there is one.
        dtype: Data type of the pipeline: `"float32"`, `"bfloat16"`, `"float16"`, or `"int8"` for its
            linear layers, see `ClassConditionalPipeline.compile`.
        compiled: Whether the pipeline is compiled, see `ClassConditionalPipeline.compile`; the result
            records it.

    Returns:
        The result with its protocol, the same in every process.

    Raises:
        FileExistsError: If `samples` exists without a record of how it was made.
        OSError: If the pipeline cannot be compiled here.
        TypeError: If the pipeline takes neither `class_labels` nor `batch_size`.
        ValueError: If the protocol does not fit the images, or `samples` was made differently.
    """
    arguments = dict(locals())  # as given, for the command that repeats the evaluation
    state = process_state()
    int8 = dtype == "int8"
    torch_dtype = torch.float32 if int8 else parse_dtype(dtype)
    count_override = [] if num_samples is None else [f"num_samples={num_samples}"]
    loaded_protocol = Protocol.load(protocol, [*overrides, *count_override])
    metrics = loaded_protocol.metrics_of("generation")
    device = torch.device(device or default_device())
    against = None
    if reference is not None:
        split = reference_split or ("train" if loaded_protocol.reference == "train" else None)
        against = open_source(
            reference, loaded_protocol, split, reference_revision, image_column=image_column
        )
    judges = MetricNetworks.load(loaded_protocol, metrics, extractor_weights, device)
    made_here = not is_image_source(source)
    if made_here:
        seeds = list(seeds or (0,))
        pipeline = load_pipeline(source, revision)
        described = describe_pipeline(pipeline, source, revision, sampler or {})
        pipeline.to(device, torch_dtype)
        if compiled or int8:
            if not isinstance(pipeline, ClassConditionalPipeline):
                raise ValueError(
                    "`compiled` and the dtype 'int8' are for the pipelines of titok_hf, and this is a "
                    f"{type(pipeline).__name__}: leave them out."
                )
            pipeline.compile(batch_size, dtype, backend="inductor" if compiled else None)
            dtype = pipeline.compiled_dtype
        made_by = MadeBy(*described, seeds, dtype)
        check_same(pipeline=[part and part["weights_sha256"] for part in described[:2]])
        if compiled:
            made_by.sampler["compiled"] = True
        count = loaded_protocol.num_samples
        if count is None:
            raise ValueError("The protocol names no number of images: give `num_samples`.")
        sets: list[ImageSource] = [
            GeneratedImages(pipeline, count, loaded_protocol, seed, **(sampler or {}))
            for seed in seeds
        ]
        if samples is not None:
            if len(seeds) > 1:
                raise ValueError("`samples` takes the images of one seed.")
            how = {
                "rounding": loaded_protocol.rounding,
                "batch_size": batch_size,
                "num_images": count,
            }
            if pipeline.device.type == "cuda":  # see `image_generators`
                how["noise"] = "cuda"
            sets = [KeptImages(sets[0], Path(samples), dataclasses.asdict(made_by) | how)]
    else:
        if samples is not None or sampler or seeds or num_samples or compiled:
            raise ValueError(
                f"{source} holds images already: `num_samples`, `seeds`, `sampler`, `samples` and "
                "`compiled` are for a pipeline."
            )
        sets = [open_samples(str(source), loaded_protocol, metrics, image_column)]
        made_by = MadeBy.of(Path(source))
    measured = measure_generation(sets, against, loaded_protocol, judges, batch_size=batch_size)
    if isinstance(sets[0], KeptImages):
        sets[0].join()
    arguments |= {
        "reference_revision": (measured.reference or {}).get("revision"),
        "revision": (made_by.generator or {}).get("revision") if made_here else None,
        "samples": None,  # the command generates them again
        "seeds": seeds,
    }
    return Evaluation(
        task="generation",
        metrics=measured.metrics,
        protocol=loaded_protocol.to_dict(),
        num_images=sets[0].num_images,
        data=sets[-1].describe() | {"fingerprint": measured.fingerprint},
        reference=measured.reference,
        judges=judges.identities(),
        **dataclasses.asdict(made_by),
        device=device_name(device),
        processes=state.num_processes,
        versions=versions(),
        command=command("generation", arguments),
    )


def is_image_source(source: str | Path) -> bool:
    """Whether this is a file or folder of images rather than a pipeline."""
    path = Path(source)
    return path.suffix == ".npz" or (
        path.is_dir() and not (path / DiffusionPipeline.config_name).exists()
    )


def open_samples(
    source: str, protocol: Protocol, metrics: Sequence[str], image_column: str
) -> ImageSource:
    """Opens images that are evaluated as they are; raises `ValueError` if there are none, or they
    do not have the protocol's size."""
    if (Path(source) / "config.json").exists():
        raise ValueError(
            f"{source} is a model, not a pipeline or images; `evaluate reconstruction` is for "
            "tokenizers."
        )
    if source.endswith(".npz"):
        images = ReferenceImages(ReferenceBatch.load(source), protocol)
        if not images.num_images:
            raise ValueError(f"{source} holds statistics, no images.")
        return images
    labels = "label" if "accuracy" in metrics else None
    return open_dataset(
        source, protocol, image_column=image_column, label_column=labels, crop="none"
    )


@working("loading pipeline")
def load_pipeline(source: str | Path, revision: str | None = None) -> DiffusionPipeline:
    """Loads a pipeline of this package or of diffusers."""
    if Path(source).is_dir() and not (Path(source) / DiffusionPipeline.config_name).exists():
        return ClassConditionalPipeline.from_pretrained(source)  # refuses it
    with explain_hub_errors(str(source)):
        index = DiffusionPipeline.load_config(str(source), revision=revision)
    name = index["_class_name"]
    name = name[-1] if isinstance(name, list) else name
    ours = any(name == each.__name__ for each in ClassConditionalPipeline.__subclasses__())
    pipeline_class = ClassConditionalPipeline if ours else DiffusionPipeline
    return pipeline_class.from_pretrained(source, revision=revision)


def describe_pipeline(
    pipeline: DiffusionPipeline,
    source: str | Path,
    revision: str | None,
    arguments: Mapping[str, Any],
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, Any]]:
    """Returns what a result records of the tokenizer, the generator and the sampler of a pipeline."""
    parts = []
    for names in (("tokenizer", "vae", "vqvae"), ("transformer", "unet")):
        found = next(
            (name for name in names if isinstance(getattr(pipeline, name, None), torch.nn.Module)),
            None,
        )
        parts.append(
            None
            if found is None
            else describe_model(getattr(pipeline, found), source, revision, found)
        )
    parameters = inspect.signature(type(pipeline).__call__).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if isinstance(parameter.default, int | float | str) and name not in RESERVED
    }
    if isinstance(pipeline, ClassConditionalPipeline):
        names = pipeline.sampling_defaults
        defaults |= {name: getattr(pipeline.config, name) for name in names}
    given = {name: value for name, value in arguments.items() if value is not None}
    config = {
        name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")
    }
    sampler = {
        "class": type(pipeline.scheduler).__name__,
        "config": json.loads(json.dumps(config, default=str)),
        "arguments": defaults | given,
    }
    return parts[0], parts[1], sampler
