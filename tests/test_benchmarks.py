"""The benchmarks run; their figures are for people."""

import json
import re

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from scripts import ROOT, load_script
from torch.nn.attention import SDPBackend, sdpa_kernel
from training.tiny_pretraining import make_model

from titok_hf import (
    LatentDiTPipeline,
    LightningDiTConfig,
    LightningDiTModel,
    MaskGitConfig,
    MaskGitModel,
    MaskGitScheduler,
    MaskGitVQGANConfig,
    MaskGitVQGANModel,
    TiTokConfig,
    TiTokModel,
    TiTokPipeline,
    VTPConfig,
    VTPModel,
)
from titok_hf.conversion.convert import write_official
from titok_hf.devices import int8_is_exact
from titok_hf.evaluation import emoji
from titok_hf.training.flop_counter import FlopCounter

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


@pytest.mark.slow
def test_activation_checkpointing(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    load("activation_checkpointing").main("titok-s-128", 1, bf16=True, rounds=1, quick=True)
    printed = capsys.readouterr().out
    for name in ("with", "without"):
        assert re.search(
            rf"^{name} activation checkpointing: [\d.]+ s a step", printed, re.MULTILINE
        )
    assert re.search(r"^[\d.]+ times the time, [\d.]+ times the memory$", printed, re.MULTILINE)


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


@pytest.mark.xdist_group("emoji")
def test_emoji_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(emoji, "NUM_STEPS", 60)
    pipeline = latent_pipeline(tmp_path / "flow", 9)
    load("latent_sampling").emoji_samples(pipeline, scales=(1.0,), each=12, reference=20)
    held_out, samples = capsys.readouterr().out.splitlines()
    distance = float(held_out.removeprefix("held-out pictures: "))
    found = re.fullmatch(r"guidance 1: ([\d.]+), accuracy [\d.]+%, ratio ([\d.]+)", samples)
    assert float(found[1]) > distance  # an untrained network is far from pictures
    assert float(found[2]) > 0


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def small(*parts):
    """Sizes of the parts of a tiny network."""
    return {f"{part}_{name}": value for part in parts for name, value in SMALL.items()}


def save_titok(folder):
    tokenizer = TiTokModel(
        TiTokConfig(
            image_size=256,
            encoder_patch_size=64,
            decoder_patch_size=64,
            num_latent_tokens=4,
            head="pixels",
            **small("encoder", "decoder"),
        )
    )
    generator = MaskGitModel(MaskGitConfig(num_tokens=4, intermediate_size=32, **SMALL))
    scheduler = MaskGitScheduler(mask_token_id=generator.config.mask_token_id)
    TiTokPipeline(tokenizer, generator, scheduler).save_pretrained(folder / "ours")


def save_warmup(folder):
    config = MaskGitVQGANConfig(
        image_size=64,
        hidden_channels=8,
        channel_multipliers=(1, 1),
        norm_num_groups=4,
        latent_channels=8,
        num_res_blocks=1,
        codebook_size=16,
    )
    MaskGitVQGANModel(config).save_pretrained(folder / "vqgan")
    fields = small("encoder", "decoder") | {"vqgan_config": config.to_dict()}
    patches = {"encoder_patch_size": 32, "decoder_patch_size": config.patch_size}
    config = TiTokConfig(image_size=64, num_latent_tokens=4, **patches, **fields)
    TiTokModel(config).save_pretrained(folder / "tokenizer")


def save_vtp(folder):
    config = VTPConfig(text_intermediate_size=32, **small("vision", "decoder", "text"))
    VTPModel(config).save_pretrained(folder / "vtp")


def save_lightning_dit(folder):
    config = LightningDiTConfig(in_channels=32, sample_size=16, num_labels=1000, **SMALL)
    write_official(LightningDiTModel(config), folder, {})
    sample = {"num_sampling_steps": 250, "cfg_scale": 2.0, "cfg_interval_start": 0.1}
    settings = {"sample": sample | {"timestep_shift": 0.3}}
    (folder / "run.yaml").write_text(json.dumps(settings))


@pytest.fixture
def against(monkeypatch):
    """The script that compares with references, whose modules are found beside it, and its `Setup`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = load("against_reference")

    def setup(model, side, folder):
        return script.Setup("", model, side, device="cpu", batch_size=2, folder=str(folder))

    return script, setup


@pytest.mark.parametrize(
    ("model", "save", "sides"),
    [
        ("titok-l-32", save_titok, ("eager", "fast-float32")),
        ("titok-b-64-warmup", save_warmup, ("eager", "eager-bfloat16")),
        ("vtp-b", save_vtp, ("eager", "eager-bfloat16", "fast-bfloat16")),
        ("lightningdit-b-1", save_lightning_dit, ("eager", "fast-float32")),
    ],
)
def test_our_side_of_a_comparison_with_a_reference(against, tmp_path, model, save, sides):
    """Tiny networks stand in for the model."""
    script, setup = against
    save(tmp_path)
    family = script.FAMILIES[model]
    for side in sides:
        parts = family.our_side(setup(model, side, tmp_path))
        assert parts.keys() == family.GFLOP[model].keys()
        outputs = {name: run() for name, run in parts.items()}
        assert all(output is None or output.isfinite().all() for output in outputs.values())


def test_a_side_of_a_comparison_answers(against, tmp_path):
    script, setup = against
    save_warmup(tmp_path)
    side = script.Side(setup("titok-b-64-warmup", "eager", tmp_path))
    first, second = side.seconds("step"), side.seconds("step")
    side.process.terminate()
    loss = side.output("step")
    assert first > 0 and second > 0
    assert script.difference(loss, loss) == "differs by 0e+00 of the largest value"
    assert script.difference(loss * 1.5, loss) == "differs by 5e-01 of the largest value"


def test_operations_of_the_comparison_are_counted(against):
    families = against[0].FAMILIES
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        vtp = VTPModel(VTPConfig())
        with FlopCounter() as counter:
            vtp.encode(torch.rand(1, 3, 256, 256))
        assert round(counter.flops / 1e9, 1) == families["vtp-b"].GFLOP["vtp-b"]["encode"]
        for size in ("b-1", "xl-1"):
            sizes = {"in_channels": 32, "sample_size": 16, "num_labels": 1000}
            flow = LightningDiTModel(
                LightningDiTConfig.from_size(size.replace("-", "/"), **sizes)
            ).eval()
            with FlopCounter() as counter:
                flow(torch.rand(1, 32, 16, 16), torch.rand(1), torch.zeros(1, dtype=torch.long))
            name = f"lightningdit-{size}"
            assert round(counter.flops / 1e9, 1) == families[name].GFLOP[name]["forward"]


@pytest.mark.xdist_group("demo")
def test_app_memory(demo, capsys):
    load("app_memory").main(str(demo[0] / "pipeline"), rounds=1, users=2)
    memory = re.findall(r"^after .*: (\d+) MiB$", capsys.readouterr().out, re.MULTILINE)
    assert len(memory) == 3 and int(memory[2]) - int(memory[0]) < 200


@pytest.mark.xdist_group("demo")
def test_fast_sampling(demo, capsys):
    load("fast_sampling").main(demo[0] / "pipeline", num_images=70)
    printed = capsys.readouterr().out
    dtypes = ("float32", "bfloat16", "int8") if int8_is_exact() else ("float32", "bfloat16")
    for dtype in dtypes[1:]:
        assert re.search(
            rf"^{dtype}: pixels of equal codes, PSNR [\d.]+ dB$", printed, re.MULTILINE
        )
    for dtype in dtypes:
        assert re.search(rf"^{dtype}: Fréchet distance [\d.]+", printed, re.MULTILINE)
