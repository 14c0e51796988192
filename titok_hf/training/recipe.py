"""Recipes: all that trains and samples a model, as data."""

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import ConvNextConfig, PreTrainedConfig

from ..data.augmentation import Augmentation
from ..modeling.maskgit import MaskGitConfig
from ..modeling.maskgit_vqgan import MaskGitVQGANConfig
from ..modeling.titok import TiTokConfig
from ..modeling.weights import load_lpips
from ..pipelines import MaskGitScheduler, TiTokPipeline
from .discriminator import PatchDiscriminator
from .objectives import MaskedTokenObjective, Objective, ReconstructionObjective, WarmupObjective
from .trainer import TiTokTrainingArguments

FOLDER = Path(__file__).parents[1] / "recipes"
# What each part of a stage is handed to: its parameters are the keys that the part may have.
STAGES: dict[str, dict[str, Callable]] = {
    "vqgan": {
        "model": MaskGitVQGANConfig,
        "objective": ReconstructionObjective,
        "discriminator": PatchDiscriminator,
        "lpips": load_lpips,
    },
    "classifier": {"model": ConvNextConfig, "objective": Objective},
    "warmup": {"model": TiTokConfig, "objective": WarmupObjective},
    "decoder_finetuning": {
        "objective": ReconstructionObjective,
        "discriminator": PatchDiscriminator,
        "lpips": load_lpips,
    },
    "single_stage": {
        "model": TiTokConfig,
        "objective": ReconstructionObjective,
        "discriminator": PatchDiscriminator,
        "lpips": load_lpips,
    },
    "generator": {"model": MaskGitConfig, "objective": MaskedTokenObjective},
}
COMMON: dict[str, Callable] = {"augmentation": Augmentation, "training": TiTokTrainingArguments}
# Keys of a stage whose result is not trained but loaded.
PRETRAINED = ("pretrained", "revision")
# Keys that are taken out of a part before it is handed on.
EXTRA_KEYS: dict[Callable, tuple[str, ...]] = {
    TiTokConfig: ("size",),
    ReconstructionObjective: ("classifier_weight", "lpips_weight"),
    TiTokTrainingArguments: ("global_batch_size",),
}


class RecipeLoader(yaml.SafeLoader):
    """YAML where `1e-4` is a number, as in version 1.2, and not a string, as in 1.1."""


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    [*"-+0123456789"],
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe whose keys have been checked.

    Args:
        name: The recipe's name.
        image_size: Side of the images, in pixels.
        stages: What trains each stage, or where its result comes from. Any of `STAGES` that have
            what they need: `warmup` a `vqgan`; `decoder_finetuning` a `vqgan` and a `warmup`; a
            perceptual loss a `classifier`, unless it is LPIPS alone; `generator` a tokenizer with
            pixels, from `decoder_finetuning` or `single_stage`, of which there may be one.

            A stage is trained by its `model` (fields of the network's config; for TiTok also
            `size`, see `TiTokConfig.from_size`), `objective` (for images from images also
            `classifier_weight` and `lpips_weight`, see `PerceptualLoss`), `discriminator`, `lpips`
            (files of its weights, see `load_lpips`), `augmentation` and `training` (fields of
            `TiTokTrainingArguments`, and `global_batch_size`: images of an optimizer step, from
            which the number of accumulated batches follows). Or it is `pretrained`: a folder or Hub
            repository, of which `revision` is a branch, tag or commit.
        scheduler: Arguments of the `MaskGitScheduler`; needed with a generator.
        sampling: Default arguments of the `TiTokPipeline`; needed with a generator.
    """

    name: str
    image_size: int
    stages: dict[str, dict[str, Any]]
    scheduler: dict[str, Any] = dataclasses.field(default_factory=dict)
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Reads a recipe.

        A recipe may name another as its `base` and say only what differs: mappings are merged, key
        by key; other values take the place of the base's; `null` takes a key away.

        Args:
            source: A YAML file, or the name of a recipe that comes with the package, such as
                `"digits"`.
            overrides: Changes like `"stages.warmup.training.max_steps=100"`; values are YAML.

        Raises:
            FileNotFoundError: If there is no such recipe.
            ValueError: If a key is unknown or missing, or an override is not `key=value`.
        """
        content = read_recipe(source)
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
            check_stage(name, stage)
        stages = {name: stages[name] for name in STAGES if name in stages}
        check_stages(stages)
        for part, target in (("scheduler", MaskGitScheduler), ("sampling", TiTokPipeline)):
            if "generator" in stages and part not in content:
                raise ValueError(f"The recipe lacks {part}, which its stage generator needs.")
            check_keys(part, content.get(part, {}), settable(target))
        return cls(**{**content, "stages": stages})

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for YAML."""
        return dataclasses.asdict(self)

    def part(self, stage: str, part: str) -> dict[str, Any]:
        """What the recipe says of a part of a stage."""
        return self.stages[stage].get(part, {})

    def is_pretrained(self, stage: str) -> bool:
        """Whether the result of a stage is loaded, not trained."""
        return "pretrained" in self.stages[stage]

    def trained_stages(self) -> list[str]:
        """The stages that are trained, in their order."""
        return [stage for stage in self.stages if not self.is_pretrained(stage)]


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_recipe(source: str | Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe as plain data, merged with its base.

    Args:
        source: A YAML file, or the name of a recipe that comes with the package.
        derived: The files whose base it is.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If it is not YAML, or is its own base.
    """
    path = Path(source)
    if not path.is_file():
        if str(source) not in recipe_names():
            names = ", ".join(recipe_names())
            raise FileNotFoundError(
                f"The recipe must be a YAML file or one of {names}, got {str(source)!r}."
            )
        path = FOLDER / f"{source}.yaml"
    if path.resolve() in derived:
        raise ValueError(f"The recipe {path} is its own `base`.")
    # through JSON, since YAML's aliases are shared dicts, and an override must change one of them
    # only
    content = json.loads(json.dumps(parse_yaml(path.read_text(), str(path))))
    if not isinstance(content, dict) or "base" not in content:
        return content
    base = content.pop("base")
    beside = path.parent / str(base)
    return merge(
        read_recipe(beside if beside.is_file() else base, (*derived, path.resolve())), content
    )


