"""Counts how often sampling waits for the device: for the images, however many steps there are."""

import pytest
import torch
from device_reads import DeviceReads

from titok_hf import MaskGitModel, MaskGitUViTModel, TiTokPipeline

MASK = 64
POSTPROCESS = ("_to_copy", "titok/image_processing_titok.py:postprocess")
CHECK = ("_to_copy", "modeling/checks.py:check_id_range")


@pytest.fixture(params=["titok", "vqgan"])
def meta_pipeline(request, pipeline, vqgan):
    """On a device that has no values; with each tokenizer of codes."""
    if request.param == "vqgan":
        config = type(pipeline.transformer.config)(
            **{**pipeline.transformer.config.to_dict(), "num_tokens": 16}
        )
        pipeline = TiTokPipeline(vqgan, MaskGitModel(config).eval(), pipeline.scheduler)
        pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("meta")


def reads_of(pipeline, *args, **kwargs):
    with DeviceReads() as reads:
        pipeline(*args, **kwargs)
    return dict(reads.found)


@pytest.mark.parametrize("steps", [2, 8])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "codes"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.5])
def test_a_call_waits_once_for_its_images(meta_pipeline, steps, output_type, guidance_scale):
    found = reads_of(
        meta_pipeline, [3, "one"], steps, guidance_scale=guidance_scale, output_type=output_type
    )
    assert found == ({} if output_type == "codes" else {POSTPROCESS: 1})


@pytest.mark.parametrize("steps", [2, 8])
def test_codes_to_complete_are_read_once(meta_pipeline, steps):
    codes = torch.full((2, meta_pipeline.transformer.config.num_tokens), MASK)
    for given, reads in ((codes, {}), (codes.to("meta"), {CHECK: 1})):
        assert reads_of(meta_pipeline, [3, 1], steps, codes=given, output_type="codes") == reads


@pytest.mark.parametrize("steps", [2, 8])
def test_a_callback_that_changes_nothing_costs_no_read(meta_pipeline, steps):
    def watch(pipeline, step, timestep, tensors):
        assert step == int(timestep)

    found = reads_of(meta_pipeline, 3, steps, callback_on_step_end=watch)
    assert found == {POSTPROCESS: 1}


def test_reads_are_found():
    """A read that the tests above must find."""
    codes = torch.zeros(3, dtype=torch.int64, device="meta")
    with DeviceReads() as reads:
        assert codes.sum().item() == 0
        assert not codes.any()
        assert codes.tolist() == codes.cpu().tolist() == [0, 0, 0]
        torch.zeros(3).copy_(codes)
        for dependent in (
            lambda: codes[codes > 0],
            lambda: codes.nonzero(),
            lambda: codes.masked_select(codes > 0),
            lambda: torch.bincount(codes),
        ):
            with pytest.raises((NotImplementedError, RuntimeError)):
                dependent()
        torch.arange(3)[torch.tensor([True, False, True])].sum().item()  # the host's
    counts = {}
    for (operation, place), count in reads.found.items():
        assert place == "pipelines/test_device_reads.py:test_reads_are_found" or (
            place.endswith(":<lambda>")
        )
        counts[operation] = counts.get(operation, 0) + count
    assert counts == {
        "_local_scalar_dense": 2,
        "_to_copy": 2,
        "copy_": 1,
        "index": 1,
        "nonzero": 1,
        "masked_select": 1,
        "bincount": 1,
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("model_class", [MaskGitModel, MaskGitUViTModel])
def test_a_step_on_cuda_does_not_wait(model_class, generator_config, uvit_config, pipeline):
    config = generator_config if model_class is MaskGitModel else uvit_config
    model, scheduler = model_class(config).eval().to("cuda"), pipeline.scheduler
    codes, labels = torch.full((2, 8), MASK, device="cuda"), torch.tensor([3, 1], device="cuda")
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    scheduler.set_timesteps(4)
    with torch.no_grad():
        model(codes, labels)  # cuBLAS and its kind are made ready, which may wait
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for timestep in scheduler.timesteps:
                logits = model(codes, labels).logits
                codes = scheduler.step(logits, timestep, codes, generator=generators).prev_sample
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert codes.max() < MASK
