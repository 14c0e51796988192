"""Half precision, and memory saved by computing activations again."""

import math

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

pytestmark = pytest.mark.slow

CONVOLUTIONAL = ("vqgan", "classifier")
TRANSFORMERS = ("warmup", "decoder_finetuning", "single_stage", "generator")


def losses_of(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("stage", [*CONVOLUTIONAL, *TRANSFORMERS])
def test_bfloat16_comes_close(make, make_trainer, stage):
    """Weights stay in float32."""
    exact = losses_of(make_trainer(make(stage), max_steps=2))
    trainer = make_trainer(make(stage), max_steps=2, bf16=True)
    losses = losses_of(trainer)
    assert losses != exact and losses == pytest.approx(exact, rel=0.02)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("stage", TRANSFORMERS)
def test_recomputed_activations_change_nothing(make, make_trainer, stage, bf16):
    """Dropout included, which the generator has."""
    kept = make_trainer(make(stage), max_steps=2, bf16=bf16)
    recomputed = make_trainer(make(stage), max_steps=2, bf16=bf16, activation_checkpointing=True)
    calls = []
    blocks = [
        module
        for module in recomputed.model.model.modules()
        if hasattr(module, "gradient_checkpointing")
    ]
    layer = next(module for module in blocks[-1].modules() if isinstance(module, nn.Linear))
    layer.register_forward_hook(lambda *_: calls.append(1))
    assert losses_of(recomputed) == pytest.approx(losses_of(kept), rel=1e-6)
    assert len(calls) == 4  # in each forward pass, and again in the backward pass


@pytest.mark.parametrize("stage", CONVOLUTIONAL)
def test_convolutional_networks_keep_theirs(make, make_trainer, stage):
    trainer = make_trainer(make(stage), max_steps=2, activation_checkpointing=True)
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        trainer.train()


def test_compiled_blocks_change_little(make, make_trainer, tmp_path, monkeypatch):
    """One compilation serves all blocks; the adversarial losses, where there are any, stay outside."""
    # the shared cache may hold code for other vector instructions than this process uses
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    plain = losses_of(make_trainer(make("warmup"), max_steps=4))
    counters.clear()
    trainer = make_trainer(make("warmup"), max_steps=4, torch_compile=True)
    assert losses_of(trainer) == pytest.approx(plain, rel=1e-4)
    assert counters["frames"]["ok"] >= 1 and not counters["graph_break"]


@pytest.mark.parametrize("stage", [*CONVOLUTIONAL, *TRANSFORMERS])
def test_another_default_dtype_trains(make, make_trainer, stage):
    """New networks have it; loaded ones keep theirs."""
    torch.set_default_dtype(torch.float64)
    try:
        trainer = make_trainer(make(stage), max_steps=2)
        losses = losses_of(trainer)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert torch.float64 in {parameter.dtype for parameter in trainer.model.parameters()}
