"""The definition of a study: a recipe and its variants."""

import copy
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..settings import check_keys, load_yaml, override, suggestion
from ..training.recipe import STAGES, Recipe

FOLDER = Path(__file__).parents[1] / "recipes" / "studies"


def study_names() -> list[str]:
    """Returns the names of the shipped studies."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "base")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The changes that come with a value of an axis.

    Args:
        set: Changes of the recipe, `key=value`, or lists of them.
        stages: The stages to train; the study's if not given.
        data_share: Share of the training images on which the shared stages are trained.
    """

    set: Sequence[str | Sequence[str]] = ()
    stages: Sequence[str] | None = None
    data_share: float = 1.0

    @property
    def changes(self) -> list[str]:
        """All changes of the recipe."""
        return [
            change
            for changes in self.set
            for change in ([changes] if isinstance(changes, str) else changes)
        ]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant that a study compares with others: one value per axis.

    Args:
        values: Value of each axis.
        recipe: Recipe of the variant.
        data_share: See `Choice`.
        tuned: Value of the setting that is chosen first, if there is one.
    """

    values: dict[str, Any]
    recipe: Recipe
    data_share: float = 1.0
    tuned: Any = None

    @property
    def name(self) -> str:
        """The variant's values joined to a folder name."""
        values = [*self.values.values(), *([] if self.tuned is None else [self.tuned])]
        return "-".join(str(value).replace(" ", "_") for value in values)

    def with_setting(self, key: str, value: Any) -> "Variant":
        """Returns the variant with a setting of its recipe that is chosen first."""
        recipe = copy.deepcopy(self.recipe.to_dict())
        override(recipe, [f"{key}={value}"])
        return dataclasses.replace(self, recipe=Recipe.from_dict(recipe), tuned=value)

    def recipe_hash(self) -> str:
        """Returns the SHA-256 of the recipe."""
        return recipe_hash(self.recipe, self.data_share)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A setting of the recipe that is chosen before the variants are compared.

    Args:
        key: The setting.
        values: The values that are tried.
        axes: Axes for each of whose combinations it is chosen anew, with the last value of all others.
        metric: The metric to minimize.
    """

    key: str
    values: Sequence[Any]
    axes: Sequence[str]
    metric: str


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison of variants of a recipe.

    Args:
        name: Name of the study.
        title: Title of the picture.
        recipe: Plain data of a `Recipe`, possibly with stages that are not trained.
        data: The data set by default.
        reads_captions: Whether the data set is opened with its captions.
        stages: Stages that each variant trains.
        shared: Stages that are trained once per seed for all variants in which they are equal.
        snapshots: A shared stage whose numbers of steps are snapshots of one run, with as many as
            `axes["steps"]` has; its learning rate must not depend on the number.
        seeds: Random seeds.
        axes: Values of each axis, with their changes. The variants are all combinations of values.
            If two axes change the same key, the later one wins.
        tuning: A setting that is chosen first.
        x: The axis on the picture's x axis; the other axes distinguish its curves. `"FLOPs"` stands
            for those of the training of `snapshots`.
        metrics: Metrics in the table, see `HeldOut.measure`.
        panels: Metrics in the picture.
        predictors: Metrics of the tokenizer that are correlated with the first one of the table.
        images_per_class: Number of images to generate per class, if there is a generator; see
            `run_demo`.
        set_last: Changes of the recipe of all variants, `key=value`, applied after those of the
            axes.
    """

    name: str
    title: str
    recipe: dict[str, Any]
    data: str
    reads_captions: bool
    stages: list[str]
    shared: list[str]
    snapshots: str | None
    seeds: list[int]
    axes: dict[str, dict[Any, Choice]]
    tuning: Tuning | None
    x: str
    metrics: list[str]
    panels: list[str]
    predictors: list[str]
    images_per_class: int
    set_last: list[str]

    @classmethod
    def load(
        cls,
        name: str,
        overrides: Sequence[str] = (),
        quick: bool = False,
        values: Mapping[str, Sequence[Any]] | None = None,
    ) -> "Study":
        """Reads a shipped study, which extends the settings common to all.

        Args:
            name: One of `study_names()`.
            overrides: Changes of the recipe of all variants, `key=value`, applied after those of
                the axes.
            quick: Whether to train every stage for two steps only, with one seed.
            values: Values of some axes, instead of the study's. An axis of numbers takes any number.

        Raises:
            ValueError: If there is no such study, axis or value.
        """
        if name not in study_names():
            raise ValueError(f"`name` must be one of {', '.join(study_names())}, got {name!r}.")
        content = {"name": name, **read_study(name)}
        # the round trip through JSON copies YAML aliases, which would otherwise share one dict that
        # an override changes in all places
        content["recipe"] = json.loads(json.dumps(content["recipe"]))
        of_quick = content.pop("quick")
        if quick:
            content |= {key: of_quick[key] for key in ("seeds", "images_per_class")}
        content["set_last"] = [*(of_quick["set"] if quick else []), *overrides]
        chosen = {**(of_quick.get("axes", {}) if quick else {}), **(values or {})}
        check_keys("axes", chosen, content["axes"])
        content["axes"] = {
            axis: axis_choices(axis, choices, chosen.get(axis))
            for axis, choices in content["axes"].items()
        }
        if content["tuning"] is not None:
            tried = {"values": of_quick["tuning"]} if quick else {}
            content["tuning"] = Tuning(**content["tuning"] | tried)
        return cls(**content)

    def variants(self) -> list[Variant]:
        """Returns all combinations of the axes' values; the last axis varies fastest.

        Raises:
            ValueError: If the overrides do not fit the recipe, see `Recipe.load`.
        """
        variants = []
        for combination in itertools.product(*(choices.items() for choices in self.axes.values())):
            recipe, stages, data_share = copy.deepcopy(self.recipe), self.stages, 1.0
            for _, choice in combination:
                override(recipe, choice.changes)
                stages = choice.stages or stages
                data_share *= choice.data_share
            override(recipe, self.set_last)
            check_keys("stages", recipe["stages"], self.recipe["stages"])
            values = dict(zip(self.axes, (value for value, _ in combination), strict=True))
            variants.append(Variant(values, restricted(recipe, stages), data_share))
        return variants

    def shared_recipe(self, variant: Variant, stage: str) -> Recipe:
        """Returns the recipe of a shared stage of a variant, with the stages that it requires; that of
        `snapshots` takes the most steps of the axis."""
        recipe = copy.deepcopy(variant.recipe.to_dict())
        if stage == self.snapshots:
            steps = list(self.axes["steps"])
            recipe["stages"][stage]["training"] |= {
                "max_steps": max(steps),
                "snapshot_steps": steps,
            }
        stages = [*variant.recipe.stage(stage).required(), stage]
        # variants that differ in what no shared stage needs, as in the scheduler, share it all the same
        for part in ("scheduler", "sampling"):
            if not any(part in STAGES[name].recipe_parts for name in stages):
                recipe[part] = {}
        return restricted(recipe, stages)


