"""What a network may predict, and the one table that turns each prediction into any other.

With x = alpha x_0 + sigma noise, every prediction is a combination a x_0 + b noise. So two of them
determine a third: x and the prediction at hand are solved for the one that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import Array

from configs.names import lookup
from sde_lib import SDE, batch_mul


def _edm(alpha: Any, sigma: Any, sigma_data: Any) -> tuple[Any, Any]:
    """`(r x_0 / sigma_data - sigma_data noise) / sqrt(r^2 + sigma_data^2)` with r = sigma / alpha.

    That is F in EDM's x_0 = c_skip(r) y + c_out(r) F with y = x / alpha = x_0 + r noise,
    c_skip = sigma_data^2 / (r^2 + sigma_data^2), c_out = r sigma_data / sqrt(r^2 + sigma_data^2).
    """
    norm = input_std(alpha, sigma, sigma_data)
    return sigma / (sigma_data * norm), -alpha * sigma_data / norm


# (alpha, sigma, sigma_data) -> (a, b). A new prediction is one more line.
PREDICTIONS: dict[str, Callable[[Any, Any, Any], tuple[Any, Any]]] = {
    "score": lambda alpha, sigma, _: (0.0, -1.0 / sigma),
    "noise": lambda alpha, sigma, _: (0.0, 1.0),
    "x0": lambda alpha, sigma, _: (1.0, 0.0),
    "velocity": lambda alpha, sigma, _: (-sigma, alpha),
    "edm": _edm,
}


def input_std(alpha: Any, sigma: Any, sigma_data: Any) -> Any:
    """Standard deviation of x = alpha x_0 + sigma noise where that of x_0 is `sigma_data`.

    EDM divides by it what a network is given (c_in).
    """
    return (alpha**2 * sigma_data**2 + sigma**2) ** 0.5


def coefficients(
    alpha: Any, sigma: Any, source: str, target: str, sigma_data: Any = 0.5
) -> tuple[Any, Any]:
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
    x: Array,
    t: Array,
    value: Array,
    source: str,
    target: str,
    sigma_data: float = 0.5,
) -> Array:
    """The prediction `value` [B, ...] of kind `source` at (x, t [B]), as one of kind `target`.

    Raises:
      ValueError: unknown kind.
    """
    m, n = coefficients(sde.alpha(t), sde.sigma(t), source, target, sigma_data)
    return batch_mul(m, x) + batch_mul(n, value)
