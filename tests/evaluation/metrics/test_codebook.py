import numpy as np
import pytest
import torch
from scipy.stats import entropy

from titok_hf.evaluation.metrics import CodebookUsage


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
