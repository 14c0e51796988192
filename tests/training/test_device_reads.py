"""Between two logs, training waits for no device."""

import pytest
import torch
from device_reads import DeviceReads
from transformers import TrainerCallback

from titok_hf.training import TiTokTrainingArguments

STAGES = ["vqgan", "classifier", "warmup", "decoder_finetuning", "single_stage", "generator"]
STEPS = 3


class TrainingCutShortError(Exception):
    pass


class BetweenLogs(TrainerCallback):
    """Looks for reads from before the first step to the end of the last, and ends the training
    there."""

    def __init__(self):
        self.reads = DeviceReads()

    def on_train_begin(self, args, state, control, **kwargs):
        self.reads.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == STEPS:
            self.reads.__exit__(None, None, None)
            raise TrainingCutShortError


@pytest.fixture
def reads_of(make, make_trainer, monkeypatch):
    """Trains a stage for some optimizer steps on a device that has no values; returns what was
    read back from it.

    `Trainer` itself takes part: data, forward and backward pass, clipping, optimizer, moving
    average, revival of codes, the look for what is not finite, and what transformers and accelerate
    do around them. Left out is what comes with a log, a checkpoint or the end, which reads on
    purpose. The optimizer is the one that is not fused, since fused ones take no meta tensors.
    """

    def train(stage, **arguments):
        objective = make(stage, ema_decay=0.9, **arguments)
        if objective.codebook_revival is not None:
            objective.codebook_revival.interval = 2
        watch = BetweenLogs()
        trainer = make_trainer(
            objective,
            callbacks=[watch],
            max_steps=STEPS,
            logging_steps=2 * STEPS,
            gradient_accumulation_steps=2,
            optim="adamw_torch",
        )
        trainer.accelerator.device_placement = False  # it would move the networks to the CPU
        objective.to("meta")
        monkeypatch.setattr(TiTokTrainingArguments, "device", torch.device("meta"))
        with pytest.raises(TrainingCutShortError):
            trainer.train()
        assert trainer.finiteness.first_steps  # was watched
        return dict(watch.reads.found)

    return train


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_reads_a_value(reads_of, stage):
    assert reads_of(stage) == {}


def test_nor_do_continuous_tokens_and_the_adaptive_weight(reads_of):
    assert reads_of("warmup", quantizer="kl") == {}
    assert reads_of("decoder_finetuning", adaptive_weight=True) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_on_cuda_does_not_wait(make, digit_batch, stage):
    """Forward, backward, clipping and what follows the optimizer; `Trainer` is left out, which
    copies unpinned batches to the device and waits for that."""
    objective = make(stage, ema_decay=0.9).to("cuda").train()
    if objective.codebook_revival is not None:
        objective.codebook_revival.interval = 1
    batch = {
        name: tensor.to("cuda")
        for name, tensor in digit_batch.items()
        if name == "pixel_values" or stage in ("classifier", "generator")
    }

    def step(number):
        objective(**batch, step=number - 1).loss.backward()
        for _, network in objective.networks():
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        objective.after_optimizer_step(number)

    step(1)  # cuBLAS and its kind are made ready, which may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.isfinite().all() for parameter in objective.result.parameters())
