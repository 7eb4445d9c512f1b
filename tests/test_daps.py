"""DAPS: exact for isotropic Gaussian data at any number of levels; the law of Langevin steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import daps, grids, inverse, svd
from sde_lib import batch_mul
from tests import affine, gaussians
from tests.marks import but_slow
from tests.test_restoration import like

Array = jax.Array
SHAPE = (1, 2, 1)
STD, NOISE_STD = 0.7, 0.3
ISOTROPIC = affine.Law(np.array([0.3, -0.2]), STD**2 * np.eye(2))
MATRIX = np.array([[0.9, 0.2], [0.2, 0.3]])
Y = np.array([1.0, 0.1])


def operator(x: Array) -> Array:
    return x.reshape(len(x), 2) @ jnp.asarray(MATRIX.T, jnp.float32)


@pytest.mark.parametrize("kind", but_slow(gaussians.SDES, ["subvp"]))
def test_isotropic_gaussians_are_drawn_exactly_on_three_levels(kind: str) -> None:
    """Of an operator with unequal singular values, with noise and without. The flow's end in place
    of the mean, or another deviation, makes the law too wide."""
    sde = gaussians.SDES[kind]
    parts, score = svd.decomposition(operator, SHAPE), affine.score_of(sde, ISOTROPIC)
    times = grids.time_grid(sde, "log_snr", 3)
    cases: list[tuple[float, dict[str, Any]]] = [
        (NOISE_STD, {"data_std": STD}),
        (0.0, {"data_std": STD}),
        (NOISE_STD, {"data_std": STD, "ode_steps": 4}),
        (NOISE_STD, {"data_std": 2.0 * STD}),
    ]

    def drawn(noise: Any, count: int) -> Array:
        def one(noise_std: float, options: dict[str, Any]) -> Array:
            given = daps.linear_conditional(parts, like(Y, count), noise_std)
            return daps.daps(sde, score, noise, times, given, **options).x

        results.extend(jax.jit(lambda: [one(*case) for case in cases])())
        return jnp.asarray(results[0])

    results: list[Array] = []
    affine.law(drawn, SHAPE, 8)
    laws = [affine.law(lambda noise, count, x=x: x, SHAPE, 8) for x in results]  # type: ignore
    noisy, exact = (affine.posterior(ISOTROPIC, MATRIX, Y, case[0]) for case in cases[:2])
    for law, truth in zip(laws, (noisy, exact), strict=False):
        np.testing.assert_allclose(law.mean, truth.mean, atol=2e-3)
        np.testing.assert_allclose(law.covariance, truth.covariance, atol=2e-3)
    for law in laws[2:]:
        assert np.trace(law.covariance) > 1.1 * np.trace(noisy.covariance)


def test_the_flow_to_x0_is_euler_even_in_the_log_snr_step_by_step() -> None:
    """Three steps of the flow for each x_0, which no measurement changes; at the last time they
    have no length."""
    sde, times = gaussians.SDES["vp"], np.array([0.8, 0.3])
    score = affine.score_of(sde, ISOTROPIC)
    z = jax.random.normal(jax.random.key(0), (2, 3, 2, 1, 1))
    free = daps.Conditional(0, lambda x0, v, noise: x0 + batch_mul(0.0 * v, x0))

    def level(t: Any) -> Any:
        time = jnp.full(3, t, jnp.float32)
        return time, sde.alpha(time)[0], sde.sigma(time)[0]

    def mean(x: Array, t: Any) -> Array:
        time, alpha, sigma = level(t)
        return (x + sigma**2 * score(x, time)) / alpha

    @jax.jit
    def both() -> tuple[Array, Array]:
        found = daps.daps(sde, score, lambda i: z[i], times, free, ode_steps=3)
        assert found.nfe == 6
        log_snr = sde.log_snr(jnp.asarray(times, jnp.float32))
        x, t = z[0], jnp.float32(times[0])
        for share in (1 / 3, 2 / 3):
            after = sde.time_of_log_snr(log_snr[0] + share * (log_snr[1] - log_snr[0]))
            x0 = mean(x, t)
            (_, a0, s0), (_, a1, s1) = level(t), level(after)
            x, t = a1 * x0 + s1 / s0 * (x - a0 * x0), after
        _, alpha, sigma = level(times[1])
        return found.x, mean(alpha * mean(x, t) + sigma * z[1], times[1])

    found, expected = both()
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_evaluations_and_draws_are_counted() -> None:
    sde = gaussians.SDES["vp"]
    asked: list[Any] = []

    def score(x: Array, t: Array) -> Array:
        jax.debug.callback(lambda _: asked.append("score"), t)
        return -x

    def noise(i: Any) -> Array:
        jax.debug.callback(lambda i: asked.append(int(i)), i)
        return jnp.zeros((1, *SHAPE))

    given = daps.langevin_conditional(operator, like(Y, 1), NOISE_STD, steps=3)
    samples = jax.jit(
        lambda: daps.daps(sde, score, noise, np.array([1.0, 0.5, 0.1]), given, ode_steps=2).x
    )
    jax.block_until_ready(samples())
    jax.effects_barrier()
    assert asked.count("score") == 2 * 3
    assert sorted(i for i in asked if i != "score") == list(range(1 + 2 * (3 + 1)))


def test_langevin_steps_have_the_mean_of_the_posterior_and_a_variance_that_is_known() -> None:
    """400 steps, of the prior N(x0, v I): the law of x <- x - d P (x - m) + sqrt(2 d) z is
    N(m, (P (1 - d P / 2))^-1), and d is step_size over the largest eigenvalue of P."""
    v, x0, step_size, steps = 0.5, np.array([0.2, -0.1]), 0.5, 400
    given = daps.langevin_conditional(
        operator, like(Y, 2 * steps + 1), NOISE_STD, steps=steps, step_size=step_size
    )
    law = affine.law(
        lambda noise, count: jax.jit(
            lambda: given.draw(like(x0.reshape(SHAPE), count), jnp.full(count, v), noise)
        )(),
        SHAPE,
        steps,
    )
    precision = np.eye(2) / v + MATRIX.T @ MATRIX / NOISE_STD**2
    largest = 1 / v + np.linalg.norm(MATRIX, 2) ** 2 / NOISE_STD**2
    d = step_size / largest
    mean = np.linalg.solve(precision, x0 / v + MATRIX.T @ Y / NOISE_STD**2)
    np.testing.assert_allclose(law.mean, mean, atol=1e-4)
    covariance = np.linalg.inv(precision @ (np.eye(2) - 0.5 * d * precision))
    np.testing.assert_allclose(law.covariance, covariance, rtol=1e-3, atol=1e-5)


def test_the_largest_eigenvalue_is_that_of_the_jacobian() -> None:
    """At x, of x^3: 9 x^4 at its largest entry; of a matrix its norm squared."""
    x = jnp.array([[1.0, -2.0], [0.5, 0.1]])
    found = jax.jit(lambda: daps.largest_eigenvalue(lambda x: x**3, x))()
    np.testing.assert_allclose(found, [9 * 16.0, 9 * 0.5**4], rtol=1e-3)
    found = jax.jit(lambda: daps.largest_eigenvalue(operator, jnp.zeros((1, *SHAPE))))()
    np.testing.assert_allclose(found, np.linalg.norm(MATRIX, 2) ** 2, rtol=1e-3)


def test_what_cannot_be_drawn_is_refused() -> None:
    for options in ({"noise_std": 0.0}, {"steps": 0}, {"step_size": 2.0}):
        with pytest.raises(ValueError, match="Langevin steps in DAPS need a positive noise_std"):
            daps.langevin_conditional(
                inverse.identity,
                jnp.zeros((1, 2)),
                **({"noise_std": 0.1} | options),  # type: ignore
            )
    given = daps.langevin_conditional(inverse.identity, jnp.zeros((1, 2)), 0.1)
    with pytest.raises(ValueError, match="DAPS takes ode_steps of 1 or more, not 0"):
        daps.daps(
            *(gaussians.SDES["vp"], lambda x, t: x, lambda i: jnp.zeros((1, 2))),
            *(np.array([1.0, 0.5]), given),
            ode_steps=0,
        )
