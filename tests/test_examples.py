"""The examples do what they say: they improve, agree with the trainer, and pass on their results."""

import copy
import importlib
import math
import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from fixtures.extractors.networks import lpips_heads, vgg16_weights
from nbclient import NotebookClient
from PIL import Image, ImageOps
from scripts import load_script

from titok_hf import (
    MaskGitScheduler,
    MaskGitUViTConfig,
    MaskGitUViTModel,
    TiTokImageProcessor,
    TiTokPipeline,
)
from titok_hf.data import open_images
from titok_hf.evaluation import Evaluation, reconstruct
from titok_hf.modeling.auto import TOKENIZERS, load_tokenizer
from titok_hf.perceptual.published_weights import LPIPS_HEADS, VGG16
from titok_hf.training import MaskedTokenObjective, TiTokTrainer, TiTokTrainingArguments

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    return load_script(f"examples/{name}.py")


class RecordingObjective(MaskedTokenObjective):
    """Keeps the batches that it gets."""

    def forward(self, class_labels, codes, draws, step=0):
        self.batches.append((codes, class_labels, draws))
        return super().forward(class_labels, None, codes, draws, step)


def test_the_bare_loop_gives_the_trainers_weights(titok, tmp_path):
    config = MaskGitUViTConfig(
        codebook_size=64,
        num_tokens=8,
        num_labels=10,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        initializer_range=0.1,
    )
    generator = MaskGitUViTModel(config)
    scheduler = MaskGitScheduler(mask_token_id=config.mask_token_id)
    beginning = copy.deepcopy(generator)
    objective = RecordingObjective(generator, titok, scheduler, ema_decay=0.9)
    objective.batches = []
    arguments = TiTokTrainingArguments(
        str(tmp_path / "run"),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        weight_decay=0.03,
        adam_beta2=0.96,
        max_grad_norm=1.0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    rows = [{"codes": torch.randint(64, (8,)), "class_labels": i % 10} for i in range(20)]
    trainer = TiTokTrainer(objective, arguments, collate, train_dataset=rows)
    trainer.train()
    assert len(objective.batches) == 12
    bare = load("bare_loop").train(
        beginning, scheduler, objective.batches, 12, warmup_steps=3, ema_decay=0.9
    )
    for name, weight in trainer.result().state_dict().items():
        torch.testing.assert_close(bare.state_dict()[name], weight, atol=1e-7, rtol=0, msg=name)


def collate(rows):
    return {
        "codes": torch.stack([row["codes"] for row in rows]),
        "class_labels": torch.tensor([row["class_labels"] for row in rows]),
    }


@pytest.mark.xdist_group("demo")
def test_the_bare_loop_as_a_program(demo, tmp_path, monkeypatch):
    arguments = [str(demo[0] / "tokenizer"), str(tmp_path / "out"), "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["bare_loop.py", *arguments])
    load("bare_loop").main()
    pipeline = TiTokPipeline.from_pretrained(tmp_path / "out")
    assert pipeline("seven").images[0].size == (32, 32)


@pytest.mark.xdist_group("demo")
def test_the_tour(demo, tmp_path):
    """The notebook runs beside the folder of a demo, and its stored pictures are small."""
    path = EXAMPLES / "tour.ipynb"
    assert path.stat().st_size < 300_000
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs and "data" in cell.outputs[-1] for cell in code)
    # the miniature demo has 4 tokens instead of 16
    for cell in code:
        cell.source = cell.source.replace("maps[:8]", "maps[:2]").replace("maps[8:]", "maps[2:]")
        cell.source = cell.source.replace("range(8)", "range(2)")
    (tmp_path / "demo").symlink_to(demo[0])
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=place).execute()


@pytest.fixture(scope="module")
def negatives(tmp_path_factory):
    """A folder of digits in black on white; of the three classes, two have the names of the digits."""
    folder = tmp_path_factory.mktemp("negatives")
    for i, row in enumerate(open_images("digits").dataset("train").select(range(300))):
        if row["label"] < 3:
            path = folder / ("zero", "one", "deux")[row["label"]] / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            ImageOps.invert(row["image"]).save(path)
    return folder


