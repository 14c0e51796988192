import numpy as np
import pytest
import torch
from scipy.special import softmax

from titok_hf.evaluation.metrics import InceptionScore


def definition(logits):
    """exp(E KL(p(y|x) || p(y))) of logits (n, K)."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    marginal = probabilities.mean(0)
    return np.exp(np.mean([np.sum(p * (np.log(p) - np.log(marginal))) for p in probabilities]))


def measure(logits, num_splits, order=None, batch_size=16):
    score = InceptionScore(len(logits), logits.shape[1], num_splits)
    order = torch.arange(len(logits)) if order is None else order
    for indices in order.split(batch_size):
        score.update(torch.tensor(logits)[indices], indices)
    return score


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 3, size=(100, 7)).astype(np.float32)


def test_it_is_the_definition_over_consecutive_parts(logits):
    expected = [definition(part) for part in np.split(logits, 5)]
    score = measure(logits, 5)
    np.testing.assert_allclose(score.scores(), expected, rtol=1e-12)
    estimate = score.compute()
    assert estimate.value == pytest.approx(np.mean(expected), rel=1e-12)
    assert estimate.standard_error == pytest.approx(np.std(expected, ddof=1) / 5**0.5, rel=1e-9)
    assert estimate.method == "over 5 parts of the images"


def test_one_part_has_no_standard_error(logits):
    estimate = measure(logits, 1).compute()
    assert estimate.value == pytest.approx(definition(logits), rel=1e-12)
    assert estimate.standard_error is None


def test_order_and_batches_do_not_matter(logits):
    expected = measure(logits, 5).scores()
    torch.testing.assert_close(
        measure(logits, 5, torch.randperm(100), 33).scores(), expected, rtol=1e-12, atol=0
    )


def test_parts_differ_by_one_image_where_they_cannot_be_equal(logits):
    parts = [definition(logits[start:stop]) for start, stop in ((0, 34), (34, 67), (67, 100))]
    np.testing.assert_allclose(measure(logits, 3).scores(), parts, rtol=1e-12)


def test_equal_predictions_score_1_and_certain_even_ones_the_number_of_classes():
    equal = np.tile(np.array([3.0, -1.0, 0.2]), (40, 1))
    assert measure(equal, 4).compute().value == pytest.approx(1, abs=1e-12)
    assert measure(np.zeros((12, 1)), 3).compute().value == 1
    certain = np.tile(1e4 * np.eye(5), (8, 1))
    assert measure(certain, 2).compute().value == pytest.approx(5, rel=1e-12)
    assert measure(np.tile(1e4 * np.eye(5)[:1], (8, 1)), 2).compute().value == 1


def test_bad_input_is_refused(logits):
    with pytest.raises(ValueError, match="got 3 images and 5 parts; choose fewer"):
        InceptionScore(3, 7, 5)
    score = InceptionScore(100, 7, 5)
    with pytest.raises(ValueError, match=r"shape \(B, 7\), got \(7,\)"):
        score.update(torch.zeros(7), torch.arange(7))
    with pytest.raises(
        ValueError, match=r"`indices` must be in \[0, 100\), got values from 98 to 100"
    ):
        score.update(torch.zeros(3, 7), torch.arange(98, 101))
    with pytest.raises(ValueError, match="finite"):
        score.update(torch.full((1, 7), torch.nan), torch.arange(1))
    score.update(torch.tensor(logits[:60]), torch.arange(60))
    with pytest.raises(ValueError, match="Logits of 100 images are expected, got 60"):
        score.compute()


def test_parts_of_a_size_as_adm_cuts_them(logits):
    """`probabilities[i : i + split_size]`, the last part being what is left."""
    score = InceptionScore(len(logits), logits.shape[1], split_size=30)
    for indices in torch.arange(len(logits)).split(16):
        score.update(torch.tensor(logits)[indices], indices)
    expected = [definition(logits[start : start + 30]) for start in range(0, 100, 30)]
    np.testing.assert_allclose(score.scores(), expected, rtol=1e-12)
