"""Series and fields that are drawn where they are needed: a Gaussian process, Burgers' equation.

As with points of the plane (`data.toy`) an example is a function of uniform numbers by its row, the
same for ever.
"""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np

from data.simulators import normals
from data.toy import PointSet


class OscillatingSeries(PointSet):
    """A stationary Gaussian process of 128 times: an oscillation whose phase drifts, and noise.

    Its covariance of times i and j is exp(-(i - j)^2 / (2 LENGTH^2)) cos(2 pi (i - j) / PERIOD) +
    NOISE^2 (i = j), so that the times within a gap, given the others, are Gaussian with a mean and
    a covariance in closed form.
    """

    name = "oscillating_series"
    SIZES: ClassVar[dict[str, int]] = {"train": 20_000, "test": 1_000}
    IMAGE_SHAPE = (128, 1)
    NUMBERS = 128
    NUM_CLASSES = 1
    LENGTH = 24.0
    PERIOD = 16.0
    NOISE = 0.1

    @classmethod
    @functools.cache
    def covariance(cls) -> np.ndarray:
        """The covariance [128, 128]."""
        lag = np.subtract.outer(np.arange(128.0), np.arange(128.0))
        smooth = np.exp(-0.5 * np.square(lag / cls.LENGTH)) * np.cos(2.0 * np.pi * lag / cls.PERIOD)
        return smooth + cls.NOISE**2 * np.eye(128)

    @classmethod
    def place(cls, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return normals(u) @ np.linalg.cholesky(cls.covariance()).T, np.zeros(len(u))

    @classmethod
    def conditional(cls, series: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [n, g] and covariance [g, g] of the g unknown times given the known ones.

        Args:
          series: [n, 128], of which the known times count.
          known: bool [128].
        """
        total = cls.covariance()
        gain = np.linalg.solve(total[known][:, known], total[known][:, ~known]).T
        return series[:, known] @ gain.T, total[~known][:, ~known] - gain @ total[known][:, ~known]


class Burgers(PointSet):
    """Burgers' equation u_t + u u_x = nu u_xx on a circle: u(t, x) at 32 times and 32 places.

    At first u is a sum of MODES waves with amplitudes uniform in [-1, 1] / k; fronts form, move and
    merge. The transformation of Cole and Hopf, u = -2 nu phi_x / phi, makes it the heat equation of
    phi, which Fourier series solve exactly on GRID places. Of phi, the largest value is at most
    10^12 times the smallest, so that double precision has both.
    """

    name = "burgers"
    SIZES: ClassVar[dict[str, int]] = {"train": 20_000, "test": 1_000}
    IMAGE_SHAPE = (32, 32, 1)
    NUMBERS = 6
    NUM_CLASSES = 1
    MODES = 3
    VISCOSITY = 0.1
    LAST = 4.0  # time
    GRID = 128

    @classmethod
    def place(cls, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        coefficients = (2.0 * u - 1.0).reshape(-1, 2, cls.MODES)
        times = cls.LAST * np.arange(1, 33) / 32
        step = cls.GRID // 32
        parts = [cls.solve(rows, times)[:, :, ::step] for rows in np.array_split(coefficients, 40)]
        return np.concatenate(parts).reshape(len(u), -1), np.zeros(len(u))

    @classmethod
    def solve(cls, coefficients: np.ndarray, times: np.ndarray) -> np.ndarray:
        """u [n, times, GRID] from coefficients [n, 2, MODES] of cosines and sines over k = 1, ...

        The wave of number k has amplitude 1 / k times its coefficients.
        """
        x = 2.0 * np.pi * np.arange(cls.GRID) / cls.GRID
        k = np.arange(1, cls.MODES + 1)
        angle = k[:, None] * x
        cosine, sine = (coefficients[:, i] / k for i in range(2))
        integral = (cosine / k) @ np.sin(angle) + (sine / k) @ (1.0 - np.cos(angle))
        exponent = -integral / (2.0 * cls.VISCOSITY)
        phi = np.exp(exponent - exponent.max(1, keepdims=True))
        waves = np.arange(cls.GRID // 2 + 1)
        decay = np.exp(-cls.VISCOSITY * np.outer(times, waves**2))
        spectrum = np.fft.rfft(phi)[:, None] * decay
        slope = np.fft.irfft(1j * waves * spectrum, cls.GRID)
        return -2.0 * cls.VISCOSITY * slope / np.fft.irfft(spectrum, cls.GRID)