@pytest.fixture
def fine_tune(monkeypatch, capsys):
    """Runs the example with steps of the tokenizer and the generator, and returns what it prints."""

    def run(images, pipeline, output, *options, steps):
        places = [str(place) for place in (images, pipeline, output)]
        steps = [f"--tokenizer-steps={steps}", f"--generator-steps={steps}", "--batch-size=8"]
        monkeypatch.setattr(sys, "argv", ["fine_tuning.py", *places, *steps, *options])
        load("fine_tuning").main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def untrained(vqgan, uvit_config, tmp_path):
    """The folder of a pipeline without trained weights."""
    uvit_config.num_tokens = vqgan.config.num_tokens
    scheduler = MaskGitScheduler(mask_token_id=uvit_config.mask_token_id)
    generator = MaskGitUViTModel(uvit_config)
    pipeline = TiTokPipeline(vqgan, generator, scheduler, num_inference_steps=3)
    pipeline.save_pretrained(tmp_path / "untrained")
    return tmp_path / "untrained"


def test_fine_tuning_improves_on_held_out_images(fine_tune, untrained, negatives, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    fine_tune("digits", untrained, old, "--learning-rate=3e-3", steps=100)
    printed = fine_tune(negatives, old / "pipeline", new, "--learning-rate=3e-3", steps=100)

    held_out = open_images(str(negatives)).dataset("test")["image"][:]
    images = TiTokImageProcessor.from_image_size(32)(held_out, return_tensors="pt")["pixel_values"]
    pipelines = [TiTokPipeline.from_pretrained(run / "pipeline") for run in (old, new)]
    before, after = (
        (reconstruct(pipeline.tokenizer, images).clamp(0, 1) - images).square().mean().item()
        for pipeline in pipelines
    )
    assert after < images.var(0).mean() / 1.5  # the error of the mean image
    assert after < before / 3
    lines = [line for line in printed.splitlines() if line.startswith(("Error", "Loss"))]
    errors, losses = [[float(x) for x in re.findall(r"\d+\.\d+", line)] for line in lines]
    assert errors == pytest.approx([before, after], abs=2e-3)
    assert losses[1] < losses[0]

    pipeline = pipelines[1]
    assert [*pipeline.transformer.config.id2label.values()] == ["deux", "one", "zero"]
    assert pipeline("deux").images[0].size == (32, 32)
    assert pipeline.config.num_inference_steps == 3  # as the pretrained one
    assert pipeline.tokenizer.provenance["training_data"] == negatives.name
    assert Image.open(new / "reconstructions.png").height == 3 * (64 + 4) + 4
    assert Image.open(new / "samples.png").height == 3 * (64 + 4) + 4


def test_fine_tuning_with_a_perceptual_loss(fine_tune, untrained, negatives, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(vgg16_weights(), cache / VGG16.names[0])
    torch.save(lpips_heads(), cache / LPIPS_HEADS.names[0])
    printed = fine_tune(negatives, untrained, tmp_path / "new", "--lpips", steps=1)
    assert "perceptual_loss" in printed


@pytest.fixture
def custom_tokenizer(monkeypatch):
    """The example as a module, since a saved pipeline imports it by its name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module("custom_tokenizer")
    del sys.modules["custom_tokenizer"], TOKENIZERS["patch_fsq"]


def test_a_tokenizer_of_ones_own(custom_tokenizer, tmp_path, monkeypatch):
    steps = ["--tokenizer-steps", "200", "--generator-steps", "20", "--num-samples", "70"]
    monkeypatch.setattr(sys, "argv", ["custom_tokenizer.py", str(tmp_path), *steps])
    custom_tokenizer.main()
    tokenizer, processor = load_tokenizer(tmp_path / "tokenizer")
    test = open_images("digits").dataset("test")["image"][:]
    images = processor(test, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        encoded = tokenizer.encode(images)
        decoded = tokenizer.decode(encoded.latents).reconstruction
        from_codes = tokenizer.decode_codes(encoded.codes).reconstruction
    torch.testing.assert_close(from_codes, decoded)

    measured = Evaluation.load(tmp_path / "reconstruction.json").metrics
    error = (decoded.clamp(0, 1) - images).square().mean().item()
    assert measured["mean_squared_error"].value == pytest.approx(error, rel=0.05)
    assert error < images.var(0).mean() / 2  # the error of the mean image
    stored = open_images(str(tmp_path / "tokens"))["test"]
    assert stored[5].tokens.tolist() == encoded.codes[5].tolist()

    pipeline = TiTokPipeline.from_pretrained(tmp_path / "pipeline")
    assert type(pipeline.tokenizer) is custom_tokenizer.PatchFSQModel
    output = pipeline(["3", 7], output_type="pt")
    assert output.images.shape == (2, 3, 32, 32) and output.codes.shape == (2, 16)
    with torch.no_grad():
        from_codes = tokenizer.decode_codes(output.codes).reconstruction
    torch.testing.assert_close(output.images, from_codes.clamp(0, 1))
    generated = Evaluation.load(tmp_path / "generation.json").metrics
    assert math.isfinite(generated["frechet_distance"].value)
