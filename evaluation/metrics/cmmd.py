r"""CMMD: the maximum mean discrepancy of CLIP's embeddings (Jayasumana et al. 2024).

"Rethinking FID: Towards a Better Evaluation Metric for Image Generation" (arXiv:2401.09603): with
the kernel k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10, of unit vectors,

    1000 (mean_{i, j} k(x_i, x_j) + mean_{i, j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)).

As in the authors' code an example is paired with itself, too: the biased estimate, never negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.metrics.feature_set import FeatureSet
from evaluation.metrics.metric import Results, metric
from evaluation.metrics.statistics import Statistics

SIGMA = 10.0
SCALE = 1000.0
_BLOCK = 1000  # rows of the kernel's matrix that are held at a time


def cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """The distance above of embeddings [m, d] and [n, d], in float64.

    Raises:
      ValueError: none, other shapes, or values that are not finite.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not (len(x) and len(y)):
        raise ValueError(f"embeddings {x.shape} and {y.shape} have no CMMD")
    x, y = x.astype(np.float64), y.astype(np.float64)
    distance = SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2.0 * _mean_kernel(x, y))
    if not np.isfinite(distance):
        raise ValueError("embeddings are not finite")
    return max(0.0, distance)


def _mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
    """The mean of the kernel over all pairs, block by block."""
    norms, total = (y * y).sum(axis=1), 0.0
    for first in range(0, len(x), _BLOCK):
        rows = x[first : first + _BLOCK]
        squares = (rows * rows).sum(axis=1)[:, None] - 2.0 * (rows @ y.T) + norms
        total += float(np.exp(-squares / (2.0 * SIGMA**2)).sum())
    return total / (len(x) * len(y))


@metric("cmmd", keep=True, real=True, network="clip")
def _cmmd(generated: FeatureSet, real: Statistics, options: Any) -> Results:
    """CLIP's maximum mean discrepancy (Jayasumana et al. 2024, arXiv:2401.09603)."""
    del options
    assert real.features is not None
    return {"cmmd": cmmd(generated.array("pool"), real.features)}
