"""The exact law of samples for Gaussian data: a sampler of fixed steps is affine in its draws.

Image i has draw i equal to 1 and all others 0, the last image none. Their differences are the
coefficients of the draws, whose products are the covariance of a sample: no number is estimated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from sde_lib import SDE


class Law(NamedTuple):
    """A Gaussian on [D] entries."""

    mean: np.ndarray
    covariance: np.ndarray


def score_of(sde: SDE, data: Law) -> Callable[[Array, Array], Array]:
    """The score of the data with noise; through the eigenvectors of the covariance."""
    values, vectors = np.linalg.eigh(data.covariance)

    def score_fn(x: Array, t: Array) -> Array:
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        error = (alpha * data.mean - x.reshape(len(x), -1)) @ vectors
        return (error / (alpha**2 * values + sigma**2) @ vectors.T).reshape(x.shape)

    return score_fn


def law(sampler: Callable[[Any, int], Array], shape: tuple[int, ...], draws: int) -> Law:
    """The law of what a sampler (noise, number of images) -> x [B, ...] makes of its `draws`."""
    size = int(np.prod(shape))
    count = size * draws + 1

    def noise(i: Any) -> Array:
        hot = jnp.arange(count)[:, None] == i * size + jnp.arange(size)
        return hot.astype(jnp.float32).reshape(count, *shape)

    x = np.asarray(sampler(noise, count), np.float64).reshape(count, size)
    coefficients = x[:-1] - x[-1]
    return Law(x[-1], coefficients.T @ coefficients)


def posterior(data: Law, matrix: np.ndarray, y: np.ndarray, noise_std: float) -> Law:
    """The law of x_0 given y = A x_0 + noise."""
    s = matrix @ data.covariance @ matrix.T + noise_std**2 * np.eye(len(matrix))
    gain = data.covariance @ matrix.T @ np.linalg.pinv(s)
    mean = data.mean + gain @ (y - matrix @ data.mean)
    return Law(mean, data.covariance - gain @ matrix @ data.covariance)
