"""Sampling of latents: the reference's runs, guidance, batches, and what is published."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from fixtures.parity.fill import fill, normal
from latent_pipelines import MEAN, STD, make_pipeline, make_transformer, seeded
from safetensors.torch import load_file
from training.tiny_pretraining import make_model

from titok_hf import (
    FlowMatchHeunScheduler,
    LatentDiTPipeline,
    LightningDiTConfig,
    LightningDiTModel,
    TiTokModel,
    VTPForImageReconstruction,
)
from titok_hf.conversion.lightning_dit import OfficialLightningDiT
from titok_hf.pipelines.pipeline_latent_dit import flow_times
from titok_hf.publish import publish_folder

CASES = Path(__file__).parents[1] / "fixtures" / "parity" / "cases"


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline(num_inference_steps=4, guidance_scale=2.0)


class TestReference:
    @pytest.fixture(scope="class")
    def reference(self):
        content = json.loads((CASES / "latent_flow.json").read_text())
        official = OfficialLightningDiT()
        state = {
            key: torch.from_numpy(fill(key, shape, content["salt"]))
            for key, shape in content["shapes"].items()
            if key != "pos_embed" and not key.startswith("feat_rope")
        }
        fields = official.config_from_shapes(content["shapes"])
        channels = fields["in_channels"]
        config = LightningDiTConfig(
            **fields, latent_mean=[0.0] * channels, latent_std=[1.0] * channels
        )
        model = LightningDiTModel(config).eval()
        model.load_state_dict(official.to_ours(state, config))
        tokenizer = make_model(has_text=False, latent_dim=channels).eval()
        return make_pipeline(model, tokenizer), load_file(CASES / "latent_flow.safetensors")

    @pytest.mark.parametrize(
        ("name", "sampling"),
        [
            ("euler_plain", {}),
            ("euler_shifted", {"timestep_shift": 0.3}),
            (
                "euler_guided",
                {"timestep_shift": 0.3, "guidance_scale": 4.0, "guidance_interval": (0.1, 1.0)},
            ),
            (
                "euler_guided_interval",
                {
                    "timestep_shift": 0.075,
                    "guidance_scale": 10.0,
                    "guidance_interval": (0.125, 1.0),
                },
            ),
        ],
    )
    def test_euler_runs(self, reference, name, sampling):
        """Nine points of time are eight steps; guidance is on three channels."""
        pipeline, outputs = reference
        noise = torch.from_numpy(normal("noise", [2, 16, 4, 4]))
        found = pipeline(
            [3, 7],
            num_inference_steps=8,
            guidance_channels=3,
            latents=noise,
            output_type="latent",
            **sampling,
        ).latents
        scale = float(outputs[name].abs().max())
        torch.testing.assert_close(found, outputs[name], atol=1e-5 * scale, rtol=0)


class TestTimes:
    def test_shift(self):
        assert flow_times(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
        shifted = flow_times(4, 0.3)
        assert shifted[0] == 0 and shifted[-1].item() == pytest.approx(1)
        assert shifted[2].item() == pytest.approx(0.3 * 0.5 / (1 - 0.7 * 0.5))

    def test_a_shift_is_the_inverse_of_diffusers(self):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1 / 0.3)
        scheduler.set_timesteps(sigmas=(1 - flow_times(8)[:-1]).tolist())
        expected = 1 - flow_times(8, 0.3).float()
        torch.testing.assert_close(scheduler.sigmas, expected)

    def test_own_sigmas(self, pipeline):
        times = flow_times(3, 0.5)
        own = pipeline("cat", sigmas=(1 - times[:-1]).tolist(), generator=seeded())
        shifted = pipeline("cat", num_inference_steps=3, timestep_shift=0.5, generator=seeded())
        assert torch.equal(own.latents, shifted.latents)

    @pytest.mark.parametrize(
        "options",
        [
            {"shift": 3.0},
            {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
            {"shift_terminal": 0.1},
            {"use_karras_sigmas": True},
            {"use_exponential_sigmas": True},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_the_levels_of_the_scheduler_are_not_used(self, pipeline, options):
        """Whatever model of diffusers its configuration is from."""
        other = LatentDiTPipeline(
            pipeline.tokenizer, pipeline.transformer, FlowMatchEulerDiscreteScheduler(**options)
        )
        other.set_progress_bar_config(disable=True)
        given = {"sigmas": [0.9, 0.6, 0.2], "guidance_scale": 1.0, "output_type": "latent"}
        found, expected = (each("cat", generator=seeded(), **given) for each in (other, pipeline))
        assert torch.equal(found.latents, expected.latents)

    @pytest.mark.parametrize("option", ["stochastic_sampling", "invert_sigmas"])
    def test_other_steps_are_refused(self, option):
        pipeline = make_pipeline()
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**{option: True})
        message = "`scheduler` must have `stochastic_sampling=False` and `invert_sigmas=False`"
        with pytest.raises(ValueError, match=message):
            LatentDiTPipeline(**pipeline.components)
        with pytest.raises(ValueError, match=message):
            pipeline("cat")

    def test_a_constant_velocity_is_integrated_exactly(self, monkeypatch, pipeline):
        noise = torch.randn(1, 4, 4, 4)
        monkeypatch.setattr(
            LatentDiTPipeline, "velocity", lambda self, latents, *args, **kwargs: 0 * latents + 2
        )
        for steps in (1, 7):
            found = pipeline(0, num_inference_steps=steps, latents=noise, output_type="latent")
            torch.testing.assert_close(found.latents, pipeline.denormalized(noise + 2))

    @pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunScheduler])
    def test_one_level_is_one_step(self, scheduler):
        pipeline = make_pipeline()
        pipeline.scheduler = scheduler()
        one = pipeline("cat", sigmas=np.array([1.0]), generator=seeded())
        step = pipeline("cat", num_inference_steps=1, generator=seeded())
        assert torch.equal(one.latents, step.latents)


class TestHeun:
    """Heun's method on `dx / dt = x + t`, whose solution is known."""

    def error(self, monkeypatch, scheduler, steps, shift=1.0):
        pipeline = make_pipeline(num_inference_steps=steps)
        pipeline.scheduler = scheduler
        monkeypatch.setattr(pipeline, "velocity", lambda latents, time, *_, **__: latents + time)
        start = torch.ones(1, 4, 4, 4)
        found = pipeline(0, latents=start, timestep_shift=shift, output_type="latent").latents
        exact = 2 * math.e - 2  # x(t) = 2 exp(t) - t - 1
        normalized = (found - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
        return float((normalized - exact).abs().max())

    @pytest.mark.parametrize("shift", [1.0, 0.3])
    def test_it_is_of_second_order(self, monkeypatch, shift):
        errors = [
            self.error(monkeypatch, FlowMatchHeunScheduler(), steps, shift)
            for steps in (32, 64, 128)
        ]
        for coarse, fine in itertools.pairwise(errors):
            assert 3.2 < coarse / fine < 4.8
        euler = [
            self.error(monkeypatch, FlowMatchEulerDiscreteScheduler(), steps, shift)
            for steps in (64, 128)
        ]
        assert 1.6 < euler[0] / euler[1] < 2.4
        assert errors[-1] < euler[-1] / 10

    def test_it_calls_the_transformer_twice_a_step_but_the_last(self, monkeypatch):
        pipeline = make_pipeline(num_inference_steps=4)
        pipeline.scheduler = FlowMatchHeunScheduler()
        times, velocity = [], pipeline.velocity

        def recording(latents, time, *arguments, **others):
            times.append(time)
            return velocity(latents, time, *arguments, **others)

        monkeypatch.setattr(pipeline, "velocity", recording)
        pipeline(1, generator=seeded())
        assert times == pytest.approx([0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75])

    def test_diffusers_own_levels_remain(self):
        ours, theirs = FlowMatchHeunScheduler(), FlowMatchHeunDiscreteScheduler()
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(5)
        assert torch.equal(ours.timesteps, theirs.timesteps)

    def test_it_is_saved_with_the_pipeline(self, tmp_path):
        pipeline = make_pipeline(num_inference_steps=2)
        pipeline.scheduler = FlowMatchHeunScheduler()
        pipeline.save_pretrained(tmp_path)
        loaded = LatentDiTPipeline.from_pretrained(tmp_path)
        assert isinstance(loaded.scheduler, FlowMatchHeunScheduler)
        loaded.set_progress_bar_config(disable=True)
        images = [
            each(1, generator=seeded(), output_type="pt").images for each in (pipeline, loaded)
        ]
        torch.testing.assert_close(*images, atol=1e-5, rtol=0)

    def test_other_schedulers_are_refused(self):
        tokenizer = make_model(has_text=False).eval()
        with pytest.raises(
            TypeError, match="`scheduler` must be a FlowMatchEulerDiscreteScheduler"
        ):
            LatentDiTPipeline(tokenizer, make_transformer(), FlowMatchHeunDiscreteScheduler())


class TestImages:
    def test_an_image_does_not_depend_on_its_batch(self, pipeline):
        whole = pipeline(["cat", "7", "dog"], generator=seeded(), output_type="np").images
        source = seeded()  # of the seeds that a single generator draws
        for number, label in enumerate(["cat", "7", "dog"]):
            seed = int(torch.randint(2**63 - 1, (), generator=source))
            [alone] = pipeline(label, generator=[seeded(seed)], output_type="np").images
            np.testing.assert_allclose(alone, whole[number], atol=1e-4)

    def test_outputs(self, pipeline):
        given = {"generator": seeded(), "num_images_per_label": 2}
        images = pipeline("cat", output_type="pt", **given).images
        assert images.shape == (2, 3, 32, 32) and 0 <= images.min() <= images.max() <= 1
        assert len(pipeline("cat").images) == 1
        [latents] = pipeline("cat", output_type="latent", return_dict=False)
        assert latents.shape == (1, 4, 4, 4)

    def test_latents_have_the_statistics_of_the_tokenizer(self, pipeline):
        noise = torch.randn(1, 4, 4, 4)
        found = pipeline.denormalized(noise)
        for channel, (mean, std) in enumerate(
            zip([0.1, -0.2, 0.3, 0.0], [1.0, 0.5, 2.0, 1.5], strict=True)
        ):
            torch.testing.assert_close(found[0, channel], noise[0, channel] * std + mean)

    def test_guidance_is_within_its_interval_on_its_channels(self, pipeline):
        noise = torch.randn(1, 4, 4, 4)

        def latents(**arguments):
            return pipeline("cat", latents=noise, output_type="latent", **arguments).latents

        plain = latents(guidance_scale=1.0)
        assert torch.equal(latents(guidance_scale=5.0, guidance_interval=(0.9, 0.95)), plain)
        one_step = {"num_inference_steps": 1, "guidance_scale": 5.0}
        some, none = (
            latents(guidance_channels=1, **one_step),
            latents(**one_step | {"guidance_scale": 1.0}),
        )
        torch.testing.assert_close(some[:, 1:], none[:, 1:])
        assert not torch.allclose(some[:, :1], none[:, :1])
        assert not torch.allclose(latents(**one_step)[:, 1:], none[:, 1:])

    def test_autoguidance_by_the_same_network_changes_nothing(self):
        transformer = make_transformer()
        guided = make_pipeline(transformer, guidance_transformer=transformer, guidance_scale=3.0)
        plain = make_pipeline(transformer, guidance_scale=1.0)
        noise = torch.randn(1, 4, 4, 4)
        found, expected = (
            each("cat", num_inference_steps=3, latents=noise, output_type="latent").latents
            for each in (guided, plain)
        )
        torch.testing.assert_close(found, expected)
        weaker = make_pipeline(
            transformer, guidance_transformer=make_transformer(1), guidance_scale=3.0
        )
        other = weaker("cat", num_inference_steps=3, latents=noise, output_type="latent").latents
        assert not torch.allclose(other, expected)

    def test_arrays_and_numbers_of_numpy(self, pipeline):
        noise = torch.randn(1, 4, 4, 4)
        expected, found = (
            pipeline("cat", latents=latents, guidance_scale=scale).latents
            for latents, scale in ((noise, 3.0), (noise.numpy(), np.float32(3)))
        )
        assert torch.equal(found, expected)

    def test_a_callback_may_change_the_latents(self, pipeline):
        seen = []

        def zero(pipeline, step, timestep, tensors):
            seen.append(float(timestep))
            return {"latents": 0 * tensors["latents"]} if step == 3 else None

        found = pipeline("cat", callback_on_step_end=zero, output_type="latent").latents
        assert len(seen) == 4 and seen == sorted(seen, reverse=True)
        torch.testing.assert_close(found, pipeline.denormalized(torch.zeros_like(found)))


class TestTokenizers:
    def test_1d_latents_of_a_titok(self, make_titok_config):
        torch.manual_seed(0)
        titok = TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()
        shape = (titok.config.num_latent_tokens, titok.config.latent_dim)
        transformer = make_transformer(
            dimensions=1,
            sample_size=shape[0],
            in_channels=shape[1],
            latent_mean=[0.0] * shape[1],
            latent_std=[1.0] * shape[1],
        )
        pipeline = make_pipeline(transformer, titok, num_inference_steps=2)
        output = pipeline("dog", output_type="pt")
        assert output.latents.shape == (1, *shape)
        expected = titok.decode(output.latents).reconstruction.clamp(0, 1)
        torch.testing.assert_close(output.images, expected)
        guided = pipeline(
            "dog", guidance_scale=3.0, guidance_channels=2, generator=seeded()
        ).latents
        assert guided.shape == (1, *shape)

    def test_an_autoencoder_of_diffusers(self):
        torch.manual_seed(0)
        autoencoder = AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=2, latent_channels=4, sample_size=8,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ).eval()  # fmt: skip
        output = make_pipeline(tokenizer=autoencoder)(
            "cat", num_inference_steps=2, output_type="pt"
        )
        expected = (autoencoder.decode(output.latents).sample + 1) / 2
        torch.testing.assert_close(output.images, expected.clamp(0, 1))


