"""Latent codes: round trips, the exact flow of a Gaussian, and what noising and returning keeps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import few_steps, grids, latent
from diffusion.noise import recorded_noise
from sde_lib import VESDE, VPSDE
from tests import gaussians

MEAN, STD = 0.3, 0.5


def test_slerp_keeps_the_norm_and_divides_the_angle() -> None:
    z0 = jnp.array([[3.0, 0.0], [1.0, 1.0], [2.0, 0.0], [1.0, 0.0]])
    z1 = jnp.array([[0.0, 3.0], [1.0, 1.0], [4.0, 0.0], [0.0, 2.0]])
    weight = jnp.array([1 / 3, 0.4, 0.5, 0.5])
    found = latent.slerp(z0, z1, weight)
    expected = [[3 * np.sqrt(0.75), 1.5], [1.0, 1.0], [3.0, 0.0], [np.sqrt(0.5), np.sqrt(2.0)]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for end, w in ((z0, 0.0), (z1, 1.0)):
        np.testing.assert_allclose(latent.slerp(z0, z1, jnp.full(4, w)), end, atol=1e-6)


def test_slerp_of_the_same_and_of_opposite_latents_is_a_number() -> None:
    """Though rounding takes the cosine of some beyond 1."""
    z = jax.random.normal(jax.random.key(0), (1000, 7))
    length = jnp.sqrt(jnp.sum(z * z, 1))
    assert (jnp.sum(z * z, 1) / (length * length) > 1.0).any()
    for other in (z, -z):
        assert jnp.isfinite(latent.slerp(z, other, jnp.full(1000, 0.3))).all()


def test_noising_to_a_time_and_encoding_are_written_out() -> None:
    """SDEdit starts DDIM at the noised image; a step of the encoding is Euler's in sigma / alpha.
    For VE, whose prior is not standard normal."""
    sde, times = VESDE(sigma_max=8.0), np.array([0.6, 0.5, 0.3])
    score_fn = gaussians.two_modes((4,)).score_fn(sde)
    z = jax.random.normal(jax.random.key(0), (4, 3, 4))

    @jax.jit
    def edited() -> tuple[jax.Array, jax.Array]:
        sigma = sde.sigma(jnp.full(3, times[0], jnp.float32))
        start = (z[3] + sigma[:, None] * z[0]) / sde.prior_std
        source = recorded_noise(z.at[0].set(start))
        found = latent.sdedit(sde, score_fn, recorded_noise(z), z[3], times).x
        return found, few_steps.ddim(sde, score_fn, source, times, eta=1.0).x

    @jax.jit
    def encoded() -> tuple[jax.Array, jax.Array]:
        x = z[3]
        for t, s in ((0.3, 0.5), (0.5, 0.6)):
            low, high = (sde.sigma(jnp.full((3, 1), time, jnp.float32)) for time in (t, s))
            x -= (high - low) * low * score_fn(x, jnp.full(3, t, jnp.float32))
        return latent.ddim_encode(sde, score_fn, z[3], times), x

    for found, expected in (edited(), encoded()):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_direction_is_the_difference_of_means() -> None:
    z = jnp.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]])
    np.testing.assert_allclose(latent.direction(z, jnp.array([1, 1, 0])), [2.0, 2.0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", gaussians.SDES)
def test_ddim_inverts_along_the_exact_flow(kind: str) -> None:
    """First order: four times the steps, a quarter of the error; decoding leads back."""
    sde = gaussians.SDES[kind]
    x = jnp.linspace(-1.0, 1.5, 8).reshape(2, 2, 2, 1)
    score_fn = gaussians.linear_score(sde, MEAN, STD)

    @jax.jit
    def errors() -> jax.Array:
        found = []
        for steps in (50, 200):
            times = grids.time_grid(sde, "log_snr", steps)
            z = latent.ddim_encode(sde, score_fn, x, times)
            exact = gaussians.flow_map(sde, MEAN, STD, x, float(times[-1]), float(times[0]))
            back = latent.ddim_decode(sde, score_fn, z, times, denoise=False).x
            found.append([jnp.abs(z - exact).max() / sde.prior_std, jnp.abs(back - x).max()])
        return jnp.array(found)

    (coarse, coarse_back), (fine, fine_back) = np.asarray(errors())
    assert coarse < 0.2
    assert 3.0 < coarse / fine < 5.0
    assert 3.0 < coarse_back / fine_back < 5.0


@pytest.mark.slow
def test_noising_and_returning_has_its_closed_form() -> None:
    """From x_t the reverse SDE of N(m, s^2) ends in N(m + c (x_t - a m), v); 4,096 samples."""
    sde, start = VPSDE(), 0.4
    key = jax.random.key(0)
    x0 = jnp.full((4096, 1, 1, 1), 1.2)
    times = latent.times_from(grids.time_grid(sde, "log_snr", 150), start)
    assert times[0] == start
    assert len(times) < 151

    def noise(i: Any) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, i), x0.shape)

    @jax.jit
    def edited() -> jax.Array:
        score_fn = gaussians.linear_score(sde, MEAN, STD)
        return latent.sdedit(sde, score_fn, noise, x0, times).x

    x = np.asarray(edited())
    t = jnp.array([start])
    a, sigma = float(sde.alpha(t)[0]), float(sde.sigma(t)[0])
    c = a * STD**2 / (a**2 * STD**2 + sigma**2)
    v = STD**2 * sigma**2 / (a**2 * STD**2 + sigma**2)
    assert abs(x.mean() - (MEAN + c * a * (1.2 - MEAN))) < 0.02
    np.testing.assert_allclose(x.var(), c**2 * sigma**2 + v, rtol=0.08)


def test_a_start_outside_the_grid_is_refused() -> None:
    times = grids.time_grid(VPSDE(), "uniform", 5)
    for start in (0.001, 1.5):
        with pytest.raises(ValueError, match=r"start must lie in \(0.001, 1\], not"):
            latent.times_from(times, start)
    np.testing.assert_array_equal(latent.times_from(times, 1.0), times)
