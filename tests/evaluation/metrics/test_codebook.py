import numpy as np
import pytest
import torch
from scipy.stats import entropy

from titok_hf.evaluation.metrics import CodebookUsage, Estimate
from titok_hf.evaluation.metrics.gaussian_statistics import block_of


def test_usage_perplexity_and_entropy():
    codes = torch.randint(0, 20, (30, 8)) ** 2 // 20
    usage = CodebookUsage(32)
    for batch in codes.split(7):
        usage.update(batch)
    _, counts = np.unique(codes, return_counts=True)
    measured = usage.compute()
    assert measured["usage"] == len(counts) / 32
    assert measured["entropy"] == pytest.approx(entropy(counts, base=2), rel=1e-12)
    assert measured["perplexity"] == pytest.approx(np.exp(entropy(counts)), rel=1e-12)


def test_even_and_single_codes():
    usage = CodebookUsage(16)
    usage.update(torch.arange(16).view(2, 8))
    assert usage.compute() == pytest.approx({"usage": 1, "perplexity": 16, "entropy": 4})
    usage = CodebookUsage(16)
    usage.update(torch.full((3,), 5, dtype=torch.int32))
    assert usage.compute() == {"usage": 1 / 16, "perplexity": 1, "entropy": 0}


def test_bad_codes_are_refused():
    usage = CodebookUsage(16)
    with pytest.raises(ValueError, match=r"`codes` must be in \[0, 16\), got values from 0 to 16"):
        usage.update(torch.tensor([[0, 16]]))
    with pytest.raises(TypeError, match="int64"):
        usage.update(torch.zeros(2))
    with pytest.raises(ValueError, match="got none"):
        usage.compute()


def test_the_standard_error_is_the_jackknifes():
    """Leaving out one block of images at a time, by hand."""
    codes = torch.randint(0, 12, (60, 5))
    usage = CodebookUsage(16, num_blocks=4)
    for indices in torch.arange(60).split(7):
        usage.update(codes[indices], indices)
    blocks = block_of(torch.arange(60), 4)
    without = []
    for block in range(4):
        _, counts = np.unique(codes[blocks != block], return_counts=True)
        without.append((len(counts) / 16, entropy(counts, base=2), np.exp(entropy(counts))))
    errors = np.sqrt(3 / 4 * ((np.array(without) - np.mean(without, axis=0)) ** 2).sum(0))
    found = usage.estimates()
    assert [
        found[name].standard_error for name in ("usage", "entropy", "perplexity")
    ] == pytest.approx(list(errors))
    assert {name: estimate.value for name, estimate in found.items()} == usage.compute()
    assert found["entropy"].method == "jackknife over 4 blocks of images"


def test_codes_without_indices_have_no_standard_error():
    usage = CodebookUsage(8)
    usage.update(torch.arange(8))
    assert usage.estimates()["usage"] == Estimate(1.0)
