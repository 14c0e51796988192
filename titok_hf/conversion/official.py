"""Base class of the official formats: one subclass per family."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig, PreTrainedModel

from ..devices import parse_dtype
from ..hub.errors import explain_hub_errors, explain_loading_errors
from ..hub.provenance import Provenance
from ..modeling.loading import refuse_misfit
from ..settings import load_yaml
from .checkpoint import find_weights, read_tensors, resolve_references

Shapes = Mapping[str, Sequence[int]]


class OfficialFormat(ABC):
    """The reference's checkpoint format of a family: a configuration, and tensors under other names
    and shapes.

    Official names and shapes are derived from ours, so one mapping serves both directions.
    """

    model_class: type[PreTrainedModel]
    file_name = "model.safetensors"  # of the weights

    @abstractmethod
    def recognizes(self, shapes: Shapes) -> bool:
        """Whether tensors of these names and shapes are a checkpoint of this family."""

    @abstractmethod
    def config_fields(self, official_config: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields of our configuration.

        Raises:
            ValueError: If the official one is of another family, or uses unknown features.
        """

    def our_config(self, official_config: dict[str, Any]) -> PreTrainedConfig:
        """Returns our configuration; see `config_fields`."""
        return self.model_class.config_class(**self.config_fields(official_config))

    def model(
        self, config: PreTrainedConfig, state_dict: dict[str, torch.Tensor]
    ) -> PreTrainedModel:
        """Returns the model of a configuration with weights under our names."""
        return self.model_class.from_pretrained(None, config=config, state_dict=state_dict)

    @abstractmethod
    def config_from_shapes(self, shapes: Shapes) -> dict[str, Any]:
        """Infers the official configuration of a checkpoint that came without one."""

    @abstractmethod
    def official_config(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Returns the official configuration of one of our models.

        Raises:
            ValueError: If the official format cannot express it.
        """

    @abstractmethod
    def official_name(self, name: str, config: PreTrainedConfig) -> str:
        """Returns the official name of one of our weights."""

    def is_official(self, config: dict[str, Any]) -> bool:
        """Whether a `config.json` is the reference's; ours have a model type."""
        return "model_type" not in config

    def find_config(self, path: str | Path, **location: Any) -> dict[str, Any] | None:
        """Returns a folder's or Hub repository's official configuration; None if it is in our
        format.

        Raises:
            OSError: If there is no configuration.
        """
        config = find_config_dict(path, **location)
        return resolve_references(config) if self.is_official(config) else None

    def provenance(self, path: str | Path) -> Provenance:
        """Returns the known provenance of a Hub repository or of a file in one; empty for local
        files."""
        if Path(path).exists():
            return {}
        repo_id = "/".join(str(path).split("/")[:2])
        origin: Provenance = {"base_model": [repo_id]}
        for released in load_yaml(Path(__file__).with_name("released.yaml")):
            if repo_id in released["models"]:
                origin |= {
                    key: value
                    for key, value in released.items()
                    if key not in ("models", "results")
                }
                origin["results"] = [
                    {**released["results"][metric], "metric": metric, "value": value}
                    for metric, value in released["models"][repo_id].items()
                ]
        return origin

    def load_state_dict(
        self,
        path: str | Path,
        config: PreTrainedConfig,
        dtype: torch.dtype | str | None,
        ignored: Sequence[str] = (),
        **location: Any,
    ) -> dict[str, torch.Tensor]:
        """Loads the weights of a folder or Hub repository, under our names, in our shapes.

        Args:
            path: The folder or repository.
            config: Its configuration in our format.
            dtype: Dtype of the weights; as stored if None or `"auto"`.
            ignored: Patterns of our weight names that are not read.
            location: Arguments that locate a repository.

        Raises:
            OSError: If there are no weights.
            ValueError: If they do not fit the configuration, or cannot be read.
        """
        try:
            files = find_weights(self.local_folder(path, **location))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} holds no weights: {error}") from error
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else parse_dtype(dtype)
        layout = self.layout(self.meta_state_dict(config), config)
        unwanted = {official for official, names in layout.items() if matches(names[0], ignored)}
        return self.to_ours(read_tensors(files, unwanted), config, dtype, ignored)

    def local_folder(self, path: str | Path, subfolder: str = "", **location: Any) -> Path:
        """Returns a folder with the checkpoint's files, downloading them if necessary."""
        if not Path(path).is_dir():
            patterns = [
                str(Path(subfolder) / name) for name in ("*.json", "*.safetensors", "*.bin")
            ]
            with explain_hub_errors(str(path)):
                path = snapshot_download(str(path), allow_patterns=patterns, **location)
        return Path(path) / subfolder

    def to_ours(
        self,
        tensors: dict[str, torch.Tensor],
        config: PreTrainedConfig,
        dtype: torch.dtype | None = None,
        ignored: Sequence[str] = (),
    ) -> dict[str, torch.Tensor]:
        """Renames and reshapes an official checkpoint.

        Args:
            tensors: The checkpoint. Emptied on the way, so that a dtype conversion never holds both
                copies.
            config: Its configuration in our format.
            dtype: Dtype of the result; as stored if not given.
            ignored: Patterns of our weight names that are left out.

        Raises:
            ValueError: If weights are missing, unexpected or misshapen.
        """
        ours = {
            name: tensor
            for name, tensor in self.meta_state_dict(config).items()
            if not matches(name, ignored)
        }
        layout = self.layout(ours, config)
        expected = {
            official: self.official_shape(names, ours) for official, names in layout.items()
        }
        for name, constant in self.constants(config).items():
            stored = tensors.pop(name, constant)
            if stored.shape != constant.shape or not torch.allclose(
                stored.to(constant.dtype), constant, atol=1e-6
            ):
                expected, found = (x.flatten()[:8].tolist() for x in (constant, stored))
                raise ValueError(f"The checkpoint's {name} must be {expected}, got {found}.")
        refuse_misfit(
            self.model_class.__name__,
            sorted(expected.keys() - tensors.keys()),
            sorted(tensors.keys() - expected.keys()),
            [
                (name, tuple(tensors[name].shape), shape)
                for name, shape in expected.items()
                if name in tensors and tuple(tensors[name].shape) != shape
            ],
        )
        state_dict = {}
        for official, names in layout.items():
            tensor = tensors.pop(official).to(dtype)
            parts = [tensor] if len(names) == 1 else tensor.chunk(len(names))
            for name, part in zip(names, parts, strict=True):
                state_dict[name] = self.our_tensor(name, part, config).reshape(ours[name].shape)
        return state_dict

    def to_official(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """Returns the weights of one of our models with official names and shapes, bit for bit."""
        ours = model.state_dict()
        tensors = self.constants(model.config)
        for official, names in self.layout(ours, model.config).items():
            parts = [self.our_tensor(name, ours[name], model.config) for name in names]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            tensors[official] = joined.reshape(self.official_shape(names, ours))
        return tensors

    def layout(self, ours: Iterable[str], config: PreTrainedConfig) -> dict[str, list[str]]:
        """Returns each official name with ours: one, or several that it joins along the first
        axis."""
        layout: dict[str, list[str]] = {}
        for name in ours:
            layout.setdefault(self.official_name(name, config), []).append(name)
        return layout

    def official_shape(
        self, names: Sequence[str], ours: Mapping[str, torch.Tensor]
    ) -> tuple[int, ...]:
        """Returns the official shape of some of our weights, joined."""
        shape = tuple(ours[names[0]].shape)
        return self.official_axes(
            names[0], shape if len(names) == 1 else (len(names) * shape[0], *shape[1:])
        )

    def official_axes(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns our shape with the official format's axes of length 1 added or removed."""
        return tuple(shape)

    def our_tensor(self, name: str, tensor: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
        """Reorders a weight that is stored in another order; its own inverse."""
        return tensor

    def constants(self, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Returns official tensors that follow from the configuration."""
        return {}

    def meta_state_dict(self, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Returns names and shapes of our weights, without allocating memory."""
        with torch.device("meta"):
            return self.model_class(config).state_dict()


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def find_config_dict(path: str | Path, **location: Any) -> dict[str, Any]:
    """Reads the `config.json` of a folder or Hub repository.

    Raises:
        OSError: If there is none.
    """
    if not Path(path).exists() and (
        str(path).count("/") > 1 or str(path).startswith((".", "/", "~"))
    ):
        raise FileNotFoundError(f"There is no folder {path}.")
    with explain_loading_errors(path):
        config, _ = PreTrainedConfig.get_config_dict(path, **location)
    if not config:
        raise FileNotFoundError(
            f"{Path(path) / location.get('subfolder', '')} has no config.json; `titok convert` "
            "also reads official weights that came without one."
        )
    return config


class Section(dict):
    """A section of an official configuration, with a clear error for missing fields."""

    def __init__(self, name: str, fields: Mapping[str, Any]):
        super().__init__(fields)
        self.name = name

    def __getitem__(self, field: str) -> Any:
        value = self.get(field)
        if field not in self or (isinstance(value, str) and value.startswith("${")):
            problem = (
                f"refers in `{field}` to {value}, which does not exist"
                if field in self
                else f"lacks `{field}`"
            )
            raise ValueError(f"The section `{self.name}` of the official configuration {problem}.")
        return value


def section(official_config: dict[str, Any], name: str) -> Section:
    """Returns a section of the reference's nested configuration, by its dotted name.

    Raises:
        ValueError: If it does not exist.
    """
    found: Any = official_config
    for key in name.split("."):
        if not isinstance(found, dict) or key not in found:
            raise ValueError(
                f"An official configuration has a section `{name}`; this one has only "
                f"{', '.join(official_config)}."
            )
        found = dict.__getitem__(found, key)
    return Section(name, found)


def refuse_unknown(fields: Mapping[str, Any], known: set[str], name: str) -> None:
    """Raises `ValueError` if a section has unknown fields, which might change the model."""
    if unknown := sorted(fields.keys() - known):
        raise ValueError(
            f"The section `{name}` of the official configuration has fields that are not known "
            f"here: {', '.join(unknown)}. It may be of a newer version of the reference or of "
            "another model."
        )
