"""Recipes: all settings of training and sampling a model, as data."""

import dataclasses
import inspect
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.augmentation import Augmentation
from ..settings import check_keys, load_yaml, override, suggestion
from .arguments import TiTokTrainingArguments
from .stages import STAGES, Stage, keys_of

FOLDER = Path(__file__).parents[1] / "recipes"
COMMON_PARTS = {
    "augmentation": keys_of(Augmentation),
    "training": (*inspect.signature(TiTokTrainingArguments).parameters, "global_batch_size"),
}
# Fields of `TiTokTrainingArguments` that a run sets itself, and where to set them instead.
SET_BY_RUN = {
    "output_dir": "name the folder of the run with `--output-dir` (in Python: `output_dir`)",
    "save_on_each_node": "the machines of a run share its folder",
    "seed": "set the seed of the run with `--seed` (in Python: `seed`)",
    "resume_from_checkpoint": "leave it out, because a run resumes from its last checkpoint by itself",
}
# Keys of a stage whose result is loaded instead of trained.
PRETRAINED = ("pretrained", "revision")
EVALUATION = ("metrics", "extractor", "representations", "num_images")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe whose keys have been checked.

    Args:
        name: The recipe's name.
        image_size: Side of the images, in pixels.
        stages: Settings of each stage by name; `titok_hf.training.stages` defines the stages and
            which others each needs.

            The settings of a trained stage are `model` (fields of the network's configuration),
            `objective` (arguments of the objective), parts specific to the stage, `augmentation`
            (arguments of `Augmentation`), and `training` (fields of `TiTokTrainingArguments`, and
            `global_batch_size`: images per optimizer step, which determines the number of
            accumulated batches). Those of a loaded stage are `pretrained` (a folder or Hub
            repository) and optionally `revision` (a branch, tag or commit).
        scheduler: Arguments of the `MaskGitScheduler`; required for a generator.
        sampling: Default arguments of the `TiTokPipeline` or `LatentDiTPipeline`; required for a
            generator.
        evaluation: Evaluation on held-out images during the training of stages whose `training` has
            an `eval_strategy`: `metrics` (names of reconstruction metrics, such as `psnr` and
            `frechet_distance`), `extractor` (network of the metrics on features, see
            `titok_hf.evaluation.load_extractor`), `representations` (whether to measure a VTP by
            `titok_hf.evaluation.measure_representations`), and `num_images` (the first so many;
            defaults to all).
    """

    name: str
    image_size: int
    stages: dict[str, dict[str, Any]]
    scheduler: dict[str, Any] = dataclasses.field(default_factory=dict)
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Reads a recipe.

        A recipe may name another as its `base` and contain only the differences: mappings are
        merged key by key, other values replace those of the base, and `null` removes a key.

        Args:
            source: A YAML file, or the name of a shipped recipe, such as `"digits"`.
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
        """Checks plain data and returns it as a recipe.

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
        for part in ("scheduler", "sampling"):
            users = [name for name in stages if part in STAGES[name].recipe_parts]
            if users and part not in content:
                raise ValueError(f"The recipe lacks {part}, which its stage {users[0]} needs.")
            known = [STAGES[name].recipe_parts.get(part, ()) for name in users or STAGES]
            check_keys(part, content.get(part, {}), itertools.chain.from_iterable(known))
        check_keys("evaluation", content.get("evaluation", {}), EVALUATION)
        recipe = cls(**content)
        check_stages(recipe)
        ordered = {stage.name: stages[stage.name] for stage in recipe.all_stages()}
        return dataclasses.replace(recipe, stages=ordered)

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain data, for YAML."""
        return dataclasses.asdict(self)

    def stage(self, name: str) -> Stage:
        """Returns a stage by name."""
        return STAGES[name](self)

    def all_stages(self) -> list[Stage]:
        """Returns the stages, each after those that it requires."""
        stages: dict[str, Stage] = {}

        def add(name: str) -> None:
            if name not in stages:
                stage = self.stage(name)
                for required in stage.required():
                    add(required)
                stages[name] = stage

        for name in self.stages:
            add(name)
        return list(stages.values())

    def trained_stages(self) -> list[Stage]:
        """Returns the stages that a run trains, each after those that it requires. One on demand is among
        them only if another one that is trained requires it, or if there is no other."""
        stages = self.all_stages()
        wanted = [stage for stage in stages if not stage.on_demand] or stages
        trained = [stage for stage in wanted if not stage.is_pretrained]
        required = {name for stage in trained for name in stage.required()}
        return [
            stage
            for stage in stages
            if not stage.is_pretrained and (stage in trained or stage.name in required)
        ]


def recipe_names() -> list[str]:
    """Returns the names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_recipe(source: str | Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a recipe as plain data, merged with its base.

    Args:
        source: A YAML file, or the name of a shipped recipe.
        derived: The files of which it is the base, to detect cycles.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If it is not YAML, or is its own base.
    """
    path = Path(source)
    if not path.is_file():
        if str(source) not in recipe_names():
            raise FileNotFoundError(
                "The recipe must be a YAML file or the name of a shipped recipe, got "
                f"{str(source)!r}: {suggestion(source, recipe_names())}"
            )
        path = FOLDER / f"{source}.yaml"
    if path.resolve() in derived:
        raise ValueError(f"The recipe {path} is its own `base`.")
    # the round trip through JSON copies YAML aliases, which would otherwise share one dict that an
    # override changes in all places
    content = json.loads(json.dumps(load_yaml(path)))
    if not isinstance(content, dict) or "base" not in content:
        return content
    base = content.pop("base")
    beside = path.parent / str(base)
    return merge(
        read_recipe(beside if beside.is_file() else base, (*derived, path.resolve())), content
    )


def merge(base: Any, changes: Any) -> Any:
    """Returns plain data with changes: mappings are merged key by key, where `None` removes a key;
    anything else is replaced."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    merged = base | {key: merge(base.get(key), value) for key, value in changes.items()}
    return {key: value for key, value in merged.items() if not (key in changes and value is None)}


def check_stage(name: str, content: Any) -> None:
    """Checks the keys of a stage.

    Raises:
        ValueError: If one is unknown, or the stage is both trained and pretrained, or neither.
    """
    where, stage = f"stages.{name}", STAGES[name]
    parts = {**stage.parts, **COMMON_PARTS}
    check_keys(where, content, [*parts, *PRETRAINED])
    if any(key in content for key in PRETRAINED) or not stage.can_be_trained:
        others = [key for key in content if key not in PRETRAINED]
        source = content.get("pretrained")
        if not stage.can_be_pretrained or others or not isinstance(source, str) or not source:
            ways = []
            if stage.can_be_trained:
                ways.append(f"either be trained, by {', '.join(parts)},")
            if stage.can_be_pretrained:
                ways.append(
                    "have `pretrained`, a folder or Hub repository, and optionally `revision`"
                )
            else:
                ways.append("be left out, because it cannot be `pretrained`")
            raise ValueError(f"`{where}` must {' or '.join(ways)}, got {content}.")
        return
    for part, arguments in content.items():
        check_keys(f"{where}.{part}", arguments, parts[part])
    if "initial" in content and "pretrained" not in content["initial"]:
        raise ValueError(
            f"`{where}.initial` must have `pretrained`, a folder or Hub repository to start from, got "
            f"{content['initial']}."
        )
    training = content.get("training", {})
    for key, instead in SET_BY_RUN.items():
        if key in training:
            raise ValueError(f"`{where}.training.{key}` cannot be set in a recipe: {instead}.")
    if "global_batch_size" in training and "gradient_accumulation_steps" in training:
        raise ValueError(
            f"`{where}.training` must have one of `global_batch_size` and "
            "`gradient_accumulation_steps`, got both."
        )


def check_stages(recipe: Recipe) -> None:
    """Checks that the stages of a recipe fit together.

    Raises:
        ValueError: If none is trained, two have the same folder, one lacks a stage that it needs,
            or parts of one contradict each other.
    """
    stages = [recipe.stage(name) for name in recipe.stages]
    trained = [stage for stage in stages if not stage.is_pretrained]
    if not trained:
        raise ValueError(
            f"The recipe needs at least one of the stages {', '.join(STAGES)} to train."
        )
    for first, second in itertools.combinations(stages, 2):
        if first.folder == second.folder:
            raise ValueError(
                f"The recipe must have only one of the stages {first.name} and {second.name}, got both."
            )
    for stage in trained:
        stage.check()
