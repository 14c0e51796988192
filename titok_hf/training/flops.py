"""How much computing a recipe takes: FLOPs of a training step, counted on networks without weights.

`python -m titok_hf.training.flops` prints the table of `docs/recipes.md`; with names of recipes or
YAML files, that of these.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..modeling.maskgit_vqgan import MaskGitVQGANConfig, MaskGitVQGANModel
from ..modeling.titok import TiTokConfig, TiTokModel
from .flop_counter import FlopCounter
from .objectives import ClassifierObjective, MaskedTokenObjective, Objective
from .recipe import Recipe, recipe_names
from .stages import Classifier, recipe_objectives

aten = torch.ops.aten

A100_FLOPS = 312e12  # dense bfloat16 or float16, NVIDIA A100 data sheet
UTILIZATION = 0.4
CLASS_NAMES = [str(label) for label in range(1000)]  # as many as ImageNet has

# What the recipes load, so that nothing has to be downloaded to count: ConvNeXt-S (arXiv
# 2201.03545, section 3), the VQGAN whose sizes are the defaults, and TiTok's tokenizers, released
# or left by our own 512-pixel recipes.
CONVNEXT_SMALL = {
    "depths": [3, 3, 27, 3],
    "hidden_sizes": [96, 192, 384, 768],
    "num_labels": len(CLASS_NAMES),
}
KNOWN_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "facebook/convnext-small-224": lambda: ConvNextConfig(image_size=224, **CONVNEXT_SMALL),
    "fun-research/TiTok": lambda: MaskGitVQGANConfig(shortcut_of_output=True),
    "yucornetto/tokenizer_titok_l32_imagenet": lambda: TiTokConfig.from_size(
        "titok-l-32", head="vqgan_decoder"
    ),
    "yucornetto/tokenizer_titok_b64_imagenet": lambda: TiTokConfig.from_size(
        "titok-b-64", head="vqgan_decoder"
    ),
    "yucornetto/tokenizer_titok_s128_imagenet": lambda: TiTokConfig.from_size(
        "titok-s-128", head="vqgan_decoder"
    ),
    "runs/titok-l-64-512/tokenizer": lambda: TiTokConfig.from_size(
        "titok-l-64-512", head="vqgan_decoder"
    ),
    "runs/titok-b-128-512/tokenizer": lambda: TiTokConfig.from_size(
        "titok-b-128-512", head="vqgan_decoder"
    ),
}
NETWORKS: dict[str, type[PreTrainedModel]] = {
    "vqgan": MaskGitVQGANModel,
    "classifier": ConvNextForImageClassification,
}

# What is published of a recipe's cost: GPUs and time, in GPU-hours.
PUBLISHED = {
    "titok-l-32": "4,736 (64 A100-40G, 74 h)",
    "titok-b-64": "1,312 (32 A100-40G, 41 h)",
    "maskgit-vit-l-32": "770 (32 A800, about a day)",
    "maskgit-uvit-s-128": "1,540 (32 A800, about 2 days)",
}


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
        for stage, objective in recipe_objectives(
            recipe, partial(known_network, recipe), CLASS_NAMES
        ):
            batch = {"pixel_values": torch.rand(1, 3, recipe.image_size, recipe.image_size)}
            if isinstance(objective, ClassifierObjective | MaskedTokenObjective):
                batch["class_labels"] = torch.zeros(1, dtype=torch.long)
            if tokens and isinstance(objective, MaskedTokenObjective):
                del batch["pixel_values"]
                batch["codes"] = torch.zeros(1, objective.model.config.num_tokens, dtype=torch.long)
            flops[stage] = training_flops(objective, batch)
    return flops


def known_network(recipe: Recipe, stage: str) -> Any:
    """What a recipe loads for a stage, as a network without its weights.

    Raises:
        OSError: If its configuration is neither known nor to be found where the recipe says.
    """
    location = dict(recipe.stages[stage])
    source = location.pop("pretrained")
    if source in KNOWN_CONFIGS:
        config = KNOWN_CONFIGS[source]()
    else:
        config = (
            TiTokConfig if stage not in NETWORKS else NETWORKS[stage].config_class
        ).from_pretrained(source, **location)
    if stage == "vqgan":
        config.image_size = recipe.image_size
    model = NETWORKS.get(stage, TiTokModel)(config)
    if stage == "classifier":
        return Classifier(model, config.image_size, (0.0,) * 3, (1.0,) * 3)
    return model


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
        rows = list(flops.items())
        if "generator" in flops:
            rows.append(("generator", recipe_flops(recipe, tokens=True)["generator"]))
        for i, (stage, of_image) in enumerate(rows):
            training = recipe.part(stage, "training")
            of_one_process = training["per_device_train_batch_size"] * training.get(
                "gradient_accumulation_steps", 1
            )
            images, steps = training.get("global_batch_size", of_one_process), training["max_steps"]
            first = "" if i else f"{name} "
            shown = f"{stage}, of tokens" if i == len(flops) else stage
            reported = PUBLISHED.get(name, "") if len(flops) == 1 and not i else ""
            total += of_image * images * steps if i < len(flops) else 0
            lines.append(
                f"| {first}| {shown} | {of_image / 1e9:,.0f} | {images:,} | "
                f"{of_image * images / 1e15:.2f} | {steps:,} | {cost(of_image * images * steps)} | "
                f"{reported} |"
            )
        if len(flops) > 1:
            lines.append(f"| | all | | | | | {cost(total)} | {PUBLISHED.get(name, '')} |")
    return "\n".join(lines) + "\n"


def cost(flops: int) -> str:
    """FLOPs in the units of the table: EFLOPs and GPU-hours."""
    return f"{flops / 1e18:,.0f} | {flops / (A100_FLOPS * UTILIZATION) / 3600:,.0f}"


def large_recipes() -> list[str]:
    """The shipped recipes of ImageNet's scale."""
    return [name for name in recipe_names() if Recipe.load(name).image_size >= 256]


if __name__ == "__main__":
    print(flops_table(sys.argv[1:] or large_recipes()), end="")
