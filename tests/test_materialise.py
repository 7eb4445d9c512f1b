"""Identities that only tell XLA what to keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.ops.materialise import materialise, materialise_cotangent, spread, sum_pixels


@pytest.mark.parametrize("identity", [materialise, materialise_cotangent])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_float_and_every_derivative_passes_unchanged(identity, dtype):
    x = jnp.array([[jnp.inf, -jnp.inf, jnp.nan, -0.0, 0.0, 1.5, -3e38, 1e-30]]).astype(dtype)
    for start in range(x.size):
        moved = jnp.roll(x, start, 1)
        out = jax.jit(identity)(moved)
        np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(moved, np.float32))
        sign, wanted = (
            np.signbit(np.asarray(a, np.float32))[~np.isnan(moved)] for a in (out, moved)
        )
        np.testing.assert_array_equal(sign, wanted)

    def cube(x):
        return jnp.sum(identity(identity(x) ** 2) * x)

    x = jnp.array([0.5, -2.0, 3.0])
    hessian = jax.jit(jax.jacfwd(jax.grad(cube)))(x)
    np.testing.assert_allclose(hessian, np.diag(6 * x), rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(jax.vmap(identity))(x), x)


def test_the_cpu_keeps_a_value_that_many_consumers_read():
    """A chain of sums feeds a matrix product and a sum at every link: none is computed twice."""

    def chain(x, w, keep):
        out = jnp.zeros(())
        for _ in range(6):
            x = keep(0.7 * (x + w))
            out = out + jnp.sum(x @ w) + jnp.sum(x * w)
        return out

    x = w = jnp.ones((64, 64))

    def sums_of(keep):
        text = jax.jit(lambda x, w: chain(x, w, keep)).lower(x, w).compile().as_text() or ""
        return text.count("= f32[64,64]{1,0} add(")

    assert sums_of(materialise) == 6 < sums_of(lambda x: x)


def test_spread_and_sum_pixels_are_transposes():
    a, x = jnp.arange(6.0).reshape(2, 3), jax.random.normal(jax.random.key(0), (2, 5, 3))
    np.testing.assert_array_equal(spread(a, 5), np.repeat(np.asarray(a)[:, None], 5, 1))
    np.testing.assert_allclose(sum_pixels(x), np.asarray(x).sum(1), rtol=1e-5)
    (transposed,) = jax.linear_transpose(lambda a: spread(a, 5), a)(x)
    np.testing.assert_allclose(transposed, sum_pixels(x), rtol=1e-6)
