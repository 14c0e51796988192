"""Training and evaluation of a study: each variant with each seed is a resumable `RecipeRun`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import TrainerCallback

from ..data.identity import data_identity
from ..data.opening import credited, is_embedded, open_images
from ..distributed import process_state
from ..hub.folders import whole_file
from ..training.flops import recipe_flops
from ..training.recipe import Recipe
from ..training.recipe_run import RecipeRun
from .measure import HeldOut
from .report import plot, summarize, tables
from .study import Study, Variant, recipe_hash


def run_study(
    name: str,
    output_dir: str | Path,
    data: str | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    quick: bool = False,
    values: Mapping[str, Sequence[Any]] | None = None,
    extractor: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    text_column: str = "text",
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Trains and evaluates all variants of a study with several seeds, and compares them.

    A second call with the same folder resumes the study: finished runs are not trained again, and
    new seeds are added to the existing ones. Under `torchrun`, all processes train and measure
    together.

    Args:
        name: One of `study_names()`.
        output_dir: Folder of the study. At the end, it contains `results.json`, which grows run by
            run, `table.md`, `plot.png`, and a folder per seed with one run per variant.
        data: The data set, see `open_images`; the study's by default. Accuracy is only measured for
            `"digits"` and `"emoji"`.
        seeds: Random seeds; the study's by default.
        overrides: Changes of the recipe of all variants, `key=value`.
        quick: Whether to train every stage for a few steps only, with one seed, to check that
            everything works.
        values: Values of some axes, instead of the study's, see `Study.load`.
        extractor: Network of the Fréchet distance, see `load_extractor`; defaults to the
            judge of `"digits"` or `"emoji"` if that is the data set, otherwise to none.
        image_column, label_column, text_column: Columns of the data set; captions are only read by
            studies that need them.
        callbacks: Callbacks of the trainers.

    Returns:
        The content of `results.json`: `configuration`, `tuning` (the runs by which a setting was
        chosen), and `runs` with their `variant`, `seed`, SHA-256 of the `recipe`, `seconds` of
        training without the shared stages, and measured `values`.

    Raises:
        OSError: If the extractor's weights are missing.
        ValueError: If there is no such study, a required extractor is not given, or the folder
            holds another study or configuration.
    """
    study = Study.load(name, overrides, quick, values)
    variants = study.variants()
    data = data or study.data
    if extractor is None and is_embedded(data):
        extractor = data.partition(":")[0]
    generators = {"generator", "latent_generator"}
    if extractor is None and any(generators & set(variant.recipe.stages) for variant in variants):
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
    results = {"configuration": configuration, "tuning": [], "runs": []}
    if record.exists():
        results = json.loads(record.read_text())
        if results["configuration"] | configuration != results["configuration"]:
            raise ValueError(
                f"{output_dir} holds another study, or one with another configuration (see "
                f"{record.name}); choose another folder, or delete it."
            )
    columns = {"image_column": image_column, "label_column": label_column}
    texts = text_column if study.reads_captions else None
    splits = open_images(data, **columns, text_column=texts)
    identity = data_identity(splits["train"])
    if results["configuration"].setdefault("data_sha256", identity) != identity:
        raise ValueError(
            f"{output_dir} holds a study on other data of the name {data!r}: give the data of that "
            "study, or choose another folder."
        )
    dataset = DatasetDict({split: splits.dataset(split) for split in ("train", "test")})
    held_out = HeldOut(dataset, variants[0].recipe.image_size, extractor, **columns)

    def recipe_run(recipe: Recipe, folder: Path, seed: int, data_share: float = 1.0) -> RecipeRun:
        seen = dataset
        if data_share != 1:
            train = dataset["train"].shuffle(seed=0)
            number = round(data_share * len(train))
            seen = DatasetDict(dataset | {"train": train.select(range(number))})
        return RecipeRun(
            recipe,
            seen,
            folder,
            **columns,
            text_column=texts,
            seed=seed,
            callbacks=callbacks,
            data_name=credited(data),
        )

    def measured(variant: Variant, seed: int) -> dict[str, Any]:
        """Trains what is missing of a variant, and measures it."""
        folder = output_dir / f"seed-{seed}"
        run = recipe_run(variant.recipe, folder / variant.name, seed)
        flops = None
        for stage in [stage for stage in variant.recipe.stages if stage in study.shared]:
            recipe = study.shared_recipe(variant, stage)
            shared = recipe_run(
                recipe,
                folder / "shared" / f"{stage}-{recipe_hash(recipe, variant.data_share)[:8]}",
                seed,
                variant.data_share,
            )
            for required in recipe.stage(stage).required():
                link(shared.folder(required), run.folder(required))
            if not shared.folder(stage).exists():
                shared.prepare()
            shared.result(stage)
            result = shared.folder(stage)
            if stage == study.snapshots:
                steps = variant.values["steps"]
                result = shared.snapshots(stage) / str(steps)
                flops = steps * step_flops(recipe, stage)
            link(run.folder(stage), result)
        values = held_out.measure(run, study.images_per_class)
        return {
            "variant": variant.values,
            "seed": seed,
            "tuned": variant.tuned,
            "recipe": variant.recipe_hash(),
            "seconds": seconds(run),
            "flops": flops,
            "values": values,
        }

    def kept(part: str, variant: Variant, seed: int) -> dict[str, Any]:
        """Returns the record of a measured variant, which is then part of the results."""
        wanted = (variant.values, variant.tuned, seed)
        for run in results["runs"] + results["tuning"]:
            if (run["variant"], run["tuned"], run["seed"]) == wanted:
                found = run
                break
        else:
            found = measured(variant, seed)
        if found not in results[part]:
            results[part].append(found)
            if process_state().is_main_process:
                with whole_file(record) as partial:
                    partial.write_text(json.dumps(results, indent=1) + "\n")
        return found

    seeds = study.seeds if seeds is None else seeds
    if study.tuning is not None:
        tuning, chosen = study.tuning, {}
        last = {tuple(study.tuned_alike(variant).values()): variant for variant in variants}
        for place, variant in last.items():
            tried = [variant.with_setting(tuning.key, value) for value in tuning.values]
            scores = [
                kept("tuning", each, study.seeds[0])["values"][tuning.metric] for each in tried
            ]
            chosen[place] = tuning.values[scores.index(min(scores))]
        variants = [
            each.with_setting(tuning.key, chosen[tuple(study.tuned_alike(each).values())])
            for each in variants
        ]
    for seed in seeds:
        for variant in variants:
            kept("runs", variant, seed)
    rows = summarize(study, results["runs"])
    if process_state().is_main_process:
        (output_dir / "table.md").write_text(tables(study, rows, results["runs"]))
        plot(study, rows, output_dir / "plot.png")
    return results


def link(place: Path, target: Path) -> None:
    """Links the result of a shared stage into the folder of a run, which then takes it for its own."""
    if process_state().is_main_process and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(target, place.parent))
    process_state().wait_for_everyone()


def step_flops(recipe: Recipe, stage: str) -> int:
    """Returns the counted FLOPs of an optimizer step of a stage."""
    training = recipe.stages[stage]["training"]
    accumulated = training.get("gradient_accumulation_steps", 1)
    images = training.get(
        "global_batch_size", training.get("per_device_train_batch_size", 8) * accumulated
    )
    return recipe_flops(recipe)[stage] * images


def seconds(run: RecipeRun) -> float:
    """Returns the seconds that a run has trained its own stages, each since it was last resumed."""
    return sum(
        json.loads(path.read_text())["seconds"] for path in (run.work_dir / "logs").glob("*.json")
    )
