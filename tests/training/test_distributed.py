"""Two processes train as one, and go on bit by bit; accumulated batches count as a large one."""

import json
from pathlib import Path

import pytest
import torch
from forked import run

from .distributed_stages import (
    ACCUMULATED,
    MAX_STEPS,
    RESUMED,
    STAGES,
    folders,
    make_objective,
    train,
)

SCRIPT = Path(__file__).with_name("distributed_stages.py")
REVIVING = ("vqgan", "warmup-vq", "single_stage-vq")
ADVERSARIAL = ("decoder_finetuning", "single_stage-vq", "single_stage-kl")
# Not of a step, or a mean over samples of which each process has as many, but not as many masked
# tokens.
APART = {"images_per_second", "peak_share", "epoch", "step", "masked_token_accuracy"}
APART |= {"clip_accuracy", "feature_deviation"}  # among the images of a process
PER_IMAGE = [stage for stage in STAGES if stage != "vtp_pretraining"]

pytestmark = [pytest.mark.xdist_group("distributed"), pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of the runs in two processes: "two", "accumulated", "whole"."""
    root = tmp_path_factory.mktemp("distributed")
    run(SCRIPT, root, "first", num_processes=2)
    return root


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Folder of the runs in one process."""
    root = tmp_path_factory.mktemp("alone")
    for stage, folder in folders(root, STAGES):
        train(folder, make_objective(stage))
    return root


def state_of(folder, rank=0):
    return torch.load(folder / f"{rank}.pt")


def log_of(folder):
    return json.loads((folder / "log.json").read_text())


def tensors(state, name=""):
    """Tensors in nested dictionaries, by their paths."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    return {
        path: tensor
        for key in state
        for path, tensor in tensors(state[key], f"{name}/{key}").items()
    }


def assert_bit_equal(first, second):
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys()
    assert [path for path in first if not torch.equal(first[path], second[path])] == []


def assert_same_run(folder, reference):
    """All that is logged at every step, and all parameters and averages at the end, to 1e-5.

    The gradient of the absolute error jumps where a pixel is right, and with it the adaptive
    weight: by less than 1e-4 for a pixel.
    """
    log, expected = log_of(folder), log_of(reference)
    assert len(log) == len(expected) == MAX_STEPS
    for entry, alone in zip(log, expected, strict=True):
        assert entry.keys() == alone.keys()
        for name in entry.keys() - APART:
            relative = 3e-4 if name == "adaptive_weight" else 1e-5
            assert entry[name] == pytest.approx(alone[name], abs=1e-5, rel=relative), (
                entry["step"],
                name,
            )
    state, alone = (state_of(each)["objective"] for each in (folder, reference))
    assert state.keys() == alone.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, alone[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_as_one(root, one, stage):
    assert_bit_equal(*(state_of(root / "two" / stage, rank) for rank in (0, 1)))
    assert_same_run(root / "two" / stage, one / stage)


@pytest.mark.parametrize("stage", ACCUMULATED)
def test_two_processes_that_accumulate_train_as_one(root, one, stage):
    assert_same_run(root / "accumulated" / stage, one / stage)


@pytest.mark.parametrize("stage", PER_IMAGE)
def test_accumulated_batches_train_as_a_large_one(one, tmp_path, stage):
    whole, accumulated = one / stage, tmp_path / "accumulated"
    if stage in ADVERSARIAL:
        whole = tmp_path / "whole"
        whole.mkdir()
        train(whole, make_objective(stage, linear=True))
    accumulated.mkdir()
    train(accumulated, make_objective(stage, linear=stage in ADVERSARIAL), accumulation=2)
    assert_same_run(accumulated, whole)


@pytest.mark.parametrize("stage", ["decoder_finetuning", "single_stage-kl"])
def test_lecam_and_adaptive_weight_of_accumulated_batches_come_close(one, tmp_path, stage):
    """They are no means over images: of accumulated batches, each has its own."""
    train(tmp_path, make_objective(stage), accumulation=2)
    for entry, alone in zip(log_of(tmp_path), log_of(one / stage), strict=True):
        assert entry["reconstruction_loss"] == pytest.approx(alone["reconstruction_loss"], rel=1e-4)
        assert entry.keys() == alone.keys()
        if "discriminator_loss" in entry:  # from its start
            loss = pytest.approx(alone["discriminator_loss"], rel=1e-3)
            assert entry["discriminator_loss"] == loss
    state, alone = (state_of(each)["objective"] for each in (tmp_path, one / stage))
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, alone[name], atol=1e-3, rtol=0, msg=name)


@pytest.mark.parametrize("stage", REVIVING)
def test_codes_died_and_were_revived(one, stage):
    usage = [entry["codebook_usage"] for entry in log_of(one / stage)]
    for revival in (10, 20):
        assert usage[revival - 2] < usage[revival - 1] == 1  # steps are counted from 1


@pytest.mark.parametrize("stage", ADVERSARIAL)
def test_the_discriminator_started_in_the_middle(one, stage):
    log = log_of(one / stage)
    assert ["discriminator_loss" in entry for entry in log] == [
        step >= 10 for step in range(len(log))
    ]
    rates = [entry["learning_rate_discriminator"] for entry in log]
    assert rates[:11] == [0] * 11 and all(
        rates[11:]
    )  # the first step of its warm-up is one of 0, too
    state = state_of(one / stage)["objective"]
    assert state["real_average"] != 0 and state["fake_average"] != 0


@pytest.fixture(scope="module")
def again(root):
    """Folder of the runs that went on from a checkpoint, in other processes."""
    run(SCRIPT, root, "again", num_processes=2)
    return root / "again"


@pytest.mark.parametrize("stage", RESUMED)
def test_two_processes_go_on_bit_by_bit(root, again, stage):
    """Weights, averages, shares of codes and the optimizer's moments, dropout and the discriminator
    included."""
    for rank in (0, 1):
        assert_bit_equal(state_of(root / "whole" / stage, rank), state_of(again / stage, rank))
    whole, resumed = (
        [{name: entry[name] for name in entry.keys() - APART} for entry in log_of(folder)]
        for folder in (root / "whole" / stage, again / stage)
    )
    assert len(whole) == 10 and resumed == whole
