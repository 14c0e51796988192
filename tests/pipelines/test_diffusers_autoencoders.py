"""Autoencoders of diffusers as the tokenizers of pipelines."""

import pytest
import torch
from diffusers import UNet2DModel
from latent_pipelines import make_pipeline, make_transformer
from modeling.test_diffusers_tokenizer import FAMILIES, make_vq
from pipelines.test_compilation import compiled_copy
from titok_pipelines import changed_config, codes_of, make_quiet, seeded

from titok_hf import (
    DiffusersTokenizer,
    LatentDiTPipeline,
    MaskGitModel,
    MaskGitScheduler,
    TiTokPipeline,
)

CHANNELS = {"rae": 64, "vq": 5}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def autoencoder(family):
    return FAMILIES[family]().eval()


def fitting_transformer(channels):
    statistics = {"latent_mean": [0.0] * channels, "latent_std": [1.0] * channels}
    return make_transformer(in_channels=channels, **statistics)


@pytest.fixture
def flow(autoencoder, family):
    return make_pipeline(
        fitting_transformer(CHANNELS.get(family, 4)), autoencoder, num_inference_steps=2
    )


class TestLatentDiT:
    def test_each_family_decodes(self, flow, autoencoder):
        output = flow(1, output_type="pt")
        with torch.no_grad():
            decoded = DiffusersTokenizer(autoencoder).decode(output.latents).reconstruction
        torch.testing.assert_close(output.images, decoded.clamp(0, 1))

    def test_other_channels_are_refused(self, autoencoder, family):
        channels = CHANNELS.get(family, 4)
        message = rf"latents of shape \(2, 4, 4\), the tokenizer decodes \({channels}, 4, 4\)"
        with pytest.raises(ValueError, match=message):
            make_pipeline(fitting_transformer(2), autoencoder)

    def test_copies_have_no_encoder(self, flow):
        expected = flow(1, generator=seeded(0), output_type="pt").images
        flow.compile(2, "float32", backend=None)
        images = flow(1, generator=seeded(0), output_type="pt").images
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
        names = [name for name, _ in compiled_copy(flow._compiled["tokenizer"]).named_modules()]
        assert "autoencoder.decoder" in names
        assert not {"autoencoder.encoder", "autoencoder.quant_conv"} & {*names}


@pytest.mark.parametrize("family", ["kl"], indirect=True)
class TestCompiled:
    def test_a_pipeline(self, flow):
        expected = flow(1, generator=seeded(0), output_type="pt").images
        flow.compile(2, "float32", backend="eager")
        images = flow(1, generator=seeded(0), output_type="pt").images
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)

    def test_an_autoencoder(self, flow, autoencoder):
        expected = flow(1, generator=seeded(0), num_inference_steps=2, output_type="pt").images
        compiled = torch.compile(autoencoder, backend="eager")
        other = LatentDiTPipeline(compiled, flow.transformer, flow.scheduler)
        images = other(1, generator=seeded(0), num_inference_steps=2, output_type="pt").images
        assert torch.equal(images, expected)


def test_what_is_no_autoencoder_is_refused():
    unet = UNet2DModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )  # fmt: skip
    with pytest.raises(TypeError, match="An image autoencoder of diffusers is expected"):
        make_pipeline(tokenizer=unet)


class TestTiTok:
    """Codes of a `VQModel`."""

    @pytest.fixture
    def tokenizer(self):
        return DiffusersTokenizer(make_vq(), 8).eval()  # 16 codes in 4 rows

    @pytest.fixture
    def generator(self, generator_config):
        return MaskGitModel(
            changed_config(generator_config, codebook_size=16, num_tokens=16)
        ).eval()

    @pytest.fixture
    def pipeline(self, tokenizer, generator):
        return make_quiet(tokenizer, generator, MaskGitScheduler(16))

    def test_it_decodes_what_it_samples(self, pipeline, tokenizer):
        output = pipeline([1, 2], output_type="pt")
        with torch.no_grad():
            decoded = tokenizer.decode_codes(output.codes).reconstruction
        assert torch.equal(output.images, decoded.clamp(0, 1))

    def test_the_tokenizer_is_passed_to_a_saved_pipeline(self, pipeline, tokenizer, tmp_path):
        pipeline.save_pretrained(tmp_path)
        loaded = TiTokPipeline.from_pretrained(tmp_path, tokenizer=tokenizer)
        codes, expected = (codes_of(each, 1, generator=seeded(0)) for each in (loaded, pipeline))
        assert torch.equal(codes, expected)

    def test_a_tokenizer_without_code_latents_is_refused(self, tokenizer, generator):
        with pytest.raises(TypeError, match=r"A tokenizer with `code_latents` .* got a VQModel"):
            make_quiet(tokenizer.autoencoder, generator, MaskGitScheduler(16))
