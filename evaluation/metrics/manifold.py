"""Precision and recall, density and coverage: where samples lie, and where the data lie.

Each set stands for the balls around its members that reach to their k-th nearest neighbour in the
same set. From these come two pairs of numbers:

* precision, the share of generated images in a ball of a real one, and recall, the share of real
  images in a ball of a generated one (Kynkäänniemi et al., arXiv:1904.06991; k = 3);
* density, the number of balls of real images around a generated one divided by k, and coverage, the
  share of real images in whose ball there is a generated one (Naeem et al., arXiv:2002.09797;
  k = 5). Neither trusts the balls of generated images, and outliers weigh less in density than in
  precision; it may exceed 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from evaluation.metrics.feature_set import FeatureSet
from evaluation.metrics.metric import Results, metric
from evaluation.metrics.statistics import Statistics

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
_BLOCK = 1000  # rows of distances that are held at a time


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """A density, around 1 for samples like the data, and a share in [0, 1]."""

    density: float
    coverage: float


def precision_recall(
    real: np.ndarray, generated: np.ndarray, k: int = PRECISION_NEIGHBOURS
) -> PrecisionRecall:
    """Precision and recall of features [n, d] and [m, d], by balls of k neighbours.

    Raises:
      ValueError: other shapes, at most k samples, or values that are not finite.
    """
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    recalled = np.zeros(len(real), bool)
    precise = 0
    for distances in _squared_distances(generated, real):
        rows = slice(distances.first, distances.first + len(distances.values))
        precise += int((distances.values <= real_radii).any(axis=1).sum())
        recalled |= (distances.values <= generated_radii[rows, None]).any(axis=0)
    return PrecisionRecall(float(precise / len(generated)), float(recalled.mean()))


def density_coverage(
    real: np.ndarray, generated: np.ndarray, k: int = DENSITY_NEIGHBOURS
) -> DensityCoverage:
    """Density and coverage of features [n, d] and [m, d], by balls of k neighbours.

    Raises:
      ValueError: other shapes, at most k samples, or values that are not finite.
    """
    radii = _radii(real, k)
    covered = np.zeros(len(real), bool)
    balls = 0
    for distances in _squared_distances(generated, real):
        inside = distances.values <= radii
        balls += int(inside.sum())
        covered |= inside.any(axis=0)
    return DensityCoverage(float(balls / (k * len(generated))), float(covered.mean()))


class _Distances(NamedTuple):
    """Squared distances of samples first, first + 1, ... of one set to all of the other."""

    first: int
    values: np.ndarray


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distances [n] to the k-th nearest other member of features [n, d]."""
    if features.ndim != 2 or len(features) <= k:
        raise ValueError(f"features {features.shape} have no {k} nearest neighbours each")
    radii = np.empty(len(features))
    for first, values in _squared_distances(features, features):
        rows = np.arange(len(values))
        values[rows, first + rows] = np.inf  # a sample is no neighbour of itself
        radii[first : first + len(values)] = np.partition(values, k - 1, axis=1)[:, k - 1]
    return radii


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[_Distances]:
    """|x_i - y_j|^2 in float64, block by block of rows."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features {x.shape} and {y.shape} cannot be compared")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features are not finite")
    centre = y.mean(axis=0, dtype=np.float64)  # distances do not change, and lose fewer digits
    x, y = x - centre, y - centre
    norms = (y * y).sum(axis=1)
    for first in range(0, len(x), _BLOCK):
        rows = x[first : first + _BLOCK]
        values = (rows * rows).sum(axis=1)[:, None] - 2.0 * (rows @ y.T) + norms
        yield _Distances(first, np.maximum(values, 0.0))


@metric("precision_recall", keep=True, real=True, least=4)
def _precision_recall(generated: FeatureSet, real: Statistics, options: Any) -> Results:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991)."""
    del options
    assert real.features is not None
    return precision_recall(real.features, generated.array("pool"))._asdict()


@metric("density_coverage", keep=True, real=True, least=6)
def _density_coverage(generated: FeatureSet, real: Statistics, options: Any) -> Results:
    """Density and coverage (Naeem et al. 2020, arXiv:2002.09797)."""
    del options
    assert real.features is not None
    return density_coverage(real.features, generated.array("pool"))._asdict()