def merge(base: Any, changes: Any) -> Any:
    """Plain data with changes: mappings key by key, where `None` takes a key away, anything else as
    a whole."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    merged = base | {key: merge(base.get(key), value) for key, value in changes.items()}
    return {key: value for key, value in merged.items() if not (key in changes and value is None)}


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


def check_stage(name: str, stage: Any) -> None:
    """Checks the keys of a stage.

    Raises:
        ValueError: If one is unknown, or the stage is both trained and pretrained, or neither.
    """
    where, parts = f"stages.{name}", STAGES[name] | COMMON
    check_keys(where, stage, [*parts, *PRETRAINED])
    if any(key in stage for key in PRETRAINED):
        others = [key for key in stage if key not in PRETRAINED]
        source = stage.get("pretrained")
        if name == "generator" or others or not isinstance(source, str) or not source:
            raise ValueError(
                f"`{where}` must either be trained, by {', '.join(parts)}, or, if it is not the "
                "generator, have `pretrained`, a folder or Hub repository, and maybe `revision`; "
                f"got {stage}."
            )
        return
    for part, arguments in stage.items():
        check_keys(f"{where}.{part}", arguments, settable(parts[part]))
    training = stage.get("training", {})
    if "global_batch_size" in training and "gradient_accumulation_steps" in training:
        raise ValueError(
            f"`{where}.training` must have one of `global_batch_size` and "
            "`gradient_accumulation_steps`, got both."
        )


def check_stages(stages: dict[str, dict[str, Any]]) -> None:
    """Checks that each stage that is trained has the stages whose results it needs.

    Raises:
        ValueError: If one is missing, there is none to train, or two end in the same tokenizer.
    """
    trained = {name: stage for name, stage in stages.items() if "pretrained" not in stage}
    if not trained:
        raise ValueError(
            f"The recipe needs at least one of the stages {', '.join(STAGES)} to train."
        )
    if "decoder_finetuning" in stages and "single_stage" in stages:
        raise ValueError(
            "The recipe must have one of the stages decoder_finetuning and single_stage, got both."
        )
    for name, needed in (
        ("warmup", "vqgan"),
        ("decoder_finetuning", "warmup"),
        ("decoder_finetuning", "vqgan"),
    ):
        if name in trained and needed not in stages:
            raise ValueError(f"The stage {name} needs the stage {needed}, which the recipe lacks.")
    if (
        "generator" in trained
        and "decoder_finetuning" not in stages
        and "single_stage" not in stages
    ):
        raise ValueError(
            "The stage generator needs the stage decoder_finetuning or single_stage, and the "
            "recipe has neither."
        )
    for name, stage in trained.items():
        objective = stage.get("objective", {})
        weights = perceptual_weights(objective)
        if objective.get("perceptual_weight"):
            if not any(weights.values()):
                raise ValueError(
                    f"The stage {name} has a `perceptual_weight` but no network for it: "
                    "`classifier_weight` and "
                    "`lpips_weight` are 0."
                )
            if weights["classifier_weight"] and "classifier" not in stages:
                raise ValueError(
                    f"The stage {name} has a `perceptual_weight` but the recipe lacks the stage "
                    "classifier; for LPIPS "
                    "alone, set `classifier_weight: 0` and a `lpips_weight`."
                )
        elif any(key in objective for key in weights):
            raise ValueError(
                f"The stage {name} has a "
                f"{' and a '.join(f'`{key}`' for key in weights if key in objective)} but no "
                "`perceptual_weight`, by which the perceptual loss counts."
            )


def perceptual_weights(objective: dict[str, Any]) -> dict[str, float]:
    """The weights of a `PerceptualLoss` in a stage's part `objective`."""
    return {
        "classifier_weight": objective.get("classifier_weight", 1.0),
        "lpips_weight": objective.get("lpips_weight", 0.0),
    }


def settable(target: Callable) -> list[str]:
    """Names of the parameters that a recipe may set: all but networks, which have no default or
    None.

    A configuration may also be given its `model_type`, and see `EXTRA_KEYS`.
    """
    parameters = inspect.signature(target).parameters.values()
    extra = EXTRA_KEYS.get(target, ())
    if isinstance(target, type) and issubclass(target, PreTrainedConfig):
        return ["model_type", *(parameter.name for parameter in parameters), *extra]
    if target in (TiTokTrainingArguments, load_lpips):
        return [*(parameter.name for parameter in parameters), *extra]
    return [
        *(
            parameter.name
            for parameter in parameters
            if parameter.default not in (parameter.empty, None)
        ),
        *extra,
    ]


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, RecipeLoader)
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
