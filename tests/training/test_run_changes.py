"""A run that cannot go on as it was begun: wrong arguments, changed ones, damaged images, a full
disk."""

import io
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import TrainerCallback

from titok_hf.training import Recipe, RecipeRun

pytestmark = pytest.mark.slow

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"


class AfterStep(TrainerCallback):
    """Does something after a step of a stage, which is named by its folder."""

    def __init__(self, stage, step, action):
        self.place = (stage, step)
        self.action = action

    def on_step_end(self, args, state, control, **kwargs):
        if (Path(args.output_dir).name, state.global_step) == self.place:
            self.action()


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture
def run(digits, tmp_path):
    """The run of the miniature, or of its first stages, in one folder: `run(["stages.…=…"],
    "vqgan")`."""

    def run(overrides=(), *stages, data=None, held_out=None, callbacks=()):
        content = Recipe.load(MINIATURE).to_dict()
        if stages:
            content["stages"] = {stage: content["stages"][stage] for stage in stages}
        (tmp_path / "recipe.yaml").write_text(json.dumps(content))
        recipe = Recipe.load(tmp_path / "recipe.yaml", overrides)
        splits = DatasetDict(train=data or digits)
        if held_out is not None:
            splits["test"] = held_out
        return RecipeRun(recipe, splits, tmp_path / "run", callbacks=callbacks)

    return run


def steps_of(folder, stage):
    log = json.loads((folder / "work" / "logs" / f"{stage}.json").read_text())
    return [entry for entry in log["history"] if "loss" in entry]


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("stages.generator.training.lr_scheduler_type=cosinus", "cosinus"),
            ("evaluation={metric: [psnr]}", r"metric.*evaluation.*metrics"),
            (
                "stages.generator.model.num_attention_heads=3",
                r"`num_attention_heads` must divide `hidden_size` 16",
            ),
            (
                "stages.decoder_finetuning.objective.distance=l3",
                "`distance` must be 'l1' or 'l2', got 'l3'",
            ),
            (
                "stages.generator.training.max_grad_norm=abc",
                "`max_grad_norm` must be a number, got 'abc'",
            ),
            (
                "stages.generator.training.adam_beta2=2",
                r"`stages.generator.training`: Invalid beta parameter",
            ),
            (
                "stages.generator.training.lr_scheduler_kwargs={foo: 1}",
                "unexpected keyword argument 'foo'",
            ),
            ("stages.generator.training.report_to=comet_ml", "comet"),
            ("stages.decoder_finetuning.augmentation.crop=randm", "`crop` must be one of"),
            ("scheduler.mask_schedule=cosinus", "`mask_schedule` must be one of"),
            ("sampling.guidance_schedule=linar", "`guidance_schedule` must be one of"),
        ],
    )
    def test_they_are_said_before_anything_trains(self, run, tmp_path, override, said):
        with pytest.raises((ValueError, StrictDataclassError), match=said):
            run([override]).train()
        assert not (tmp_path / "run" / "work").exists()

    def test_corrected_ones_begin_in_the_same_folder(self, run, tmp_path):
        with pytest.raises(StrictDataclassError, match="`codebook_size` must be at least 1, got 0"):
            run(["stages.vqgan.model.codebook_size=0"], "vqgan").train()
        run([], "vqgan").train()
        assert "codebook_size: 32" in (tmp_path / "run" / "recipe.yaml").read_text()


