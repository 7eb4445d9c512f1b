"""Calibration: estimated likelihoods against exact ones of the same examples."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """The difference of estimates from exact values.

    Attributes:
      difference: its mean, 0 for estimates without bias.
      stderr: the standard error of that; not a number for one example.
      z: their ratio, which without bias is a draw of Student's t with n - 1 degrees of freedom.
      spread: its root mean square, the error of a single example's estimate.
    """

    difference: float
    stderr: float
    z: float
    spread: float


def calibration(estimates: np.ndarray, exact: np.ndarray) -> Calibration:
    """The calibration of estimates [n] by exact values [n] of the same examples.

    Raises:
      ValueError: none, or not as many of both.
    """
    if estimates.shape != exact.shape or estimates.ndim != 1 or not len(exact):
        raise ValueError(f"estimates {estimates.shape} are not of the exact values {exact.shape}")
    differences = np.asarray(estimates, np.float64) - exact
    mean, count = float(differences.mean()), len(differences)
    stderr = float(differences.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    z = mean / stderr if stderr else math.nan
    return Calibration(mean, stderr, z, float(np.sqrt(np.mean(differences**2))))
