"""Tests of common uses of pipelines: numbered classes, compiled parts, variants, threads, offloading, and
arguments of other types."""

import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from titok_hf import MaskGitModel, MaskGitScheduler, MaskGitVQGANModel, TiTokModel, TiTokPipeline
from titok_hf.pipelines.pipeline_titok import guidance_scale_at

LABELS = [3, 1, 4, 1]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def codes_of(pipeline, *args, **kwargs):
    return pipeline(*args, **{"generator": seeded(), **kwargs}, output_type="codes").codes


class TestNumberedClasses:
    """Class folders 1 to 10, and 0 to 11 in alphabetical order."""

    def test_a_number_is_a_name_before_it_is_an_id(self, pipeline):
        pipeline.transformer.config.id2label = {i: str(i + 1) for i in range(10)}
        assert pipeline.label_ids(["1", "10", 1]) == [0, 9, 1]
        assert pipeline.label_ids("0") == [0]  # no name, so an id
        with pytest.raises(ValueError, match="'007' is not among them") as error:
            pipeline.transformer.config.id2label = {0: "a", 1: "b"}
            pipeline.label_ids("007")
        assert "names such as 'a', 'b'" in str(error.value)

    def test_close_names_are_the_candidates(self, pipeline):
        names = [f"class {i}" for i in range(8)] + ["Siamese cat", "Persian cat"]
        pipeline.transformer.config.id2label = dict(enumerate(names))
        with pytest.raises(ValueError, match="names such as 'Siamese cat'"):
            pipeline.label_ids("siamese cat")


class TestCompiled:
    @pytest.mark.parametrize("part", ["transformer", "tokenizer"])
    def test_compiled_parts_save_and_load(self, pipeline, part, tmp_path):
        expected = codes_of(pipeline, LABELS)
        setattr(pipeline, part, torch.compile(getattr(pipeline, part), backend="eager"))
        assert torch.equal(codes_of(pipeline, LABELS), expected)
        pipeline.save_pretrained(tmp_path)
        loaded = TiTokPipeline.from_pretrained(tmp_path)
        assert torch.equal(codes_of(loaded, LABELS), expected)

    def test_compiled_parts_make_a_pipeline(self, titok, generator):
        scheduler = MaskGitScheduler(64)
        expected = codes_of(TiTokPipeline(titok, generator, scheduler), LABELS)
        compiled = (torch.compile(part, backend="eager") for part in (titok, generator))
        assert torch.equal(codes_of(TiTokPipeline(*compiled, scheduler), LABELS), expected)


def test_a_variant_is_saved_and_loaded(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, variant="fp16")
    for part in ("tokenizer", "transformer"):
        assert [file.name for file in (tmp_path / part).glob("*.safetensors")] == [
            "model.fp16.safetensors"
        ]
    loaded = TiTokPipeline.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(codes_of(loaded, LABELS), codes_of(pipeline, LABELS))


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_may_be_a_name(pipeline, tmp_path, name):
    pipeline.save_pretrained(tmp_path)
    loaded = TiTokPipeline.from_pretrained(tmp_path, **{name: "bfloat16"})
    assert loaded.transformer.dtype == loaded.tokenizer.dtype == torch.bfloat16


def test_threads_share_a_pipeline(pipeline):
    """Calls with different numbers of steps run at the same time."""
    calls = [(LABELS, steps, seed) for seed in range(4) for steps in (1, 3, 8)]
    expected = [codes_of(pipeline, labels, s, generator=seeded(i)) for labels, s, i in calls]
    with ThreadPoolExecutor(6) as threads:
        for _ in range(3):
            found = threads.map(
                lambda call: codes_of(pipeline, call[0], call[1], generator=seeded(call[2])), calls
            )
            assert all(map(torch.equal, found, expected))


class TestTraining:
    """Networks in training mode, of which some parts are frozen in evaluation mode."""

    @pytest.fixture
    def training(self, pipeline):
        pipeline.transformer.train()
        pipeline.transformer.bert.encoder.layer[0].eval()
        return pipeline

    def modes(self, pipeline):
        return [module.training for module in pipeline.transformer.modules()]

    def test_a_generator_fixes_the_images(self, training):
        codes = codes_of(training, LABELS)
        assert torch.equal(codes_of(training, LABELS), codes)
        training.transformer.eval()
        assert torch.equal(codes_of(training, LABELS), codes)

    def test_training_goes_on_as_before(self, training):
        before = self.modes(training)
        training(LABELS)
        assert self.modes(training) == before
        with pytest.raises(ValueError, match="`codes` must be in"):
            training(LABELS, callback_on_step_end=lambda *_: {"codes": torch.full((4, 8), 65)})
        assert self.modes(training) == before

    def test_compiled(self, training):
        training.compile(4, "float32", backend=None)
        assert torch.equal(codes_of(training, LABELS), codes_of(training, LABELS))


