"""The table of conversions between score, noise, x_0 and velocity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import parametrisation
from tests import gaussians

KINDS = ("score", "noise", "x0", "velocity", "edm", "flow")
EVERY_SDE = gaussians.EVERY_SDE | gaussians.FLOWS


@pytest.mark.parametrize("kind", EVERY_SDE)
def test_every_conversion_agrees_with_the_definitions_and_inverts(kind: str) -> None:
    """Digits are lost where they must be only: of x_0 in noise, of noise where there is little."""
    sde = EVERY_SDE[kind]
    x0, z = (jax.random.normal(jax.random.key(k), (6, 2, 2, 1)) for k in (0, 1))
    t = jnp.linspace(0.1, 0.9, 6) * sde.T
    alpha, sigma = (v.reshape(6, 1, 1, 1) for v in (sde.alpha(t), sde.sigma(t)))
    x = alpha * x0 + sigma * z
    truth = {"score": -z / sigma, "noise": z, "x0": x0, "velocity": alpha * z - sigma * x0}
    truth["edm"] = (sigma * x0 / 0.5 - 0.5 * alpha * z) / jnp.sqrt((0.5 * alpha) ** 2 + sigma**2)
    alpha_rate, sigma_rate = (v.reshape(6, 1, 1, 1) for v in sde.rates(t))
    truth["flow"] = alpha_rate * x0 + sigma_rate * z
    assert set(truth) == set(KINDS) == set(parametrisation.PREDICTIONS)
    to_x0, to_noise = (float(jnp.maximum(1.0, v).max()) for v in (sigma / alpha, alpha / sigma))
    conditions = {"score": to_x0, "noise": to_x0, "x0": to_noise, "velocity": 1.0, "edm": 1.0}
    # What a flow leaves of x is in units of how fast alpha and sigma part.
    parting = jnp.abs(alpha * sigma_rate - sigma * alpha_rate)
    sizes = sum(jnp.abs(v) for v in (alpha, sigma, alpha_rate, sigma_rate))
    conditions["flow"] = float(jnp.max(sizes / parting))
    for source, value in truth.items():
        for target, expected in truth.items():
            made = parametrisation.convert(sde, x, t, value, source, target)
            lost = conditions[source]
            scale = float(jnp.abs(expected).max() + jnp.abs(x).max())
            np.testing.assert_allclose(made, expected, atol=2e-6 * lost * scale)
            back = parametrisation.convert(sde, x, t, expected, target, source)
            np.testing.assert_allclose(
                parametrisation.convert(sde, x, t, back, source, target),
                expected,
                atol=4e-6 * to_x0 * to_noise * scale,
            )


def test_each_prediction_of_a_gaussian_has_its_closed_form() -> None:
    """x_0 ~ N(m, s^2): E[x_0 | x] = m + alpha s^2 (x - alpha m) / v, v = alpha^2 s^2 + sigma^2."""
    m, s, t = 0.3, 0.5, jnp.array([0.2, 0.7])
    for sde in gaussians.SDES.values():
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        x = sigma * jax.random.normal(jax.random.key(0), (2, 3))
        variance = alpha**2 * s**2 + sigma**2
        centred = (x - alpha * m) / variance
        x0, noise = m + alpha * s**2 * centred, sigma * centred
        forms = {"noise": noise, "x0": x0, "velocity": alpha * noise - sigma * x0}
        score = gaussians.linear_score(sde, m, s)(x, t)
        for kind, expected in forms.items():
            made = parametrisation.convert(sde, x, t, score, "score", kind)
            np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", EVERY_SDE)
def test_the_flow_of_gaussian_data_is_the_drift_of_the_probability_flow(kind: str) -> None:
    """`E[alpha' x_0 + sigma' z | x] = f - g^2 score / 2`, which moves x along the flow map."""
    sde, m, s = EVERY_SDE[kind], 0.3, 0.5
    t = jnp.linspace(0.05, 0.95, 7) * sde.T
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    std = jnp.sqrt((alpha * s) ** 2 + sigma**2)
    x = alpha * m + std * jax.random.normal(jax.random.key(0), (7, 3))
    score = gaussians.linear_score(sde, m, s)
    flow = parametrisation.convert(sde, x, t, score(x, t), "score", "flow")
    drift = sde.reverse(score, probability_flow=True).drift(x, t)
    scale = float(jnp.abs(x).max() * jnp.square(sde.diffusion(t) / sigma[:, 0]).max())
    np.testing.assert_allclose(flow, drift, rtol=1e-5, atol=2e-6 * scale)
    with jax.enable_x64(True):
        step, wide = 1e-4 * np.float64(t[3]), np.asarray(x, np.float64)[3]
        ends = [
            gaussians.flow_map(sde, m, s, wide, float(t[3]), float(t[3]) + sign * step)
            for sign in (-1, 1)
        ]
        slope = (ends[1] - ends[0]) / (2 * step)
    np.testing.assert_allclose(flow[3], slope, rtol=2e-3, atol=2e-3)


def test_an_unknown_kind_is_refused() -> None:
    x, t = jnp.zeros((1, 2)), jnp.ones(1)
    words = "unknown prediction 'eps'; known: edm, flow, noise, score, velocity, x0"
    for pair in (("eps", "x0"), ("x0", "eps")):
        with pytest.raises(ValueError, match=words):
            parametrisation.convert(gaussians.SDES["vp"], x, t, x, *pair)
