"""The benchmarks run; their figures are for people."""

import re

import datasets
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from scripts import load_script
from training.tiny_pretraining import make_model

from titok_hf import (
    LatentDiTPipeline,
    LightningDiTConfig,
    LightningDiTModel,
    MaskGitConfig,
    MaskGitModel,
    MaskGitScheduler,
    TiTokConfig,
    TiTokModel,
    TiTokPipeline,
)
from titok_hf.evaluation import emoji

pytestmark = pytest.mark.slow


def load(name):
    return load_script(f"benchmarks/{name}.py")


@pytest.mark.xdist_group("demo")
def test_precision(demo, capsys):
    load("precision").main(demo[0] / "tokenizer")
    printed = capsys.readouterr().out
    assert (
        len(
            re.findall(r"^(bfloat16|float16): [\d.]+% of the codes the same", printed, re.MULTILINE)
        )
        == 2
    )


def test_checkpoint_of_the_memory_benchmark_loads(tmp_path):
    size = load("loading_memory").write_checkpoint(tmp_path, "titok-s-128")
    model = TiTokModel.from_pretrained(tmp_path / "official")
    assert size == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert (tmp_path / "tokenizer_titok_l32.bin").stat().st_size > size


def test_frechet(capsys):
    load("frechet").main(300, 8)
    printed = capsys.readouterr().out
    differences = re.findall(
        r"classical [\d.]+ s, ours [\d.]+ s, .* relative difference ([\d.e+-]+)$",
        printed,
        re.MULTILINE,
    )
    assert len(differences) == 3
    assert max(map(float, differences)) < 1e-8


def test_training_overhead(capsys):
    load("training_overhead").main(
        images=8, image_size=32, batch_size=2, width=64, depth=1, steps=1, rounds=1
    )
    printed = capsys.readouterr().out
    stages = re.findall(r"^(\w+): bare loop .* ratio [\d.]+$", printed, re.MULTILINE)
    expected = ["vqgan", "warmup", "decoder_finetuning", "single_stage", "generator"]
    assert stages == [*expected, "vtp_pretraining", "latent_generator"]


def test_data_loading(capsys):
    load("data_loading").main(quick=True)
    printed = capsys.readouterr().out
    assert len(re.findall(r"images/s, [\d.]+ of plain$", printed, re.MULTILINE)) == 6


def test_tokenizing(capsys):
    load("tokenizing").main(quick=True)
    assert re.search(r"reaches [\d.]+% of the bare encoder's images/s", capsys.readouterr().out)


def latent_pipeline(folder, labels, **arguments):
    """A pipeline of latents that was never trained, with 32x32 images."""
    config = LightningDiTConfig(
        in_channels=4,
        sample_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label=dict(enumerate(map(str, range(labels)))),
        latent_mean=[0.0] * 4,
        latent_std=[1.0] * 4,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = LatentDiTPipeline(
        make_model(has_text=False), LightningDiTModel(config), scheduler, **arguments
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.xdist_group("demo")
def test_sampling_time_of_a_flow(demo, tmp_path, capsys):
    flow = latent_pipeline(tmp_path / "flow", 10, num_inference_steps=2)
    load("latent_sampling").sampling_time(demo[0] / "pipeline", flow, rounds=1, each=1)
    printed = capsys.readouterr().out
    assert re.findall(r"^(.*): [\d.]+ of the masked", printed, re.MULTILINE) == [
        "flow",
        "flow with 20 steps",
    ]


def test_emoji_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(emoji, "NUM_STEPS", 60)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    pipeline = latent_pipeline(tmp_path / "flow", 9)
    load("latent_sampling").emoji_samples(pipeline, scales=(1.0,), each=12, reference=20)
    held_out, samples = capsys.readouterr().out.splitlines()
    distance = float(held_out.removeprefix("held-out pictures: "))
    found = re.fullmatch(r"guidance 1: ([\d.]+), accuracy [\d.]+%, ratio ([\d.]+)", samples)
    assert float(found[1]) > distance  # an untrained network is far from pictures
    assert float(found[2]) > 0


def test_our_side_of_the_comparison_with_the_reference(tmp_path):
    """Tiny networks stand in for TiTok-L-32."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    fields = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in sizes.items()}
    tokenizer = TiTokModel(
        TiTokConfig(
            image_size=256,
            encoder_patch_size=64,
            decoder_patch_size=64,
            num_latent_tokens=4,
            head="pixels",
            **fields,
        )
    )
    generator = MaskGitModel(MaskGitConfig(num_tokens=4, intermediate_size=32, **sizes))
    scheduler = MaskGitScheduler(mask_token_id=generator.config.mask_token_id)
    TiTokPipeline(tokenizer, generator, scheduler).save_pretrained(tmp_path / "ours")
    setup = {"model": "titok-l-32", "device": "cpu", "batch_size": 2, "dtype": "float32"}
    for side in ("eager", "fast"):
        timed = load("against_reference").our_side(setup | {"folder": tmp_path, "side": side})
        assert timed.keys() == {"sample", "decode", "encode"}
        for run in timed.values():
            run()


@pytest.mark.xdist_group("demo")
def test_fast_sampling(demo, capsys):
    load("fast_sampling").main(demo[0] / "pipeline", num_images=70)
    printed = capsys.readouterr().out
    assert re.search(r"^pixels of equal codes: PSNR [\d.]+ dB$", printed, re.MULTILINE)
    for dtype in ("float32", "bfloat16"):
        assert re.search(rf"^{dtype}: Fréchet distance [\d.]+", printed, re.MULTILINE)
