"""Predictions of a network, and the one table that turns each into any other.

With x = alpha x_0 + sigma noise, every prediction is a combination a x_0 + b noise. So two of them
determine a third: x and the prediction at hand are solved for the one that is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array

from configs.names import lookup
from sde_lib import SDE, Images, Times, batch_mul

Numbers = Array | np.ndarray | float  # on the device, or on the host


class Level(NamedTuple):
    """Where on its way from data to noise x = alpha x_0 + sigma noise is; on device or host.

    Attributes:
      alpha, sigma: the factors in x.
      alpha_rate, sigma_rate: their derivatives in time; not a number where they are not known, and
        then neither is the flow.
      sigma_data: the standard deviation of the data.
    """

    alpha: Numbers
    sigma: Numbers
    alpha_rate: Numbers = math.nan
    sigma_rate: Numbers = math.nan
    sigma_data: float = 0.5


def level(sde: SDE, t: Times, sigma_data: float = 0.5) -> Level:
    """The level of the times t [B]."""
    return Level(sde.alpha(t), sde.sigma(t), *sde.rates(t), sigma_data)


Prediction = Callable[[Level], tuple[Numbers, Numbers]]  # (a, b) of the prediction a x_0 + b noise


def _edm(level: Level) -> tuple[Numbers, Numbers]:
    """`(r x_0 / sigma_data - sigma_data noise) / sqrt(r^2 + sigma_data^2)` with r = sigma / alpha.

    That is F in EDM's x_0 = c_skip(r) y + c_out(r) F with y = x / alpha = x_0 + r noise,
    c_skip = sigma_data^2 / (r^2 + sigma_data^2), c_out = r sigma_data / sqrt(r^2 + sigma_data^2).
    """
    alpha, sigma, sigma_data = level.alpha, level.sigma, level.sigma_data
    norm = input_std(alpha, sigma, sigma_data)
    return sigma / (sigma_data * norm), -alpha * sigma_data / norm


# A new prediction is one more line.
PREDICTIONS: dict[str, Prediction] = {
    "score": lambda level: (0.0, -1.0 / level.sigma),
    "noise": lambda level: (0.0, 1.0),
    "x0": lambda level: (1.0, 0.0),
    "velocity": lambda level: (-level.sigma, level.alpha),
    "edm": _edm,
    "flow": lambda level: (level.alpha_rate, level.sigma_rate),
}


def input_std(alpha: Numbers, sigma: Numbers, sigma_data: float) -> Numbers:
    """Standard deviation of x = alpha x_0 + sigma noise where that of x_0 is `sigma_data`.

    EDM divides by it what a network is given (c_in).
    """
    return (alpha**2 * sigma_data**2 + sigma**2) ** 0.5


def coefficients(level: Level, source: str, target: str) -> tuple[Numbers, Numbers]:
    """(m, n) such that target = m x + n source, where x = alpha x_0 + sigma noise.

    Kinds are names in PREDICTIONS: the score is -noise / sigma; the velocity is
    alpha noise - sigma x_0 (Salimans and Ho 2022, arXiv:2202.00512, section 4); "edm" is the output
    of the network in EDM's preconditioning, for data of standard deviation `sigma_data` (Karras et
    al. 2022, arXiv:2206.00364, table 1), of unit variance as the input `x / input_std`. The flow is
    `alpha' x_0 + sigma' noise`, the rate of x along its path (Lipman et al. 2022, arXiv:2210.02747,
    theorem 3, in time from data to noise), so that its mean given x is the drift of the
    probability flow: for x_0 and noise that are independent,
    `E[alpha' x_0 + sigma' noise | x] = f(x, t) - g^2 score / 2`.

    Raises:
      ValueError: unknown kind.
    """
    a, b = lookup(PREDICTIONS, source, "prediction")(level)
    c, d = lookup(PREDICTIONS, target, "prediction")(level)
    alpha, sigma = level.alpha, level.sigma
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
    m, n = coefficients(level(sde, t, sigma_data), source, target)
    return batch_mul(m, x) + batch_mul(n, value)
