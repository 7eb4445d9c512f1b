"""Means and covariances of features: all that a Fréchet distance asks of a set of images."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass
class Moments:
    """Streaming mean and covariance in float64: nothing but d + d^2 numbers is kept.

    Attributes:
      count: samples seen.
      mean: [d].
      scatter: sum of (x - mean)(x - mean)^T, [d, d].
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dim: int) -> Moments:
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Moments of features [n, d].

        Raises:
          ValueError: not a matrix, or with values that are not finite.
        """
        x = np.asarray(features, np.float64)
        if x.ndim != 2:
            raise ValueError(f"features must be [n, d], not {x.shape}")
        if not np.isfinite(x).all():
            rows = np.flatnonzero(~np.isfinite(x).all(axis=1))
            raise ValueError(f"features of {len(rows)} image(s) are not finite, first: {rows[0]}")
        if not len(x):
            return cls.empty(x.shape[1])
        mean = x.mean(axis=0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub, LeVeque 1979)."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"{self.mean.size} features cannot join {other.mean.size}")
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        weight = self.count * other.count / count
        return Moments(count, mean, self.scatter + other.scatter + weight * np.outer(delta, delta))

    def add(self, features: np.ndarray) -> None:
        """Takes in another chunk [n, d]."""
        merged = self.merge(Moments.of(features))
        self.count, self.mean, self.scatter = merged.count, merged.mean, merged.scatter

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, [d, d].

        Raises:
          ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, not {self.count}")
        return self.scatter / (self.count - 1)


class Gaussian(NamedTuple):
    """A mean [d] and a covariance [d, d], all that a Fréchet distance asks of a set of features."""

    mean: np.ndarray
    covariance: np.ndarray
