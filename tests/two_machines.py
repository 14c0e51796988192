"""The work of two machines, or of two processes on one. Each runs this file on its own disk, which has images, other
images, a tokenizer and caches, and writes there what was refused and measured."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from titok_hf.data import open_images, tokenize_to_folder
from titok_hf.distributed import process_state
from titok_hf.evaluation import evaluate_generation, evaluate_neighbors, evaluate_reconstruction
from titok_hf.studies import run_study
from titok_hf.training import Recipe, RecipeRun

MINIATURE = Path(__file__).with_name("miniature.yaml")
TOKENS = {"part_size": 4, "batch_size": 4, "num_workers": 0}
SAMPLES = {"num_samples": 10, "batch_size": 2}
PRECISION = {"overrides": ["metrics.generation=[precision]"], "reference": "images", **SAMPLES}


def miniature() -> Recipe:
    """The first two stages, of which each of two processes takes half of a batch."""
    content = Recipe.load(MINIATURE).to_dict()
    content["stages"] = {stage: content["stages"][stage] for stage in ("vqgan", "warmup")}
    for stage in content["stages"].values():
        stage["training"] |= {"global_batch_size": 4, "per_device_train_batch_size": 2}
    return Recipe.from_dict(content)


def train(
    folder: str | Path, data: str = "images", seed: int = 0, vqgan: str | None = None
) -> None:
    recipe = miniature()
    if vqgan is not None:
        recipe.stages["vqgan"] = {"pretrained": vqgan}
    RecipeRun(recipe, open_images(data), folder, seed=seed).train()


def refusals(models: Path, shared: Path) -> dict[str, Callable[[], Any]]:
    """Returns the calls that two machines must refuse: output on their own disks, and another input on each."""
    pipeline, tokenizer = models / "pipeline", models / "tokenizer"
    tokenize = partial(tokenize_to_folder, tokenizer=tokenizer, **TOKENS)
    return {
        "own run": lambda: train("run"),
        "own tokens": lambda: tokenize("images", output_dir="tokens"),
        "own study": lambda: run_study("tokens", "study", "digits"),
        "own samples": lambda: evaluate_generation(
            pipeline, "demo", samples="samples.npz", **PRECISION
        ),
        "other data": lambda: train(shared / "run", "others"),
        "other seed": lambda: train(shared / "run", seed=process_state().process_index),
        "other cache": lambda: train(shared / "pretrained", vqgan="own-vqgan"),
        "other images": lambda: tokenize("others", output_dir=shared / "tokens"),
        "other number": lambda: evaluate_reconstruction(tokenizer, "others", "demo", split="train"),
        "other tokenizer": lambda: tokenize_to_folder(
            "images", "own-tokenizer", shared / "tokens", **TOKENS
        ),
    }


def work(models: Path, shared: Path) -> dict[str, Any]:
    """Trains, tokenizes, generates, and compares what was generated with the data."""
    train(shared / "run")
    tokenize_to_folder("images", models / "tokenizer", shared / "tokens", **TOKENS)
    for _ in range(2):  # the second one reads the samples of the first
        result = evaluate_generation(
            models / "pipeline", "demo", samples=shared / "samples.npz", **PRECISION
        )
    neighbors = evaluate_neighbors(models / "pipeline", "images", **SAMPLES)
    return {"precision": result.metrics["precision"].value, **neighbors["metrics"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    models, shared = map(Path, sys.argv[1:3])
    refused = {}
    for name, function in refusals(models, shared).items() if "refuse" in sys.argv else ():
        try:
            function()
        except (OSError, ValueError) as error:
            refused[name] = str(error)
    found = {"refused": refused, "measured": work(models, shared)}
    Path(f"found-{process_state().process_index}.json").write_text(json.dumps(found))
    process_state().destroy_process_group()
