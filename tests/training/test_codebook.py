import math

import pytest
import torch
from torch import nn

from titok_hf.modeling.quantization import VectorQuantizer
from titok_hf.training import CodebookRevival


@pytest.fixture
def codebook():
    return nn.Embedding(4, 3)


def step_with(revival, step, *batches):
    """An optimizer step after batches of codes, each with random outputs of the encoder, which are
    returned."""
    outputs = [torch.randn(*torch.tensor(codes).shape, 3) for codes in batches]
    for codes, output in zip(batches, outputs, strict=True):
        revival.observe(torch.tensor(codes), output)
    revival.after_optimizer_step(step)
    return torch.cat([output.flatten(0, 1) for output in outputs])


def repeat(revival, codes, times):
    """Optimizer steps, each after one batch of the same codes."""
    for step in range(1, times + 1):
        step_with(revival, step, [codes])


def test_shares_usage_and_perplexity_of_a_step(codebook):
    revival = CodebookRevival(codebook, decay=0.5)
    step_with(revival, 1, [[0, 0], [0, 1]])
    # half of the fair share of 1/4, and half of 3/4, 1/4, 0 and 0
    assert revival.shares.tolist() == [0.5, 0.25, 0.125, 0.125]
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 2 * 0.125 * math.log(8)
    assert float(revival.statistics()["codebook_perplexity"]) == pytest.approx(math.exp(entropy))
    assert float(revival.statistics()["codebook_usage"]) == 1


def test_accumulated_batches_count_as_one(codebook):
    """Three batches of a step weigh as much as one that holds their codes."""
    accumulated, whole = CodebookRevival(codebook, decay=0.5), CodebookRevival(codebook, decay=0.5)
    step_with(accumulated, 1, [[0, 0]], [[0, 1]], [[2, 0]])
    step_with(whole, 1, [[0, 0], [0, 1], [2, 0]])
    assert torch.equal(accumulated.shares, whole.shares)
    torch.testing.assert_close(whole.shares, 0.5 / 4 + 0.5 * torch.tensor([4 / 6, 1 / 6, 1 / 6, 0]))
    step_with(accumulated, 2, [[3, 3]])  # the first step's batches are not counted again
    torch.testing.assert_close(
        accumulated.shares, 0.5 * whole.shares + 0.5 * torch.tensor([0.0, 0, 0, 1])
    )


@pytest.mark.parametrize(("steps", "usage"), [(1, 1.0), (3, 1.0), (4, 0.25)])
def test_codes_under_the_threshold_count_as_unused(codebook, steps, usage):
    """Shares of unused codes halve: 1/32 after three steps is over a tenth of the fair share, 1/64
    under it."""
    revival = CodebookRevival(codebook, interval=100, threshold=0.1, decay=0.5)
    repeat(revival, [2, 2, 2], steps)
    assert revival.shares[0] == 0.25 * 0.5**steps
    assert float(revival.statistics()["codebook_usage"]) == usage


def test_perplexity_is_that_of_one_code_in_the_end(codebook):
    revival = CodebookRevival(codebook, interval=100, decay=0.1)
    repeat(revival, [2, 2, 2], 20)
    assert float(revival.statistics()["codebook_perplexity"]) == pytest.approx(1, abs=1e-4)


def test_dead_codes_become_outputs_of_the_last_step_and_used_codes_do_not_change(codebook):
    before = codebook.weight.detach().clone()
    revival = CodebookRevival(codebook, interval=2, threshold=0.5, decay=0.0)
    step_with(revival, 1, [[1, 3, 3]])
    outputs = step_with(revival, 2, [[0, 2, 2]], [[2, 0, 0]])
    assert torch.equal(codebook.weight[[0, 2]], before[[0, 2]])
    for code in (1, 3):
        assert (codebook.weight[code] == outputs).all(-1).any()
    assert revival.shares.tolist() == [
        0.5,
        0.25,
        0.5,
        0.25,
    ]  # a revived code starts with the fair share


def test_outputs_of_every_batch_of_a_step_are_candidates():
    codebook = nn.Embedding(256, 3)
    outputs = step_with(CodebookRevival(codebook, interval=1, decay=0.0), 1, *[[[0, 0]]] * 4)
    found = (codebook.weight[1:, None] == outputs).all(-1)  # (255, 8)
    assert found.any(1).all() and found.any(0).all()