def read_study(name: str) -> dict[str, Any]:
    """Reads a study's settings, which replace those of its `base`: another study, or what is common to
    all."""
    content = load_yaml(FOLDER / f"{name}.yaml")
    base = content.pop("base", None if name == "base" else "base")
    return content if base is None else read_study(base) | content


def axis_choices(
    axis: str, content: dict[Any, Any], values: Sequence[Any] | None
) -> dict[Any, Choice]:
    """Returns the choices of an axis, of some `values` if these are given.

    Args:
        axis: Name of the axis.
        content: Changes by value; or, for an axis of numbers, `numbers` and the changes `set`, in which
            `{}` stands for the number, or `of_data: true` if they are shares of the data.
        values: The values to take.

    Raises:
        ValueError: If the axis does not have one of the values.
    """
    if "numbers" not in content:
        if unknown := [value for value in values or () if value not in content]:
            raise ValueError(
                f"The axis {axis!r} has no value {unknown[0]!r}: {suggestion(unknown[0], list(content))}"
            )
        return {
            value: Choice(**(choice or {}))
            for value, choice in content.items()
            if values is None or value in values
        }
    values = content["numbers"] if values is None else values
    if wrong := [value for value in values if not isinstance(value, int | float)]:
        raise ValueError(f"The axis {axis!r} takes numbers, got {wrong[0]!r}.")
    if content.get("of_data") and (wrong := [value for value in values if not 0 < value <= 1]):
        raise ValueError(f"The axis {axis!r} takes shares of the data in (0, 1], got {wrong[0]}.")
    choices = {}
    for value in values:
        changes = [change.format(value) for change in content.get("set", [])]
        choices[value] = Choice(changes, data_share=value if content.get("of_data") else 1.0)
    return choices


def recipe_hash(recipe: Recipe, data_share: float = 1.0) -> str:
    """Returns the SHA-256 of a recipe, and of the share of the data if it is not all."""
    content = recipe.to_dict() | ({} if data_share == 1 else {"data_share": data_share})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def restricted(recipe: dict[str, Any], stages: Sequence[str]) -> Recipe:
    """Returns a recipe with some of its stages.

    Raises:
        ValueError: If the recipe is not valid, or has an unknown stage.
    """
    check_keys("stages", recipe["stages"], STAGES)
    return Recipe.from_dict(recipe | {"stages": {name: recipe["stages"][name] for name in stages}})
