r"""Kernel distance: the squared maximum mean discrepancy of two sets of features.

With the kernel k(x, y) = (x.y / d + 1)^3 of d features it is the KID of Binkowski et al.
(arXiv:1801.01401), estimated without bias (Gretton et al. 2012) from samples x_1..x_m and y_1..y_n:

    sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (n (n - 1))
        - 2 sum_{i, j} k(x_i, y_j) / (m n).

Unlike a Fréchet distance it has no bias at small sample counts, and may therefore be negative.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from evaluation.metrics.feature_set import FeatureSet
from evaluation.metrics.metric import Results, metric
from evaluation.metrics.statistics import Statistics


class KernelDistance(NamedTuple):
    """Mean over subsets, their standard deviation, how many there are, and samples in each."""

    mean: float
    std: float
    subsets: int
    size: int


def kernel_distance(
    x: np.ndarray, y: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """`squared_mmd` of random subsets of `size` samples each of x [m, d] and y [n, d].

    Raises:
      ValueError: fewer samples than a subset has; other shapes; values that are not finite.
    """
    if not 2 <= size <= min(len(x), len(y)):
        raise ValueError(
            f"KID draws subsets of {size} samples; there are {len(x)} and {len(y)}, and it needs "
            "at least 2"
        )
    rng = np.random.default_rng(seed)
    values = [
        squared_mmd(
            x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)]
        )
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)), subsets, size)


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate above of x [m, d] and y [n, d], in float64.

    Raises:
      ValueError: fewer than two samples, other shapes, or values that are not finite.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features {x.shape} and {y.shape} have no kernel distance")
    x, y = x.astype(np.float64), y.astype(np.float64)
    distance = _mean_of_pairs(x) + _mean_of_pairs(y) - 2.0 * _kernel(x, y).mean()
    if not np.isfinite(distance):
        raise ValueError("features are not finite")
    return float(distance)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1.0
    return base * base * base  # ten times faster than a power


def _mean_of_pairs(x: np.ndarray) -> float:
    """The mean of the kernel over pairs of different samples."""
    values = _kernel(x, x)
    return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))


@metric("kid", keep=True, real=True, least=1000)
def _kid(generated: FeatureSet, real: Statistics, options: Any) -> Results:
    """Kernel Inception distance (Binkowski et al. 2018, arXiv:1801.01401)."""
    assert real.features is not None
    distance = kernel_distance(generated.array("pool"), real.features, seed=options.seed)
    return {
        "kid": distance.mean,
        "kid_std": distance.std,
        "kid_subsets": distance.subsets,
        "kid_subset_size": distance.size,
    }
