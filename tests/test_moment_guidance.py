"""Guidance by simple covariances: exact, pointwise, where they are the true ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import moment_guidance
from sde_lib import SDE, batch_mul
from tests import affine, gaussians
from tests.marks import but_slow
from tests.test_inverse import OPERATORS, SHAPE, correlated, matrix

Array = jax.Array
NOISE_STD, STD = 0.2, 0.7


def points(sde: SDE) -> tuple[Array, Array]:
    t = jnp.array([0.1, 0.3, 0.5, 0.8])
    z = jax.random.normal(jax.random.key(2), (4, *SHAPE))
    return batch_mul(jnp.hypot(sde.alpha(t), sde.sigma(t)), z), t


def errors(sde: SDE, cases: list[tuple[affine.Law, str, Any]]) -> list[float]:
    """The largest error of each guided score, of (score, operator, y), to the posterior's score."""

    def both(data: affine.Law, name: str, guided: Any) -> tuple[Array, Array]:
        operator, a = OPERATORS[name], matrices[name]
        y = np.linspace(-1.0, 1.0, len(a))
        exact = affine.score_of(sde, affine.posterior(data, a, y, NOISE_STD))
        x, t = points(sde)
        seen = jax.eval_shape(operator, x).shape
        measured = jnp.broadcast_to(jnp.asarray(y, jnp.float32).reshape(1, *seen[1:]), seen)
        return guided(affine.score_of(sde, data), operator, measured)(x, t), exact(x, t)

    matrices = {name: matrix(OPERATORS[name]) for _, name, _ in cases}
    pairs = jax.jit(lambda: [both(*case) for case in cases])()
    return [float(jnp.max(jnp.abs(m - e)) / jnp.max(jnp.abs(e))) for m, e in pairs]


ISOTROPIC = affine.Law(np.full(16, 0.3), STD**2 * np.eye(16))
CORRELATED = affine.Law(np.full(16, 0.3), correlated())
UNEQUAL = affine.Law(np.full(16, 0.3), np.diag(np.linspace(0.1, 1.0, 16)))


@pytest.mark.parametrize("kind", but_slow(gaussians.SDES, ["subvp"]))
def test_pigdm_is_exact_for_isotropic_gaussians(kind: str) -> None:
    """With the data's deviation, for a blur too; not with another, nor for correlated data."""
    sde = gaussians.SDES[kind]

    def pigdm(**options: Any) -> Any:
        return lambda score, operator, y: moment_guidance.pigdm(
            sde, score, operator, y, noise_std=NOISE_STD, **options
        )

    cases = [
        (ISOTROPIC, "gaussian_blur", pigdm(data_std=STD)),
        (ISOTROPIC, "gaussian_blur", pigdm(data_std=1.0)),
        (CORRELATED, "gaussian_blur", pigdm(data_std=STD)),
        (ISOTROPIC, "gaussian_blur", pigdm(data_std=STD, scale=0.5)),
    ]
    exact, *others = errors(sde, cases)
    assert exact < 1e-3
    assert min(others) > 0.01


@pytest.mark.parametrize("kind", but_slow(gaussians.SDES, ["vp"]))
def test_tmpd_is_exact_where_measurements_are_independent(kind: str) -> None:
    """Pixels of unequal variances behind a mask; not correlated ones."""
    sde = gaussians.SDES[kind]

    def tmpd(score: Any, operator: Any, y: Array) -> Any:
        return moment_guidance.tmpd(sde, score, operator, y, noise_std=NOISE_STD)

    exact, other = errors(sde, [(UNEQUAL, "masking", tmpd), (CORRELATED, "masking", tmpd)])
    assert exact < 1e-3
    assert other > 0.01


def test_tmpd_takes_the_row_sums_of_the_covariance() -> None:
    """Written out for correlated data and a blur; hidden pixels without noise move nothing."""
    sde, data = gaussians.SDES["vp"], CORRELATED
    operator, a = OPERATORS["gaussian_blur"], matrix(OPERATORS["gaussian_blur"])
    y = np.linspace(-1.0, 1.0, 16)

    @jax.jit
    def guided() -> tuple[Array, ...]:
        x, t = points(sde)
        score = affine.score_of(sde, data)
        measured = jnp.broadcast_to(jnp.asarray(y, jnp.float32).reshape(SHAPE), x.shape)
        mine = moment_guidance.tmpd(sde, score, operator, measured, noise_std=NOISE_STD)(x, t)
        masked = OPERATORS["masking"]
        exact = moment_guidance.tmpd(sde, score, masked, masked(x), noise_std=0.0)(x, t)
        return mine - score(x, t), x, exact

    mine, x, exact = (np.asarray(v, np.float64).reshape(4, 16) for v in guided())
    for b, time in enumerate(points(sde)[1]):
        alpha, sigma = float(sde.alpha(time[None])[0]), float(sde.sigma(time[None])[0])
        slope = (
            alpha
            * data.covariance
            @ np.linalg.inv(alpha**2 * data.covariance + sigma**2 * np.eye(16))
        )
        x0 = data.mean + slope @ (x[b] - alpha * data.mean)
        sums = (a @ (sigma**2 / alpha * slope) @ a.T).sum(1)
        expected = slope.T @ a.T @ ((y - a @ x0) / (sums + NOISE_STD**2))
        np.testing.assert_allclose(mine[b], expected, rtol=2e-3, atol=2e-4)
    assert np.isfinite(exact).all()


def test_variances_of_data_are_those_of_bayes() -> None:
    for sde in gaussians.SDES.values():
        t = jnp.array([0.2, 0.7])
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        expected = 1.0 / (1.0 / STD**2 + alpha**2 / sigma**2)
        found = moment_guidance.variance_of_data(sde, t, STD)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("noise_std", "data_std"), [(-0.1, 1.0), (0.0, 0.0)])
def test_deviations_that_are_none_are_refused(noise_std: float, data_std: float) -> None:
    message = f"noise_std={noise_std:g} must be 0 or more, and data_std={data_std:g} positive"
    with pytest.raises(ValueError, match=message):
        moment_guidance.pigdm(
            gaussians.SDES["vp"], lambda x, t: x, lambda x: x, jnp.zeros((1, 1)),
            noise_std=noise_std, data_std=data_std,
        )  # fmt: skip
