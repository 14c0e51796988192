"""VA-VAE and LightningDiT as they were released: files of a training run, alone and as a pipeline."""

import json

import pytest
import torch
import yaml
from diffusers import AutoencoderKL

from titok_hf import DiffusersTokenizer, LatentDiTPipeline, LightningDiTConfig, LightningDiTModel
from titok_hf.conversion import convert
from titok_hf.conversion.lightning_dit import OfficialLightningDiT
from titok_hf.conversion.va_vae import OfficialAutoencoderKL
from titok_hf.publish import publish_folder

from .test_parity import Case, assert_near

MEAN, STD = [0.5, -0.5, 0.0, 1.0], [1.0, 2.0, 0.5, 1.5]
# the reference's run configuration, configs/reproductions/*.yaml
RUN = {
    "data": {"image_size": 32, "num_classes": 10},
    "vae": {"model_name": "vavae_f16d32", "downsample_ratio": 4},
    "model": {
        "model_type": "LightningDiT-B/1",
        "use_qknorm": True,
        "use_swiglu": True,
        "use_rope": True,
        "use_rmsnorm": True,
        "wo_shift": False,
        "in_chans": 4,
    },
    "sample": {
        "num_sampling_steps": 5,
        "cfg_scale": 3.0,
        "cfg_interval_start": 0.2,
        "timestep_shift": 0.5,
    },
}


def make_autoencoder():
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        block_out_channels=[32, 32, 64],
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        layers_per_block=1,
        latent_channels=4,
    )
    return autoencoder.eval()