class TestSaved:
    def test_defaults_of_numpy(self, tmp_path):
        make_pipeline(
            guidance_scale=np.float32(2),
            guidance_interval=np.array([0.25, 1], np.float32),
            guidance_channels=np.int64(3),
            timestep_shift=np.float32(0.5),
        ).save_pretrained(tmp_path)
        config = LatentDiTPipeline.from_pretrained(tmp_path).config
        assert (config.guidance_scale, config.guidance_interval) == (2.0, [0.25, 1.0])
        assert (config.guidance_channels, config.timestep_shift) == (3, 0.5)

    @pytest.mark.parametrize("autoguidance", [False, True])
    def test_it_saves_and_loads(self, tmp_path, autoguidance):
        pipeline = make_pipeline(
            guidance_transformer=make_transformer(1) if autoguidance else None,
            num_inference_steps=3,
            guidance_channels=3,
            guidance_interval=(0.1, 0.9),
            timestep_shift=0.3,
        )
        pipeline.save_pretrained(tmp_path)
        loaded = LatentDiTPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert loaded.config.guidance_interval == [0.1, 0.9]
        assert (loaded.guidance_transformer is not None) == autoguidance
        found, expected = (
            each("cat", generator=seeded(), guidance_scale=2.0).latents
            for each in (loaded, pipeline)
        )
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        for name, weight in pipeline.transformer.state_dict().items():
            assert torch.equal(loaded.transformer.state_dict()[name], weight)

    def test_it_is_published_and_loaded_by_diffusers(self, hub, tmp_path):
        pipeline = make_pipeline(num_inference_steps=3)
        pipeline.save_pretrained(tmp_path / "pipeline")
        publish_folder(tmp_path / "pipeline", "user/latent-dit")
        card = hub.files("user/latent-dit")["README.md"].decode()
        assert "3 Euler steps" in card
        loaded = LatentDiTPipeline.from_pretrained("user/latent-dit")
        any_pipeline = DiffusionPipeline.from_pretrained("user/latent-dit", trust_remote_code=True)
        assert type(any_pipeline) is LatentDiTPipeline
        for each in (loaded, any_pipeline):
            each.set_progress_bar_config(disable=True)
            torch.testing.assert_close(
                each("cat", generator=seeded()).latents,
                pipeline("cat", generator=seeded()).latents,
                atol=1e-3,
                rtol=1e-3,
            )


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_inference_steps": 0}, "`num_inference_steps` must be an integer of at least 1"),
            ({"timestep_shift": 0.0}, "`timestep_shift` must be a positive number"),
            ({"guidance_scale": float("nan")}, "`guidance_scale` must be a finite number"),
            ({"guidance_scale": "2"}, "`guidance_scale` must be a finite number"),
            ({"guidance_interval": (0.5, 0.1)}, "`guidance_interval` must be two times"),
            ({"guidance_interval": [0, 0.5, 1]}, "`guidance_interval` must be two times"),
            ({"guidance_interval": 0.5}, "`guidance_interval` must be two times"),
            ({"guidance_channels": 5}, "`guidance_channels` must be from 1 to the 4 channels"),
            ({"guidance_channels": 2.5}, "`guidance_channels` must be from 1 to the 4 channels"),
            ({"sigmas": []}, "`sigmas` must be noise levels that fall"),
            ({"sigmas": [0.5, 1.0]}, "`sigmas` must be noise levels that fall"),
            ({"sigmas": [1.0, 0.0]}, "`sigmas` must be noise levels that fall"),
            ({"output_type": "codes"}, "`output_type` must be 'pil', 'np', 'pt' or 'latent'"),
            (
                {"generator": [seeded()] * 2},
                "one `torch.Generator` for each of the 1 images, got 2",
            ),
            ({"latents": torch.randn(1, 3, 4, 4)}, r"`latents` must have shape \(1, 4, 4, 4\)"),
            (
                {"callback_on_step_end": lambda *_: {"latents": None}},
                r"`latents` must have shape \(1, 4, 4, 4\), got \(\)",
            ),
        ],
    )
    def test_calls(self, pipeline, arguments, message):
        with pytest.raises(ValueError, match=message):
            pipeline("cat", **arguments)

    def test_defaults(self):
        with pytest.raises(ValueError, match=r"`guidance_interval` must be two times .* got 0.5"):
            make_pipeline(guidance_interval=0.5)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"latent_mean": None, "latent_std": None}, "lacks `latent_mean` and `latent_std`"),
            (
                {"in_channels": 2, "latent_mean": [0.0] * 2, "latent_std": [1.0] * 2},
                r"generates latents of shape \(2, 4, 4\), the tokenizer decodes \(4, 4, 4\)",
            ),
        ],
    )
    def test_transformers_of_other_latents(self, fields, message):
        with pytest.raises(ValueError, match=message):
            make_pipeline(make_transformer(**fields))

    def test_tokenizers_that_do_not_decode_latents(self, make_titok_config):
        with pytest.raises(ValueError, match="has no pixel decoder"):
            make_pipeline(tokenizer=make_model(has_decoder=False, has_text=False))
        with pytest.raises(ValueError, match="must decode continuous latents"):
            make_pipeline(tokenizer=TiTokModel(make_titok_config("pixels")))
        with pytest.raises(TypeError, match="A tokenizer of continuous latents is expected"):
            make_pipeline(tokenizer=torch.nn.Linear(1, 1))

    def test_another_guide(self):
        with pytest.raises(ValueError, match="`guidance_transformer` must have the `num_labels`"):
            make_pipeline(guidance_transformer=make_transformer(id2label={0: "cat"}))


def test_a_reconstruction_model_is_a_tokenizer(tmp_path):
    make_model().save_pretrained(tmp_path)
    tokenizer = VTPForImageReconstruction.from_pretrained(tmp_path).eval()
    assert make_pipeline(tokenizer=tokenizer)("cat", num_inference_steps=1).images[0].size == (
        32,
        32,
    )
