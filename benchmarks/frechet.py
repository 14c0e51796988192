"""Time of a Fréchet distance: the classical route and ours on the same features.

    OMP_NUM_THREADS=1 python benchmarks/frechet.py
    python benchmarks/frechet.py 10000 768

By default, the benchmark uses 50,000 rows of 2048 features and three rounds of both routes in turn.
It prints the median time, the median ratio of the rounds and the difference between the results:
with mean and covariance stored on one side, as FID is usually measured, on both, and on neither.
The classical route is `np.cov` and `scipy.linalg.sqrtm` of the product of the covariances, as in
ADM's evaluator and pytorch-fid. The features are Gaussian in float32. Variances fall with the rank
to the power 1.2, from 1 to 1e-4. Both sides have the same axes, as is nearly true of images and
good samples, and standard deviations that differ by up to 20%.
"""

import sys
import time
from statistics import median

import numpy as np
from scipy.linalg import sqrtm

from titok_hf.evaluation import frechet_distance
from titok_hf.evaluation.metrics import GaussianStatistics


def make_features(num_images: int, axes: np.ndarray, seed: int) -> np.ndarray:
    """Returns float32 features `(n, D)` around 0.4, like those of Inception, on axes `(D, D)`."""
    rng = np.random.default_rng(seed)
    num_features = len(axes)
    deviations = np.arange(1, num_features + 1) ** -0.6 * rng.uniform(0.9, 1.1, num_features)
    mixing = (deviations[:, None] * axes).astype(np.float32)
    return rng.standard_normal((num_images, num_features), np.float32) @ mixing + np.float32(0.4)


def classical_moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(0, dtype=np.float64), np.cov(features, rowvar=False)


def classical_distance(
    mean: np.ndarray,
    covariance: np.ndarray,
    reference_mean: np.ndarray,
    reference_covariance: np.ndarray,
) -> float:
    root = sqrtm(covariance @ reference_covariance).real
    difference = mean - reference_mean
    return float(difference @ difference + np.trace(covariance + reference_covariance - 2 * root))


def main(num_images: int = 50_000, num_features: int = 2048, num_rounds: int = 3) -> None:
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(num_features, num_features)))
    features, reference = (make_features(num_images, axes, seed) for seed in (1, 2))
    moments, reference_moments = classical_moments(features), classical_moments(reference)
    statistics, reference_statistics = (
        GaussianStatistics.from_moments(*side) for side in (moments, reference_moments)
    )
    routes = {
        "one side stored": (
            lambda: classical_distance(*classical_moments(features), *reference_moments),
            lambda: frechet_distance(features, reference_statistics),
        ),
        "both sides stored": (
            lambda: classical_distance(*moments, *reference_moments),
            lambda: frechet_distance(statistics, reference_statistics),
        ),
        "features on both sides": (
            lambda: classical_distance(*classical_moments(features), *classical_moments(reference)),
            lambda: frechet_distance(features, reference),
        ),
    }
    for name, both in routes.items():
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(num_rounds):
            values = []
            for route, times in zip(both, seconds, strict=True):
                start = time.perf_counter()
                values.append(route())
                times.append(time.perf_counter() - start)
        classical, ours = map(median, seconds)
        ratio = median(mine / theirs for theirs, mine in zip(*seconds, strict=True))
        print(
            f"{name}, {num_images} x {num_features}: classical {classical:.2f} s, ours {ours:.2f} "
            f"s, {ratio:.2f} of it; {values[1]:.6f}, relative difference "
            f"{abs(values[1] / values[0] - 1):.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
