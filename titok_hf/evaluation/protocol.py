"""Protocols: everything that a number depends on apart from the model and the images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ..settings import check_keys, load_yaml, override, suggestion

Task = Literal["reconstruction", "generation"]

# Metrics, grouped by what they are computed from.
PAIR_METRICS = ("mean_squared_error", "psnr", "ssim", "lpips")
CODE_METRICS = ("codebook_usage", "codebook_perplexity", "codebook_entropy")
CLASS_METRICS = ("accuracy", "inception_score")
GAUSSIAN_METRICS = ("frechet_distance", "spatial_frechet_distance")
NEIGHBOR_METRICS = ("precision", "recall", "density", "coverage")
KERNEL_METRICS = ("kernel_distance",)
REFERENCE_METRICS = GAUSSIAN_METRICS + NEIGHBOR_METRICS + KERNEL_METRICS
METRICS: dict[str, tuple[str, ...]] = {
    "reconstruction": REFERENCE_METRICS + CLASS_METRICS + PAIR_METRICS + CODE_METRICS,
    "generation": REFERENCE_METRICS + CLASS_METRICS,
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The preparation of images, the networks and the metrics of an evaluation.

    Args:
        name: Name of the protocol; ends in `"*"` if the named protocol was changed, or a file
            reuses its name.
        source: The evaluation that it reproduces.
        image_size: Side of the images, in pixels.
        crop: How images become square. `"center"`: the shorter side is resized and the center cut
            out (TiTok); `"adm"`: images are halved with a box filter while they are twice as large,
            then resized and cut out (ADM, VTP); `"squash"`: both sides are resized; `"none"`:
            images have this size already.
        interpolation: Antialiased filter: `"bicubic"`, `"bilinear"` or `"lanczos"` for `"center"`,
            bicubic if not given; `"adm"` is always bicubic and `"squash"` bilinear.
        rounding: How float images in [0, 1] become uint8: `"truncate"`, the integer part of 255 x,
            or `"round"`.
        extractor: Network of the features, see `load_extractor`.
        classifier: Network whose logits give `accuracy`; the extractor if not given.
        class_matching: How classes of the images are matched with the classifier's: by `"names"`,
            if both have them, or by `"ids"`.
        reference: Images whose features are compared with: `"originals"`, the images that are
            reconstructed; `"train"`, the training images; `"batch"`, a file of ADM's.
        metrics: Names of the metrics of each task.
        num_samples: Number of images to generate.
        inception_score_splits: Number of consecutive equal parts over which Inception Score is
            averaged.
        inception_score_split_size: Images per part, instead of the number of parts; the last part
            may be smaller.
        precision_neighbors: k of precision and recall (arXiv 1904.06991).
        density_neighbors: k of density and coverage (arXiv 2002.09797).
        kernel_subsets, kernel_subset_size: Number and size of the random subsets of the kernel
            distance (arXiv 1801.01401).
        encoder_autocast: Data type of autocast around the encoder, such as `"bfloat16"`; no
            autocast if not given.
    """

    name: str
    source: str
    image_size: int
    crop: Literal["center", "adm", "squash", "none"]
    rounding: Literal["truncate", "round"]
    extractor: str
    reference: Literal["originals", "train", "batch"]
    metrics: dict[Task, Sequence[str]]
    interpolation: Literal["bicubic", "bilinear", "lanczos"] | None = None
    classifier: str | None = None
    class_matching: Literal["names", "ids"] = "names"
    num_samples: int | None = None
    inception_score_splits: int = 10
    inception_score_split_size: int | None = None
    precision_neighbors: int = 3
    density_neighbors: int = 5
    kernel_subsets: int = 100
    kernel_subset_size: int = 1000
    encoder_autocast: Literal["bfloat16", "float16"] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), get_args(field.type)
            optional = type(None) in kinds
            if optional and value is None:
                continue
            kind = kinds[0] if optional else field.type
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ValueError(
                    f"`{field.name}` must be one of {', '.join(get_args(kind))}, got {value!r}."
                )
            if kind is str and not isinstance(value, str):
                raise ValueError(f"`{field.name}` must be text, got {value!r}.")
            if kind is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"`{field.name}` must be an integer of at least 1, got {value!r}.")
        if self.kernel_subset_size < 2:
            raise ValueError("`kernel_subset_size` must be at least 2, got 1.")
        filters = {
            "center": self.interpolation or "bicubic",
            "adm": "bicubic",
            "squash": "bilinear",
            "none": None,
        }
        if self.interpolation not in (None, filters[self.crop]):
            raise ValueError(
                f"`interpolation` is for `crop=center`; `crop={self.crop}` is "
                f"{filters[self.crop] or 'none'}, got {self.interpolation!r}."
            )
        # the filter is written out, so that equal protocols have equal fields
        object.__setattr__(self, "interpolation", filters[self.crop])
        if not isinstance(self.metrics, dict) or not self.metrics:
            raise ValueError(
                "`metrics` must name metrics for reconstruction or generation, got "
                f"{self.metrics!r}."
            )
        for task, names in self.metrics.items():
            if task not in METRICS:
                raise ValueError(f"`metrics` are of reconstruction or generation, got {task!r}.")
            if not isinstance(names, list | tuple) or not names:
                raise ValueError(f"`metrics.{task}` must be a list of metrics, got {names!r}.")
            for name in names:
                if name not in METRICS[task]:
                    raise ValueError(
                        f"Unknown metric {name!r} of {task}: {suggestion(name, METRICS[task])}"
                    )

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> "Protocol":
        """Loads a protocol by name or from a file.

        Args:
            source: `"titok-rfid"`, `"vtp-rfid"`, `"adm-256"`, `"adm-512"`, `"fdr6"`, `"demo"`, or a YAML file
                with the fields of a protocol and optionally `base`, the name of the protocol that
                supplies the other fields.
            overrides: Changes like `"image_size=512"` or `"metrics.generation=[frechet_distance]"`
                with values in YAML.

        Raises:
            FileNotFoundError: If there is no such protocol.
            ValueError: If a field is unknown, missing or has a wrong value.
        """
        named = load_yaml(Path(__file__).with_name("protocols.yaml"))
        path = Path(source)
        if str(source) in named:
            fields = {"name": str(source), **named[str(source)]}
        elif path.is_file():
            fields = load_yaml(path)
            if not isinstance(fields, dict):
                raise ValueError(f"{path} must hold the fields of a protocol, got {fields!r}.")
            base = fields.pop("base", None)
            if base is not None and base not in list(named):
                raise ValueError(f"`base` must be one of {', '.join(named)}, got {base!r}.")
            fields = {**named.get(base, {}), "name": path.stem, **fields}
        else:
            names = ", ".join(named)
            raise FileNotFoundError(
                f"The protocol must be one of {names} or a YAML file, got {str(source)!r}."
            )
        override(fields, overrides)
        if overrides or (str(source) not in named and fields["name"] in list(named)):
            fields["name"] = f"{fields['name']}*"
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Protocol":
        """Makes a protocol from its fields; raises `ValueError` if one is unknown, missing or has a
        wrong value."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        check_keys("protocol", fields, known)
        if missing := [
            name
            for name, field in known.items()
            if field.default is dataclasses.MISSING and name not in fields
        ]:
            raise ValueError(f"The protocol lacks {', '.join(missing)}.")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data, for JSON."""
        return dataclasses.asdict(self)

    def metrics_of(self, task: Task) -> tuple[str, ...]:
        """Returns the metrics of a task; raises `ValueError` if the protocol has none."""
        if task not in self.metrics:
            raise ValueError(
                f"The protocol {self.name!r} is for {' and '.join(self.metrics)}, not for {task}; "
                f"choose another one, or name metrics with `metrics.{task}=[...]`."
            )
        return tuple(self.metrics[task])
