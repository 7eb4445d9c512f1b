"""Predictions of a network, and the one table that turns each into any other.

With x = alpha x_0 + sigma noise, every prediction is a combination a x_0 + b noise. So two of them
determine a third: x and the prediction at hand are solved for the one that is wanted.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jax import Array

from configs.names import lookup
from sde_lib import SDE, Images, Times, batch_mul

A = TypeVar("A", Array, np.ndarray)  # on the device, or on the host


@runtime_checkable
class Prediction(Protocol):
    """(a, b) of the prediction a x_0 + b noise."""

    def __call__(self, alpha: A, sigma: A, sigma_data: float) -> tuple[A | float, A | float]: ...


def _edm(alpha: A, sigma: A, sigma_data: float) -> tuple[A, A]:
    """`(r x_0 / sigma_data - sigma_data noise) / sqrt(r^2 + sigma_data^2)` with r = sigma / alpha.

    That is F in EDM's x_0 = c_skip(r) y + c_out(r) F with y = x / alpha = x_0 + r noise,
    c_skip = sigma_data^2 / (r^2 + sigma_data^2), c_out = r sigma_data / sqrt(r^2 + sigma_data^2).
    """
    norm = input_std(alpha, sigma, sigma_data)
    return sigma / (sigma_data * norm), -alpha * sigma_data / norm


# A new prediction is one more line.
PREDICTIONS: dict[str, Prediction] = {
    "score": lambda alpha, sigma, _: (0.0, -1.0 / sigma),
    "noise": lambda alpha, sigma, _: (0.0, 1.0),
    "x0": lambda alpha, sigma, _: (1.0, 0.0),
    "velocity": lambda alpha, sigma, _: (-sigma, alpha),
    "edm": _edm,
}


def input_std(alpha: A, sigma: A, sigma_data: float) -> A:
    """Standard deviation of x = alpha x_0 + sigma noise where that of x_0 is `sigma_data`.

    EDM divides by it what a network is given (c_in).
    """
    std: A = (alpha**2 * sigma_data**2 + sigma**2) ** 0.5
    return std


def coefficients(
    alpha: A, sigma: A, source: str, target: str, sigma_data: float = 0.5
) -> tuple[A, A]:
    """(m, n) such that target = m x + n source, where x = alpha x_0 + sigma noise.

    Kinds are names in PREDICTIONS: the score is -noise / sigma; the velocity is
    alpha noise - sigma x_0 (Salimans and Ho 2022, arXiv:2202.00512, section 4); "edm" is the output
    of the network in EDM's preconditioning, for data of standard deviation `sigma_data` (Karras et
    al. 2022, arXiv:2206.00364, table 1), of unit variance as the input `x / input_std`.

    Raises:
      ValueError: unknown kind.
    """
    a, b = lookup(PREDICTIONS, source, "prediction")(alpha, sigma, sigma_data)
    c, d = lookup(PREDICTIONS, target, "prediction")(alpha, sigma, sigma_data)
    determinant = alpha * b - sigma * a
    return (c * b - d * a) / determinant, (alpha * d - sigma * c) / determinant


def convert(
    sde: SDE,
    x: Images,
    t: Times,
    value: Images,
    source: str,
    target: str,
    sigma_data: float = 0.5,
) -> Images:
    """The prediction `value` [B, ...] of kind `source` at (x, t [B]), as one of kind `target`.

    Raises:
      ValueError: unknown kind.
    """
    m, n = coefficients(sde.alpha(t), sde.sigma(t), source, target, sigma_data)
    return batch_mul(m, x) + batch_mul(n, value)