def test_how_a_step_is_cut_into_batches_changes_nothing(codebook):
    """The seed of the choice is the step, and the outputs are numbered as the images of the step
    are."""
    codes, outputs = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]]), torch.randn(4, 2, 3)
    before, weights = codebook.weight.detach().clone(), []
    for size in (4, 2, 1):
        codebook.weight.data.copy_(before)
        torch.rand(size)  # the global generator plays no part
        revival = CodebookRevival(codebook, interval=7, decay=0.0)
        for batch in range(0, 4, size):
            revival.observe(codes[batch : batch + size], outputs[batch : batch + size])
        revival.after_optimizer_step(7)
        weights.append(codebook.weight.detach().clone())
    assert not torch.equal(weights[0], before)
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_two_revivals_choose_anew():
    codebook = nn.Embedding(256, 3)
    revival = CodebookRevival(codebook, interval=1, decay=0.0)
    codes, outputs, chosen = torch.zeros(1, 64, dtype=torch.long), torch.randn(1, 64, 3), []
    for step in (1, 2):
        revival.observe(codes, outputs)
        revival.after_optimizer_step(step)
        chosen.append(codebook.weight.detach().clone())
    assert not torch.equal(*chosen)


def test_candidates_differ_from_code_to_code():
    codebook = nn.Embedding(256, 3)
    revival = CodebookRevival(codebook, interval=1, decay=0.0)
    revival.observe(torch.zeros(4, 64, dtype=torch.long), torch.randn(4, 64, 3))
    revival.after_optimizer_step(1)
    assert len(codebook.weight[1:].unique(dim=0)) > 100


def test_revived_codes_are_found_by_the_quantizer():
    quantizer = VectorQuantizer(16, 4, commitment_cost=0.25, normalize=True)
    nn.init.normal_(quantizer.codebook.weight)
    revival = CodebookRevival(quantizer.codebook, interval=1, decay=0.0)
    outputs = torch.randn(8, 4, 4) * 0.05 + torch.tensor([1.0, 0, 0, 0])  # all in one direction
    before = quantizer(outputs)
    revival.observe(before.codes, outputs)
    revival.after_optimizer_step(1)
    after = quantizer(outputs)
    assert len(after.codes.unique()) > 2 * len(before.codes.unique())
    assert after.quantizer_loss < before.quantizer_loss


def test_codes_are_revived_every_interval(codebook):
    revival = CodebookRevival(codebook, interval=5, decay=0.1)
    for step in range(1, 16):
        before = codebook.weight.detach().clone()
        step_with(revival, step, [[0, 1, 2]])
        assert torch.equal(codebook.weight, before) == (step % 5 != 0), step


def test_a_codebook_in_use_is_left_alone(codebook):
    before = codebook.weight.detach().clone()
    repeat(CodebookRevival(codebook, interval=1), [0, 1, 2, 3], 50)
    assert torch.equal(codebook.weight, before)


def test_a_code_is_declared_dead_only_after_many_steps_without_it(codebook):
    revival = CodebookRevival(codebook, interval=1, threshold=0.1, decay=0.98)
    before = codebook.weight.detach().clone()
    steps = math.ceil(math.log(0.1) / math.log(0.98))  # until 0.98^n is under a tenth
    repeat(revival, [0, 1, 2], steps - 1)
    assert torch.equal(codebook.weight, before)
    repeat(revival, [0, 1, 2], 1)
    assert torch.equal(codebook.weight[:3], before[:3]) and not torch.equal(
        codebook.weight[3], before[3]
    )


def test_half_precision_codebooks_are_revived_in_their_dtype():
    codebook = nn.Embedding(4, 3, dtype=torch.bfloat16)
    revival = CodebookRevival(codebook, interval=1, decay=0.0)
    outputs = torch.randn(1, 2, 3, dtype=torch.bfloat16)
    revival.observe(torch.tensor([[0, 0]]), outputs)
    revival.after_optimizer_step(1)
    assert codebook.weight.dtype == torch.bfloat16
    assert (codebook.weight[3] == outputs[0]).all(-1).any()


def test_the_state_is_in_the_state_dict_and_the_codebook_is_not(codebook):
    revival = CodebookRevival(codebook, interval=7, decay=0.5)
    repeat(revival, [0, 1, 1], 3)
    state = revival.state_dict()
    assert state.keys() == {"shares"}
    assert list(revival.parameters()) == []

    restored_codebook = nn.Embedding.from_pretrained(codebook.weight.clone(), freeze=False)
    restored = CodebookRevival(restored_codebook, interval=7, decay=0.5)
    restored.load_state_dict(state)
    for each in (revival, restored):
        torch.manual_seed(3)  # the encoder's outputs
        repeat(each, [0, 1, 1], 10)
    assert torch.equal(codebook.weight, restored_codebook.weight)
    assert all(
        torch.equal(tensor, restored.state_dict()[name])
        for name, tensor in revival.state_dict().items()
    )
