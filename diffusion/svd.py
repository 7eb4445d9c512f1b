"""Singular value decompositions A = U S V' of linear operators on images.

Masks, means of pixels and orthonormal functionals have rows that do not overlap: A A' is diagonal,
so that S^2 = A A' and U = I, at any size. Of other operators the matrix is made and decomposed.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion.inverse import Operator, adjoint
from sde_lib import Images

LARGEST = 4096  # entries of an image up to which the matrix is made
SMALLEST = 1e-6  # singular value that is not taken for 0, as a share of the largest


@dataclasses.dataclass(frozen=True)
class SVD:
    """A = U S V', without the singular values that are 0.

    Attributes:
      values: S [R], all positive.
      coordinates: V', images [B, ...] to [B, R].
      measured: U', from what is measured to [B, R].
      shape: of an image.
    """

    values: np.ndarray
    coordinates: Operator
    measured: Operator
    shape: tuple[int, ...]

    def image(self, coordinates: Array) -> Images:
        """V c: the images [B, ...] in the row space of A that have these coordinates [B, R]."""
        return adjoint(self.coordinates, self.shape)(coordinates)

    def estimate(self, y: Array) -> Array:
        """S^-1 U' y [B, R]: the coordinates of A^+ y, with noise of `values`^-1 times that of y."""
        return self.measured(y) / jnp.asarray(self.values, y.dtype)


def decomposition(operator: Operator, shape: tuple[int, ...]) -> SVD:
    """The decomposition of a linear operator, computed at once, on the host.

    Raises:
      ValueError: an operator that is 0, or one of images of more than `LARGEST` entries whose rows
        overlap.
    """
    with jax.ensure_compile_time_eval():
        diagonal = _squares_of_rows(operator, shape)
        if diagonal is not None:
            return _without_overlap(operator, shape, diagonal)
        size = math.prod(shape)
        if size > LARGEST:
            raise ValueError(
                f"the operator's matrix for images of {size} entries is not decomposed; its rows "
                f"overlap, and an explicit decomposition is for up to {LARGEST} entries"
            )
        columns = operator(jnp.eye(size).reshape(size, *shape)).reshape(size, -1)
        matrix = np.asarray(columns, np.float64).T
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rank = int(np.sum(values > SMALLEST * values.max(initial=0.0)))
    if not rank:
        raise ValueError("the operator measures nothing: it is 0")
    u, v = (np.asarray(w[:, :rank], np.float32) for w in (left, right.T))
    return SVD(
        values[:rank],
        lambda x: x.reshape(len(x), size) @ v,
        lambda y: y.reshape(len(y), -1) @ u,
        shape,
    )


def _squares_of_rows(operator: Operator, shape: tuple[int, ...]) -> np.ndarray | None:
    """The diagonal of A A', flat, or None where A A' is not diagonal."""
    transposed = adjoint(operator, shape)
    both = jax.jit(lambda y: operator(transposed(y)))
    one = jax.eval_shape(operator, jax.ShapeDtypeStruct((1, *shape), jnp.float32))

    def products(v: np.ndarray) -> np.ndarray:
        y = jnp.asarray(v.reshape(len(v), *one.shape[1:]), jnp.float32)
        return np.asarray(both(y), np.float64).reshape(len(v), -1)

    count = math.prod(one.shape[1:])
    draws = np.random.RandomState(0).standard_normal((5, count))
    draws[0] = 1.0
    images = products(draws)
    diagonal = images[0]
    off = np.abs(images - diagonal * draws).max(initial=0.0)
    return diagonal if off < 1e-4 * np.abs(diagonal).max(initial=0.0) else None


def _without_overlap(operator: Operator, shape: tuple[int, ...], squares: np.ndarray) -> SVD:
    (rows,) = np.nonzero(squares > SMALLEST**2 * squares.max())
    values = np.sqrt(squares[rows])
    scale = np.asarray(1.0 / values, np.float32)

    def measured(y: Array) -> Array:
        return y.reshape(len(y), -1)[:, rows]

    return SVD(values, lambda x: measured(operator(x)) * scale, measured, shape)
