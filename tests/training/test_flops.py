import copy
import math
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextForImageClassification

from titok_hf import MaskGitConfig, MaskGitUViTConfig, TiTokConfig, TiTokModel
from titok_hf.perceptual.lpips import VGG16_STAGES
from titok_hf.training import ClassifierObjective, Recipe, WarmupObjective
from titok_hf.training.flop_counter import FlopCounter
from titok_hf.training.flops import (
    A100_FLOPS,
    CLASS_NAMES,
    UTILIZATION,
    flops_table,
    known_network,
    large_recipes,
    recipe_flops,
    training_flops,
)
from titok_hf.training.stages import recipe_objectives

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"


def vit_flops(tokens, width, layers, mlp_ratio=4):
    """Counts the forward pass of transformer blocks: the four projections of attention, its two
    products, and the MLP."""
    projections = 2 * tokens * (4 + 2 * mlp_ratio) * width**2
    return layers * (projections + 2 * 2 * tokens**2 * width)


def encoder_flops(config):
    patches = (config.image_size // config.encoder_patch_size) ** 2
    width, tokens = config.encoder_hidden_size, 1 + patches + config.num_latent_tokens
    return {
        "patches": 2 * patches * 3 * config.encoder_patch_size**2 * width,
        "blocks": vit_flops(tokens, width, config.encoder_num_hidden_layers),
        "proj": 2 * config.num_latent_tokens * width * config.latent_dim,
    }


def quantizer_flops(config):
    """The product of latents and codes; without a gradient."""
    return 2 * config.num_latent_tokens * config.latent_dim * config.codebook_size


def decoder_flops(config):
    patches = (config.image_size // config.decoder_patch_size) ** 2
    width = config.decoder_hidden_size
    return {
        "latents": 2 * config.num_latent_tokens * config.latent_dim * width,
        "blocks": vit_flops(
            1 + patches + config.num_latent_tokens, width, config.decoder_num_hidden_layers
        ),
        "head": 2 * patches * (width * 2 * width + 2 * width * config.vqgan_config.codebook_size),
    }


def vqgan_encoder_flops(config):
    """Counts the forward pass: 3x3 convolutions at each resolution, then the distances to the codes."""
    side, widths = (
        config.image_size,
        [config.hidden_channels * m for m in config.channel_multipliers],
    )
    flops, channels = 2 * side**2 * 9 * 3 * widths[0], widths[0]
    for i, width in enumerate(widths):
        for block in range(config.num_res_blocks):
            flops += 2 * side**2 * 9 * (channels * width + width**2)
            if block == 0 and channels != width:
                flops += 2 * side**2 * (width if config.shortcut_of_output else channels) * width
            channels = width
        if i < len(widths) - 1:
            side //= 2
    flops += config.num_res_blocks * 2 * 2 * side**2 * 9 * channels**2
    flops += 2 * side**2 * channels * config.latent_channels
    return flops + 2 * side**2 * config.latent_channels * config.codebook_size


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_attention_is_its_two_products_on_any_device(device):
    query, key, value = (
        torch.randn(2, 4, 16, 8, device=device, requires_grad=True) for _ in range(3)
    )
    with FlopCounter() as counter:
        F.scaled_dot_product_attention(query, key, value).sum().backward()
    assert counter.flops == 3 * 2 * (2 * 2 * 4 * 16 * 16 * 8)


@pytest.mark.parametrize(("groups", "frozen"), [(1, False), (4, False), (8, False), (8, True)])
def test_the_gradients_of_a_convolution_take_as_much_as_itself(groups, frozen):
    conv = nn.Conv2d(8, 16, 3, padding=1, stride=2, groups=groups, bias=False).requires_grad_(
        not frozen
    )
    images = torch.randn(2, 8, 10, 10, requires_grad=True)
    with FlopCounter() as counter:
        conv(images).sum().backward()
    forward = 2 * 2 * 5 * 5 * 16 * (8 // groups) * 9
    assert counter.flops == (2 if frozen else 3) * forward


def test_the_gradients_of_a_transposed_convolution_take_as_much_as_itself():
    conv = nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False)
    images = torch.randn(2, 6, 5, 5, requires_grad=True)
    with FlopCounter() as counter:
        conv(images).sum().backward()
    assert counter.flops == 3 * (2 * 2 * 5 * 5 * 6 * 4 * 2 * 2)


@pytest.mark.parametrize("size", ["titok-s-128", "titok-b-64", "titok-l-32", "titok-b-128-512"])
def test_the_warmup_is_a_closed_form(size):
    """Two vision transformers, forward and twice as much backward, and the VQGAN's encoder forward."""
    config = TiTokConfig.from_size(size)
    recipe = Recipe.load(size, ["stages.decoder_finetuning.training.max_steps=1"])
    encoder, decoder = encoder_flops(config), decoder_flops(config)
    recipe.stages.pop("decoder_finetuning")
    vqgan = copy.deepcopy(config.vqgan_config)
    vqgan.shortcut_of_output = True
    # images have no gradient, so that the patches' weights alone have one
    expected = (
        2 * encoder["patches"] + 3 * (encoder["blocks"] + encoder["proj"]) + quantizer_flops(config)
    )
    expected += 3 * sum(decoder.values()) + vqgan_encoder_flops(vqgan)
    assert recipe_flops(recipe) == {"warmup": expected}


@pytest.mark.parametrize(
    ("name", "config"),
    [("maskgit-vit-l-32", MaskGitConfig()), ("maskgit-uvit-s-128", MaskGitUViTConfig())],
)
def test_a_generator_on_tokens_is_a_closed_form(name, config):
    tokens, width, layers = 1 + config.num_tokens, config.hidden_size, config.num_hidden_layers
    if name == "maskgit-vit-l-32":
        forward = vit_flops(tokens, width, layers)
    else:  # one block in the middle, and half of them with a projection of the skip connection
        forward = vit_flops(tokens, width, layers + 1) + layers // 2 * 2 * tokens * 2 * width**2
    forward += 2 * config.num_tokens * width * config.codebook_size
    assert recipe_flops(Recipe.load(name), tokens=True) == {"generator": 3 * forward}


def test_images_cost_a_generator_the_tokenizers_encoder_more():
    recipe = Recipe.load("maskgit-vit-b-64")
    config = TiTokConfig.from_size("titok-b-64")
    more = recipe_flops(recipe)["generator"] - recipe_flops(recipe, tokens=True)["generator"]
    assert more == sum(encoder_flops(config).values()) + quantizer_flops(config)


def test_lpips_costs_a_stage_vgg16_forward_and_twice_and_its_heads():
    """The reconstruction takes a forward and a backward pass to the pixels, the target a forward pass."""
    with_lpips, alone = (
        recipe_flops(
            Recipe.load("titok-b-64-single-stage", [f"stages.single_stage.objective={objective}"])
        )
        for objective in ("{perceptual_weight: 1, classifier_weight: 0, lpips_weight: 1}", "{}")
    )
    side, channels, flops = 256, 3, 0
    for stage in VGG16_STAGES:
        for width in stage:
            flops += 3 * 2 * side**2 * 9 * channels * width
            channels = width
        flops += 2 * 2 * side**2 * channels  # the head, forward and backward
        side //= 2
    assert with_lpips["single_stage"] - alone["single_stage"] == flops


def test_nothing_is_computed_on_the_meta_device(titok_config, vqgan):
    """The same count as with numbers, in training mode, of the same objective."""
    counts = []
    for device in ("cpu", "meta"):
        objective = WarmupObjective(TiTokModel(titok_config), copy.deepcopy(vqgan)).to(device)
        counts.append(
            training_flops(objective, {"pixel_values": torch.rand(2, 3, 32, 32).to(device)})
        )
        assert all(parameter.grad is None for parameter in objective.parameters())
    assert counts[0] == counts[1] > 0


def test_a_batch_counts_its_images():
    config = ConvNextConfig(
        image_size=32, patch_size=4, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]
    )
    with torch.device("meta"):
        objective = ClassifierObjective(ConvNextForImageClassification(config))
        one, three = (
            training_flops(
                objective,
                {
                    "pixel_values": torch.rand(n, 3, 32, 32),
                    "class_labels": torch.zeros(n, dtype=torch.long),
                },
            )
            for n in (1, 3)
        )
    assert three == 3 * one > 0


def test_each_stage_is_built_without_weights():
    recipe = Recipe.load("digits")
    with torch.device("meta"):
        objectives = {
            stage.name: objective
            for stage, objective in recipe_objectives(recipe, known_network, CLASS_NAMES)
        }
    assert list(objectives) == ["vqgan", "classifier", "warmup", "decoder_finetuning", "generator"]
    assert all(
        parameter.is_meta
        for objective in objectives.values()
        for parameter in objective.parameters()
    )


class TestTable:
    """The table of the page is what the command prints."""

    @staticmethod
    def rows(text):
        return [line for line in text.splitlines() if line.startswith("|")]

    @pytest.mark.parametrize("name", ["titok-s-128", "maskgit-vit-l-32", "titok-bl-64-vq8k"])
    def test_rows_are_those_of_the_page(self, name):
        expected = self.rows(flops_table([name]))
        page = self.rows(DOCS.read_text())
        page = page[page.index(expected[0]) :]
        start = page.index(expected[2])
        assert page[1] == expected[1]
        assert page[start : start + len(expected) - 2] == expected[2:]

    def test_the_page_has_all_recipes(self):
        names = re.findall(r"^\| ([a-z0-9-]+) \| ", DOCS.read_text(), flags=re.MULTILINE)
        large = large_recipes()
        assert [name for name in names if name in large] == large
        assert "digits" not in large and "titok-l-32" in large

    def test_hours_follow_from_the_flops(self):
        [row] = self.rows(flops_table(["titok-sl-256-vq8k"]))[2:]
        name, stage, of_image, images, of_step, steps, total, hours, reported = (
            cell.strip() for cell in row.strip("|").split("|")
        )
        assert (name, stage, images, steps, reported) == (
            "titok-sl-256-vq8k",
            "single_stage",
            "256",
            "1,000,000",
            "",
        )
        flops = recipe_flops(Recipe.load(name))[stage]
        assert float(of_image.replace(",", "")) == round(flops / 1e9)
        assert float(of_step) == pytest.approx(flops * 256 / 1e15, abs=0.005)
        assert float(total) == round(flops * 256e6 / 1e18)
        assert (A100_FLOPS, UTILIZATION) == (312e12, 0.4)
        assert float(hours.replace(",", "")) == math.floor(flops * 256e6 / 124.8e12 / 3600 + 0.5)

    def test_the_module_prints_a_table(self, capsys, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["flops", "titok-s-128"])
        with warnings.catch_warnings(
            action="ignore", category=RuntimeWarning
        ):  # of a module that is imported already
            runpy.run_module("titok_hf.training.flops", run_name="__main__")
        assert capsys.readouterr().out == flops_table(["titok-s-128"])
