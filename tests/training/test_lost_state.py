"""A run that goes on from a checkpoint without a state for its optimizer says what is lost."""

import logging

import pytest
import torch

STEPS = {"save_strategy": "steps", "save_steps": 2, "warmup_steps": 4}


def rates(trainer):
    return [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def resumed(make_objective, make_trainer, caplog):
    """The trainer after it has gone on from step 2 to step 6, and what it warned of."""

    def resumed(first, second):
        make_trainer(make_objective("classifier"), max_steps=2, **STEPS, **first).train()
        trainer = make_trainer(make_objective("classifier"), max_steps=6, **STEPS, **second)
        with caplog.at_level(logging.WARNING, "titok_hf.training.trainer"):
            trainer.train(resume_from_checkpoint=True)
        return trainer, [
            record.getMessage()
            for record in caplog.records
            if record.name == "titok_hf.training.trainer"
        ]

    return resumed


def test_without_an_optimizer_the_schedule_goes_on(resumed, make_objective, make_trainer):
    trainer, warnings = resumed({"save_only_model": True}, {"save_only_model": True})
    [warning] = warnings
    assert "checkpoint-2 has no optimizer state, as with `save_only_model`" in warning
    assert "at step 2, but the optimizer's moments start anew" in warning
    alone = make_trainer(make_objective("classifier"), max_steps=6, **STEPS | {"save_steps": 10})
    alone.train()
    assert rates(trainer)[2:] == pytest.approx(rates(alone)[2:])


@pytest.mark.parametrize("other", ["sgd", "adafactor", "rmsprop", "adagrad"])
@pytest.mark.parametrize("turned", [False, True])
def test_another_optimizer_starts_anew(resumed, other, turned):
    names = ("adamw_torch", other)
    first, second = reversed(names) if turned else names
    trainer, [warning] = resumed({"optim": first}, {"optim": second})
    assert "checkpoint-2 has the state of the optimizer" in warning
    assert trainer.state.global_step == 6
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_with_the_same_optimizer_nothing_is_lost(resumed):
    assert resumed({}, {"learning_rate": 2e-3})[1] == []
