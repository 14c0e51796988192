"""Compute cost of a recipe: FLOPs of a training step, counted on networks without weights.

`python -m titok_hf.training.flops` prints the table of `docs/recipes.md`. With names of recipes or
YAML files as arguments, it prints the table of these.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .flop_counter import FlopCounter
from .known import KNOWN
from .objectives import Objective
from .recipe import Recipe, recipe_names
from .stages import Stage, recipe_objectives

A100_FLOPS = 312e12  # dense bfloat16 or float16, NVIDIA A100 data sheet
UTILIZATION = 0.4
CLASS_NAMES = [str(label) for label in range(1000)]  # ImageNet has 1,000 classes


def training_flops(objective: Objective, batch: Mapping[str, torch.Tensor]) -> int:
    """Returns the FLOPs of the forward and backward pass of a batch, all losses having started.

    Matrix products and convolutions count, with 2 FLOPs per multiplication. Elementwise operations
    do not: norms, activations, the optimizer and the moving average. Attention counts as its two
    matrix products on every device.

    Args:
        objective: The objective, on any device; on the meta device nothing is computed.
        batch: Arguments of its `forward`, on the same device.
    """
    with FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        objective(**batch, step=max(objective.start_steps.values(), default=0)).loss.backward()
    objective.zero_grad()
    return counter.flops


def recipe_flops(recipe: Recipe, tokens: bool = False) -> dict[str, int]:
    """Returns the FLOPs per image of each stage that a recipe trains.

    An optimizer step takes this number times the global batch size. The networks are built without
    weights, from their configurations.

    Args:
        recipe: The recipe.
        tokens: Whether a generator trains on a token data set, so that no image is encoded.
    """
    flops = {}
    with torch.device("meta"):
        for stage, objective in recipe_objectives(recipe, known_network, CLASS_NAMES):
            batch = stage.batch(objective, tokens=tokens and stage.reads_tokens is not None)
            flops[stage.name] = training_flops(objective, batch) // stage.num_counted
    return flops


def known_network(stage: Stage) -> Any:
    """Returns the result of a pretrained stage without its weights.

    Raises:
        OSError: If the configuration is neither in `costs.yaml` nor at the recipe's source.
    """
    location = dict(stage.recipe.stages[stage.name])
    source = location.pop("pretrained")
    if source in KNOWN["configurations"]:
        return stage.blank(stage.config(**KNOWN["configurations"][source]))
    return stage.blank(stage.config_class.from_pretrained(source, **location))


def flops_table(names: Sequence[str]) -> str:
    """Returns the costs of recipes as a Markdown table: one row per stage, and a total per recipe.

    GPU-hours assume an A100 at `UTILIZATION` of its dense 16-bit peak.
    """
    columns = (
        "recipe",
        "stage",
        "GFLOPs per image",
        "images per step",
        "PFLOPs per step",
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
            if stage.reads_tokens
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
    """Formats FLOPs in the units of the table: EFLOPs and GPU-hours."""
    return f"{flops / 1e18:,.0f} | {flops / (A100_FLOPS * UTILIZATION) / 3600:,.0f}"


def large_recipes() -> list[str]:
    """Returns the names of the shipped recipes at ImageNet's scale."""
    return [name for name in recipe_names() if Recipe.load(name).image_size >= 256]


if __name__ == "__main__":
    print(flops_table(sys.argv[1:] or large_recipes()), end="")
