"""Training and evaluation of a study: each variant with each seed is a resumable `RecipeRun`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import TrainerCallback

from ..data.identity import data_identity
from ..data.opening import credited, is_embedded, open_images
from ..hub.folders import whole_file
from ..training.recipe import Recipe
from ..training.recipe_run import RecipeRun
from .measure import HeldOut
from .report import markdown_table, plot, summarize
from .study import Study


def run_study(
    name: str,
    output_dir: str | Path,
    data: str = "digits",
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    quick: bool = False,
    extractor: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Trains and evaluates all variants of a study with several seeds, and compares them.

    A second call with the same folder resumes the study: finished runs are not trained again, and
    new seeds are added to the existing ones.

    Args:
        name: One of `study_names()`.
        output_dir: Folder of the study. At the end, it contains `results.json`, which grows run by
            run, `table.md`, `plot.png`, and a folder per seed with one run per variant.
        data: The data set, see `open_images`. Accuracy is only measured for `"digits"`
            and `"emoji"`.
        seeds: Random seeds; the study's by default.
        overrides: Changes of the recipe of all variants, `key=value`.
        quick: Whether to train every stage for a few steps only, with one seed, to check that
            everything works.
        extractor: Network of the Fréchet distance, see `load_extractor`; defaults to the
            judge of `"digits"` or `"emoji"` if that is the data set, otherwise to none.
        image_column, label_column: Columns of the data set.
        callbacks: Callbacks of the trainers.

    Returns:
        The content of `results.json`: `configuration`, and `runs` with their `variant`, `seed`,
        SHA-256 of the `recipe`, `seconds` of training without the shared stages, and measured
        `values`.

    Raises:
        OSError: If the extractor's weights are missing.
        ValueError: If there is no such study, a required extractor is not given, or the folder
            holds another study or configuration.
    """
    study = Study.load(name, overrides, quick)
    variants = study.variants()
    if extractor is None and is_embedded(data):
        extractor = data.partition(":")[0]
    if extractor is None and any("generator" in variant.recipe.stages for variant in variants):
        raise ValueError(
            f"The study {name!r} measures generated images by their Fréchet distance, which needs "
            "an extractor: name one, such as 'inception', or take 'digits' as `data`."
        )
    output_dir = Path(output_dir)
    record = output_dir / "results.json"
    configuration = {
        "study": name,
        "data": data,
        "extractor": extractor,
        "images_per_class": study.images_per_class,
        "recipes": {variant.name: variant.recipe_hash() for variant in variants},
    }
    results = {"configuration": configuration, "runs": []}
    if record.exists():
        results = json.loads(record.read_text())
        if results["configuration"] | configuration != results["configuration"]:
            raise ValueError(
                f"{output_dir} holds another study, or one with another configuration (see "
                f"{record.name}); choose another folder, or delete it."
            )
    splits = open_images(data, image_column, label_column)
    identity = data_identity(splits["train"])
    if results["configuration"].setdefault("data_sha256", identity) != identity:
        raise ValueError(
            f"{output_dir} holds a study on other data of the name {data!r}: give the data of that "
            "study, or choose another folder."
        )
    dataset = DatasetDict({split: splits.dataset(split) for split in ("train", "test")})
    image_size = variants[0].recipe.image_size
    held_out = HeldOut(
        dataset, image_size, extractor, image_column=image_column, label_column=label_column
    )

    def recipe_run(recipe: Recipe, seed: int, folder: str) -> RecipeRun:
        folder = output_dir / f"seed-{seed}" / folder
        return RecipeRun(
            recipe,
            dataset,
            folder,
            image_column=image_column,
            label_column=label_column,
            seed=seed,
            callbacks=callbacks,
            data_name=credited(data),
        )

    for seed in study.seeds if seeds is None else seeds:
        done = [run["variant"] for run in results["runs"] if run["seed"] == seed]
        missing = [variant for variant in variants if variant.values not in done]
        if missing:
            shared = recipe_run(study.shared_recipe(), seed, "shared")
            shared.train()
            for stage in shared.recipe.stages:
                shared.result(stage)  # `train` skips stages on demand
        for variant in missing:
            run = recipe_run(variant.recipe, seed, variant.name)
            link_shared(run, shared)
            values = held_out.measure(run, study.images_per_class)
            results["runs"].append(
                {
                    "variant": variant.values,
                    "seed": seed,
                    "recipe": variant.recipe_hash(),
                    "seconds": seconds(run),
                    "values": values,
                }
            )
            with whole_file(record) as partial:
                partial.write_text(json.dumps(results, indent=1) + "\n")
    rows = summarize(study, results["runs"])
    (output_dir / "table.md").write_text(markdown_table(study, rows))
    plot(study, rows, output_dir / "plot.png")
    return results


def link_shared(run: RecipeRun, shared: RecipeRun) -> None:
    """Links the results of shared stages into the folder of a run, which then takes them for its
    own."""
    for stage in shared.recipe.stages:
        link = run.folder(stage)
        if stage in run.recipe.stages and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(shared.folder(stage), link.parent))


def seconds(run: RecipeRun) -> float:
    """Returns the seconds that a run has trained its own stages, each since it was last resumed."""
    return sum(
        json.loads(path.read_text())["seconds"] for path in (run.work_dir / "logs").glob("*.json")
    )
