"""Recipes: all that trains and samples a model, as data."""

import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import ConvNextConfig, PreTrainedConfig

from ..data.augmentation import Augmentation
from ..modeling.maskgit import MaskGitConfig
from ..modeling.maskgit_vqgan import MaskGitVQGANConfig
from ..modeling.titok import TiTokConfig
from ..pipelines import MaskGitScheduler, TiTokPipeline
from .discriminator import PatchDiscriminator
from .objectives import MaskedTokenObjective, Objective, ReconstructionObjective, WarmupObjective
from .trainer import TiTokTrainingArguments

# What each part of a stage is handed to: its parameters are the keys that the part may have.
STAGES: dict[str, dict[str, Callable]] = {
    "vqgan": {"model": MaskGitVQGANConfig, "objective": ReconstructionObjective},
    "classifier": {"model": ConvNextConfig, "objective": Objective},
    "warmup": {"model": TiTokConfig, "objective": WarmupObjective},
    "decoder_finetuning": {"objective": ReconstructionObjective, "discriminator": PatchDiscriminator},
    "generator": {"model": MaskGitConfig, "objective": MaskedTokenObjective},
}
COMMON: dict[str, Callable] = {"augmentation": Augmentation, "training": TiTokTrainingArguments}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe whose keys have been checked.

    Args:
        name: The recipe's name.
        image_size: Side of the images, in pixels.
        stages: Each stage's `model` (fields of the network's config), `objective`, `discriminator`, `augmentation` and
            `training` (fields of `TiTokTrainingArguments`).
        scheduler: Arguments of the `MaskGitScheduler`.
        sampling: Default arguments of the `TiTokPipeline`.
    """

    name: str
    image_size: int
    stages: dict[str, dict[str, dict[str, Any]]]
    scheduler: dict[str, Any]
    sampling: dict[str, Any]

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Reads a recipe.

        Args:
            source: A YAML file, or the name of a recipe that comes with the package, such as `"digits"`.
            overrides: Changes like `"stages.warmup.training.max_steps=100"`; values are YAML.

        Raises:
            FileNotFoundError: If there is no such recipe.
            ValueError: If a key is unknown or missing, or an override is not `key=value`.
        """
        path = Path(source)
        if not path.is_file():
            shipped = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml")}
            if str(source) not in shipped:
                names = ", ".join(sorted(shipped))
                raise FileNotFoundError(f"The recipe must be a YAML file or one of {names}, got {str(source)!r}.")
            path = shipped[str(source)]
        # through JSON, since YAML's aliases are shared dicts, and an override must change one of them only
        content = json.loads(json.dumps(parse_yaml(path.read_text(), str(path))))
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise ValueError(f"An override must be `key=value`, got {override!r}.")
            *parents, leaf = key.split(".")
            target = content
            for parent in parents:
                target = target.setdefault(parent, {}) if isinstance(target, dict) else None
            if not isinstance(target, dict):
                raise ValueError(f"The override {override!r} sets a key of something that has no keys.")
            target[leaf] = parse_yaml(value, override)
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Recipe":
        """Checks the keys of a recipe.

        Raises:
            ValueError: If a key is unknown or missing.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        check_keys("recipe", content, fields)
        if missing := [field for field in fields if field not in content]:
            raise ValueError(f"The recipe lacks {', '.join(missing)}.")
        stages = content["stages"]
        check_keys("stages", stages, STAGES)
        for name, stage in stages.items():
            parts = STAGES[name] | COMMON
            check_keys(f"stages.{name}", stage, parts)
            for part, arguments in stage.items():
                check_keys(f"stages.{name}.{part}", arguments, settable(parts[part]))
        if missing := [name for name in STAGES if name not in stages and name != "classifier"]:
            raise ValueError(f"The recipe lacks the stages {', '.join(missing)}.")
        if stages["decoder_finetuning"].get("objective", {}).get("perceptual_weight") and "classifier" not in stages:
            raise ValueError("The recipe has a `perceptual_weight` but lacks the stage classifier.")
        check_keys("scheduler", content["scheduler"], settable(MaskGitScheduler))
        check_keys("sampling", content["sampling"], settable(TiTokPipeline))
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for YAML."""
        return dataclasses.asdict(self)


def settable(target: Callable) -> list[str]:
    """Names of the parameters that a recipe may set: all but networks, which have no default or None.

    A configuration may also be given its `model_type`.
    """
    parameters = inspect.signature(target).parameters.values()
    if isinstance(target, type) and issubclass(target, PreTrainedConfig):
        return ["model_type", *(parameter.name for parameter in parameters)]
    if target is TiTokTrainingArguments:
        return [parameter.name for parameter in parameters]
    return [parameter.name for parameter in parameters if parameter.default not in (parameter.empty, None)]


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def check_keys(where: str, given: Any, known: Iterable[str]) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"`{where}` must be a mapping, got {given!r}.")
    known = list(known)
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}."
            raise ValueError(f"Unknown key {key!r} in `{where}`: {hint}")
