"""The commands on a pipeline of latents."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image, ImageChops
from training.tiny_pretraining import make_model

from titok_hf import LatentDiTPipeline, LightningDiTConfig, LightningDiTModel
from titok_hf.devices import int8_is_exact

pytestmark = pytest.mark.slow


@pytest.fixture
def pipeline(tmp_path):
    torch.manual_seed(0)
    config = LightningDiTConfig(
        in_channels=4,
        sample_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label={0: "cat", 1: "dog"},
        latent_mean=[0.0] * 4,
        latent_std=[1.0] * 4,
    )
    model = LightningDiTModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tokenizer, scheduler = make_model(has_text=False), FlowMatchEulerDiscreteScheduler()
    LatentDiTPipeline(tokenizer, model, scheduler, num_inference_steps=2).save_pretrained(
        tmp_path / "pipeline"
    )
    return tmp_path / "pipeline"


def test_images_are_generated_as_the_sampler_says(call, pipeline):
    options = ("generate", "--pipeline", pipeline, "--label", "dog", "--num-images", 2)
    for name, sampler in (
        ("plain.png", []),
        ("same.png", ["--sampler", "num_inference_steps=2"]),
        ("shifted.png", ["--sampler", "timestep_shift=0.2", "--guidance-scale", 3]),
    ):
        code, _, errors = call(*options, *sampler, "--output", name)
        assert code == 0, errors
    plain, same, shifted = (Image.open(f"{name}.png") for name in ("plain", "same", "shifted"))
    assert ImageChops.difference(plain, same).getbbox() is None
    assert ImageChops.difference(plain, shifted).getbbox() is not None


def test_what_it_does_not_take_is_one_sentence(call, pipeline):
    options = ("generate", "--pipeline", pipeline, "--label", "dog")
    code, _, errors = call(*options, "--guidance-schedule", "linear")
    assert code == 1 and "takes no guidance_schedule; its sampling is set by num_inf" in errors
    code, _, errors = call(*options, "--sampler", "timestep_shift=0")
    assert code == 1 and "`timestep_shift` must be a positive number, got 0" in errors


def test_a_compiled_evaluation_says_so(measure, pipeline):
    sampling = ("--num-samples", 10, "--sampler", "num_inference_steps=2")
    metrics = ("--set", "metrics.generation=[precision]")
    options = ("--protocol", "demo", "--reference", "digits", *metrics, *sampling)
    eager, compiled = (
        measure("generation", pipeline, *options, *flag) for flag in ((), ("--compile",))
    )
    assert "compiled" not in eager.sampler and compiled.sampler["compiled"] is True
    assert compiled.command.endswith("--compile") and "--compile" not in eager.command


@pytest.mark.skipif(not int8_is_exact(), reason="this processor has no instructions for int8")
def test_an_evaluation_in_int8_says_so(measure, pipeline):
    options = ("--protocol", "demo", "--set", "metrics.generation=[precision]", "--num-samples", 10)
    options += ("--reference", "digits", "--sampler", "num_inference_steps=2", "--dtype", "int8")
    result = measure("generation", pipeline, *options)
    assert result.dtype in ("int8 and bfloat16", "int8 and float32")
    assert "compiled" not in result.sampler
    assert result.command.endswith("--dtype int8")


def test_generation_is_evaluated(measure, pipeline):
    result = measure(
        "generation",
        pipeline,
        *("--protocol", "demo", "--set", "metrics.generation=[precision]", "--num-samples", 10),
        *("--reference", "digits", "--sampler", "timestep_shift=0.5"),
    )
    assert result.num_images == 10
    assert result.sampler["class"] == "FlowMatchEulerDiscreteScheduler"
    assert result.sampler["arguments"]["timestep_shift"] == 0.5


def test_nearest_training_images(call, pipeline):
    options = ("--data", "digits", "--num-samples", 6, "--picture", "neighbors.png")
    code, output, errors = call("evaluate", "neighbors", pipeline, *options)
    assert code == 0, errors
    assert "nearest neighbor ratio" in output
    result = json.loads(Path("neighbors.json").read_text())
    assert result["num_images"] == 6 and result["metrics"]["nearest_neighbor_ratio"]["value"] > 1
    assert (
        result["metrics"]["share_nearer_than_held_out"]["value"] < 0.5
    )  # an untrained network's images
    assert "--num-samples 6" in result["command"] and "neighbors" in result["command"]
    # two rows for each of two classes
    assert Image.open("neighbors.png").height == 4 + 4 * (64 + 4)
    code, _, errors = call("evaluate", "neighbors", pipeline, *options[:-1], "neighbors.xyz")
    assert code == 1 and "neighbors.xyz" in errors


def test_learnability_of_tokenizers_of_different_sizes(call, pipeline, tmp_path):
    make_model(has_text=False, latent_dim=6).save_pretrained(tmp_path / "wide")
    options = ("--data", "digits", "--num-images", 40, "--k", 3)
    code, output, errors = call("evaluate", "learnability", pipeline / "tokenizer", *options)
    assert code == 0, errors
    assert "velocity variance" in output and "effective rank" in output
    assert json.loads(Path("learnability.json").read_text())["shape"] == [4, 4, 4]
    both = (pipeline / "tokenizer", tmp_path / "wide")
    code, output, errors = call("evaluate", "learnability", *both, *options)
    assert code == 0, errors
    assert "velocity variance does not rank latents" in " ".join(output.split())
    assert [each["shape"][0] for each in json.loads(Path("learnability.json").read_text())] == [
        4,
        6,
    ]


def test_single_files_and_an_animation_of_the_flow(call, pipeline):
    options = (
        "--label",
        "dog",
        "--label",
        0,
        "--num-images",
        2,
        "--sampler",
        "num_inference_steps=3",
    )
    outputs = ("--output", "grid.png", "--separate", "single", "--animation", "steps.webp")
    code, _, errors = call("generate", "--pipeline", pipeline, *options, *outputs)
    assert code == 0, errors
    files = sorted(Path("single").iterdir())
    assert [file.name for file in files] == [
        "0001-dog.png",
        "0002-dog.png",
        "0003-cat.png",
        "0004-cat.png",
    ]
    grid = Image.open("grid.png")
    with Image.open("steps.webp") as animation:
        assert (animation.n_frames, animation.size) == (3, grid.size)
    zoomed = Image.open(files[0]).resize((64, 64), Image.Resampling.NEAREST)
    left = grid.width - 2 * 68
    assert ImageChops.difference(grid.crop((left, 4, left + 64, 68)), zoomed).getbbox() is None


def test_an_animation_has_a_format_of_animations(call, pipeline):
    options = ("--label", "dog", "--num-images", 1, "--animation", "steps.png")
    code, _, errors = call("generate", "--pipeline", pipeline, *options)
    assert code == 1 and "must end in .gif or .webp, got 'steps.png'" in errors
