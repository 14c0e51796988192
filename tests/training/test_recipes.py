"""The recipes that ship: complete, with sources, and with the figures of the reference."""

import json
import re
from pathlib import Path

import pytest
import torch

import titok_hf
from titok_hf import (
    MaskGitConfig,
    MaskGitScheduler,
    MaskGitUViTConfig,
    TiTokConfig,
    VTPConfig,
    VTPModel,
)
from titok_hf.conversion.maskgit import official_sampling
from titok_hf.conversion.titok import OfficialTiTok
from titok_hf.data import Augmentation
from titok_hf.data.pretraining import Subset
from titok_hf.settings import load_yaml, parse_yaml
from titok_hf.training import Recipe, TiTokTrainingArguments
from titok_hf.training.flops import CLASS_NAMES, known_network
from titok_hf.training.recipe import recipe_names
from titok_hf.training.stages import recipe_objectives

FOLDER = Path(titok_hf.__file__).parent / "recipes"
CASES = Path(__file__).parents[1] / "fixtures" / "parity" / "cases"
IMAGENET = 1_281_167
SMALL = ("digits", "titok-emoji", "vtp-emoji", "latent-dit-digits", "latent-dit-emoji")
LARGE = [name for name in recipe_names() if name not in SMALL]
TWO_STAGES = [
    "titok-s-128",
    "titok-b-64",
    "titok-l-32",
    "titok-l-64-512",
    "titok-b-128-512",
    "titok-b-256-2d",
]
SINGLE_STAGE = [name for name in LARGE if name.endswith(("vq8k", "vae-c16"))]
GENERATORS = [name for name in LARGE if name.startswith("maskgit")]
every_large = pytest.mark.parametrize("name", LARGE)


def stage_config(name):
    """Configuration of the TiTok that a recipe trains."""
    recipe = Recipe.load(name)
    head, name = (
        ("proxy_codes", "warmup") if "warmup" in recipe.stages else ("pixels", "single_stage")
    )
    stage = recipe.stage(name)
    return stage.config(**{"head": head, **stage.part("model")})


def test_all_of_the_issue_are_there():
    expected = {"titok-s-128", "titok-b-64", "titok-l-32", "titok-l-64-512", "titok-b-128-512"}
    expected |= {"titok-bl-64-vq8k", "titok-bl-128-vq8k", "titok-sl-256-vq8k"}
    expected |= {"titok-ll-32-vae-c16", "titok-bl-64-vae-c16", "titok-bl-128-vae-c16"}
    expected |= {"maskgit-vit-l-32", "maskgit-vit-b-64", "maskgit-uvit-s-128"}
    expected |= {"maskgit-vit-l-64-512", "maskgit-vit-b-128-512"}
    expected |= {
        "titok-b-64-single-stage",
        "titok-b-256-2d",
        "titok-l-32-codebook-1024",
        "titok-l-32-codebook-4096",
    }
    expected |= {f"maskgit-vit-l-32-{schedule}" for schedule in ("cosine", "linear", "root")}
    expected |= {f"lightningdit-xl-vtp-{size}" for size in ("small", "base", "large")}
    expected |= {"lightningdit-b-vtp-large", "lightningdit-xl-va-vae", "lightningdit-xl-finetuning"}
    expected |= {"vtp-small", "vtp-base", "vtp-large", "vtp-ablation"}
    expected |= {f"vtp-ablation-{losses}" for losses in ("reconstruction", "clip", "ssl")}
    assert set(LARGE) == expected


@pytest.mark.parametrize("name", recipe_names())
def test_it_loads_and_its_arguments_are_valid(name, tmp_path):
    recipe = Recipe.load(name)
    assert recipe.name == name
    for stage in recipe.trained_stages():
        training = {
            key: value
            for key, value in stage.part("training").items()
            if key != "global_batch_size"
        }
        arguments = TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **training)
        assert arguments.max_steps == training["max_steps"]
        assert arguments.learning_rate == training["learning_rate"] > 0
        Augmentation(**stage.part("augmentation"))
    if "generator" in recipe.stages:
        MaskGitScheduler(mask_token_id=4096, **recipe.scheduler)


