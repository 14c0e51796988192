"""A stage is one file: recipe, run, FLOP table and previews take one that they have never seen."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import DatasetDict
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel

import titok_hf
from titok_hf.training import Recipe, RecipeRun
from titok_hf.training.flops import flops_table, recipe_flops
from titok_hf.training.objectives import Objective, ObjectiveOutput
from titok_hf.training.previews import first_images
from titok_hf.training.stages import STAGES, Stage, keys_of


class MeanColorConfig(PreTrainedConfig):
    model_type = "mean_color"

    def __init__(self, image_size=32, hidden_size=4, **kwargs):
        self.image_size, self.hidden_size = image_size, hidden_size
        super().__init__(**kwargs)


class MeanColor(PreTrainedModel):
    """Predicts the mean color of an image from its pixels."""

    config_class = MeanColorConfig
    config: MeanColorConfig

    def __init__(self, config):
        super().__init__(config)
        self.first = torch.nn.Linear(3 * config.image_size**2, config.hidden_size)
        self.second = torch.nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, pixel_values):
        return self.second(self.first(pixel_values.flatten(1)))  # (B, 3)


class MeanColorObjective(Objective):
    def __init__(self, model, teacher, weight=1.0, ema_decay=0.0):
        super().__init__(model, ema_decay)
        self.teacher = teacher.eval().requires_grad_(False)
        self.weight = weight

    def forward(self, pixel_values, draws=None, step=0):
        with torch.no_grad():
            images = self.teacher(pixel_values).reconstruction
        error = (self.model(pixel_values) - images.mean((2, 3))).square().mean()
        return ObjectiveOutput(loss=self.weight * error, logged_losses={"color_error": error})


def draw(objective, pixel_values):
    colors = objective.result(pixel_values).clamp(0, 1)  # (B, 3)
    return Image.fromarray((255 * colors).byte().numpy()[None])


class MeanColorStage(Stage):
    """Learns the mean color of what the VQGAN reconstructs."""

    name = "mean_color"
    folder = "color"
    needs = (("vqgan",),)
    parts = {"model": keys_of(MeanColorConfig), "objective": keys_of(MeanColorObjective)}
    config_class = MeanColorConfig

    def objective(self, results, class_names, load_weights=True):
        model = MeanColor(self.config(**self.part("model")))
        return MeanColorObjective(model, results["vqgan"], **self.part("objective"))

    def load(self, source, **location):
        return MeanColor.from_pretrained(source, **location).eval()

    def blank(self, config):
        return MeanColor(config)

    def preview(self, data):
        images = self.image_processor()(first_images(data, 1), return_tensors="pt")
        return functools.partial(draw, pixel_values=images["pixel_values"])


@pytest.fixture
def recipe(monkeypatch, miniature):
    """A recipe with the stage, after the miniature's VQGAN."""
    monkeypatch.setitem(STAGES, MeanColorStage.name, MeanColorStage)
    content = Recipe.load("digits", miniature).to_dict()
    training = content["stages"]["vqgan"]["training"] | {"preview_steps": 2}
    stage = {"model": {"hidden_size": 5}, "objective": {"weight": 2.0}, "training": training}
    stages = {"mean_color": stage, "vqgan": content["stages"]["vqgan"]}
    return Recipe.from_dict({"name": "color", "image_size": 32, "stages": stages})


def test_the_recipe_checks_its_keys_and_its_needs(recipe):
    assert list(recipe.stages) == ["vqgan", "mean_color"]
    content = recipe.to_dict()
    with pytest.raises(ValueError, match=r"wieght.*stages.mean_color.objective.*'weight'"):
        override = {**content["stages"]["mean_color"], "objective": {"wieght": 1.0}}
        Recipe.from_dict(content | {"stages": content["stages"] | {"mean_color": override}})
    with pytest.raises(ValueError, match="mean_color needs the stage vqgan"):
        Recipe.from_dict(content | {"stages": {"mean_color": content["stages"]["mean_color"]}})


def test_the_run_trains_saves_resumes_and_draws_it(recipe, digits, tmp_path):
    dataset = DatasetDict(train=digits)
    trained = RecipeRun(recipe, dataset, tmp_path / "run").train()
    assert isinstance(trained, MeanColor) and trained.config.hidden_size == 5
    assert (tmp_path / "run" / "color" / "preprocessor_config.json").exists()
    pictures = sorted((tmp_path / "run" / "work" / "previews" / "mean_color").iterdir())
    assert [path.name for path in pictures] == [f"step-{step:07}.png" for step in (2, 4, 6)]
    assert np.asarray(Image.open(pictures[0])).shape == (1, 1, 3)

    before = (tmp_path / "run" / "color" / "model.safetensors").stat().st_mtime_ns
    again = RecipeRun(recipe, dataset, tmp_path / "run").train()
    assert (tmp_path / "run" / "color" / "model.safetensors").stat().st_mtime_ns == before
    assert torch.equal(again.second.weight, trained.second.weight)


def test_it_may_be_pretrained(recipe, digits, tmp_path):
    MeanColor(MeanColorConfig()).save_pretrained(tmp_path / "color")
    stages = recipe.stages | {"mean_color": {"pretrained": str(tmp_path / "color")}}
    recipe = Recipe.from_dict(recipe.to_dict() | {"stages": stages})
    result = RecipeRun(recipe, DatasetDict(train=digits), tmp_path / "run").result("mean_color")
    assert result.config.hidden_size == 4


def test_the_table_counts_it(recipe, tmp_path):
    # forward and backward, without the gradient of the pixels: the first layer counts twice
    own = 2 * 2 * 3 * 32**2 * 5 + 3 * 2 * 5 * 3
    wider = Recipe.from_dict(recipe.to_dict())
    wider.stages["mean_color"]["model"]["hidden_size"] = 10
    assert recipe_flops(wider)["mean_color"] - recipe_flops(recipe)["mean_color"] == own
    (tmp_path / "color.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert "| mean_color |" in flops_table([str(tmp_path / "color.yaml")])


def test_no_module_but_a_stages_own_dispatches_on_its_name():
    """The names of the stages that ship stand in their files alone, and in what the demo shows."""
    folder = Path(titok_hf.__file__).parent / "training"
    names = [name for name in STAGES if name not in ("generator", "classifier")]  # words, too
    found = [
        (path.name, name)
        for path in folder.glob("*.py")
        for name in names
        if f'"{name}"' in path.read_text()
    ]
    assert found == []
