"""DDRM, DDNM and DiffPIR: where they are each other, and what their noise adds up to."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import few_steps, grids, inverse, restoration, svd
from sde_lib import SDE, VPSDE
from tests import affine, gaussians
from tests.marks import but_slow

Array = jax.Array
SHAPE = (1, 2, 1)
INDEPENDENT = affine.Law(np.array([0.3, -0.2]), np.diag([0.5, 0.3]))
CORRELATED = affine.Law(np.array([0.3, -0.2]), 0.49 * np.array([[1.0, 0.8], [0.8, 1.0]]))
KNOWN = np.array([0.6, 0.0]).reshape(SHAPE)
MASK = inverse.masking(jnp.array([1.0, 0.0]).reshape(SHAPE))


def mean(x: Array) -> Array:
    return jnp.mean(x, (1, 2, 3), keepdims=True).reshape(-1, 1)


def like(y: Any, count: int) -> Array:
    return jnp.broadcast_to(jnp.asarray(y, jnp.float32), (count, *np.shape(y)))


def laws(sde: SDE, data: affine.Law, times: np.ndarray, methods: list[Any]) -> list[affine.Law]:
    """The laws of methods (sde, score, noise, times, count), all in one program."""
    score, draws = affine.score_of(sde, data), len(times)

    def of_all(noise: Any, count: int) -> Array:
        drawn = jax.jit(lambda: [m(sde, score, noise, times, count).x for m in methods])()
        results.extend(np.asarray(x) for x in drawn)
        return drawn[0]

    results: list[np.ndarray] = []
    affine.law(of_all, SHAPE, draws)
    return [affine.law(lambda noise, count, x=x: x, SHAPE, draws) for x in results]  # type: ignore


@pytest.mark.parametrize("kind", but_slow(gaussians.SDES, ["vp"]))
def test_without_noise_the_hidden_pixel_is_drawn_as_if_nothing_were_known(kind: str) -> None:
    """Independent pixels: in the hidden one DDNM and DiffPIR are ancestral sampling, draw by draw,
    and DDRM with eta = 0 is DDIM; the known one is y."""
    sde = gaussians.SDES[kind]
    times, parts = grids.time_grid(sde, "log_snr", 30), svd.decomposition(MASK, SHAPE)
    y = np.array([1.0, 0.0]).reshape(SHAPE)
    methods = [
        lambda s, f, n, t, c: few_steps.ddim(s, f, n, t, eta=1.0),
        lambda s, f, n, t, c: restoration.ddnm(s, f, n, t, parts, like(y, c)),
        lambda s, f, n, t, c: restoration.diffpir(s, f, n, t, MASK, like(y, c)),
        lambda s, f, n, t, c: few_steps.ddim(s, f, n, t, eta=0.0),
        lambda s, f, n, t, c: restoration.ddrm(s, f, n, t, parts, like(y, c), eta=0.0),
    ]
    free, null, plug, flow, spectral = laws(sde, INDEPENDENT, times, methods)
    for mine, other in ((null, free), (plug, free), (spectral, flow)):
        np.testing.assert_allclose(mine.mean, [1.0, other.mean[1]], atol=2e-4)
        np.testing.assert_allclose(mine.covariance, np.diag([0, other.covariance[1, 1]]), atol=5e-4)


@pytest.mark.parametrize("name", ["mean", "mask"])
@pytest.mark.parametrize("kind", but_slow(gaussians.SDES, ["ve"]))
def test_with_new_noise_alone_all_three_are_one(kind: str, name: str) -> None:
    """eta = 1, no noise in y, of correlated pixels the mean or one that another depends on; at
    other shares DDNM is still DiffPIR, not DDRM."""
    sde = gaussians.SDES[kind]
    operator, y = {"mean": (mean, np.array([0.6])), "mask": (MASK, KNOWN)}[name]
    times, parts = grids.time_grid(sde, "log_snr", 6), svd.decomposition(operator, SHAPE)
    methods = []
    for eta in (1.0, 0.6):
        methods += [
            lambda s, f, n, t, c, eta=eta: restoration.ddrm(s, f, n, t, parts, like(y, c), eta=eta),
            lambda s, f, n, t, c, eta=eta: restoration.ddnm(s, f, n, t, parts, like(y, c), eta=eta),
            lambda s, f, n, t, c, eta=eta: restoration.diffpir(
                s, f, n, t, operator, like(y, c), eta=eta
            ),
        ]
    one, two, three, other, null, plug = laws(sde, CORRELATED, times, methods)
    for law in (two, three):
        np.testing.assert_allclose(law.mean, one.mean, atol=1e-3)
        np.testing.assert_allclose(law.covariance, one.covariance, atol=1e-3)
    np.testing.assert_allclose(plug.covariance, null.covariance, atol=1e-3)
    for law in (null, other):
        measured = operator(jnp.asarray(law.mean.reshape(1, *SHAPE)))[0]
        np.testing.assert_allclose(measured, y, atol=1e-4)


@pytest.mark.parametrize("eta", [0.85, None])
@pytest.mark.parametrize("noise_std", [0.05, 1.0, 5.0])
def test_the_noise_of_y_is_counted_as_noise_of_the_step(
    noise_std: float, eta: float | None
) -> None:
    """Data that are one point: x_s after a step is alpha_s times it, with noise sigma_s, over the
    noise of the prior, the step and y, whether y is sharper than the level or not.

    x_s is what the score is asked at last.
    """
    sde, point = VPSDE(), np.array([0.4, -0.3])
    times, blur = np.array([sde.T, 0.5]), np.array([[0.9, 0.3], [0.3, 0.9]])

    def operator(x: Array) -> Array:
        return x.reshape(len(x), 2) @ jnp.asarray(blur, jnp.float32)

    parts = svd.decomposition(operator, SHAPE)

    def seen(noise: Any, count: int) -> Array:
        drawn = jax.jit(lambda: states(noise, count))()
        results.extend(np.asarray(x) for x in drawn)
        return jnp.asarray(drawn[0])

    def states(noise: Any, count: int) -> list[Array]:
        """x_s of DDRM and DDNM; draw 2 is the noise of y."""
        y = operator(like(point.reshape(SHAPE), count) + 0.0) + noise_std * noise(2).reshape(-1, 2)
        caught: list[Array] = []

        def score(x: Array, t: Array) -> Array:
            caught.append(x)
            alpha, sigma = (v[:, None, None, None] for v in (sde.alpha(t), sde.sigma(t)))
            return -(x - alpha * point.reshape(SHAPE)) / sigma**2

        found = []
        for method in (
            restoration.ddrm,
            restoration.ddnm,
            functools.partial(restoration.ddrm, eta_b=0.6),
        ):
            method(sde, score, noise, times, parts, y, noise_std=noise_std, eta=eta)
            found.append(caught[-1])  # where the last x0 is asked for
        return found

    results: list[np.ndarray] = []
    affine.law(seen, SHAPE, 3)
    s = jnp.array([times[-1]], jnp.float32)
    alpha, sigma = float(sde.alpha(s)[0]), float(sde.sigma(s)[0])
    for x in results:
        law = affine.law(lambda noise, count, x=x: x, SHAPE, 3)  # type: ignore
        # The mean of the prior is 0 in place of alpha_T times the point.
        np.testing.assert_allclose(law.mean, alpha * point, atol=2e-3)
        np.testing.assert_allclose(law.covariance, sigma**2 * np.eye(2), atol=2e-3)


def test_ddrm_goes_to_y_as_far_as_its_noise_and_eta_b_say() -> None:
    """One step to a level below the noise, and one above it, written out for data of one point."""
    sde, identity = VPSDE(), inverse.identity
    parts = svd.decomposition(identity, SHAPE)
    y = np.array([1.0, 0.2]).reshape(SHAPE)

    def seen(s: float, noise_std: float, eta_b: float) -> Array:
        caught: list[Array] = []

        def score(x: Array, t: Array) -> Array:
            caught.append(x)
            return -x / jnp.square(sde.sigma(t))[:, None, None, None]  # x0 = 0

        restoration.ddrm(
            sde, score, lambda i: jnp.zeros((1, *SHAPE)), np.array([sde.T, s]), parts, like(y, 1),
            noise_std=noise_std, eta=0.6, eta_b=eta_b,
        )  # fmt: skip
        return caught[-1]

    s = jnp.array([0.4])
    alpha, sigma = float(sde.alpha(s)[0]), float(sde.sigma(s)[0])
    level = sigma / alpha
    sharp, vague = jax.jit(lambda: [seen(0.4, share * level, 0.7) for share in (0.5, 2.0)])()
    np.testing.assert_allclose(sharp[0], alpha * 0.7 * y, rtol=1e-4)
    np.testing.assert_allclose(vague[0], alpha * 0.8 * 0.5 * y, rtol=1e-4)


def test_ddrm_begins_with_the_noise_of_the_prior_whatever_y_brings() -> None:
    """Where the level is not yet that of T: y's noise 0.4 is a part of the first state's."""
    sde, times = VPSDE(), np.array([0.5, 0.4, 0.3])
    parts = svd.decomposition(MASK, SHAPE)

    def first(noise: Any, count: int) -> Array:
        caught: list[np.ndarray] = []

        def score(x: Array, t: Array) -> Array:
            jax.debug.callback(lambda x: caught.append(np.asarray(x)), x, ordered=True)
            return -x

        y = MASK(like(np.array([0.7, 0.0]).reshape(SHAPE), count) + 0.4 * noise(2))
        restoration.ddrm(sde, score, noise, times, parts, y, noise_std=0.4)
        jax.effects_barrier()
        return jnp.asarray(caught[0])

    law = affine.law(first, SHAPE, 3)
    alpha = float(sde.alpha(jnp.array([0.5]))[0])
    np.testing.assert_allclose(law.mean, [0.7 * alpha, 0.0], atol=1e-4)
    np.testing.assert_allclose(law.covariance, np.eye(2), atol=1e-4)


@pytest.mark.parametrize("noise_std", [0.0, 0.05, 5.0])
def test_ddnm_goes_to_y_as_far_as_the_noise_of_the_step_allows(noise_std: float) -> None:
    """x0 = 0 and no draws: x_s = a x0', x0' = y min(1, eta sigma_s / (a noise_std)), where a is
    the factor of x0' in x_s. In the end x is x0' without noise, and x0 with it."""
    sde, y, eta = VPSDE(), np.array([1.0, 0.2]).reshape(SHAPE), 0.6
    parts = svd.decomposition(inverse.identity, SHAPE)

    def seen() -> tuple[Array, Array]:
        caught: list[Array] = []

        def score(x: Array, t: Array) -> Array:
            caught.append(x)
            return -x / jnp.square(sde.sigma(t))[:, None, None, None]  # x0 = 0

        samples = restoration.ddnm(
            sde, score, lambda i: jnp.zeros((1, *SHAPE)), np.array([sde.T, 0.4]), parts, like(y, 1),
            noise_std=noise_std, eta=eta,
        )  # fmt: skip
        return caught[-1], samples.x

    (alpha_t, alpha), (sigma_t, sigma) = (
        np.asarray(of(jnp.array([sde.T, 0.4]))) for of in (sde.alpha, sde.sigma)
    )
    factor = alpha - np.sqrt(1 - eta**2) * sigma / sigma_t * alpha_t
    share = min(1.0, eta * sigma / (factor * noise_std)) if noise_std else 1.0
    assert (share < 1) == (noise_std == 5.0)
    at_s, x = jax.jit(seen)()
    np.testing.assert_allclose(at_s[0], factor * share * y, rtol=1e-4)
    np.testing.assert_allclose(x[0], 0.0 * y if noise_std else y, rtol=1e-5, atol=1e-6)


def test_the_proximal_point_weighs_the_noise_against_the_level() -> None:
    """DiffPIR's last correction, for one point of data: x0' = x0 + (y - x0) / (1 + rho) with
    rho = weight noise_std^2 alpha^2 / sigma^2."""
    sde, y = VPSDE(), np.array([1.0, 0.2]).reshape(SHAPE)
    times = np.array([sde.T, 0.6, 0.3])

    def score(x: Array, t: Array) -> Array:
        return -x / jnp.square(sde.sigma(t))[:, None, None, None]  # x0 = 0

    samples = jax.jit(
        lambda: restoration.diffpir(
            *(sde, score, lambda i: jnp.ones((1, *SHAPE)), times, inverse.identity, like(y, 1)),
            noise_std=0.5,
            weight=3.0,
        )
    )()
    t = jnp.array([0.3])
    rho = 3.0 * 0.5**2 * float(jnp.square(sde.alpha(t) / sde.sigma(t))[0])
    np.testing.assert_allclose(samples.x[0], y / (1.0 + rho), rtol=1e-4)
    assert samples.nfe == 3


def test_numbers_out_of_range_are_refused() -> None:
    parts = svd.decomposition(mean, SHAPE)
    given = VPSDE(), lambda x, t: x, lambda i: jnp.zeros((1, *SHAPE)), np.array([1.0, 0.5])
    y = jnp.zeros((1, 1))
    for noise_std, eta in ((-0.1, 0.5), (0.1, 1.5)):
        with pytest.raises(
            ValueError, match=f"noise_std={noise_std:g} must be .* eta={eta} None or"
        ):
            restoration.ddrm(*given, parts, y, noise_std=noise_std, eta=eta)
    with pytest.raises(ValueError, match="eta_b must lie between 0 and 1, not 2"):
        restoration.ddrm(*given, parts, y, eta_b=2.0)
    with pytest.raises(ValueError, match="a part of its own: eta must be positive"):
        restoration.ddnm(*given, parts, y, noise_std=0.1, eta=0.0)
    with pytest.raises(ValueError, match="weight of DiffPIR must be positive, not 0"):
        restoration.diffpir(*given, mean, y, weight=0.0)
