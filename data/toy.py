"""Points of the plane: data sets that need no files, for experiments that take seconds.

An example is a real-valued vector, stored as an image of one pixel with two channels, float32
[1, 1, 2]; it has no grey levels (`LEVELS` is 0). A set is the same for ever: every example is
a function of four uniform numbers, raw output of the counter-based generator Philox, which NumPy
keeps fixed across versions; coordinates are rounded to multiples of 2^-16, which hides how the
last digits of sines and logarithms differ between platforms.
"""

from __future__ import annotations

import zlib
from typing import ClassVar

import numpy as np

_GRID = 2.0**16


class PointSet:
    """A labelled set of points: constants, and a map from uniform numbers to an example.

    Attributes:
      NUMBERS: how many of them an example is made of.
    """

    name: ClassVar[str]  # in configs
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")
    SIZES: ClassVar[dict[str, int]] = {"train": 50_000, "test": 10_000}
    IMAGE_SHAPE: ClassVar[tuple[int, ...]] = (1, 1, 2)
    LEVELS: ClassVar[int] = 0
    NUMBERS: ClassVar[int] = 4
    NUM_CLASSES: ClassVar[int]

    @classmethod
    def place(cls, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points [n, D] and their classes [n] from uniform numbers u [n, NUMBERS] in [0, 1)."""
        raise NotImplementedError

    @classmethod
    def draw(cls, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Points float32 [n, *IMAGE_SHAPE] and labels int32 [n] of one split."""
        count = cls.SIZES[split]
        key = [zlib.crc32(cls.__name__.encode()), cls.SPLITS.index(split)]
        raw = np.random.Philox(key=key).random_raw(cls.NUMBERS * count)
        points, labels = cls.place((raw >> np.uint64(11)).reshape(count, cls.NUMBERS) * 2.0**-53)
        points = (np.rint(points * _GRID) / _GRID).astype(np.float32)
        return points.reshape(count, *cls.IMAGE_SHAPE), labels.astype(np.int32)


class GaussianMixture(PointSet):
    """Four Gaussians with diagonal covariance: density and score are known at every noise level.

    x ~ sum_k WEIGHTS[k] N(MEANS[k], diag(STDS[k]^2)); the class is k. Diffused to time t, the means
    are alpha(t) MEANS[k] and the variances alpha(t)^2 STDS[k]^2 + sigma(t)^2.
    """

    name = "mixture"
    NUM_CLASSES = 4
    WEIGHTS = (0.3, 0.25, 0.25, 0.2)
    MEANS = ((-1.2, 0.3), (0.2, 1.1), (1.1, -0.2), (-0.2, -1.1))
    STDS = ((0.25, 0.45), (0.45, 0.25), (0.3, 0.3), (0.5, 0.2))

    @classmethod
    def place(cls, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k = np.searchsorted(np.cumsum(cls.WEIGHTS)[:-1], u[:, 0], side="right")
        return np.array(cls.MEANS)[k] + np.array(cls.STDS)[k] * normal(u[:, 2], u[:, 3]), k


class TwoMoons(PointSet):
    """Two half circles that reach into each other, blurred; the class is the half circle."""

    name = "two_moons"
    NUM_CLASSES = 2
    BLUR = 0.08

    @classmethod
    def place(cls, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lower = u[:, 0] >= 0.5
        angle = np.pi * u[:, 1]
        x = np.where(lower, 1.0 - np.cos(angle), np.cos(angle)) - 0.5
        y = np.where(lower, 0.5 - np.sin(angle), np.sin(angle)) - 0.25
        return 1.3 * np.stack([x, y], 1) + cls.BLUR * normal(u[:, 2], u[:, 3]), lower


class Checkerboard(PointSet):
    """Uniform on the eight dark squares of a board of 4 x 4 on [-2, 2]^2; the class is the row."""

    name = "checkerboard"
    NUM_CLASSES = 4

    @classmethod
    def place(cls, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row, pair = np.floor(4.0 * u[:, 0]), np.floor(2.0 * u[:, 1])
        column = 2.0 * pair + row % 2.0
        return np.stack([column + u[:, 2], row + u[:, 3]], 1) - 2.0, row


class SwissRoll(PointSet):
    """A spiral of one and a half turns, blurred; the class is the third along its angle."""

    name = "swiss_roll"
    NUM_CLASSES = 3
    BLUR = 0.06

    @classmethod
    def place(cls, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angle = 1.5 * np.pi * (1.0 + 2.0 * u[:, 0])
        circle = np.stack([np.cos(angle), np.sin(angle)], 1)
        spiral = 1.8 * (angle / (4.5 * np.pi))[:, None] * circle
        return spiral + cls.BLUR * normal(u[:, 2], u[:, 3]), np.floor(3.0 * u[:, 0])


def normal(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Standard-normal pairs [n, 2] from two uniform numbers in [0, 1) each (Box and Muller)."""
    angle = 2.0 * np.pi * v
    return np.sqrt(-2.0 * np.log1p(-u))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
