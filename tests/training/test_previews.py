import functools
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from titok_hf import MaskGitScheduler, TiTokImageProcessor, TiTokModel, TiTokPipeline
from titok_hf.training.previews import Previews, reconstruction_preview, sample_preview

from .clock import Slow

pytestmark = pytest.mark.slow

GAP, SIDE = 4, 64  # the images' 32 pixels are doubled


@pytest.fixture
def images(digit_batch):
    return digit_batch["pixel_values"]


@pytest.fixture
def make(make_objective, make_titok_config):
    """Builds objectives; the generator's has a tokenizer that decodes to pixels."""

    def make(stage, **arguments):
        objective = make_objective(stage, **arguments)
        if stage == "generator":
            objective.tokenizer = TiTokModel(make_titok_config("vqgan_decoder"))
        return objective

    return make


@pytest.fixture
def with_previews(make_trainer, tmp_path):
    """A trainer that draws at every second step into `previews`."""

    def make(objective, draw, every_steps=2, **arguments):
        trainer = make_trainer(objective, **arguments)
        trainer.add_callback(Previews(trainer, every_steps, tmp_path / "previews", draw))
        return trainer

    return make


def cells(path, num_rows, num_columns):
    """The images of a picture `(rows, columns, 32, 32, 3)`, counted from the right, as names stand
    on the left."""
    pixels = np.asarray(Image.open(path))
    pixels = pixels[:, pixels.shape[1] - num_columns * (SIDE + GAP) :]
    rows = [
        [
            pixels[GAP + row * (SIDE + GAP) :, column * (SIDE + GAP) :][:SIDE:2, :SIDE:2]
            for column in range(num_columns)
        ]
        for row in range(num_rows)
    ]
    return np.array(rows)


def to_uint8(images):
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def draw_reconstructions(images):
    processor = TiTokImageProcessor.from_image_size(32)
    return functools.partial(reconstruction_preview, pixel_values=images, processor=processor)


class TestPictures:
    def test_images_stand_above_what_the_averaged_model_makes_of_them(
        self, make, with_previews, images, tmp_path
    ):
        objective = make("vqgan", ema_decay=0.5)
        with_previews(objective, draw_reconstructions(images), max_steps=5).train()
        assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == [
            "step-0000002.png",
            "step-0000004.png",
        ]
        with_previews(
            objective, draw_reconstructions(images), every_steps=1, max_steps=1, learning_rate=0.0
        ).train()
        drawn = cells(tmp_path / "previews" / "step-0000001.png", 2, 8)
        np.testing.assert_array_equal(drawn[0], to_uint8(images))
        with torch.no_grad():
            made = [
                network.eval()(images).reconstruction
                for network in (objective.model, objective.ema.module)
            ]
        assert np.abs(to_uint8(made[0]) - to_uint8(made[1]).astype(int)).max() > 2
        # the average has gone half of the way to weights that stay as they are
        assert np.abs(drawn[1] - to_uint8(made[1]).astype(int)).max() <= 1

    @pytest.mark.parametrize("stage", ["single_stage", "decoder_finetuning"])
    @pytest.mark.parametrize("quantizer", ["vq", "kl"])
    def test_of_every_tokenizer(self, make, with_previews, images, tmp_path, stage, quantizer):
        objective = make(stage, quantizer=quantizer)
        draw = draw_reconstructions(images)
        with_previews(
            objective, draw, every_steps=1, max_steps=1, learning_rate=0.0, weight_decay=0.0
        ).train()
        drawn = cells(tmp_path / "previews" / "step-0000001.png", 2, 8)
        with torch.no_grad():
            expected = objective.model.eval()(images).reconstruction
        assert np.abs(drawn[1] - to_uint8(expected).astype(int)).max() <= 1

    def test_proxy_codes_are_decoded_by_their_vqgan(self, make, with_previews, images, tmp_path):
        objective = make("warmup")
        draw = draw_reconstructions(images)
        with_previews(
            objective, draw, every_steps=1, max_steps=1, learning_rate=0.0, weight_decay=0.0
        ).train()
        drawn = cells(tmp_path / "previews" / "step-0000001.png", 2, 8)
        with torch.no_grad():
            codes = objective.model.eval()(images).proxy_logits.argmax(-1)
            expected = objective.vqgan.eval().decode_codes(codes).reconstruction
        assert np.abs(drawn[1] - to_uint8(expected).astype(int)).max() <= 1

    def test_samples_stand_in_a_row_a_class(self, make, with_previews, tmp_path):
        objective = make("generator")
        sampling = {
            "num_inference_steps": 3,
            "guidance_scale": 2.0,
            "guidance_schedule": "constant",
        }
        draw = functools.partial(
            sample_preview, class_labels=[7, 3], num_images_per_label=2, seed=5, **sampling
        )
        with_previews(
            objective, draw, every_steps=1, max_steps=1, learning_rate=0.0, weight_decay=0.0
        ).train()
        drawn = cells(tmp_path / "previews" / "step-0000001.png", 2, 2)
        scheduler = MaskGitScheduler(objective.model.config.mask_token_id)
        pipeline = TiTokPipeline(objective.tokenizer.eval(), objective.model.eval(), scheduler)
        noise = torch.Generator().manual_seed(5)
        made = pipeline(
            [7, 3], generator=noise, num_images_per_label=2, output_type="np", **sampling
        ).images
        expected = (made * 255).round().astype(int).reshape(2, 2, 32, 32, 3)
        assert np.abs(drawn - expected).max() <= 1


