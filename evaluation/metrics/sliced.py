"""Sliced Wasserstein distance between two sets of vectors, by sorting their projections."""

from __future__ import annotations

import numpy as np


def sliced_wasserstein(
    a: np.ndarray, b: np.ndarray, num_directions: int = 128, seed: int = 0
) -> float:
    """The root mean square, over random directions, of the 2-Wasserstein distance of projections.

        SW^2 = E_theta integral over q in (0, 1) of (F^-1_{theta a}(q) - F^-1_{theta b}(q))^2 dq

    (Rabin et al. 2012; Bonneel et al. 2015). The inverse distribution functions are steps for the
    larger set and read at the middles of its steps for the smaller one, linearly between its own:
    exact for sets of one size. Finite samples of one distribution are not at distance 0: compare
    with the distance between two real sets.

    Args:
      a, b: [n, d] and [m, d].

    Raises:
      ValueError: not matrices of one width, or empty ones.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"sets of vectors must be [n, d] and [m, d], not {a.shape} and {b.shape}")
    directions = np.random.default_rng(seed).normal(size=(a.shape[1], num_directions))
    directions /= np.linalg.norm(directions, axis=0)
    few, many = sorted((np.sort(x @ directions, axis=0) for x in (a, b)), key=len)
    if len(few) < len(many):
        middles, places = ((np.arange(len(x)) + 0.5) / len(x) for x in (many, few))
        few = np.stack([np.interp(middles, places, column) for column in few.T], axis=1)
    return float(np.sqrt(np.mean((few - many) ** 2)))
