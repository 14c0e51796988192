"""`enable_model_cpu_offload` moves each part to the device before a call uses it, the tokenizer, too."""

import pytest
import torch
from accelerate.hooks import CpuOffload
from latent_pipelines import make_pipeline, make_transformer
from modeling.test_diffusers_tokenizer import make_vq
from titok_pipelines import changed_config, make_quiet, seeded

from titok_hf import MaskGitModel


def of_titok(titok, generator, **_):
    return make_quiet(titok, generator)


def of_vqgan(vqgan, generator_config, **_):
    config = changed_config(generator_config, num_tokens=vqgan.config.num_tokens)
    return make_quiet(vqgan, MaskGitModel(config).eval())


def of_vtp(**_):
    return make_pipeline(guidance_transformer=make_transformer(1))


def of_diffusers(**_):
    return make_pipeline(tokenizer=make_vq(latent_channels=4, vq_embed_dim=4))


@pytest.mark.parametrize("make", [of_titok, of_vqgan, of_vtp, of_diffusers])
def test_the_tokenizer_is_moved_after_the_transformer(
    make, titok, vqgan, generator, generator_config, monkeypatch
):
    parts = {"titok": titok, "vqgan": vqgan, "generator": generator}
    pipeline = make(**parts, generator_config=generator_config)
    expected = pipeline(1, 3, generator=seeded(0), output_type="pt").images
    moved, pre_forward = [], CpuOffload.pre_forward

    def recording(hook, module, *args, **kwargs):
        moved.append(next(name for name, part in pipeline.components.items() if part is module))
        return pre_forward(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", recording)
    pipeline.enable_model_cpu_offload(device="cpu")
    images = pipeline(1, 3, generator=seeded(0), output_type="pt").images
    assert torch.equal(images, expected)
    assert moved == ["transformer"] * 3 + ["tokenizer"]