@pytest.mark.slow
@every_large
def test_its_objectives_are_built(name):
    with torch.device("meta"):
        recipe = Recipe.load(name)
        objectives = {
            stage.name: objective
            for stage, objective in recipe_objectives(recipe, known_network, CLASS_NAMES)
        }
    assert list(objectives) == [stage.name for stage in Recipe.load(name).trained_stages()]
    for objective in objectives.values():
        assert any(parameter.requires_grad for parameter in objective.model.parameters())
        # a VTP's teacher averages the encoder already
        assert objective.ema is not None or name.startswith("vtp")


@every_large
def test_every_figure_has_a_source_beside_it(name):
    without = []
    for line in (FOLDER / f"{name}.yaml").read_text().splitlines():
        code, separator, comment = line.partition("  # ")
        if code.lstrip().startswith("#") or not code.strip() or code.endswith(":"):
            continue
        value = parse_yaml(code.partition(":")[2], name)
        values = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(value, int | float) for value in values) and not (
            separator and comment.strip()
        ):
            without.append(line)
    assert without == []


@every_large
def test_no_figure_of_its_base_stands_again(name):
    def leaves(content, path=()):
        if not isinstance(content, dict):
            return {path: content}
        return {
            key: value
            for part in content
            for key, value in leaves(content[part], (*path, part)).items()
        }

    content = load_yaml(FOLDER / f"{name}.yaml")
    if "base" in content:
        base = leaves(Recipe.load(content["base"]).to_dict())
        own = leaves({key: value for key, value in content.items() if key != "base"})
        assert [path for path, value in own.items() if path in base and base[path] == value] == []


class TestTokenizers:
    @pytest.mark.parametrize("name", TWO_STAGES)
    def test_the_two_stages_are_the_references(self, name):
        recipe = Recipe.load(name)
        assert recipe.stages["vqgan"] == {"pretrained": "fun-research/TiTok"}
        assert recipe.stages["classifier"] == {"pretrained": "facebook/convnext-small-224"}
        for stage, beta2, steps, warmup_steps in (
            ("warmup", 0.99, 1_000_000, 10_000),
            ("decoder_finetuning", 0.999, 500_000, 5_000),
        ):
            training = recipe.stage(stage).part("training")
            figures = {
                "adam_beta1": 0.9,
                "adam_beta2": beta2,
                "global_batch_size": 256,
                "learning_rate": 1e-4,
                "lr_scheduler_kwargs": {"min_lr": 1e-5},
                "max_grad_norm": 1.0,
                "max_steps": steps,
                "warmup_steps": warmup_steps,
                "weight_decay": 1e-4,
            }
            assert {key: training[key] for key in figures} == figures
            assert training["fp16"] and "bf16" not in training
            assert recipe.stage(stage).part("objective")["ema_decay"] == 0.999
            assert recipe.stage(stage).part("augmentation") == {
                "crop": "random",
                "horizontal_flip": True,
            }
        objective = recipe.stage("decoder_finetuning").part("objective")
        assert (objective["perceptual_weight"], objective["adversarial_weight"]) == (0.1, 0.01)
        assert (objective["discriminator_start"], objective["lecam_weight"]) == (20_000, 0.001)
        assert not {"lpips_weight", "classifier_weight"} & objective.keys()

    @pytest.mark.parametrize("name", SINGLE_STAGE)
    def test_the_single_stage_is_the_references(self, name):
        recipe = Recipe.load(name)
        objective, training = (
            recipe.stage("single_stage").part("objective"),
            recipe.stage("single_stage").part("training"),
        )
        total = objective["perceptual_weight"] / (
            objective["lpips_weight"] + objective["classifier_weight"]
        )
        assert total * objective["lpips_weight"] == pytest.approx(1.0)
        assert total * objective["classifier_weight"] == pytest.approx(0.1)
        assert (objective["adversarial_weight"], objective["discriminator_start"]) == (0.1, 200_000)
        assert objective["quantizer_weight"] == (1e-6 if "vae" in name else 1.0)
        assert (training["max_steps"], training["global_batch_size"]) == (1_000_000, 256)
        assert (training["adam_beta2"], training["warmup_steps"]) == (0.999, 10_000)

    @pytest.mark.parametrize(
        ("name", "epochs"),
        [("titok-l-32", 200), ("titok-bl-64-vq8k", 200), ("titok-l-32-codebook-1024", 100)],
    )
    def test_steps_are_the_epochs_of_the_paper(self, name, epochs):
        training = (
            Recipe.load(name).stage("single_stage" if "vq8k" in name else "warmup").part("training")
        )
        assert training["max_steps"] * training["global_batch_size"] / IMAGENET == pytest.approx(
            epochs, rel=0.002
        )

    @pytest.mark.parametrize(
        ("name", "case"),
        [
            ("titok-s-128", "titok_s128_stage1"),
            ("titok-b-64", "titok_b64"),
            ("titok-l-32", "titok_l32"),
            ("titok-bl-64-vq8k", "titok_bl64_vq8k"),
            ("titok-bl-128-vq8k", "titok_bl128_vq8k"),
            ("titok-sl-256-vq8k", "titok_sl256_vq8k"),
            ("titok-ll-32-vae-c16", "titok_ll32_vae_c16"),
            ("titok-bl-64-vae-c16", "titok_bl64_vae_c16"),
            ("titok-bl-128-vae-c16", "titok_bl128_vae_c16"),
        ],
    )
    def test_sizes_are_those_of_the_references_configuration(self, name, case):
        official = json.loads((CASES / f"{case}.json").read_text())["config"]
        expected = TiTokConfig(**OfficialTiTok().config_fields(official)).to_dict()
        found = stage_config(name).to_dict()
        # the head changes in fine-tuning, which has no commitment loss; the rest is compatibility
        # with old weights
        other = {"head", "commitment_cost", "interleaved_latents", "vqgan_config"}
        assert {key: value for key, value in found.items() if key not in other} == {
            key: value for key, value in expected.items() if key not in other
        }
        assert found["commitment_cost"] == 0.25

    def test_the_tokenizers_of_512_pixels(self):
        for name, tokens in (("titok-l-64-512", 64), ("titok-b-128-512", 128)):
            config = stage_config(name)
            assert (config.image_size, config.num_tokens) == (512, tokens)
            assert (config.encoder_patch_size, config.decoder_patch_size) == (32, 16)
            assert config.vqgan_config.num_tokens == 32 * 32


