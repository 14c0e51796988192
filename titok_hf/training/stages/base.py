"""The interface of a stage; recipe, run, FLOP table and previews use it and name no stage."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel

from ...data.augmentation import Augmentation
from ...data.collator import ImageCollator
from ...data.samples import Samples
from ...modeling.titok import TiTokImageProcessor
from ..arguments import TiTokTrainingArguments
from ..objectives import Objective

if TYPE_CHECKING:
    from ..recipe import Recipe


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a data set: images, labels and captions."""

    image: str = "image"
    label: str | None = "label"
    text: str | None = "text"


STAGES: dict[str, type["Stage"]] = {}
"""The available stages by name."""


def register_stage(stage: type["Stage"]) -> type["Stage"]:
    """Class decorator that makes a stage available in recipes."""
    STAGES[stage.name] = stage
    return stage


class Stage(ABC):
    """Base class of a recipe's stages: what a stage needs, reads, trains, saves and shows.

    Args:
        recipe: The recipe that contains this stage.

    Attributes:
        name: Name of the stage in recipes.
        folder: Path of its result in the folder of a run. Stages with the same folder exclude each
            other.
        parts: Allowed keys of each part of the stage in a recipe, see `keys_of`; every stage also
            has the parts `augmentation` and `training`.
        recipe_parts: The same for parts of the recipe itself that this stage requires.
        needs: The stages whose results it uses; each tuple lists alternatives.
        reads_labels: Whether its batches have class labels.
        reads_tokens: The tokens on which it can also train, `"codes"` or `"latents"`.
        can_be_pretrained: Whether a recipe may load its result instead of training it.
        can_be_trained: Whether a recipe may train it.
        on_demand: Whether it is trained only if another stage requires it, or if it is alone.
        config_class: Configuration class of its network.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    parts: ClassVar[Mapping[str, Sequence[str]]]
    recipe_parts: ClassVar[Mapping[str, Sequence[str]]] = {}
    needs: ClassVar[Sequence[Sequence[str]]] = ()
    reads_labels: ClassVar[bool] = False
    reads_tokens: ClassVar[str | None] = None
    can_be_pretrained: ClassVar[bool] = True
    can_be_trained: ClassVar[bool] = True
    on_demand: ClassVar[bool] = False
    config_class: ClassVar[type[PreTrainedConfig]]

    def __init__(self, recipe: "Recipe"):
        self.recipe = recipe

    def part(self, name: str) -> dict[str, Any]:
        """Returns the recipe's keys and values for a part of the stage."""
        return self.recipe.stages[self.name].get(name, {})

    @property
    def reads_captions(self) -> bool:
        """Whether its batches have captions."""
        return False

    @property
    def is_pretrained(self) -> bool:
        """Whether the recipe loads the result instead of training it."""
        return "pretrained" in self.recipe.stages[self.name]

    def required(self) -> list[str]:
        """Returns the recipe's stages whose results this stage uses; none if it is pretrained."""
        if self.is_pretrained:
            return []
        return [name for options in self.needs for name in options if name in self.recipe.stages]

    def check(self) -> None:
        """Raises `ValueError` if the recipe lacks a stage that this one needs, or if parts of the
        stage contradict each other."""
        for options in self.needs:
            if not any(option in self.recipe.stages for option in options):
                raise ValueError(
                    f"The stage {self.name} needs the stage {' or '.join(options)}, which the "
                    "recipe lacks."
                )

    def config(self, **fields: Any) -> PreTrainedConfig:
        """Returns the configuration of the stage's network with the given fields."""
        return self.config_class(**{"image_size": self.recipe.image_size, **fields})

    @abstractmethod
    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> Objective:
        """Returns the stage's objective with a new network, on torch's default device.

        Args:
            results: Results of the required stages, by name. The objective freezes their networks.
            class_names: Names of the classes.
            load_weights: Whether to load the weights of networks that are not results of stages,
                such as LPIPS. Counting and checking the objective does not need them.

        Raises:
            ValueError: If an argument of a network or of the objective is not valid.
        """

    @property
    def num_counted(self) -> int:
        """Number of images in `batch`."""
        return 1

    @abstractmethod
    def load(self, source: str | Path, **location: Any) -> Any:
        """Loads the stage's result from a folder or Hub repository, in evaluation mode.

        Args:
            source: The folder or repository.
            location: Arguments of `from_pretrained` that locate it, such as `revision`.

        Raises:
            OSError: If the folder, the repository or a file in it does not exist.
            ValueError: If the result does not load, or does not fit the recipe.
        """

    @abstractmethod
    def blank(self, config: PreTrainedConfig) -> Any:
        """Returns a result whose network has the given configuration and no trained weights."""

    def config_of(self, result: Any) -> Any:
        """Returns a copy of the configuration of a result, for `blank`."""
        return copy.deepcopy(result.config)

    def result_of(self, network: PreTrainedModel) -> Any:
        """Wraps a network that is not saved yet as the stage's result."""
        return network

    def downloads(self) -> dict[str, Callable[[], Any]]:
        """Returns functions, by name, that load further networks the stage needs."""
        return {}

    def check_result(self, name: str, result: Any) -> None:
        """Raises `ValueError` if this stage cannot use the result of a required stage."""

    def check_data(self, objective: Objective, data: Samples) -> None:
        """Raises `ValueError` if the objective cannot train on a data set."""

    def check_arguments(self, args: TiTokTrainingArguments) -> None:
        """Raises `ValueError` if the stage cannot train with these arguments of the trainer."""

    def collator(
        self,
        data: Samples,
        columns: "Columns",
        args: TiTokTrainingArguments,
        folder: Path,
        objective: Objective,
    ) -> ImageCollator:
        """Returns the collator of training.

        Args:
            data: The training data.
            columns: The columns of the data.
            args: The trainer's arguments.
            folder: Folder for what the stage itself derives from the data, kept until it is finished.
            objective: The stage's objective.
        """
        return ImageCollator(
            self.image_processor(),
            columns.image,
            columns.label if self.reads_labels else None,
            Augmentation(**self.part("augmentation")),
        )

    def image_processor(self) -> TiTokImageProcessor:
        """Returns the image processor that makes the objective's `pixel_values`."""
        return TiTokImageProcessor.from_image_size(self.recipe.image_size)

    def save(self, network: PreTrainedModel, results: Mapping[str, Any], folder: Path) -> None:
        """Writes the trained network as the stage's result.

        Args:
            network: The trained network.
            results: See `objective`.
            folder: An empty folder.
        """
        network.save_pretrained(folder)
        self.image_processor().save_pretrained(folder)

    def measured(self, network: PreTrainedModel) -> tuple[Any, ...] | None:
        """Returns the arguments of `measure_representations` for the network: the network and its
        processor; `None` if it is not a VTP."""
        return None

    def preview(self, data: Samples) -> Callable[[Objective], Image.Image] | None:
        """Returns a function that draws a preview of the objective's network; `None` for none.

        Args:
            data: Held-out images, or training images if none are held out.
        """
        return None

    def batch(self, objective: Objective, tokens: bool = False) -> dict[str, torch.Tensor]:
        """Returns a batch of `num_counted` images for the objective, to count its operations.

        Args:
            objective: The objective.
            tokens: Whether the batch comes from a token data set.
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
        load: Returns the result of a pretrained stage.
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
    """Returns the parameters of a function or class that a recipe may set.

    Args:
        target: The function or class. Parameters without a default, or with the default `None`, are
            networks, which a recipe cannot set. Those of a configuration class are fields, all of
            which can be set, as can its `model_type`.
        more: Further keys.
    """
    parameters = inspect.signature(target).parameters.values()
    if isinstance(target, type) and issubclass(target, PreTrainedConfig):
        return ("model_type", *(parameter.name for parameter in parameters), *more)
    settable = [p.name for p in parameters if p.default not in (p.empty, None)]
    return (*settable, *more)
