"""A folder keeps every bit of a TiTok pipeline, and one that is not understood is refused."""

import json

import pytest
import torch
from titok_pipelines import LABELS, MASK, changed_config, make_quiet, seeded

from titok_hf import MaskGitModel, MaskGitScheduler, MaskGitUViTModel, TiTokModel, TiTokPipeline


def test_folder_keeps_every_bit(titok, generator, tmp_path):
    scheduler = MaskGitScheduler(MASK, mask_schedule="root", choice_temperature=2.0)
    defaults = {
        "num_inference_steps": 5,
        "guidance_scale": 2.5,
        "guidance_schedule": "power-cosine",
    }
    pipeline = make_quiet(titok, generator, scheduler, **defaults)
    pipeline.save_pretrained(tmp_path)
    loaded = TiTokPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)

    assert (type(loaded.tokenizer), type(loaded.transformer)) == (TiTokModel, MaskGitModel)
    assert {name: loaded.config[name] for name in defaults} == defaults
    assert loaded.scheduler.config.mask_schedule == "root"
    assert loaded.label_ids("seven") == [7]
    before, after = (
        each(LABELS, generator=seeded(0), output_type="pt") for each in (pipeline, loaded)
    )
    assert torch.equal(before.codes, after.codes)
    assert torch.equal(before.images, after.images)


def test_folder_loads_as_bfloat16(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = TiTokPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    images = loaded(LABELS, output_type="pt").images

    assert loaded.tokenizer.dtype == loaded.transformer.dtype == torch.bfloat16
    assert images.dtype == torch.float32
    assert images.isfinite().all()


def test_other_generators_and_tokenizers_fit_too(titok, generator, uvit_config, vqgan, tmp_path):
    uvit = MaskGitUViTModel(uvit_config).eval()
    over_patches = MaskGitModel(changed_config(generator.config, num_tokens=16)).eval()
    for index, (tokenizer, model) in enumerate([(titok, uvit), (vqgan, over_patches)]):
        pipeline = make_quiet(tokenizer, model)
        pipeline.save_pretrained(tmp_path / str(index))
        loaded = TiTokPipeline.from_pretrained(tmp_path / str(index))
        loaded.set_progress_bar_config(disable=True)
        images = pipeline(LABELS, generator=seeded(0), output_type="pt").images
        assert images.shape == (4, 3, 32, 32)
        assert torch.equal(loaded(LABELS, generator=seeded(0), output_type="pt").images, images)


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("model_index.json", {"guidance_interval": 0.1}, "does not know: guidance_interval"),
        (
            "model_index.json",
            {"tokenizer": ["component", "FutureModel"]},
            "does not know: tokenizer=FutureModel",
        ),
        (
            "scheduler/scheduler_config.json",
            {"confidence_power": 2.0},
            "does not know: confidence_power",
        ),
    ],
)
def test_folder_of_a_newer_version_is_refused(pipeline, tmp_path, part, change, sentence):
    pipeline.save_pretrained(tmp_path)
    (tmp_path / part).write_text(json.dumps(json.loads((tmp_path / part).read_text()) | change))
    with pytest.raises(ValueError, match=sentence):
        TiTokPipeline.from_pretrained(tmp_path)


def test_two_checkpoints_of_a_part_are_refused(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    torch.save(pipeline.transformer.state_dict(), tmp_path / "transformer" / "pytorch_model.bin")
    with pytest.raises(
        ValueError,
        match=r"holds more than one checkpoint: model\.safetensors and pytorch_model\.bin",
    ):
        TiTokPipeline.from_pretrained(tmp_path)


def test_saved_folder_does_not_say_where_it_was(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "first")
    TiTokPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for path in (tmp_path / "second").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
