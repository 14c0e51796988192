"""Training and evaluation of a study: each variant with each seed is a resumable `RecipeRun`."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import TrainerCallback

from ..data.credits import credited
from ..data.identity import data_identity
from ..data.opening import is_embedded, open_images
from ..distributed import check_same, check_shared, process_state
from ..hub.folders import whole_file
from ..hub.lock import locked_folder
from ..training.flops import recipe_flops
from ..training.recipe import Recipe
from ..training.recipe_run import SNAPSHOTS, RecipeRun
from ..training.stages import STAGES, Columns
from .measure import HeldOut
from .report import plot, summarize, tables
from .study import Study, Tuning, Variant, recipe_hash


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
        BlockingIOError: If another process uses the folder.
        ImportError: If matplotlib is not installed.
        OSError: If the extractor's weights are missing, or a process does not see the folder of the
            others.
        ValueError: If there is no such study, a required extractor is not given, the folder holds
            another study or configuration, or a process has other data than the others.
    """
    study = Study.load(name, overrides, quick, values)
    columns = Columns(image_column, label_column, text_column if study.reads_captions else None)
    check_shared(output_dir)
    run = StudyRun(
        study,
        Path(output_dir),
        data=data or study.data,
        extractor=extractor,
        columns=columns,
        callbacks=callbacks,
    )
    with locked_folder(output_dir) if process_state().is_main_process else nullcontext():
        return run.run(study.seeds if seeds is None else seeds)