class TestTraining:
    @pytest.mark.parametrize("stage", ["single_stage", "warmup", "generator"])
    def test_it_goes_on_as_if_nothing_had_been_drawn(
        self, make, with_previews, make_trainer, images, stage
    ):
        draw = functools.partial(sample_preview, class_labels=[0, 1], num_inference_steps=2)
        if stage != "generator":
            draw = draw_reconstructions(images)

        def noisily(objective):
            torch.rand(5)
            return draw(objective)

        states = []
        for draws in (True, False):
            objective = make(
                stage, quantizer="kl" if stage == "single_stage" else "vq", ema_decay=0.9
            )
            options = {"max_steps": 4, "seed": 3}
            trainer = (
                with_previews(objective, noisily, every_steps=1, **options)
                if draws
                else make_trainer(objective, **options)
            )
            trainer.train()
            numbers = (torch.rand(3).tolist(), random.random(), np.random.rand())
            states.append(
                (
                    objective.state_dict(),
                    numbers,
                    [module.training for module in objective.modules()],
                )
            )
        (drawn, *others), (plain, *expected) = states
        assert others == expected
        assert [name for name in drawn if not torch.equal(drawn[name], plain[name])] == []

    def test_the_time_does_not_count(self, make, with_previews, images, clock):
        def slowly(objective):
            clock.now += 1.0
            return reconstruction_preview(objective, images, TiTokImageProcessor())

        slow = Slow(clock, step=0.1)
        trainer = with_previews(make("vqgan"), slowly, every_steps=1, max_steps=3, callbacks=[slow])
        trainer.train()
        rates = [
            entry["images_per_second"] for entry in trainer.state.log_history if "loss" in entry
        ]
        assert rates == pytest.approx([4 / 0.1] * 3)

    @pytest.mark.xdist_group("distributed")
    def test_the_main_process_draws(self, two_processes):
        folder = two_processes / "distributed_previews"
        assert json.loads((folder / "drawn.json").read_text()) == [3, 0]
        assert len(list((folder / "previews").iterdir())) == 3
        states = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("every_steps", [0, -1])
def test_an_interval_that_is_none_is_refused(make, with_previews, images, every_steps):
    with pytest.raises(ValueError, match=f"`every_steps` must be at least 1, got {every_steps}"):
        with_previews(make("vqgan"), draw_reconstructions(images), every_steps=every_steps)


class TestReports:
    def test_tensorboard_gets_the_picture(self, make, with_previews, images, tmp_path, monkeypatch):
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
        draw = draw_reconstructions(images)
        with_previews(make("vqgan"), draw, max_steps=4, report_to="tensorboard").train()
        events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
        pictures = events.Images("preview")
        assert [picture.step for picture in pictures] == [2, 4]
        (tmp_path / "sent.png").write_bytes(pictures[1].encoded_image_string)
        sent, written = (
            np.asarray(Image.open(tmp_path / name))
            for name in ("sent.png", "previews/step-0000004.png")
        )
        np.testing.assert_array_equal(sent, written)

    def test_trackio_gets_the_picture(self, make, with_previews, images, tmp_path, monkeypatch):
        pytest.importorskip("trackio")
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import MEDIA_DIR

        draw = draw_reconstructions(images)
        options = {
            "report_to": "trackio",
            "project": "previews",
            "run_name": "run",
            "trackio_static_space_id": False,
        }
        with_previews(make("vqgan"), draw, max_steps=4, **options).train()
        entries = [
            entry for entry in SQLiteStorage.get_logs("previews", "run") if "preview" in entry
        ]
        assert [entry["train/global_step"] for entry in entries] == [2, 4]
        sent, written = (
            np.asarray(Image.open(path).convert("RGB"))
            for path in (
                MEDIA_DIR / entries[1]["preview"]["file_path"],
                tmp_path / "previews/step-0000004.png",
            )
        )
        np.testing.assert_array_equal(sent, written)