@pytest.fixture
def files(tmp_path):
    """The files of a release: the tokenizer as Lightning saves it, the generator, and statistics."""
    autoencoder = make_autoencoder()
    tensors = OfficialAutoencoderKL().to_official(autoencoder)
    extra = {"loss.logvar": torch.zeros(1), "foundation_model.model.x": torch.zeros(2)}
    torch.save({"state_dict": tensors | extra, "epoch": 3}, tmp_path / "vavae.pt")
    config = LightningDiTConfig.from_size("b/1", in_channels=4, sample_size=8, qk_norm=True)
    config = LightningDiTConfig(
        **{**config.to_dict(), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    )
    torch.manual_seed(1)
    model = LightningDiTModel(config).eval()
    weights = OfficialLightningDiT().to_official(model)
    torch.save({"ema": weights, "opt": {}}, tmp_path / "lightningdit-xl-imagenet256-64ep.pt")
    torch.save(
        {
            name: torch.tensor(values).view(1, 4, 1, 1)
            for name, values in (("mean", MEAN), ("std", STD))
        },
        tmp_path / "latents_stats.pt",
    )
    return tmp_path, autoencoder, model


def test_va_vae_is_the_references():
    case = Case("va_vae")
    official = OfficialAutoencoderKL()
    config = official.our_config(official.config_from_shapes(case.shapes))
    autoencoder = official.model(config, official.to_ours(case.weights(), config)).eval()
    tokenizer = DiffusersTokenizer(autoencoder)
    assert tokenizer.config.num_tokens == 256 and autoencoder.config.latent_channels == 32
    pixel_values = case.uniform("pixel_values", 2, 3, 64, 64)
    with torch.no_grad():
        posterior = autoencoder.encode(2 * pixel_values - 1).latent_dist
        latents = tokenizer.encode(pixel_values).latents
        decoded = autoencoder.decode(case.normal("latents", 2, 32, 4, 4)).sample
    assert_near("mean", posterior.mean, case.reference["mean"], 5e-5)
    assert_near("latents", latents, case.reference["mean"], 5e-5)
    assert_near("log-variance", posterior.logvar, case.reference["logvar"], 5e-5)
    assert_near("decoded", decoded, case.reference["decoded"], 5e-5)


def test_a_va_vae_becomes_an_autoencoder_of_diffusers(files):
    folder, expected, _ = files
    convert(folder / "vavae.pt", folder / "vae", dtype=torch.float32)
    loaded = AutoencoderKL.from_pretrained(folder / "vae")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.config.scaling_factor == 1.0
    pixel_values = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        latents = DiffusersTokenizer.from_pretrained(folder / "vae").encode(pixel_values).latents
        assert torch.equal(latents, expected.encode(2 * pixel_values - 1).latent_dist.mean)
    assert 'DiffusersTokenizer.from_pretrained("vae")' in (folder / "vae/README.md").read_text()


def test_a_configuration_that_is_none_is_refused(files):
    folder, _, _ = files
    (folder / "other.yaml").write_text("training: {seed: 1}\n")
    for name, message in (
        ("vavae.pt", "configuration of a KL autoencoder follows from its weights"),
        (
            "lightningdit-xl-imagenet256-64ep.pt",
            "has a section `model`; this one has only training",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            convert(folder / name, folder / "out", config=folder / "other.yaml")


def test_it_is_published(files, hub):
    folder, expected, _ = files
    convert(folder / "vavae.pt", folder / "vae")
    publish_folder(folder / "vae", "user/vae", revision="first")
    loaded = DiffusersTokenizer.from_pretrained("user/vae", revision="first")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.autoencoder.state_dict()[name], tensor), name
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="truncated or corrupt"):
        publish_folder(folder / "vae", "user/broken")
    with pytest.raises(ValueError, match="autoencoder of diffusers, whose card takes no results"):
        publish_folder(folder / "vae", "user/vae", results=["result.json"])


class TestPipeline:
    def convert(self, folder, generator="lightningdit-xl-imagenet256-64ep.pt", **arguments):
        arguments = {"statistics": folder / "latents_stats.pt", **arguments}
        return convert(
            folder / "vavae.pt", folder / "pipeline", generator=folder / generator, **arguments
        )

    def test_it_samples_as_published(self, files):
        folder, _, model = files
        converted = self.convert(folder)
        loaded = LatentDiTPipeline.from_pretrained(folder / "pipeline")
        for pipeline in (converted, loaded):
            assert pipeline.config.num_inference_steps == 249
            assert pipeline.config.guidance_scale == 10.0
            assert list(pipeline.config.guidance_interval) == [0.1, 1.0]
            assert pipeline.config.guidance_channels == 3
            assert pipeline.config.timestep_shift == 0.3
            assert pipeline.transformer.config.latent_mean == MEAN
            assert pipeline.transformer.config.latent_std == STD
            assert pipeline.label_ids(["goldfish", 999]) == [1, 999]
            pipeline.set_progress_bar_config(disable=True)
        images = [
            pipeline(
                1,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).images
            for pipeline in (converted, loaded)
        ]
        assert torch.equal(*images) and images[0].shape == (1, 3, 32, 32)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.transformer.state_dict()[name], tensor), name

    def test_the_configuration_of_its_run_says_how(self, files):
        folder, _, _ = files
        (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
        torch.manual_seed(2)
        model = LightningDiTModel(
            LightningDiTConfig.from_size(
                "b/1", in_channels=4, sample_size=8, qk_norm=True, num_labels=10
            )
        )
        torch.save({"ema": OfficialLightningDiT().to_official(model)}, folder / "0080000.pt")
        pipeline = self.convert(folder, "0080000.pt", config=folder / "run.yaml")
        assert pipeline.transformer.config.num_labels == 10
        assert pipeline.config.num_inference_steps == 4
        assert list(pipeline.config.guidance_interval) == [0.2, 1.0]
        assert (pipeline.config.guidance_scale, pipeline.config.timestep_shift) == (3.0, 0.5)

    def test_statistics_may_be_ours(self, files):
        folder, _, _ = files
        (folder / "latent_statistics.json").write_text(json.dumps({"mean": MEAN, "std": STD}))
        pipeline = self.convert(folder, statistics=folder / "latent_statistics.json")
        assert pipeline.transformer.config.latent_std == STD

    def test_a_generator_alone_takes_them_too(self, files):
        folder, _, _ = files
        convert(
            folder / "lightningdit-xl-imagenet256-64ep.pt",
            folder / "dit",
            statistics=folder / "latents_stats.pt",
        )
        assert LightningDiTModel.from_pretrained(folder / "dit").config.latent_mean == MEAN

    def test_from_repositories_of_pt_files(self, files, hub):
        folder, _, _ = files
        for repo_id, names in (
            ("hustvl/vavae-imagenet256-f16d32-dinov2", ["vavae.pt", "latents_stats.pt"]),
            ("hustvl/lightningdit-xl-imagenet256-64ep", ["lightningdit-xl-imagenet256-64ep.pt"]),
        ):
            hub.add(repo_id, {name: (folder / name).read_bytes() for name in names})
        vae = "hustvl/vavae-imagenet256-f16d32-dinov2"
        pipeline = convert(
            f"{vae}/vavae.pt",
            folder / "from_hub",
            generator="hustvl/lightningdit-xl-imagenet256-64ep",
            statistics=f"{vae}/latents_stats.pt",
        )
        assert pipeline.config.guidance_scale == 10.0
        card = (folder / "from_hub/README.md").read_text()
        assert "license: mit" in card and "2.11" in card and "0.28" in card
        with pytest.raises(ValueError, match="holds more than one checkpoint: latents_stats"):
            convert(vae, folder / "other")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"statistics": None}, r"needs the statistics of the latents .* \(`--statistics`\)"),
            (
                {"generator": "other.pt"},
                "are known for lightningdit-xl-imagenet256-64ep, .* not for .*other",
            ),
            (
                {"generator": "vavae.pt", "statistics": None},
                "A generator is expected beside the tok",
            ),
            (
                {"generator": "vavae.pt"},
                "`statistics` are for a LightningDiT, got them for a AutoencoderKL",
            ),
            ({"statistics": "vavae.pt"}, "must hold `mean` and `std` of latents"),
            (
                {"statistics": "wrong.json"},
                "`latent_mean` must have a value for each of the 4 channels",
            ),
        ],
    )
    def test_bad_input(self, files, arguments, message):
        folder, _, _ = files
        source = folder / "lightningdit-xl-imagenet256-64ep.pt"
        (folder / "other.pt").write_bytes(source.read_bytes())
        (folder / "wrong.json").write_text(json.dumps({"mean": [0.0], "std": [1.0]}))
        if arguments.get("statistics"):
            arguments = {**arguments, "statistics": folder / arguments["statistics"]}
        with pytest.raises(Exception, match=message):
            self.convert(folder, **arguments)
        assert not (folder / "pipeline").exists()


def test_a_run_without_what_all_released_ones_have_is_refused():
    run = {**RUN, "model": {**RUN["model"], "use_rope": False}}
    with pytest.raises(ValueError, match="A LightningDiT with `use_rope: false` is not known here"):
        OfficialLightningDiT().config_fields(run)
