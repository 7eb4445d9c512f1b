"""Memorisation: samples that repeat training examples, by their two nearest ones.

A sample is memorised where its nearest training example is closer than a third of the way to the
second nearest,

    |x - y_1| / |x - y_2| < 1/3,

(Yoon et al. 2023, "Diffusion Probabilistic Models Generalize when They Fail to Memorize"; used by
Gu et al. 2023, arXiv:2310.02664). A ratio of distances asks for no scale of the data: what is near
in a flat part of images is not in a busy one, as Carlini et al. (arXiv:2301.13188) found of
CIFAR-10. Where the training set itself holds an example twice, the ratio of its copies is near 1,
and only exact copies are found. No more than a block of all pairs is in memory at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from evaluation.metrics.feature_set import FeatureSet
from evaluation.metrics.metric import Results, metric
from evaluation.metrics.statistics import Statistics

THRESHOLD = 1.0 / 3.0
_BLOCK = 1000  # rows of either side of a block of distances


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """The two training examples that are nearest to each of n samples.

    Attributes:
      distances: [n, 2], ascending; root mean square over the entries of an example.
      indices: int [n, 2], numbers of the training examples.
    """

    distances: np.ndarray
    indices: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """Nearest distance over second nearest [n]; 0 for copies, even of what is there twice."""
        first, second = self.distances.T
        return np.divide(first, second, out=np.zeros_like(first), where=first > 0.0)

    @property
    def memorised(self) -> float:
        """The share of samples whose ratio is below `THRESHOLD`."""
        return float(np.mean(self.ratios < THRESHOLD))


def nearest(samples: np.ndarray, training: Iterable[np.ndarray]) -> Neighbours:
    """The neighbours of samples [n, ...] among training examples that come in blocks [b, ...].

    Distances are computed in float64, and so exactly for integers.

    Raises:
      ValueError: fewer than two training examples, examples of another size, or values that are
        not finite.
    """
    x = _rows(samples)
    norms = (x * x).sum(axis=1)
    squares = np.full((len(x), 2), np.inf)
    indices = np.zeros((len(x), 2), np.int64)
    count = 0
    for block in training:
        y = _rows(block)
        if y.shape[1] != x.shape[1]:
            raise ValueError(f"examples of {y.shape[1]} entries are not near to {x.shape[1]}")
        of_block = (y * y).sum(axis=1)
        for first in range(0, len(x), _BLOCK):
            rows = slice(first, first + _BLOCK)
            values = norms[rows, None] - 2.0 * (x[rows] @ y.T) + of_block
            values = np.concatenate([squares[rows], np.maximum(values, 0.0)], axis=1)
            two = np.argpartition(values, 1, axis=1)[:, :2]  # the nearest, and the one after it
            earlier = np.take_along_axis(indices[rows], np.minimum(two, 1), axis=1)
            indices[rows] = np.where(two < 2, earlier, count + two - 2)
            squares[rows] = np.take_along_axis(values, two, axis=1)
        count += len(y)
    if count < 2:
        raise ValueError(f"the two nearest of {count} training examples are not there")
    if not np.isfinite(squares).all():
        raise ValueError("examples are not finite")
    return Neighbours(np.sqrt(squares / x.shape[1]), indices)


def _rows(examples: np.ndarray) -> np.ndarray:
    """Examples [n, ...] as rows [n, d] in float64."""
    return np.asarray(examples, np.float64).reshape(len(examples), -1)


@metric("memorisation", keep=True, real=True)
def _memorisation(generated: FeatureSet, real: Statistics, options: Any) -> Results:
    """Share of samples that repeat training examples, by features (Yoon et al. 2023)."""
    del options
    assert real.features is not None
    blocks = np.array_split(real.features, -(-len(real.features) // _BLOCK))
    return {"memorised": nearest(generated.array("pool"), blocks).memorised}
