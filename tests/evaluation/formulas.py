"""The field's metrics in plain numpy and scipy, as slow as they are short."""

import numpy as np
from scipy.linalg import sqrtm


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """arXiv 1706.08500, as ADM's evaluator computes it."""
    mu, sigma = features.mean(0), np.cov(features.T)
    mu_r, sigma_r = reference.mean(0), np.cov(reference.T)
    return float(
        ((mu - mu_r) ** 2).sum() + np.trace(sigma + sigma_r - 2 * sqrtm(sigma @ sigma_r).real)
    )


def inception_score(logits: np.ndarray, num_splits: int) -> float:
    """arXiv 1606.03498: `exp(mean KL(p(y|x) || p(y)))` of each part, averaged."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    scores = []
    for part in range(num_splits):
        rows = probabilities[
            -(-part * len(logits) // num_splits) : -(-(part + 1) * len(logits) // num_splits)
        ]
        scores.append(np.exp(np.mean([np.sum(p * np.log(p / rows.mean(0))) for p in rows])))
    return float(np.mean(scores))


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row to its k-th neighbour."""
    return np.array(
        [np.partition(np.linalg.norm(features - row, axis=1), k)[k] for row in features]
    )


def precision(features: np.ndarray, reference: np.ndarray, k: int) -> float:
    """arXiv 1904.06991: the share of features that lie within the radius of a reference; recall is
    the reverse."""
    reach = radii(reference, k)
    return float(
        np.mean([(np.linalg.norm(reference - row, axis=1) <= reach).any() for row in features])
    )


def density(features: np.ndarray, reference: np.ndarray, k: int) -> float:
    """arXiv 2002.09797."""
    reach = radii(reference, k)
    return float(
        np.mean([(np.linalg.norm(reference - row, axis=1) < reach).sum() / k for row in features])
    )


def coverage(features: np.ndarray, reference: np.ndarray, k: int) -> float:
    """arXiv 2002.09797."""
    pairs = zip(reference, radii(reference, k), strict=True)
    return float(
        np.mean([np.linalg.norm(features - row, axis=1).min() < reach for row, reach in pairs])
    )


def kernel_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """arXiv 1801.01401, of all rows: the unbiased estimate."""
    n, m, dim = len(features), len(reference), features.shape[1]
    pairs = [
        (features[i] @ features[j] / dim + 1) ** 3 for i in range(n) for j in range(n) if i != j
    ]
    pairs_r = [
        (reference[i] @ reference[j] / dim + 1) ** 3 for i in range(m) for j in range(m) if i != j
    ]
    return float(
        np.mean(pairs) + np.mean(pairs_r) - 2 * ((features @ reference.T / dim + 1) ** 3).mean()
    )
