"""A run answers and goes on for the data that it has seen, and for no other."""

import os
import shutil
import subprocess
import sys
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
    """A run takes a data set for the same in whatever object it comes."""
    folder = write_images(tmp_path / "images", ("cat", "dog"))
    samples = open_images(str(folder))["train"]
    RecipeRun(Recipe.load(recipe), samples, tmp_path / "run").train()
    again = open_images(str(folder))["train"].dataset
    RecipeRun(Recipe.load(recipe), IndexedSamples(again), tmp_path / "run").train()
    with pytest.raises(ValueError, match="holds a run on other data"):
        RecipeRun(Recipe.load(recipe), IndexedSamples(again.select([0, 1])), tmp_path / "run")


START = """
import sys
from titok_hf import train_recipe
try:
    train_recipe(*sys.argv[1:4], sys.argv[4:])
except BlockingIOError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("stages.classifier.training.max_steps=3",)])
def test_a_second_start_in_one_folder_is_refused_while_the_first_trains(
    recipe, tmp_path, overrides
):
    data = write_images(tmp_path / "images", ("cat", "dog"))
    command = [sys.executable, "-c", START, recipe, data, tmp_path / "run", *overrides]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    second = []

    class Second(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            record = (tmp_path / "run" / "recipe.yaml").read_text()
            second.append(
                subprocess.run(command, env=environment, capture_output=True, text=True).stdout
            )
            assert (tmp_path / "run" / "recipe.yaml").read_text() == record

    train_recipe(
        recipe,
        str(data),
        tmp_path / "run",
        ["stages.classifier.training.save_steps=2"],
        callbacks=[Second()],
    )
    [said] = second
    assert f"run is in use by a run that has not ended (process {os.getpid()} on" in said
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.yaml", "work"}


def test_a_second_trainer_in_one_folder_is_refused(make_objective, make_trainer, holder, tmp_path):
    """Whichever process is the other; here it only holds the lock."""
    other = holder(tmp_path / "trainer")
    trainer = make_trainer(make_objective("classifier"), max_steps=1)
    with pytest.raises(BlockingIOError, match=f"trainer is in use .*process {other.pid} "):
        trainer.train()
    other.communicate()
    trainer.train()
    assert trainer.state.global_step == 1
