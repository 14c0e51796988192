"""Training of a recipe on any data, optionally evaluated during training: `train_recipe`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Value
from transformers import TrainerCallback

from .data.classes import with_classes
from .data.credits import credited
from .data.opening import open_images
from .evaluation import ReconstructionMetrics, load_extractor, measure_representations
from .modeling.titok import TiTokImageProcessor
from .modeling.vtp import VTPModel
from .training.recipe import Recipe
from .training.recipe_run import RecipeRun


def train_recipe(
    recipe: str | Path,
    data: str,
    output_dir: str | Path,
    overrides: Sequence[str] = (),
    *,
    image_column: str = "image",
    label_column: str = "label",
    text_column: str = "text",
    revision: str | None = None,
    streaming: bool = False,
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> Any:
    """Trains a recipe on images or tokens, local or on the Hub; resumes a stopped run.

    Args:
        recipe: A YAML file, or the name of a shipped recipe.
        data: Data set with a split `train`, see `titok_hf.data.open_images`.
        output_dir: Folder of the run, see `RecipeRun`.
        overrides: Changes of the recipe, `key=value`.
        image_column, label_column, text_column: Columns of the data; labels and captions are only
            required if a stage needs them.
        revision: Branch, tag or commit of data on the Hub.
        streaming: Whether to stream data that could also be downloaded as a whole.
        seed: Random seed.
        callbacks: Callbacks of every stage's trainer.

    Returns:
        The result of the last stage.

    Raises:
        OSError, ValueError: If recipe, data or pretrained networks do not load or fit.
    """
    loaded = Recipe.load(recipe, overrides)
    stages = loaded.trained_stages()
    splits = open_images(
        data,
        image_column,
        label_column if any(stage.reads_labels for stage in stages) else None,
        revision,
        text_column=text_column if any(stage.reads_captions for stage in stages) else None,
        streaming=streaming,
    )
    run = RecipeRun(
        loaded,
        splits,
        output_dir,
        image_column=image_column,
        label_column=label_column,
        text_column=text_column,
        seed=seed,
        callbacks=callbacks,
        data_name=credited(data),
        make_metrics=metrics_maker(loaded),
        measure=measure_of(loaded, image_column, label_column, text_column),
    )
    return run.train()


def metrics_maker(recipe: Recipe) -> Callable[[TiTokImageProcessor], ReconstructionMetrics] | None:
    """Returns a function that makes `compute_metrics` from the recipe's part `evaluation`; `None`
    if the recipe names no metrics."""
    if "metrics" not in recipe.evaluation:
        return None
    name = recipe.evaluation.get("extractor")
    extractor = None if name is None else load_extractor(name)
    return partial(ReconstructionMetrics, metrics=recipe.evaluation["metrics"], extractor=extractor)


def measure_of(
    recipe: Recipe, image_column: str, label_column: str, text_column: str
) -> Callable[..., dict[str, float]] | None:
    """Returns a function that measures a VTP during training; `None` if the recipe's part
    `evaluation` does not ask for it."""
    if not recipe.evaluation.get("representations"):
        return None

    def measure(model: VTPModel, processor: Any, train: Dataset, test: Dataset) -> dict[str, float]:
        columns = {
            name: column if column in test.column_names else None
            for name, column in (("label_column", label_column), ("text_column", text_column))
        }
        labels = test.features.get(label_column)
        if isinstance(labels, Value) and "string" in labels.dtype:  # names of classes
            train, test = (
                with_classes(split, train, "the data", label_column) for split in (train, test)
            )
        if "num_images" in recipe.evaluation:
            number = min(recipe.evaluation["num_images"], len(train))
            train = train.select(range(number))
        measured = measure_representations(
            model, processor, train, test, image_column=image_column, **columns
        )
        return {name: estimate["value"] for name, estimate in measured["metrics"].items()}

    return measure


__all__ = ["train_recipe"]
