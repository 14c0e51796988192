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
    "single_stage": {
        "model": TiTokConfig,
        "objective": ReconstructionObjective,
        "discriminator": PatchDiscriminator,
    },
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
            `training` (fields of `TiTokTrainingArguments`). Any of `STAGES` that have what they need: `warmup` a
            `vqgan`; `decoder_finetuning` a `warmup`; a perceptual loss a `classifier`; `generator` a tokenizer with
            pixels, from `decoder_finetuning` or `single_stage`, of which there may be one.
        scheduler: Arguments of the `MaskGitScheduler`; needed with a generator.
        sampling: Default arguments of the `TiTokPipeline`; needed with a generator.
    """

    name: str
    image_size: int
    stages: dict[str, dict[str, dict[str, Any]]]
    scheduler: dict[str, Any] = dataclasses.field(default_factory=dict)
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)

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
        override(content, overrides)
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Recipe":
        """Checks the keys of a recipe.

        Raises:
            ValueError: If a key is unknown or missing, or a stage lacks one that it needs.
        """
        check_keys("recipe", content, [field.name for field in dataclasses.fields(cls)])
        if missing := [field for field in ("name", "image_size", "stages") if field not in content]:
            raise ValueError(f"The recipe lacks {', '.join(missing)}.")
        stages = content["stages"]
        check_keys("stages", stages, STAGES)
        for name, stage in stages.items():
            parts = STAGES[name] | COMMON
            check_keys(f"stages.{name}", stage, parts)
            for part, arguments in stage.items():
                check_keys(f"stages.{name}.{part}", arguments, settable(parts[part]))
        check_stages(stages)
        for part, target in (("scheduler", MaskGitScheduler), ("sampling", TiTokPipeline)):
            if "generator" in stages and part not in content:
                raise ValueError(f"The recipe lacks {part}, which its stage generator needs.")
            check_keys(part, content.get(part, {}), settable(target))
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for YAML."""
        return dataclasses.asdict(self)


def override(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Changes a recipe that is still plain data.

    Args:
        content: The recipe, changed in place.
        overrides: Changes like `"stages.warmup.training.max_steps=100"`; values are YAML.

    Raises:
        ValueError: If an override is not `key=value`, or its key is of something that has none.
    """
    for change in overrides:
        key, separator, value = change.partition("=")
        if not separator:
            raise ValueError(f"An override must be `key=value`, got {change!r}.")
        *parents, leaf = key.split(".")
        target = content
        for parent in parents:
            target = target.setdefault(parent, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise ValueError(f"The override {change!r} sets a key of something that has no keys.")
        target[leaf] = parse_yaml(value, change)


def check_stages(stages: dict[str, dict[str, Any]]) -> None:
    """Checks that each stage has the stages whose results it needs.

    Raises:
        ValueError: If one is missing, there is none at all, or two end in the same tokenizer.
    """
    if not stages:
        raise ValueError(f"The recipe needs at least one of the stages {', '.join(STAGES)}.")
    if "decoder_finetuning" in stages and "single_stage" in stages:
        raise ValueError("The recipe must have one of the stages decoder_finetuning and single_stage, got both.")
    for name, needed in (("warmup", "vqgan"), ("decoder_finetuning", "warmup")):
        if name in stages and needed not in stages:
            raise ValueError(f"The stage {name} needs the stage {needed}, which the recipe lacks.")
    if "generator" in stages and "decoder_finetuning" not in stages and "single_stage" not in stages:
        raise ValueError(
            "The stage generator needs the stage decoder_finetuning or single_stage, and the recipe has neither."
        )
    for name in ("decoder_finetuning", "single_stage"):
        if stages.get(name, {}).get("objective", {}).get("perceptual_weight") and "classifier" not in stages:
            raise ValueError(f"The stage {name} has a `perceptual_weight` but the recipe lacks the stage classifier.")


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