class TestOffloading:
    """Weights that are on disk until a forward pass needs them."""

    def test_titok(self, titok, pixel_values, tmp_path):
        titok.save_pretrained(tmp_path / "tokenizer")
        offloaded = TiTokModel.from_pretrained(
            tmp_path / "tokenizer", device_map={"": "disk"}, offload_folder=tmp_path / "disk"
        ).eval()
        assert offloaded.quantizer.codebook.weight.is_meta
        codes = titok.encode(pixel_values).codes
        assert torch.equal(offloaded.encode(pixel_values).codes, codes)
        images = offloaded.decode_codes(codes).reconstruction
        assert torch.equal(images, titok.decode_codes(codes).reconstruction)

    def test_vqgan(self, vqgan, pixel_values, tmp_path):
        vqgan.save_pretrained(tmp_path / "vqgan")
        offloaded = MaskGitVQGANModel.from_pretrained(
            tmp_path / "vqgan", device_map={"": "disk"}, offload_folder=tmp_path / "disk"
        ).eval()
        codes = vqgan.eval().encode(pixel_values).codes
        assert torch.equal(offloaded.encode(pixel_values).codes, codes)

    def test_a_pipeline_of_offloaded_parts(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path)
        parts = {
            name: model.from_pretrained(
                tmp_path / name, device_map={"": "disk"}, offload_folder=tmp_path / f"disk-{name}"
            ).eval()
            for name, model in (("tokenizer", TiTokModel), ("transformer", MaskGitModel))
        }
        images = pipeline(LABELS, generator=seeded(), output_type="np").images
        offloaded = TiTokPipeline(**parts, scheduler=pipeline.scheduler)
        assert np.array_equal(
            offloaded(LABELS, generator=seeded(), output_type="np").images, images
        )


class TestArguments:
    def test_integers_of_numpy(self, pipeline):
        expected = codes_of(pipeline, [1, 1], 4)
        found = codes_of(pipeline, np.array(1), np.int64(4), num_images_per_label=np.int64(2))
        assert torch.equal(found, expected)
        labels = np.array([["3", "1"], ["4", "1"]])
        assert torch.equal(codes_of(pipeline, labels), codes_of(pipeline, LABELS))

    def test_a_tuple_of_generators(self, pipeline):
        given = [seeded(i) for i in range(4)]
        expected = codes_of(pipeline, LABELS, generator=given)
        given = tuple(seeded(i) for i in range(4))
        assert torch.equal(codes_of(pipeline, LABELS, generator=given), expected)

    @pytest.mark.parametrize("given", [42, [1, 2, 3, 4], "cpu", [None] * 4])
    def test_what_is_no_generator_is_refused(self, pipeline, given):
        with pytest.raises(TypeError, match=r"`generator` must be a `torch.Generator`, as `torch"):
            pipeline(LABELS, generator=given)

    @pytest.mark.parametrize("scale", [math.nan, math.inf])
    def test_guidance_is_finite(self, pipeline, scale):
        with pytest.raises(
            ValueError, match=f"`guidance_scale` must be a finite number, got {scale}"
        ):
            pipeline(LABELS, guidance_scale=scale)

    @pytest.mark.parametrize("number", [2.0, "2", 0])
    def test_numbers_of_images_are_integers(self, pipeline, number):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            pipeline(LABELS, num_images_per_label=number)

    @pytest.mark.parametrize("steps", [4.0, "4", 0])
    def test_numbers_of_steps_are_integers(self, pipeline, steps):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            pipeline(LABELS, steps)


def test_the_default_dtype_changes_no_image(pipeline):
    expected = codes_of(pipeline, LABELS)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(codes_of(pipeline, LABELS), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("label", ["007", "07", "-1", "٣", "+3", " 3", "10"])
def test_an_id_is_written_as_a_plain_number(pipeline, label):
    """The classes are named zero to nine."""
    assert pipeline.label_ids("7") == [7]
    with pytest.raises(ValueError, match=f"{re.escape(repr(label))} is not among them"):
        pipeline.label_ids(label)


def test_a_callback_reads_the_scheduler(pipeline):
    seen = []
    for steps in (4, 2):
        pipeline(
            LABELS,
            steps,
            callback_on_step_end=lambda pipe, *_: seen.append(
                (pipe.scheduler.num_inference_steps, len(pipe.scheduler.timesteps))
            ),
        )
    assert seen == [(4, 4)] * 4 + [(2, 2)] * 2


def test_truth_values_are_no_numbers(pipeline):
    for name in ("num_inference_steps", "num_images_per_label"):
        with pytest.raises(
            ValueError, match=f"`{name}` must be an integer of at least 1, got True"
        ):
            pipeline(LABELS, **{name: True})


@pytest.mark.parametrize("scale", ["5", None, [1.0, 2.0]])
def test_guidance_is_a_number(scale):
    with pytest.raises(ValueError, match="`guidance_scale` must be a finite number, got "):
        guidance_scale_at(0, 1, scale, "constant")


@pytest.mark.parametrize(
    "defaults",
    [
        {"guidance_scale": math.nan},
        {"guidance_scale": math.inf},
        {"num_inference_steps": 0},
        {"num_inference_steps": 2.5},
    ],
    ids=str,
)
def test_the_defaults_of_a_pipeline_are_checked(titok, generator, defaults):
    with pytest.raises(ValueError, match=f"`{next(iter(defaults))}` must be a"):
        TiTokPipeline(titok, generator, MaskGitScheduler(64), **defaults)


def test_defaults_of_numpy_are_saved(titok, generator, tmp_path):
    defaults = {"num_inference_steps": np.int64(4), "guidance_scale": np.float32(2.5)}
    TiTokPipeline(titok, generator, MaskGitScheduler(64), **defaults).save_pretrained(tmp_path)
    config = TiTokPipeline.from_pretrained(tmp_path).config
    assert (config.num_inference_steps, config.guidance_scale) == (4, 2.5)


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", ["token_temperature", "choice_temperature"])
def test_temperatures_are_finite(name, temperature):
    with pytest.raises(
        ValueError, match=r"Temperatures must not be negative, got .*; each is a finite"
    ):
        MaskGitScheduler(64, **{name: temperature})
