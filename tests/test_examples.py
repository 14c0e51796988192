"""The examples run, and the bare loop is the trainer's training."""

import copy
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from scripts import load_script

from titok_hf import MaskGitScheduler, MaskGitUViTConfig, MaskGitUViTModel, TiTokPipeline
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
