"""What a stage of a recipe is. Recipe, run, FLOP table and previews ask it and know no stage by
name."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel

from ...data.samples import Samples
from ...modeling.titok import TiTokImageProcessor
from ..objectives import Objective

if TYPE_CHECKING:
    from ..recipe import Recipe

STAGES: dict[str, type["Stage"]] = {}
"""The stages that a recipe may have, by name."""


def register_stage(stage: type["Stage"]) -> type["Stage"]:
    """Class decorator: lets recipes name a stage."""
    STAGES[stage.name] = stage
    return stage


class Stage(ABC):
    """A stage of a recipe: what it needs, reads, trains, saves and shows.

    Args:
        recipe: The recipe, which has this stage.

    Attributes:
        name: The stage's name in recipes.
        folder: Where its result is in the folder of a run. Two stages with one folder exclude each
            other.
        parts: The keys of each part that a recipe may give the stage, see `keys_of`; the parts
            `augmentation` and `training` come with every stage.
        recipe_parts: The same for parts of the recipe itself, which must be there with this stage.
        needs: The stages whose results it builds on; of several in one tuple, the recipe has one.
        reads_labels: Whether its batches have class labels.
        reads_codes: Whether it also trains on a data set of tokens.
        can_be_pretrained: Whether a recipe may load its result rather than train it.
        on_demand: Whether it is trained only if another stage requires it, or if it is alone.
        config_class: The configuration of its network.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    parts: ClassVar[Mapping[str, Sequence[str]]]
    recipe_parts: ClassVar[Mapping[str, Sequence[str]]] = {}
    needs: ClassVar[Sequence[Sequence[str]]] = ()
    reads_labels: ClassVar[bool] = False
    reads_codes: ClassVar[bool] = False
    can_be_pretrained: ClassVar[bool] = True
    on_demand: ClassVar[bool] = False
    config_class: ClassVar[type[PreTrainedConfig]]

    def __init__(self, recipe: "Recipe"):
        self.recipe = recipe

    def part(self, name: str) -> dict[str, Any]:
        """The keys and values that the recipe gives a part of the stage."""
        return self.recipe.stages[self.name].get(name, {})

    @property
    def is_pretrained(self) -> bool:
        """Whether the recipe loads the result and does not train it."""
        return "pretrained" in self.recipe.stages[self.name]

    def required(self) -> list[str]:
        """The recipe's stages whose results this stage builds on; none if it is pretrained."""
        if self.is_pretrained:
            return []
        return [name for options in self.needs for name in options if name in self.recipe.stages]

    def check(self) -> None:
        """Raises `ValueError` if the recipe lacks a stage that this one needs, or parts of it
        contradict each other."""
        for options in self.needs:
            if not any(option in self.recipe.stages for option in options):
                raise ValueError(
                    f"The stage {self.name} needs the stage {' or '.join(options)}, which the "
                    "recipe lacks."
                )

    def config(self, **fields: Any) -> PreTrainedConfig:
        """The configuration of the stage's network with the given fields."""
        return self.config_class(**{"image_size": self.recipe.image_size, **fields})

    @abstractmethod
    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> Objective:
        """The stage's objective, its network new, on torch's default device.

        Args:
            results: The results of the stages that this one requires, by name. The objective
                freezes their networks.
            class_names: Names of the classes.
            load_weights: Whether networks that are not results of stages, such as LPIPS, are loaded
                with their weights; without them, the objective can be counted and checked.

        Raises:
            ValueError: If an argument of a network or of the objective is not valid.
        """

    @abstractmethod
    def load(self, source: str | Path, **location: Any) -> Any:
        """The result of the stage from a folder or Hub repository, in evaluation mode.

        Args:
            source: The folder or repository.
            location: Arguments of `from_pretrained` that find a repository, such as `revision`.

        Raises:
            OSError: If there is no such folder or repository, or a file is missing there.
            ValueError: If it does not load, or does not fit the recipe.
        """

    @abstractmethod
    def blank(self, config: PreTrainedConfig) -> Any:
        """A result with the network of a configuration, without trained weights."""

    def result_of(self, network: PreTrainedModel) -> Any:
        """The result that a network in training stands for until it is saved."""
        return network

    def downloads(self) -> dict[str, Callable[[], Any]]:
        """Functions that load what the stage needs besides results of other stages, by name."""
        return {}

    def check_result(self, name: str, result: Any) -> None:
        """Raises `ValueError` if the result of a required stage is not what this stage needs."""

    def check_data(self, objective: Objective, data: Samples) -> None:
        """Raises `ValueError` if the objective cannot train on a data set."""

    def image_processor(self) -> TiTokImageProcessor:
        """The image processor that makes the objective's `pixel_values`."""
        return TiTokImageProcessor.from_image_size(self.recipe.image_size)

    def save(self, network: PreTrainedModel, results: Mapping[str, Any], folder: Path) -> None:
        """Writes the trained network as the stage's result.

        Args:
            network: The network.
            results: See `objective`.
            folder: An empty folder.
        """
        network.save_pretrained(folder)
        self.image_processor().save_pretrained(folder)

    def preview(self, data: Samples) -> Callable[[Objective], Image.Image] | None:
        """A function that draws what the objective's network does; `None` if there is nothing to
        see.

        Args:
            data: Held-out images, or training images if none are held out.
        """
        return None

    def batch(self, objective: Objective, codes: bool = False) -> dict[str, torch.Tensor]:
        """A batch of one image for the objective, to count its operations.

        Args:
            objective: The objective.
            codes: Whether it comes from a data set of tokens.
        """
        size = self.recipe.image_size
        batch = {"pixel_values": torch.rand(1, 3, size, size)}
        if self.reads_labels:
            batch["class_labels"] = torch.zeros(1, dtype=torch.long)
        return batch


def recipe_objectives(
    recipe: "Recipe", load: Callable[[Stage], Any], class_names: Sequence[str]
) -> Iterator[tuple[Stage, Objective]]:
    """Yields each stage that a recipe trains with its objective, without trained weights.

    Consume it lazily, in order: an objective freezes the networks of those before it.

    Args:
        recipe: The recipe.
        load: Gives the result of a pretrained stage.
        class_names: Names of the classes.

    Raises:
        ValueError: If an argument of a network or an objective is not valid.
    """
    stages = recipe.all_stages()
    results = {stage.name: load(stage) for stage in stages if stage.is_pretrained}
    for stage in stages:
        if not stage.is_pretrained:
            objective = stage.objective(results, class_names, load_weights=False)
            yield stage, objective
            results[stage.name] = stage.result_of(objective.model)


def keys_of(target: Callable, *more: str) -> tuple[str, ...]:
    """The keys that a recipe may give the parameters of a function or class.

    Args:
        target: Its parameters without a default, or with the default `None`, are networks, which a
            recipe cannot set; a configuration's are all fields, and the recipe may also set its
            `model_type`.
        more: Further keys.
    """
    parameters = inspect.signature(target).parameters.values()
    if isinstance(target, type) and issubclass(target, PreTrainedConfig):
        return ("model_type", *(parameter.name for parameter in parameters), *more)
    settable = [p.name for p in parameters if p.default not in (p.empty, None)]
    return (*settable, *more)
