"""What a network may predict, and the one table that turns each prediction into any other.

With x = alpha x_0 + sigma noise, every prediction is a combination a x_0 + b noise. So two of them
determine a third: x and the prediction at hand are solved for the one that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import Array

from sde_lib import SDE, batch_mul, lookup

# (alpha, sigma) -> (a, b). A new prediction is one more line.
PREDICTIONS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "score": lambda alpha, sigma: (0.0, -1.0 / sigma),
    "noise": lambda alpha, sigma: (0.0, 1.0),
    "x0": lambda alpha, sigma: (1.0, 0.0),
    "velocity": lambda alpha, sigma: (-sigma, alpha),
}


def coefficients(alpha: Any, sigma: Any, source: str, target: str) -> tuple[Any, Any]:
    """(m, n) such that target = m x + n source, where x = alpha x_0 + sigma noise.

    Kinds are names in PREDICTIONS: the score is -noise / sigma; the velocity is
    alpha noise - sigma x_0 (Salimans and Ho 2022, arXiv:2202.00512, section 4).

    Raises:
      ValueError: unknown kind.
    """
    a, b = lookup(PREDICTIONS, source, "prediction")(alpha, sigma)
    c, d = lookup(PREDICTIONS, target, "prediction")(alpha, sigma)
    determinant = alpha * b - sigma * a
    return (c * b - d * a) / determinant, (alpha * d - sigma * c) / determinant


def convert(sde: SDE, x: Array, t: Array, value: Array, source: str, target: str) -> Array:
    """The prediction `value` [B, ...] of kind `source` at (x, t [B]), as one of kind `target`.

    Raises:
      ValueError: unknown kind.
    """
    m, n = coefficients(sde.alpha(t), sde.sigma(t), source, target)
    return batch_mul(m, x) + batch_mul(n, value)
