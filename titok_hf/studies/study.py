"""The definition of a study: a recipe and its variants."""

import copy
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..settings import check_keys, load_yaml, override
from ..training.recipe import STAGES, Recipe

FOLDER = Path(__file__).parents[1] / "recipes" / "studies"


def study_names() -> list[str]:
    """Returns the names of the shipped studies."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "base")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The changes that come with a value of an axis.

    Args:
        set: Changes of the recipe, `key=value`.
        stages: The stages to train; the study's if not given.
    """

    set: Sequence[str] = ()
    stages: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant that a study compares with others: one value per axis.

    Args:
        values: Value of each axis.
        recipe: Recipe of the variant.
    """

    values: dict[str, Any]
    recipe: Recipe

    @property
    def name(self) -> str:
        """The variant's values joined to a folder name."""
        return "-".join(str(value).replace(" ", "_") for value in self.values.values())

    def recipe_hash(self) -> str:
        """Returns the SHA-256 of the recipe."""
        return hashlib.sha256(
            json.dumps(self.recipe.to_dict(), sort_keys=True).encode()
        ).hexdigest()


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison of variants of a recipe.

    Args:
        name: Name of the study.
        title: Title of the picture.
        recipe: Plain data of a `Recipe`, possibly with stages that are not trained.
        stages: Stages that each variant trains.
        shared: Stages that are trained once per seed for all variants; the axes must not change
            them.
        seeds: Random seeds.
        axes: Values of each axis, with their changes. The variants are all combinations of values.
            If two axes change the same key, the later one wins.
        x: The axis on the picture's x axis; the other axes distinguish its curves.
        metrics: Metrics in the table, see `HeldOut.measure`.
        panels: Metrics in the picture.
        images_per_class: Number of images to generate per class, if there is a generator; see
            `run_demo`.
        set_last: Changes of the recipe of all variants, `key=value`, applied after those of the
            axes.
    """

    name: str
    title: str
    recipe: dict[str, Any]
    stages: list[str]
    shared: list[str]
    seeds: list[int]
    axes: dict[str, dict[Any, Choice]]
    x: str
    metrics: list[str]
    panels: list[str]
    images_per_class: int
    set_last: list[str]

    @classmethod
    def load(cls, name: str, overrides: Sequence[str] = (), quick: bool = False) -> "Study":
        """Reads a shipped study, which extends the settings common to all.

        Args:
            name: One of `study_names()`.
            overrides: Changes of the recipe of all variants, `key=value`, applied after those of
                the axes.
            quick: Whether to train every stage for two steps only, with one seed.

        Raises:
            ValueError: If there is no such study.
        """
        if name not in study_names():
            raise ValueError(f"`name` must be one of {', '.join(study_names())}, got {name!r}.")
        content = {"name": name}
        for file in ("base", name):
            content |= load_yaml(FOLDER / f"{file}.yaml")
        # the round trip through JSON copies YAML aliases, which would otherwise share one dict that
        # an override changes in all places
        content["recipe"] = json.loads(json.dumps(content["recipe"]))
        of_quick = content.pop("quick")
        if quick:
            content |= {key: of_quick[key] for key in ("seeds", "images_per_class")}
        content["set_last"] = [*(of_quick["set"] if quick else []), *overrides]
        content["axes"] = {
            axis: {value: Choice(**(choice or {})) for value, choice in choices.items()}
            for axis, choices in content["axes"].items()
        }
        return cls(**content)

    def variants(self) -> list[Variant]:
        """Returns all combinations of the axes' values; the last axis varies fastest.

        Raises:
            ValueError: If the overrides do not fit the recipe, see `Recipe.load`.
        """
        variants = []
        for combination in itertools.product(*(choices.items() for choices in self.axes.values())):
            recipe, stages = copy.deepcopy(self.recipe), self.stages
            for _, choice in combination:
                override(recipe, choice.set)
                stages = choice.stages or stages
            override(recipe, self.set_last)
            values = dict(zip(self.axes, (value for value, _ in combination), strict=True))
            variants.append(Variant(values, restricted(recipe, stages)))
        return variants

    def shared_recipe(self) -> Recipe:
        """Returns the recipe of the shared stages."""
        recipe = copy.deepcopy(self.recipe)
        override(recipe, self.set_last)
        return restricted(recipe, self.shared)


def restricted(recipe: dict[str, Any], stages: Sequence[str]) -> Recipe:
    """Returns a recipe with some of its stages.

    Raises:
        ValueError: If the recipe is not valid, or has an unknown stage.
    """
    check_keys("stages", recipe["stages"], STAGES)
    return Recipe.from_dict(recipe | {"stages": {name: recipe["stages"][name] for name in stages}})