class TestAblations:
    def test_a_single_stage_has_the_losses_of_taming(self):
        recipe = Recipe.load("titok-b-64-single-stage")
        assert list(recipe.stages) == ["single_stage"]
        objective = recipe.stage("single_stage").part("objective")
        expected = {
            "distance": "l1",
            "lpips_weight": 1.0,
            "classifier_weight": 0.0,
            "perceptual_weight": 1.0,
        }
        expected |= {
            "adversarial_weight": 0.8,
            "adaptive_weight": True,
            "discriminator_start": 250_001,
        }
        assert {key: objective[key] for key in expected} == expected
        two_stages = stage_config("titok-b-64").to_dict()
        changed = {
            key
            for key, value in stage_config(recipe.name).to_dict().items()
            if value != two_stages[key]
        }
        assert changed == {"head", "vqgan_config"}

    def test_two_dimensions_change_the_tokens_alone(self):
        recipe, base = (Recipe.load(name).to_dict() for name in ("titok-b-256-2d", "titok-b-64"))
        model = recipe["stages"]["warmup"].pop("model")
        assert model == {
            **base["stages"]["warmup"].pop("model"),
            "representation": "patch_tokens",
        } | {"num_latent_tokens": 256}
        assert recipe | {"name": "titok-b-64"} == base

    def test_codebooks_change_the_codes_alone(self):
        small, large = (
            Recipe.load(f"titok-l-32-codebook-{size}").to_dict() for size in (1024, 4096)
        )
        assert list(small["stages"]) == ["vqgan", "warmup"]
        for recipe, size in ((small, 1024), (large, 4096)):
            assert recipe["stages"]["warmup"]["model"].pop("codebook_size") == size
        assert small | {"name": ""} == large | {"name": ""}

    @pytest.mark.parametrize("schedule", ["cosine", "linear", "root"])
    def test_mask_schedules_change_the_schedule_alone(self, schedule):
        recipe, base = (
            Recipe.load(f"maskgit-vit-l-32{end}").to_dict() for end in (f"-{schedule}", "")
        )
        assert recipe["scheduler"].pop("mask_schedule") == schedule
        assert base["scheduler"].pop("mask_schedule") == "arccos"
        assert recipe | {"name": ""} == base | {"name": ""}


