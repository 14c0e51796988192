"""How much computing a recipe takes: FLOPs of a training step, counted on networks without weights.

`python -m titok_hf.training.flops` prints the table of `docs/recipes.md`; with names of recipes or
YAML files, that of these.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..settings import load_yaml
from .flop_counter import FlopCounter
from .objectives import Objective
from .recipe import Recipe, recipe_names
from .stages import Stage, recipe_objectives

aten = torch.ops.aten

A100_FLOPS = 312e12  # dense bfloat16 or float16, NVIDIA A100 data sheet
UTILIZATION = 0.4
CLASS_NAMES = [str(label) for label in range(1000)]  # as many as ImageNet has

# Configurations of networks that recipes load, and what others report of recipes' costs.
KNOWN: dict[str, dict[str, Any]] = load_yaml(Path(__file__).with_name("costs.yaml"))


class ValuesOfMeta(TorchDispatchMode):
    """Lets code run on the meta device that looks at values, which it has not: 0 stands for each of
    them."""

    def __torch_dispatch__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return 0.0 if args[0].is_floating_point() else 0
        if func is aten.bincount.default and args[0].is_meta:
            return args[0].new_zeros(kwargs.get("minlength", 0))
        return func(*args, **kwargs)


def training_flops(objective: Objective, batch: Mapping[str, torch.Tensor]) -> int:
    """FLOPs of the forward and backward pass of a batch.

    Matrix products and convolutions count, 2 FLOPs a multiplication. What is done number by number
    does not: norms, activations, the optimizer and the moving average. Attention is computed as the
    two products that it is, on any device alike.

    Args:
        objective: On any device; on the meta device nothing is computed.
        batch: Arguments of its `forward`, on the same device.
    """
    with ValuesOfMeta(), FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        objective(**batch).loss.backward()
    objective.zero_grad()
    return counter.flops


def recipe_flops(recipe: Recipe, tokens: bool = False) -> dict[str, int]:
    """FLOPs of each stage that a recipe trains, for one image: an optimizer step's are this times
    the global batch.

    The networks are built without weights, from their configurations.

    Args:
        recipe: The recipe.
        tokens: Whether a generator trains on a data set of tokens, so that no image is encoded.
    """
    flops = {}
    with torch.device("meta"):
        for stage, objective in recipe_objectives(recipe, known_network, CLASS_NAMES):
            batch = stage.batch(objective, codes=tokens and stage.reads_codes)
            flops[stage.name] = training_flops(objective, batch)
    return flops


def known_network(stage: Stage) -> Any:
    """The result of a pretrained stage without its weights.

    Raises:
        OSError: If its configuration is neither known nor to be found where the recipe says.
    """
    location = dict(stage.recipe.stages[stage.name])
    source = location.pop("pretrained")
    if source in KNOWN["configurations"]:
        return stage.blank(stage.config(**KNOWN["configurations"][source]))
    return stage.blank(stage.config_class.from_pretrained(source, **location))


def flops_table(names: Sequence[str]) -> str:
    """What recipes cost, as a Markdown table: a row a stage, and one for all stages of a recipe.

    GPU-hours are those of an A100 at `UTILIZATION` of its dense 16-bit peak.
    """
    columns = (
        "recipe",
        "stage",
        "GFLOPs an image",
        "images a step",
        "PFLOPs a step",
        "steps",
        "EFLOPs",
    )
    columns += ("A100-hours", "reported")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in names:
        recipe = Recipe.load(name)
        flops, total = recipe_flops(recipe), 0
        rows = [(stage, flops[stage.name], stage.name) for stage in recipe.trained_stages()]
        rows += [
            (stage, recipe_flops(recipe, tokens=True)[stage.name], f"{stage.name}, of tokens")
            for stage in recipe.trained_stages()
            if stage.reads_codes
        ]
        for i, (stage, of_image, shown) in enumerate(rows):
            training = stage.part("training")
            of_one_process = training["per_device_train_batch_size"] * training.get(
                "gradient_accumulation_steps", 1
            )
            images, steps = training.get("global_batch_size", of_one_process), training["max_steps"]
            first = "" if i else f"{name} "
            reported = KNOWN["reported"].get(name, "") if len(flops) == 1 and not i else ""
            total += of_image * images * steps if i < len(flops) else 0
            lines.append(
                f"| {first}| {shown} | {of_image / 1e9:,.0f} | {images:,} | "
                f"{of_image * images / 1e15:.2f} | {steps:,} | {cost(of_image * images * steps)} | "
                f"{reported} |"
            )
        if len(flops) > 1:
            lines.append(f"| | all | | | | | {cost(total)} | {KNOWN['reported'].get(name, '')} |")
    return "\n".join(lines) + "\n"


def cost(flops: int) -> str:
    """FLOPs in the units of the table: EFLOPs and GPU-hours."""
    return f"{flops / 1e18:,.0f} | {flops / (A100_FLOPS * UTILIZATION) / 3600:,.0f}"


def large_recipes() -> list[str]:
    """The shipped recipes of ImageNet's scale."""
    return [name for name in recipe_names() if Recipe.load(name).image_size >= 256]


if __name__ == "__main__":
    print(flops_table(sys.argv[1:] or large_recipes()), end="")
