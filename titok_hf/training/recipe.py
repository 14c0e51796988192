"""Recipes: all that trains and samples a model, as data."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import ConvNextConfig

from ..data.collator import Augmentation
from ..modeling.maskgit import MaskGitConfig
from ..modeling.maskgit_vqgan import MaskGitVQGANConfig
from ..modeling.titok import TiTokConfig
from ..pipelines import MaskGitScheduler
from .discriminator import PatchDiscriminator
from .objectives import MaskedTokenObjective, Objective, ReconstructionObjective, WarmupObjective
from .trainer import TiTokTrainingArguments

# What each part of a stage is handed to; its parameters are the keys that the part may have.
STAGES: dict[str, dict[str, Callable]] = {
    "vqgan": {"model": MaskGitVQGANConfig, "objective": ReconstructionObjective},
    "classifier": {"model": ConvNextConfig, "objective": Objective},
    "warmup": {"model": TiTokConfig, "objective": WarmupObjective},
    "decoder_finetuning": {"objective": ReconstructionObjective, "discriminator": PatchDiscriminator},
    "generator": {"model": MaskGitConfig, "objective": MaskedTokenObjective},
}
COMMON: dict[str, Callable] = {"augmentation": Augmentation, "training": TiTokTrainingArguments}


def sampling_defaults(num_inference_steps: int, guidance_scale: float, guidance_schedule: str) -> None:
    """The keys of `sampling`: the defaults of a `TiTokPipeline`."""


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
        shipped = Path(__file__).parents[1] / "recipes" / f"{source}.yaml"
        path = Path(source)
        if not path.is_file() and not shipped.is_file():
            names = sorted(entry.name.removesuffix(".yaml") for entry in shipped.parent.glob("*.yaml"))
            raise FileNotFoundError(f"The recipe must be a YAML file or one of {', '.join(names)}, got {source!r}.")
        content = yaml.safe_load((path if path.is_file() else shipped).read_text())
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise ValueError(f"An override must be `key=value`, got {override!r}.")
            *parents, leaf = key.split(".")
            target = content
            for parent in parents:
                target = target.setdefault(parent, {})
            target[leaf] = yaml.safe_load(value)
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
        check_keys("stages", content["stages"], STAGES)
        for name, stage in content["stages"].items():
            parts = STAGES[name] | COMMON
            check_keys(f"stages.{name}", stage, parts)
            for part, arguments in stage.items():
                check_keys(f"stages.{name}.{part}", arguments, inspect.signature(parts[part]).parameters)
        check_keys("scheduler", content["scheduler"], inspect.signature(MaskGitScheduler).parameters)
        check_keys("sampling", content["sampling"], inspect.signature(sampling_defaults).parameters)
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for YAML."""
        return dataclasses.asdict(self)


def check_keys(where: str, given: dict[str, Any], known: Any) -> None:
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(key, list(known), n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}."
            raise ValueError(f"Unknown key {key!r} in `{where}`: {hint}")