class StudyRun:
    """A study on a data set in a folder; see `run_study`."""

    def __init__(
        self,
        study: Study,
        folder: Path,
        data: str,
        extractor: str | None,
        columns: Columns,
        callbacks: Sequence[TrainerCallback],
    ):
        if find_spec("matplotlib") is None:
            raise ImportError(
                'A study draws its results by matplotlib: pip install "titok_hf[demo]".'
            )
        self.study = study
        self.folder = folder
        self.data = data
        self.columns = columns
        self.callbacks = callbacks
        self.variants = study.variants()
        if extractor is None and is_embedded(data):
            extractor = data.partition(":")[0]
        generators = {"generator", "latent_generator"}
        if extractor is None and any(
            generators & set(variant.recipe.stages) for variant in self.variants
        ):
            raise ValueError(
                f"The study {study.name!r} measures generated images by their Fréchet distance, which "
                "needs an extractor: name one, such as 'inception', or take 'digits' as `data`."
            )
        self.record = folder / "results.json"
        self.results = self.known_results(
            {
                "study": study.name,
                "data": data,
                "extractor": extractor,
                "images_per_class": study.images_per_class,
                "recipes": {variant.name: variant.recipe_hash() for variant in self.variants},
            }
        )
        splits = open_images(data, columns.image, columns.label, text_column=columns.text)
        identity = data_identity(splits["train"])
        check_same(data=identity)
        if self.results["configuration"].setdefault("data_sha256", identity) != identity:
            raise ValueError(
                f"{folder} holds a study on other data of the name {data!r}: give the data of that "
                "study, or choose another folder."
            )
        self.dataset = DatasetDict({split: splits.dataset(split) for split in ("train", "test")})
        self.held_out = HeldOut(
            self.dataset,
            self.variants[0].recipe.image_size,
            extractor,
            image_column=columns.image,
            label_column=columns.label,
        )

    def known_results(self, configuration: dict[str, Any]) -> dict[str, Any]:
        """Returns the results in the folder, or new ones; raises `ValueError` if those in the folder
        are of another configuration."""
        if not self.record.exists():
            return {"configuration": configuration, "tuning": [], "runs": []}
        results = {"tuning": [], **json.loads(self.record.read_text())}
        if results["configuration"] | configuration != results["configuration"]:
            raise ValueError(
                f"{self.folder} holds another study, or one with another configuration (see "
                f"{self.record.name}); choose another folder, or delete it."
            )
        return results

    def run(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Trains and measures what is missing, writes the report, and returns the results."""
        self.results = self.known_results(self.results["configuration"])  # now that it is locked
        variants = self.tuned(self.study.tuning) if self.study.tuning else self.variants
        for seed in seeds:
            for variant in variants:
                self.measured("runs", variant, seed)
        if process_state().is_main_process:
            runs = self.results["runs"]
            rows = summarize(self.study, runs)
            (self.folder / "table.md").write_text(tables(self.study, rows, runs))
            plot(self.study, rows, self.folder / "plot.png")
        process_state().wait_for_everyone()
        return self.results

    def tuned(self, tuning: Tuning) -> list[Variant]:
        """Returns the variants with the best value of a setting, tried with the study's first seed."""

        def alike(variant: Variant) -> tuple[Any, ...]:
            return tuple(variant.values[axis] for axis in tuning.axes)

        chosen = {}
        for place, variant in {alike(variant): variant for variant in self.variants}.items():
            scores = {
                value: self.measured(
                    "tuning", variant.with_setting(tuning.key, value), self.study.seeds[0]
                )["values"][tuning.metric]
                for value in tuning.values
            }
            chosen[place] = min(scores, key=scores.get)
        return [
            variant.with_setting(tuning.key, chosen[alike(variant)]) for variant in self.variants
        ]

    def measured(self, part: str, variant: Variant, seed: int) -> dict[str, Any]:
        """Returns the record of a variant, which is measured unless it is in the results, and is then in
        their part `"tuning"` or `"runs"`."""
        wanted = (variant.values, variant.tuned, seed)
        for run in self.results["runs"] + self.results["tuning"]:
            if (run["variant"], run.get("tuned"), run["seed"]) == wanted:
                found = run
                break
        else:
            found = self.measure(variant, seed)
        if found not in self.results[part]:
            self.results[part].append(found)
            if process_state().is_main_process:
                with whole_file(self.record) as partial:
                    partial.write_text(json.dumps(self.results, indent=1) + "\n")
        return found

    def measure(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Trains what is missing of a variant, and measures it."""
        folder = self.folder / f"seed-{seed}"
        run = self.recipe_run(variant.recipe, folder / variant.name, seed)
        flops = None
        for stage in variant.recipe.stages:
            if stage not in self.study.shared:
                continue
            recipe = self.study.shared_recipe(variant, stage)
            name = f"{stage}-{recipe_hash(recipe, variant.data_share)[:8]}"
            shared = folder / "shared" / name
            result = shared / STAGES[stage].folder
            if not result.exists():
                for required in recipe.stage(stage).required():
                    link(shared / STAGES[required].folder, run.folder(required))
                training = self.recipe_run(recipe, shared, seed, variant.data_share)
                training.prepare()
                training.result(stage)
            if stage == self.study.snapshots:
                steps = variant.values["steps"]
                result = shared / SNAPSHOTS / stage / str(steps)
                flops = steps * step_flops(recipe, stage)
            link(run.folder(stage), result)
        values = self.held_out.measure(run, self.study.images_per_class)
        return {
            "variant": variant.values,
            "seed": seed,
            "tuned": variant.tuned,
            "recipe": variant.recipe_hash(),
            "seconds": seconds(run),
            "flops": flops,
            "values": values,
        }

    def recipe_run(
        self, recipe: Recipe, folder: Path, seed: int, data_share: float = 1.0
    ) -> RecipeRun:
        """Returns the run of a recipe on a share of the training images."""
        seen = self.dataset
        if data_share != 1:
            train = self.dataset["train"].shuffle(seed=0)
            number = round(data_share * len(train))
            seen = DatasetDict(self.dataset | {"train": train.select(range(number))})
        return RecipeRun(
            recipe,
            seen,
            folder,
            image_column=self.columns.image,
            label_column=self.columns.label,
            text_column=self.columns.text,
            seed=seed,
            callbacks=self.callbacks,
            data_name=credited(self.data),
        )


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
