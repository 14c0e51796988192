"""Snapshots of a stage: results of fewer steps of the same run."""

from pathlib import Path

import pytest
from datasets import DatasetDict
from safetensors.torch import load_file
from transformers import TrainerCallback

from titok_hf import MaskGitVQGANModel
from titok_hf.training import Recipe, RecipeRun, TiTokTrainingArguments
from titok_hf.training.recipe_run import SNAPSHOTS

pytestmark = pytest.mark.slow

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"
CONSTANT = "stages.vqgan.training.lr_scheduler_type=constant"


def run(digits, folder, steps, *overrides, callbacks=()):
    recipe = Recipe.load(
        MINIATURE, [CONSTANT, f"stages.vqgan.training.max_steps={steps}", *overrides]
    ).to_dict()
    recipe["stages"] = {"vqgan": recipe["stages"]["vqgan"]}
    return RecipeRun(
        Recipe.from_dict(recipe), DatasetDict(train=digits), folder, callbacks=callbacks
    )


def weights(folder):
    return {
        name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()
    }


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_each_is_the_result_of_so_many_steps(digits, tmp_path):
    long = run(digits, tmp_path / "long", 5, "stages.vqgan.training.snapshot_steps=[2, 5]")
    long.train()
    run(digits, tmp_path / "short", 2).train()
    snapshots = tmp_path / "long" / SNAPSHOTS / "vqgan"
    assert sorted(path.name for path in snapshots.iterdir()) == ["2", "5"]
    assert weights(snapshots / "2") == weights(tmp_path / "short" / "vqgan")
    assert weights(snapshots / "5") == weights(long.folder("vqgan"))
    assert weights(snapshots / "2") != weights(snapshots / "5")
    assert MaskGitVQGANModel.from_pretrained(snapshots / "2").provenance["recipe"]
    assert (snapshots / "2" / "preprocessor_config.json").exists()


def test_they_do_not_change_the_training(digits, tmp_path):
    run(digits, tmp_path / "with", 4, "stages.vqgan.training.snapshot_steps=[1, 3]").train()
    run(digits, tmp_path / "without", 4).train()
    assert weights(tmp_path / "with" / "vqgan") == weights(tmp_path / "without" / "vqgan")


def test_a_resumed_run_keeps_them(digits, tmp_path):
    override = "stages.vqgan.training.snapshot_steps=[3, 5]"
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "run", 5, override, callbacks=[StopAt(4)]).train()
    whole = run(digits, tmp_path / "whole", 5, override)
    whole.train()
    resumed = run(digits, tmp_path / "run", 5, override)
    resumed.train()
    for step in ("3", "5"):
        folders = (each.output_dir / SNAPSHOTS / "vqgan" / step for each in (resumed, whole))
        assert weights(next(folders)) == weights(next(folders))


@pytest.mark.parametrize("steps", [[0], [4], [2.5]])
def test_steps_outside_the_training_are_refused(tmp_path, steps):
    with pytest.raises(ValueError, match=r"`snapshot_steps` .* from 1 to `max_steps` \(3\)"):
        TiTokTrainingArguments(output_dir=str(tmp_path), max_steps=3, snapshot_steps=steps)
