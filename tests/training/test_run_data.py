"""A run answers and goes on for the data that it has seen, and for no other."""

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers import TrainerCallback

from titok_hf import train_recipe
from titok_hf.data import IndexedSamples, open_images
from titok_hf.training import Recipe, RecipeRun

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"


@pytest.fixture
def recipe(tmp_path):
    """A recipe of one small stage that trains on labels, for two steps."""
    stage = Recipe.load(MINIATURE).stages["classifier"]
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "save_steps": 1}
    content = {
        "name": "small",
        "image_size": 32,
        "stages": {"classifier": {**stage, "training": {**stage["training"], **training}}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "small.yaml"


def write_images(folder, classes):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (32, 32), (40 * i, 80 * label, 0)).save(folder / name / f"{i}.png")
    return folder


class Stop(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


class Started(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
@pytest.mark.parametrize("classes", [("ship", "car"), ("ship", "car", "bus")], ids=["two", "three"])
def test_other_data_of_the_same_name_are_refused(recipe, tmp_path, finished, classes):
    first = write_images(tmp_path / "a" / "images", ("cat", "dog"))
    if finished:
        train_recipe(recipe, str(first), tmp_path / "run")
    else:
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe, str(first), tmp_path / "run", callbacks=[Stop()])
    record = (tmp_path / "run" / "recipe.yaml").read_text()
    other, started = write_images(tmp_path / "b" / "images", classes), Started()
    with pytest.raises(ValueError, match=r"run holds a run on other data \('images'\) than the"):
        train_recipe(recipe, str(other), tmp_path / "run", callbacks=[started])
    assert started.steps == []
    assert (tmp_path / "run" / "recipe.yaml").read_text() == record


def test_a_moved_folder_goes_on(recipe, tmp_path):
    first = write_images(tmp_path / "images", ("cat", "dog"))
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, str(first), tmp_path / "run", callbacks=[Stop()])
    shutil.move(first, tmp_path / "elsewhere")
    started = Started()
    train_recipe(recipe, str(tmp_path / "elsewhere"), tmp_path / "run", callbacks=[started])
    assert started.steps == [1]
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["data"] == "images"


def test_data_handed_in_as_objects_are_known_by_content(recipe, tmp_path):
    """Whatever object holds them."""
    folder = write_images(tmp_path / "images", ("cat", "dog"))
    samples = open_images(str(folder))["train"]
    RecipeRun(Recipe.load(recipe), samples, tmp_path / "run").train()
    again = open_images(str(folder))["train"].dataset
    RecipeRun(Recipe.load(recipe), IndexedSamples(again), tmp_path / "run").train()
    with pytest.raises(ValueError, match="holds a run on other data"):
        RecipeRun(Recipe.load(recipe), IndexedSamples(again.select([0, 1])), tmp_path / "run")
