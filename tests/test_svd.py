"""Singular values of operators: A = U S V' again, at any size where rows do not overlap."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import inverse, svd
from tests.marks import but_slow
from tests.test_inverse import OPERATORS, SHAPE, matrix


@pytest.mark.parametrize("name", but_slow(OPERATORS, ["masking", "gaussian_blur"]))
def test_the_parts_make_the_operator_and_its_pseudo_inverse(name: str) -> None:
    operator, a = OPERATORS[name], matrix(OPERATORS[name])
    parts = svd.decomposition(operator, SHAPE)
    rank = np.linalg.matrix_rank(a)
    assert parts.values.shape == (rank,)
    values = np.linalg.svd(a, compute_uv=False)[:rank]
    np.testing.assert_allclose(np.sort(parts.values)[::-1], values, rtol=1e-4, atol=1e-6)

    @jax.jit
    def evaluated(x: jax.Array) -> tuple[jax.Array, ...]:
        unit = jnp.eye(16).reshape(16, *SHAPE)
        y = operator(x)
        u = parts.measured(jnp.eye(len(a)).reshape(-1, *y.shape[1:]))
        projection = parts.image(parts.coordinates(x))
        return parts.coordinates(unit), u, projection, parts.image(parts.estimate(y))

    x = np.random.RandomState(0).standard_normal((3, *SHAPE)).astype(np.float32)
    v, u, projection, back = map(np.asarray, evaluated(x))
    np.testing.assert_allclose(v.T @ v, np.eye(rank), atol=1e-5)
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-5)
    np.testing.assert_allclose(u @ np.diag(parts.values) @ v.T, a, atol=1e-5)
    seen = x.reshape(3, 16) @ v @ v.T
    np.testing.assert_allclose(projection.reshape(3, 16), seen, atol=1e-5)
    if parts.values.min() > 0.05:
        np.testing.assert_allclose(back.reshape(3, 16), seen, atol=1e-4)


def test_large_images_are_decomposed_where_rows_do_not_overlap_and_refused_elsewhere() -> None:
    shape = (80, 80, 3)
    pooled = svd.decomposition(inverse.average_pool(4), shape)
    np.testing.assert_allclose(pooled.values, np.full(1200, 0.25), rtol=1e-6)
    with pytest.raises(ValueError, match="19200 entries is not decomposed; its rows overlap"):
        svd.decomposition(inverse.gaussian_blur(1.0), shape)
    with pytest.raises(ValueError, match="the operator measures nothing: it is 0"):
        svd.decomposition(lambda x: 0.0 * x, SHAPE)


def test_singular_values_count_down_to_a_millionth_of_the_largest() -> None:
    weights = jnp.array([1.0, 1e-4, 1e-5, 1e-7, 0.0, 0.5]).reshape(3, 2, 1)
    parts = svd.decomposition(inverse.masking(weights), (3, 2, 1))
    np.testing.assert_allclose(np.sort(parts.values), [1e-5, 1e-4, 0.5, 1.0], rtol=1e-5)
