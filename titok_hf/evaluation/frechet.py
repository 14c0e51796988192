"""The Fréchet distance between two sets of features."""

import numpy as np


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features, as in FID (arXiv 1706.08500).

    `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` in float64. The trace of the root is the sum of the roots of the
    eigenvalues of the symmetric `C1^(1/2) C2 C1^(1/2)`, so singular covariances give no imaginary part.

    Args:
        features, reference: `(n, D)` and `(m, D)`, at least two rows each.

    Raises:
        ValueError: If the shapes do not match, rows are too few, or values are not finite.
    """
    features, reference = np.asarray(features, np.float64), np.asarray(reference, np.float64)
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(f"Features must have shapes (n, D) and (m, D), got {features.shape} and {reference.shape}.")
    if min(len(features), len(reference)) < 2:
        raise ValueError(f"At least two rows of features are needed, got {len(features)} and {len(reference)}.")
    if not (np.isfinite(features).all() and np.isfinite(reference).all()):
        raise ValueError("Features must be finite, got NaN or infinity.")
    mean_difference = features.mean(0) - reference.mean(0)  # (D,)
    covariance = np.atleast_2d(np.cov(features, rowvar=False))  # (D, D)
    reference_covariance = np.atleast_2d(np.cov(reference, rowvar=False))
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    root = (eigenvectors * np.sqrt(eigenvalues.clip(0))) @ eigenvectors.T
    product_eigenvalues = np.linalg.eigvalsh(root @ reference_covariance @ root)
    rounding = np.finfo(np.float64).eps * len(root) * product_eigenvalues.max()  # roots would magnify it
    trace_of_root = np.sqrt(product_eigenvalues[product_eigenvalues > rounding]).sum()
    return float(
        mean_difference @ mean_difference + np.trace(covariance) + np.trace(reference_covariance) - 2 * trace_of_root
    )