class TestChangedArguments:
    OVERRIDES = [
        "stages.vqgan.training.learning_rate=1.0e-4",
        "stages.vqgan.training.lr_scheduler_type=constant",
    ]

    def test_a_stage_goes_on_with_them_from_its_last_checkpoint(self, run, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            run([], "vqgan", callbacks=[AfterStep("vqgan", 5, interrupt)]).train()
        run(self.OVERRIDES, "vqgan").train()
        rates = [entry["learning_rate"] for entry in steps_of(tmp_path / "run", "vqgan")]
        assert rates[:2] != [1e-4] * 2 and rates[2] == 1e-4
        assert "lr_scheduler_type: constant" in (tmp_path / "run" / "recipe.yaml").read_text()

    def test_those_of_a_finished_stage_are_refused(self, run):
        run([], "vqgan").train()
        with pytest.raises(
            ValueError,
            match="only training and objective of a stage that is not finished may change",
        ):
            run(self.OVERRIDES, "vqgan")

    def test_without_the_work_the_results_tell_the_recipe(self, run, tmp_path):
        run([], "vqgan").train()
        shutil.rmtree(tmp_path / "run" / "work")
        with pytest.raises(ValueError, match="choose another folder, or delete this one"):
            run(["stages.vqgan.model.codebook_size=16"], "vqgan")

    def test_another_network_is_refused(self, run):
        with pytest.raises(KeyboardInterrupt):
            run([], "vqgan", callbacks=[AfterStep("vqgan", 1, interrupt)]).train()
        with pytest.raises(ValueError, match="choose another folder, or delete this one"):
            run(["stages.vqgan.model.codebook_size=16"], "vqgan")


def test_what_the_trainer_wrote_beside_its_checkpoints_stays(run, digits, tmp_path):
    """The list of unreadable images, the first among them, and the events of TensorBoard; the
    pictures skip them."""
    pytest.importorskip("tensorboard")
    images = []
    for i, row in enumerate(digits):
        file = io.BytesIO()
        row["image"].save(file, "PNG")
        images.append({"bytes": file.getvalue() if i else b"no image", "path": f"digit-{i}.png"})
    features = Features({"image": Image(), "label": ClassLabel(10)})
    broken = Dataset.from_dict({"image": images, "label": digits["label"]}, features=features)
    training = {"max_unreadable": 0.1, "preview_steps": 3, "report_to": "tensorboard"}
    run(
        [f"stages.vqgan.training.{name}={value}" for name, value in training.items()],
        "vqgan",
        data=broken,
    ).train()
    folder = tmp_path / "run" / "work" / "checkpoints" / "vqgan"
    assert {path.name for path in folder.iterdir()} == {"unreadable.jsonl", "runs"}
    assert json.loads((folder / "unreadable.jsonl").read_text())["key"] == "digit-0.png"
    assert [*folder.rglob("events.out.tfevents.*")]
    assert len([*(tmp_path / "run" / "work" / "previews" / "vqgan").iterdir()]) == 2


def test_held_out_images_that_cannot_be_read_are_said_before_anything_trains(run, digits, tmp_path):
    images = [{"bytes": b"no image", "path": "broken.png"}, digits[0]["image"]]
    features = Features({"image": Image(), "label": ClassLabel(10)})
    held_out = Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    evaluated = ["stages.vqgan.training.eval_strategy=steps", "stages.vqgan.training.eval_steps=3"]
    with pytest.raises(
        ValueError, match=r"1 of the held-out images cannot be read, such as broken.png: .*remove"
    ):
        run(evaluated, "vqgan", held_out=held_out).train()
    assert not (tmp_path / "run" / "work").exists()
    run(evaluated, "vqgan", held_out=held_out.select([1])).train()


def test_a_run_that_was_stopped_after_its_last_step_keeps_the_best_network(run, digits, tmp_path):
    """An uninterrupted run with `load_best_model_at_end` keeps it, too."""
    training = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "save_total_limit": 10,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # the first steps are the best then
    }
    overrides = [f"stages.vqgan.training.{name}={value}" for name, value in training.items()]
    held_out = digits.select(range(4))
    run(overrides, "vqgan", held_out=held_out).train()
    expected = load_file(tmp_path / "run" / "vqgan" / "model.safetensors")
    (tmp_path / "run").rename(tmp_path / "uninterrupted")

    class Stopped(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(overrides, "vqgan", held_out=held_out, callbacks=[Stopped()]).train()
    run(overrides, "vqgan", held_out=held_out).train()
    found = load_file(tmp_path / "run" / "vqgan" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert steps_of(tmp_path / "run", "vqgan")[-1]["step"] > 1


def test_a_result_that_cannot_be_written_is_said_and_written_later(run, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        with pytest.raises(
            OSError,
            match=r"The stage vqgan is trained, but could not be written to .*run/vqgan: .*",
        ):
            run([], "vqgan", callbacks=[Full()]).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "run" / "vqgan").exists()
    run([], "vqgan").train()
    log = json.loads((tmp_path / "run" / "work" / "logs" / "vqgan.json").read_text())
    assert log["resumed_from"] == "checkpoint-6"