class TestVTP:
    @pytest.mark.parametrize(
        ("name", "millions"),
        [("vtp-small", 167.2), ("vtp-base", 295.6), ("vtp-large", 731.6)],
    )
    def test_sizes_are_those_of_the_released_models(self, name, millions):
        """README of MiniMax-AI/VTP: 0.2B, 295.6M and 731.6M."""
        stage = Recipe.load(name).stage("vtp_pretraining")
        with torch.device("meta"):
            model = VTPModel(stage.config(**stage.part("model")))
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.05)

    def test_base_is_the_default_configuration(self):
        stage = Recipe.load("vtp-base").stage("vtp_pretraining")
        assert stage.config(**stage.part("model")).to_dict() == VTPConfig().to_dict()

    @pytest.mark.parametrize("name", ["vtp-small", "vtp-base", "vtp-large", "vtp-ablation"])
    def test_batches_are_shared_by_the_processes_of_its_batch(self, name, tmp_path):
        stage = Recipe.load(name).stage("vtp_pretraining")
        training = dict(stage.part("training"))
        images, at_once = training["global_batch_size"], training["per_device_train_batch_size"]
        for subset, share in (("self_supervision", 4), ("reconstruction", 8)):
            size = stage.part("subsets")[subset]
            assert size * share == images  # 16k, 4k and 2k in the paper's ablations
            Subset(subset, size, images, batch_size=at_once, kind=0)
        assert training["max_steps"] * images == pytest.approx(1.1e9, rel=0.02)

    def test_ablations_leave_losses_out_and_nothing_else(self):
        whole = Recipe.load("vtp-ablation").to_dict()["stages"]["vtp_pretraining"]
        for name, off in (
            ("reconstruction", ("ssl_weight", "clip_weight")),
            ("clip", ("ssl_weight",)),
            ("ssl", ("clip_weight",)),
        ):
            stage = Recipe.load(f"vtp-ablation-{name}").to_dict()["stages"]["vtp_pretraining"]
            assert {key: stage["objective"][key] for key in off} == dict.fromkeys(off, 0.0)
            for part in ("model", "training", "augmentation"):
                assert stage[part] == whole[part]
            same = {key: value for key, value in stage["objective"].items() if key not in off}
            assert same.items() <= whole["objective"].items()


class TestGenerators:
    @pytest.mark.parametrize("name", GENERATORS)
    def test_training_is_the_references(self, name):
        training = Recipe.load(name).stage("generator").part("training")
        figures = {
            "adam_beta2": 0.96,
            "bf16": True,
            "global_batch_size": 2048,
            "learning_rate": 2e-4,
            "lr_scheduler_kwargs": {"min_lr": 1e-5},
            "max_steps": 500_000,
            "warmup_steps": 10_000,
            "weight_decay": 0.03,
        }
        assert {key: training[key] for key in figures} == figures
        assert Recipe.load(name).stage("generator").part("augmentation") == {
            "horizontal_flip": True
        }

    @pytest.mark.parametrize(
        ("name", "model_type", "tokens"),
        [
            ("maskgit-vit-l-32", "ViT", 32),
            ("maskgit-vit-b-64", "ViT", 64),
            ("maskgit-uvit-s-128", "UViT", 128),
        ],
    )
    def test_sampling_is_the_references(self, name, model_type, tokens):
        generator = {"model_type": model_type, "image_seq_len": tokens}
        scheduler, sampling = official_sampling({"model": {"generator": generator}})
        recipe = Recipe.load(name)
        assert (recipe.scheduler, recipe.sampling) == (scheduler, sampling)

    @pytest.mark.parametrize(
        ("name", "config_class", "case"),
        [
            ("maskgit-vit-l-32", MaskGitConfig, "l32"),
            ("maskgit-uvit-s-128", MaskGitUViTConfig, "s128"),
        ],
    )
    def test_sizes_are_the_references(self, name, config_class, case):
        official = json.loads((CASES / f"generator_{case}.json").read_text())["config"]["model"][
            "generator"
        ]
        model = dict(Recipe.load(name).stage("generator").part("model"))
        assert model.pop("model_type") == config_class.model_type
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            assert model[key] == official[key]
        config = config_class(**model)
        assert (config.label_dropout, config.label_smoothing, config.unmasked_weight) == (
            0.1,
            0.1,
            0.1,
        )

    def test_the_tokenizer_of_a_generator_of_512_pixels_is_what_its_recipe_leaves(self):
        for name in ("l-64-512", "b-128-512"):
            source = Recipe.load(f"maskgit-vit-{name}").stages["decoder_finetuning"]["pretrained"]
            assert re.fullmatch(rf"runs/titok-{name}/tokenizer", source)
