"""What a study is: a recipe, and what varies in it."""

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
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "base")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A value of an axis, and what it changes.

    Args:
        set: Changes of the recipe, `key=value`.
        stages: Stages that run, if others than the study's.
    """

    set: Sequence[str] = ()
    stages: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the things that a study compares: a value of each axis.

    Args:
        values: Axis to value.
        recipe: What trains it.
    """

    values: dict[str, Any]
    recipe: Recipe

    @property
    def name(self) -> str:
        """Its values in a row, for folders."""
        return "-".join(str(value).replace(" ", "_") for value in self.values.values())

    def recipe_hash(self) -> str:
        """SHA-256 of the recipe."""
        return hashlib.sha256(
            json.dumps(self.recipe.to_dict(), sort_keys=True).encode()
        ).hexdigest()


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Args:
        name: Its name.
        title: What the picture is called.
        recipe: Plain data as of a `Recipe`; it may hold stages that are not run.
        stages: Stages that a variant trains.
        shared: Those of them that are trained once a seed, for all variants; their keys must not
            vary.
        seeds: Of all that is random.
        axes: Each axis' values, and what each value changes. The variants are all combinations; of
            two changes of one key, the later axis' counts.
        x: The axis that runs along the picture's x axis; the others tell its curves apart.
        metrics: Those in the table, see `HeldOut.measure`.
        panels: Those in the picture.
        images_per_class: Images that are generated for the measures, if there is a generator; see
            `run_demo`.
        set_last: Changes of the recipe of all variants, `key=value`, that count more than those of
            the axes.
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
        """Reads a study that comes with the package, on top of what all of them share.

        Args:
            name: One of `study_names()`.
            overrides: Changes of the recipe of all variants, `key=value`; they count more than
                those of the axes.
            quick: Whether every stage takes two steps only, with one seed.

        Raises:
            ValueError: If there is no such study.
        """
        if name not in study_names():
            raise ValueError(f"`name` must be one of {', '.join(study_names())}, got {name!r}.")
        content = {"name": name}
        for file in ("base", name):
            content |= load_yaml(FOLDER / f"{file}.yaml")
        # through JSON, since YAML's aliases are shared dicts, and a change must be of one of them
        # only
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
        """All combinations of the axes' values, the last axis varying fastest.

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
        """What trains the shared stages."""
        recipe = copy.deepcopy(self.recipe)
        override(recipe, self.set_last)
        return restricted(recipe, self.shared)


def restricted(recipe: dict[str, Any], stages: Sequence[str]) -> Recipe:
    """The recipe with some of its stages.

    Raises:
        ValueError: If it does not fit, or has a stage that there is not.
    """
    check_keys("stages", recipe["stages"], STAGES)
    return Recipe.from_dict(recipe | {"stages": {name: recipe["stages"][name] for name in stages}})
