"""Distributions of training times over the way from data to noise: densities by quadrature."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from ml_collections import ConfigDict

from diffusion import times
from sde_lib import EDMSDE, SDE, VPSDE, RectifiedSDE

U = (jnp.arange(20000) + 0.5) / 20000
PROCESSES = pytest.mark.parametrize("sde", [RectifiedSDE(), EDMSDE()], ids=["rectified", "edm"])


def share_of_way(sde: SDE, t: Any, eps: float) -> np.ndarray:
    return (np.asarray(t, np.float64) - eps) / (sde.T - eps)


def same_integrals(sde: SDE, t: jax.Array, inverse_density: jax.Array, eps: float) -> None:
    """Means over the times, weighted by 1 / their density, are integrals over [eps, T]."""
    for power in (0, 1, 3):
        mean = np.mean(np.asarray(inverse_density, np.float64) * np.asarray(t, np.float64) ** power)
        exact = (sde.T ** (power + 1) - eps ** (power + 1)) / (power + 1)
        assert mean == pytest.approx(exact, rel=2e-3), power


def test_antithetic_draws_are_pairs_that_mirror_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    key = jax.random.key(0)
    u = times.time_draws("antithetic", key, jnp.arange(6), 6)
    np.testing.assert_allclose(u[1::2], 1.0 - u[::2], rtol=1e-6)
    first = times.time_draws("independent", key, jnp.arange(6), 6)[::2]
    np.testing.assert_array_equal(u[::2], first)
    monkeypatch.setattr(times, "independent", lambda key, numbers, total: 0.0 * numbers)
    assert (times.time_draws("antithetic", key, jnp.arange(6), 6) < 1.0).all()


def test_a_stratified_draw_is_below_one_however_its_sum_is_rounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2 + (1 - 2^-24) is 3 in float32."""
    largest = jnp.full(3, 1.0 - 2.0**-24)
    monkeypatch.setattr(times, "independent", lambda *_: largest)
    u = times.time_draws("stratified", jax.random.key(0), jnp.arange(3), 3)
    assert (u < 1.0).all()
    np.testing.assert_allclose(jnp.sort(u), [1 / 3, 2 / 3, 1.0], rtol=1e-6)


class LateVPSDE(VPSDE):
    """One whose training begins where its whole way is short."""

    training_eps = 0.3


def test_times_of_the_likelihood_leave_the_mean_over_uniform_times_as_it_is() -> None:
    sde = LateVPSDE()
    t, factor = times.times_from_config(config(time="likelihood"), sde)(U)
    for power in (0, 2):
        mean = (1 - 0.3 ** (power + 1)) / (power + 1) / (1 - 0.3)
        assert float(jnp.mean(factor * t**power)) == pytest.approx(mean, rel=1e-3)


def test_uniform_times_lie_evenly_between_the_first_one_and_the_last() -> None:
    t, inverse_density = times.uniform_times(VPSDE(), jnp.array([0.0, 0.5, 0.75, 1.0]), eps=0.2)
    np.testing.assert_allclose(t, [0.2, 0.6, 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(inverse_density, 0.8, rtol=1e-6)


@PROCESSES
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.7, 0.6), (0.4, 1.5)])
def test_logit_normal_times_have_their_density(sde: SDE, mean: float, std: float) -> None:
    """That of Esser et al. 2024 (arXiv:2403.03206, eq. 19), integrated, is u."""

    def density(s: float) -> float:
        logit = np.log(s / (1 - s))
        return float(np.exp(-((logit - mean) ** 2) / (2 * std**2))) / (
            std * np.sqrt(2 * np.pi) * s * (1 - s)
        )

    eps = 0.01 * sde.T
    t, inverse_density = jax.jit(lambda u: times.logit_normal_times(sde, u, mean, std, eps))(U)
    shares = share_of_way(sde, t, eps)
    for i in (200, 7000, 15000, 19500):
        below = scipy.integrate.quad(density, 0.0, shares[i])[0]
        assert below == pytest.approx(float(U[i]), abs=1e-5)
        width = (sde.T - eps) / density(shares[i])
        assert float(inverse_density[i]) == pytest.approx(width, rel=1e-3)
    ends = jnp.array([0.0, 1.0 - 2.0**-24, 1.0])
    at_ends, widths = jax.jit(lambda u: times.logit_normal_times(sde, u, mean, std, eps))(ends)
    assert (at_ends >= eps).all()
    assert (at_ends <= sde.T).all()
    assert jnp.isfinite(widths).all()


@PROCESSES
@pytest.mark.parametrize("scale", [-1.0, -0.4, 0.0, 1.29, times.LARGEST_MODE_SCALE])
def test_mode_times_have_their_density(sde: SDE, scale: float) -> None:
    """The map of Esser et al. 2024 (arXiv:2403.03206, eq. 20), in float64, and its slope."""
    eps = 0.01 * sde.T
    t, inverse_density = jax.jit(lambda u: times.mode_times(sde, u, scale, eps))(U)
    u = np.asarray(U, np.float64)
    expected = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    np.testing.assert_allclose(share_of_way(sde, t, eps), expected, atol=2e-6)
    assert (np.diff(expected) <= 0).all()
    slope = -np.gradient(expected, u) * (sde.T - eps)
    np.testing.assert_allclose(inverse_density[1:-1], slope[1:-1], atol=1e-4 * sde.T)
    same_integrals(sde, t, inverse_density, eps)
    if scale == 0.0:
        uniform, _ = times.uniform_times(sde, 1.0 - U, eps)
        np.testing.assert_allclose(t, uniform, rtol=1e-4)


def test_of_straight_paths_a_logit_is_the_logarithm_of_the_noise_level() -> None:
    """sigma / alpha = t / (1 - t): so EDM's log-normal levels are logit-normal times."""
    sde, u = RectifiedSDE(), U[1000:-1000:100]

    @jax.jit
    def both(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        ours = times.logit_normal_times(sde, u, -0.5, 0.8)[0]
        return ours, times.log_normal_times(sde, u, -0.5, 0.8)

    ours, theirs = both(u)
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)


def config(**training: Any) -> ConfigDict:
    return ConfigDict({"training": training})


def test_a_config_names_them_and_they_carry_no_weight() -> None:
    sde, u = VPSDE(), U[::1000]
    named: dict[str, dict[str, float]] = {
        "uniform": {},
        "logit_normal": {"logit_mean": 0.3, "logit_std": 0.7},
        "mode": {"mode_scale": 0.8},
    }
    direct = {
        "uniform": times.uniform_times(sde, u)[0],
        "logit_normal": times.logit_normal_times(sde, u, 0.3, 0.7)[0],
        "mode": times.mode_times(sde, u, 0.8)[0],
    }
    for name, settings in named.items():
        t, factor = times.times_from_config(config(time=name, **settings), sde)(u)
        np.testing.assert_array_equal(t, direct[name])
        np.testing.assert_array_equal(factor, 1.0)
    for scale in (-1.01, 1.76):
        with pytest.raises(ValueError, match=r"mode_scale is .*between -1 and .*1\.752"):
            times.times_from_config(config(time="mode", mode_scale=scale), sde)
