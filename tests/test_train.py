"""`train_recipe`: a recipe on data from anywhere, measured while it trains."""

import json

import numpy as np
import pytest
import torch
import yaml

from titok_hf import MaskGitVQGANModel, TiTokImageProcessor, train_recipe
from titok_hf.data.digits import load_digits_dataset
from titok_hf.training import Recipe

EVALUATED = [
    "stages.vqgan.training.eval_strategy=steps",
    "stages.vqgan.training.eval_steps=3",
]


def history(folder, stage="vqgan"):
    log = json.loads((folder / "work" / "logs" / f"{stage}.json").read_text())
    return [entry for entry in log["history"] if "eval_loss" in entry]


@pytest.fixture
def only_vqgan(tmp_path, miniature):
    content = Recipe.load("digits", miniature).to_dict()
    content["stages"] = {"vqgan": content["stages"]["vqgan"]}
    path = tmp_path / "vqgan.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_held_out_images_are_measured_while_it_trains(only_vqgan, tmp_path):
    evaluation = "evaluation={metrics: [psnr, frechet_distance], extractor: digits, num_images: 80}"
    train_recipe(only_vqgan, "digits", tmp_path / "run", [*EVALUATED, evaluation])
    measured = history(tmp_path / "run")
    assert [entry["step"] for entry in measured] == [3, 6]
    assert all(entry["eval_frechet_distance"] > 0 for entry in measured)

    # the last one is of the network that the stage leaves
    vqgan = MaskGitVQGANModel.from_pretrained(tmp_path / "run" / "vqgan")
    processor = TiTokImageProcessor.from_pretrained(tmp_path / "run" / "vqgan")
    images = load_digits_dataset()["test"][:80]["image"]
    pixel_values = processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        made = vqgan(pixel_values).reconstruction.clamp(0, 1)
    errors = (np.floor(made.numpy() * 255) / 255 - pixel_values.numpy()) ** 2
    psnr = -10 * np.log10(errors.mean((1, 2, 3))).mean()
    assert measured[-1]["eval_psnr"] == pytest.approx(psnr, abs=0.01)


def test_measuring_trains_nothing(only_vqgan, tmp_path):
    """The weights are those of a run that measures nothing, and what is measured may change."""
    train_recipe(only_vqgan, "digits", tmp_path / "plain")
    train_recipe(only_vqgan, "digits", tmp_path / "measured", EVALUATED)
    plain, measured = (
        MaskGitVQGANModel.from_pretrained(tmp_path / name / "vqgan").state_dict()
        for name in ("plain", "measured")
    )
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    assert "eval_psnr" not in history(tmp_path / "measured")[0]
    train_recipe(
        only_vqgan, "digits", tmp_path / "measured", [*EVALUATED, "evaluation={metrics: [psnr]}"]
    )


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["evaluation={metric: [psnr]}"], "metric.*evaluation.*metrics"),
        ([*EVALUATED, "evaluation={metrics: [psrn]}"], "psrn.*psnr"),
        ([*EVALUATED, "evaluation={metrics: [frechet_distance]}"], "frechet_distance.*extractor"),
    ],
)
def test_what_cannot_be_measured_is_said_first(only_vqgan, tmp_path, overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        train_recipe(only_vqgan, "digits", tmp_path / "run", overrides)
    assert not (tmp_path / "run" / "work").exists()


def test_there_must_be_held_out_images(only_vqgan, tmp_path):
    for index, row in enumerate(load_digits_dataset()["train"].select(range(8))):
        (tmp_path / "flat").mkdir(exist_ok=True)
        row["image"].save(tmp_path / "flat" / f"{index}.png")
    with pytest.raises(ValueError, match=r"eval_strategy.*held-out.*no split test"):
        train_recipe(only_vqgan, str(tmp_path / "flat"), tmp_path / "run", EVALUATED)
