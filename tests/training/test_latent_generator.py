"""The stage `latent_generator`: the reference's losses, statistics of latents, and a whole run."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from datasets import DatasetDict
from fixtures.parity.fill import fill, normal
from safetensors.torch import load_file
from torch.nn import functional as F

from titok_hf import (
    LatentDiTPipeline,
    LightningDiTConfig,
    LightningDiTModel,
    TiTokModel,
    VTPImageProcessor,
)
from titok_hf.conversion.lightning_dit import OfficialLightningDiT
from titok_hf.data import IndexedSamples
from titok_hf.data.digits import load_digits_dataset
from titok_hf.training import Recipe, RecipeRun
from titok_hf.training.flow import LatentFlowObjective, flow_losses
from titok_hf.training.stages import latent_generator

from .tiny_pretraining import make_model

CASES = Path(__file__).parents[1] / "fixtures" / "parity" / "cases"
TRAINING = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 1.0e-3,
    "logging_steps": 2,
    "save_steps": 2,
}


def make_objective(tokenizer=None, **arguments):
    torch.manual_seed(0)
    config = LightningDiTConfig(
        in_channels=4,
        sample_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=10,
        latent_mean=[0.5] * 4,
        latent_std=[2.0] * 4,
    )
    tokenizer = tokenizer or make_model(has_text=False)
    return LatentFlowObjective(
        LightningDiTModel(config), tokenizer, **{"ema_decay": 0.9, **arguments}
    )


class TestLosses:
    def test_they_are_the_references(self):
        content = json.loads((CASES / "latent_flow.json").read_text())
        outputs = load_file(CASES / "latent_flow.safetensors")
        official = OfficialLightningDiT()
        state = {
            key: torch.from_numpy(fill(key, shape, content["salt"]))
            for key, shape in content["shapes"].items()
            if key != "pos_embed" and not key.startswith("feat_rope")
        }
        config = LightningDiTConfig(**official.config_from_shapes(content["shapes"]))
        model = LightningDiTModel(config).eval()
        model.load_state_dict(official.to_ours(state, config))
        latents, noise = (
            torch.from_numpy(normal(name, [2, 16, 4, 4])) for name in ("latents", "noise")
        )
        times = torch.tensor(content["timesteps"])
        noisy = times.view(-1, 1, 1, 1) * latents + (1 - times.view(-1, 1, 1, 1)) * noise
        with torch.no_grad():
            velocity = model(noisy, times, torch.tensor(content["labels"])).velocity
        found = flow_losses(velocity, latents - noise, channel_axis=1)
        for name, loss in zip(("flow_loss", "cosine_loss"), found, strict=True):
            torch.testing.assert_close(loss, outputs[name], atol=0, rtol=1e-5)

    def test_a_right_velocity_costs_nothing(self):
        target = torch.randn(3, 5, 4)
        for loss in flow_losses(target, target, channel_axis=2):
            torch.testing.assert_close(loss, torch.zeros(3), atol=1e-6, rtol=0)
        squared, cosine = flow_losses(2 * target, target, channel_axis=2)
        torch.testing.assert_close(squared, target.square().mean((1, 2)))
        torch.testing.assert_close(cosine, torch.zeros(3), atol=1e-6, rtol=0)

    def test_a_network_of_zeros_costs_the_target(self):
        """At the start the velocity is 0, so that its error is the target's square."""
        objective = make_objective().eval()
        images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
        draws = torch.rand(6, objective.num_draws)
        with torch.no_grad():
            logged = objective(labels, images, draws=draws).logged_losses
        latents = (objective.tokenizer.encode(images).latents - 0.5) / 2.0
        noise = torch.special.ndtri(draws[:, 2:].clamp_min(2.0**-25)).view_as(latents)
        torch.testing.assert_close(logged["velocity_loss"], (latents - noise).square().mean())
        assert logged["cosine_loss"] == pytest.approx(1.0)

    def test_latents_may_come_in_place_of_images(self):
        objective = make_objective().eval()
        images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
        draws = torch.rand(4, objective.num_draws)
        latents = objective.tokenizer.encode(images).latents
        of_images = objective(labels, images, draws=draws).loss
        torch.testing.assert_close(objective(labels, latents=latents, draws=draws).loss, of_images)

    def test_the_tokenizer_gets_no_gradient(self):
        objective = make_objective().train()
        objective(torch.arange(4), torch.randn(4, 3, 32, 32)).loss.backward()
        assert not any(p.requires_grad for p in objective.tokenizer.parameters())
        assert objective.model.proj_out.weight.grad.any()


