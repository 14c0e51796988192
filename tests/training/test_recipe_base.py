"""A recipe on top of another one says only what differs."""

import re
from pathlib import Path

import pytest

from titok_hf.training import Recipe


@pytest.fixture
def derive(tmp_path):
    """Writes a recipe on top of another and loads it: `derive("name: x", base="digits")`."""

    def load(text, base="digits", name="derived", overrides=()):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"base: {base}\n{text}")
        return Recipe.load(path, overrides)

    return load


def test_what_differs_is_enough(derive):
    expected = Recipe.load("digits").to_dict()
    expected["name"] = "longer"
    expected["stages"]["warmup"]["training"]["max_steps"] = 5000
    assert (
        derive("name: longer\nstages: {warmup: {training: {max_steps: 5000}}}").to_dict()
        == expected
    )


def test_what_is_no_mapping_is_replaced(derive):
    recipe = derive("stages: {vqgan: {model: {channel_multipliers: [1, 2]}}}")
    assert recipe.stages["vqgan"]["model"]["channel_multipliers"] == [1, 2]
    assert recipe.stages["vqgan"]["model"]["codebook_size"] == 64


def test_null_takes_a_key_away(derive):
    recipe = derive(
        "stages: {classifier: null, generator: null, decoder_finetuning: {objective: "
        "{perceptual_weight: null}}}"
    )
    assert list(recipe.stages) == ["vqgan", "warmup", "decoder_finetuning"]
    assert "perceptual_weight" not in recipe.stages["decoder_finetuning"]["objective"]
    assert recipe.stages["decoder_finetuning"]["objective"]["adversarial_weight"] == 0.0005


def test_a_base_may_have_a_base_beside_it(derive):
    derive("name: first\nstages: {vqgan: {training: {max_steps: 7}}}", name="first")
    recipe = derive("name: second\nstages: {warmup: {training: {max_steps: 8}}}", base="first.yaml")
    assert recipe.name == "second"
    assert [recipe.stages[stage]["training"]["max_steps"] for stage in ("vqgan", "warmup")] == [
        7,
        8,
    ]


def test_overrides_come_last(derive):
    assert derive("name: x", overrides=["name=y"]).name == "y"


def test_that_of_the_page_loads(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    [text] = re.findall(r"^```yaml\n(base: .*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "birds.yaml").write_text(text)
    recipe = Recipe.load(tmp_path / "birds.yaml")
    assert list(recipe.stages) == ["vqgan", "warmup", "decoder_finetuning"]
    assert recipe.stages["warmup"]["model"] == {"size": "titok-b-64", "codebook_size": 1024}
    assert recipe.stages["warmup"]["training"]["learning_rate"] == 1e-4


def test_two_that_are_each_others_are_an_error(derive):
    with pytest.raises(FileNotFoundError, match=r"got 'second\.yaml'"):
        derive("name: first", name="first", base="second.yaml")
    with pytest.raises(ValueError, match="its own `base`"):
        derive("name: second", name="second", base="first.yaml")


def test_unknown_keys_are_errors_as_ever(derive):
    with pytest.raises(
        ValueError, match=r"'max_step' in `stages.warmup.training`: did you mean 'max_steps'"
    ):
        derive("stages: {warmup: {training: {max_step: 3}}}")
