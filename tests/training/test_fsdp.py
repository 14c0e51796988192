"""Training under FSDP, as far as two processes on CPUs allow."""

import pytest
import torch
from forked import run

from .sharded_training import STAGES, train

pytestmark = [pytest.mark.xdist_group("distributed"), pytest.mark.slow]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Returns the results of two processes for each stage."""
    folder = tmp_path_factory.mktemp("sharded")
    run("training.sharded_training", folder, num_processes=2)
    return {stage: torch.load(folder / f"{stage}.pt") for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_a_process_holds_half_of_the_weights(sharded, stage):
    assert sharded[stage]["share"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("stage", STAGES)
def test_two_sharded_processes_train_as_one(sharded, stage):
    """Losses, weights, moving averages and what follows the weights without a gradient."""
    objective, losses = train(stage, shard=None)
    assert sharded[stage]["losses"] == pytest.approx(losses, rel=1e-5)
    expected, found = objective.state_dict(), sharded[stage]["state"]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