class TestTimes:
    def test_logit_normal(self):
        objective = make_objective(time_mean=-0.75, time_std=0.5)
        times = objective.times((torch.arange(1000) + 0.5) / 1000)
        assert times.median().item() == pytest.approx(
            torch.sigmoid(torch.tensor(-0.75)).item(), abs=0.01
        )
        logits = torch.logit(times)
        assert logits.std().item() == pytest.approx(0.5, abs=0.01)

    def test_uniform_and_shifted(self):
        draws = torch.tensor([0.0, 0.5, 0.9])
        objective = make_objective(time_distribution="uniform")
        assert torch.equal(objective.times(draws), draws)
        objective = make_objective(time_distribution="uniform", time_shift=0.5)
        torch.testing.assert_close(objective.times(draws), 0.5 * draws / (1 - 0.5 * draws))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"time_distribution": "normal"}, "`time_distribution` must be"),
            ({"time_std": 0.0}, "`time_std` must be positive"),
            ({"time_shift": -1.0}, "`time_shift` must be positive"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            make_objective(**arguments)


def test_samples_of_the_posterior(make_titok_config):
    torch.manual_seed(0)
    titok = TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()
    count, channels = titok.config.num_latent_tokens, titok.config.latent_dim
    config = LightningDiTConfig(
        dimensions=1, in_channels=channels, sample_size=count, hidden_size=16,
        num_hidden_layers=1, num_attention_heads=2, num_labels=10,
    )  # fmt: skip
    objective = LatentFlowObjective(LightningDiTModel(config), titok, sample_posterior=True)
    assert objective.num_draws == 2 + 2 * count * channels
    images = torch.rand(2, 3, 32, 32)
    noise = torch.randn(2, count, channels)
    expected = titok.encode(images, sample_posterior=True, noise=noise).latents
    torch.testing.assert_close(objective.encode(images, noise), expected)
    objective.train()
    assert torch.equal(objective.encode(images, None), titok.encode(images).latents)
    assert objective(torch.tensor([1, 2]), images).loss.isfinite()


def content_of(tokenizer, **changes):
    stage = {
        "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "objective": {"ema_decay": 0.9},
        "training": {**TRAINING, "preview_steps": 3},
        **changes,
    }
    return {
        "name": "latents",
        "image_size": 32,
        "stages": {**tokenizer, "latent_generator": stage},
        "sampling": {"num_inference_steps": 2, "guidance_scale": 1.5},
    }


@pytest.fixture(scope="module")
def dataset():
    digits = load_digits_dataset()["train"].select(range(36))
    return DatasetDict(train=digits.select(range(18)), test=digits.select(range(18, 36)))


@pytest.fixture(scope="module")
def vtp(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vtp")
    make_model().save_pretrained(folder)
    return {"vtp_pretraining": {"pretrained": str(folder)}}


@pytest.mark.slow
@pytest.mark.xdist_group("latent_run")
class TestRun:
    @pytest.fixture(scope="class")
    def folder(self, dataset, vtp, tmp_path_factory):
        folder = tmp_path_factory.mktemp("latents") / "run"
        RecipeRun(Recipe.from_dict(content_of(vtp)), dataset, folder).train()
        return folder

    def test_the_result_is_a_pipeline(self, folder):
        pipeline = LatentDiTPipeline.from_pretrained(folder / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline("three").images[0].size == (32, 32)
        assert pipeline.config.guidance_scale == 1.5
        assert not hasattr(pipeline.tokenizer, "text_encoder")

    def test_its_statistics_are_those_of_the_training_images(self, folder, dataset):
        pipeline = LatentDiTPipeline.from_pretrained(folder / "pipeline")
        processor = VTPImageProcessor.from_image_size(32)
        images = processor(dataset["train"]["image"][:], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            latents = pipeline.tokenizer.eval().encode(images).latents.movedim(1, 0).flatten(1)
        config = pipeline.transformer.config
        assert config.latent_mean == pytest.approx(latents.mean(1).tolist(), abs=1e-4)
        assert config.latent_std == pytest.approx(latents.std(1, correction=0).tolist(), rel=1e-4)

    def test_they_are_of_images_of_all_classes_of_a_sorted_folder(self, dataset, monkeypatch):
        monkeypatch.setattr(latent_generator, "MEASURED", 5)
        samples = IndexedSamples(dataset["train"].sort("label"))
        seen = []

        def decode(image):
            seen.append(image)
            return image

        assert len([*latent_generator.spread_images(samples, decode)]) == 5
        places = [samples[place].image for place in (0, 4, 8, 13, 17)]
        assert [image["bytes"] for image in seen] == [image["bytes"] for image in places]

    def test_previews_are_drawn(self, folder):
        names = [p.name for p in (folder / "work/previews/latent_generator").iterdir()]
        assert sorted(names) == ["step-0000003.png", "step-0000006.png"]

    def test_an_interrupted_run_goes_on_bit_by_bit(self, folder, dataset, vtp, tmp_path):
        content = content_of(vtp)
        content["stages"]["latent_generator"]["training"]["max_steps"] = 6

        class StopError(Exception):
            pass

        run = RecipeRun(Recipe.from_dict(content), dataset, tmp_path / "run")
        trainer_of = run.trainer

        def stopping(stage, objective, results):
            trainer = trainer_of(stage, objective, results)
            step = objective.after_optimizer_step

            def after(number):
                step(number)
                if number == 4:
                    raise StopError

            objective.after_optimizer_step = after
            return trainer

        run.trainer = stopping
        with pytest.raises(StopError):
            run.train()
        RecipeRun(Recipe.from_dict(content), dataset, tmp_path / "run").train()
        found, expected = (
            load_file(each / "pipeline/transformer/model.safetensors")
            for each in (tmp_path / "run", folder)
        )
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []

    def test_a_titok_with_codes_is_refused(self, dataset, tmp_path, make_titok_config):
        TiTokModel(make_titok_config("pixels")).save_pretrained(tmp_path / "titok")
        content = content_of({"single_stage": {"pretrained": str(tmp_path / "titok")}})
        with pytest.raises(ValueError, match="needs a tokenizer with continuous latents"):
            RecipeRun(Recipe.from_dict(content), dataset, tmp_path / "run").train()

    def test_a_titok_with_latents_trains_in_1d(self, dataset, tmp_path, make_titok_config):
        titok = TiTokModel(make_titok_config("pixels", quantizer="kl"))
        titok.save_pretrained(tmp_path / "titok")
        content = content_of({"single_stage": {"pretrained": str(tmp_path / "titok")}})
        pipeline = RecipeRun(Recipe.from_dict(content), dataset, tmp_path / "run").train()
        assert pipeline.transformer.config.dimensions == 1
        assert pipeline(7, num_inference_steps=1).images[0].size == (32, 32)

    def test_bad_sampling_is_refused_before_training(self, dataset, vtp, tmp_path):
        content = yaml.safe_load(yaml.safe_dump(content_of(vtp)))
        content["sampling"]["guidance_channels"] = 9
        with pytest.raises(ValueError, match="`guidance_channels` must be from 1 to the 4"):
            RecipeRun(Recipe.from_dict(content), dataset, tmp_path / "run").train()


def test_the_cosine_is_over_channels():
    velocity, target = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    _, cosine = flow_losses(velocity, target, channel_axis=1)
    expected = [
        1 - F.cosine_similarity(velocity[i].flatten(1).T, target[i].flatten(1).T, dim=1).mean()
        for i in range(2)
    ]
    torch.testing.assert_close(cosine, torch.stack(expected))
