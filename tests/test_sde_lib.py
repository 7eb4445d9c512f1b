"""The SDEs against their own definitions, quadrature, SciPy and the original code's numbers."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from textwrap import dedent
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from ml_collections import ConfigDict

import models
import sampling
import sde_lib
from configs.toy import mixture_dsm_vp
from diffusion.noise import image_noise
from runtime import devices, ema, experiment
from sde_lib import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    FlowOTSDE,
    Interpolant,
    PowerInterpolant,
    RectifiedSDE,
    SigmaPowerSDE,
    SubVPSDE,
    TrigonometricSDE,
    batch_mul,
)
from tests import golden_cases
from training.objective import objective_from_config
from training.state import new_state
from training.step import make_train_step

INTERPOLANTS = (RectifiedSDE, FlowOTSDE, TrigonometricSDE, PowerInterpolant)
CLASSES = (VPSDE, SubVPSDE, VESDE, CosineVPSDE, EDMSDE, SigmaPowerSDE, *INTERPOLANTS)
CASES = [
    VPSDE(),
    SubVPSDE(),
    VESDE(),
    VPSDE(N=100, beta_min=0.5, beta_max=7.0),
    SubVPSDE(N=100, beta_min=2.0, beta_max=2.0),
    VESDE(N=100, sigma_min=0.1, sigma_max=3.0),
    CosineVPSDE(),
    EDMSDE(N=100, sigma_min=0.01, sigma_max=20.0),
    RectifiedSDE(),
    FlowOTSDE(sigma_min=0.05),
    TrigonometricSDE(N=100),
    PowerInterpolant(),
    PowerInterpolant(time_power=3.0, data_power=2.0, noise_power=1.5),
    SigmaPowerSDE(),
]
TIMES: Any = np.array([1e-5, 1e-3, 0.03, 0.2, 0.5, 0.8, 1.0], np.float32)  # in units of T
RATE, OFFSET = np.pi / 2 / 1.008, 0.008  # of the cosine schedule
CLIPPED = np.arctan(999.0 / (2.0 * RATE)) / RATE - OFFSET  # the time when its beta is 999


def name(sde: SDE) -> str:
    return "-".join([type(sde).__name__, *(f"{v:g}" for v in dataclasses.astuple(sde)[1:])])


every_sde = pytest.mark.parametrize("sde", CASES, ids=name)
every_class = pytest.mark.parametrize("cls", CLASSES)


def exact_marginal(sde: SDE, t: Any) -> tuple[Any, Any]:
    """alpha and sigma in float64, from the definitions rather than from the code under test."""
    t = np.asarray(t, np.float64)
    if isinstance(sde, VESDE):
        return np.ones_like(t), sde.sigma_min ** (1.0 - t) * sde.sigma_max**t
    if isinstance(sde, EDMSDE):
        return np.ones_like(t), t
    if isinstance(sde, SigmaPowerSDE):
        return np.ones_like(t), np.sqrt(
            (sde.sigma_base ** (2.0 * t) - 1.0) / np.log(sde.sigma_base**2)
        )
    if isinstance(sde, CosineVPSDE):
        alpha = np.cos(RATE * (np.minimum(t, CLIPPED) + OFFSET)) / np.cos(RATE * OFFSET)
        alpha *= np.exp(-0.5 * 999.0 * np.maximum(t - CLIPPED, 0.0))
        return alpha, np.sqrt((1.0 - alpha) * (1.0 + alpha))
    if isinstance(sde, RectifiedSDE | FlowOTSDE):
        low = getattr(sde, "sigma_min", 0.0)
        return 1.0 - t, t + low * (1.0 - t)
    if isinstance(sde, TrigonometricSDE):
        return np.cos(0.5 * np.pi * t), np.sin(0.5 * np.pi * t)
    if isinstance(sde, PowerInterpolant):
        return (1.0 - t**sde.time_power) ** sde.data_power, t**sde.noise_power
    assert isinstance(sde, VPSDE | SubVPSDE)
    area = sde.beta_min * t + 0.5 * (sde.beta_max - sde.beta_min) * t**2
    variance = -np.expm1(-area)
    return np.exp(-0.5 * area), np.sqrt(variance) if isinstance(sde, VPSDE) else variance


# Marginals.


@every_sde
def test_marginals_keep_their_digits_down_to_the_smallest_time(sde: SDE) -> None:
    t = TIMES * np.float32(sde.T)
    if isinstance(sde, CosineVPSDE):
        t[-2] = 0.9985  # beyond the clip
    alpha, sigma = exact_marginal(sde, t)
    x0 = np.arange(7 * 6, dtype=np.float32).reshape(7, 2, 3) - 20.0
    mean, std = jax.jit(sde.marginal_prob)(x0, t)
    np.testing.assert_allclose(std, sigma, rtol=2e-6)
    np.testing.assert_allclose(mean, alpha[:, None, None] * x0, rtol=2e-6)
    np.testing.assert_allclose(sde.alpha(t), alpha, rtol=2e-6)
    np.testing.assert_allclose(sde.log_snr(t), 2 * np.log(alpha / sigma), rtol=2e-6, atol=2e-5)


@every_sde
def test_marginals_solve_the_moment_equations_of_the_process(sde: SDE) -> None:
    """dm/dt = f m and dv/dt = 2 f v + g^2 (Sarkka and Solin 2019, eq. 5.50), by quadrature."""
    edges = np.linspace(0.0, sde.T, 21)
    if isinstance(sde, CosineVPSDE):  # beta grows like 1 / (1 - t)
        late = 1.0 - (1.0 - CLIPPED) * np.geomspace(50.0, 1.0, 12)
        edges = np.concatenate([np.linspace(0.0, late[0], 11)[:-1], late, [1.0]])
    elif sde.steep_end:
        late = 1.0 - np.geomspace(0.5, 0.02, 20)  # nearer to T a float32 has no digits to spare
        edges = np.concatenate([np.linspace(0.0, late[0], 11)[:-1], late])
    nodes, weights = np.polynomial.legendre.leggauss(8)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    s = middle[:, None] + half[:, None] * nodes
    rate, g = jax.jit(lambda s: sde.sde(jnp.ones_like(s), s))(s.ravel().astype(np.float32))
    rate = np.asarray(rate, np.float64).reshape(s.shape)
    g = np.asarray(g, np.float64).reshape(s.shape)
    alpha, sigma = exact_marginal(sde, edges)
    growth = np.exp((rate * weights).sum(1) * half)  # alpha at the end over alpha at the start
    np.testing.assert_allclose(alpha[1:], growth * alpha[:-1], rtol=1e-6)
    to_end = alpha[1:, None] / exact_marginal(sde, s)[0]
    added = ((to_end * g) ** 2 * weights).sum(1) * half
    np.testing.assert_allclose(sigma[1:] ** 2, growth**2 * sigma[:-1] ** 2 + added, rtol=3e-6)


@every_sde
def test_closed_forms_are_what_differentiating_the_marginals_gives(sde: SDE) -> None:
    x: Any = np.linspace(-2, 2, 7, dtype=np.float32)[:, None]
    t = TIMES * np.float32(sde.T)
    np.testing.assert_allclose(sde.drift(x, t), SDE.drift(sde, x, t), rtol=1e-6)
    np.testing.assert_allclose(sde.diffusion(t), SDE.diffusion(sde, t), rtol=3e-6)
    drift, diffusion = sde.sde(x, t)
    np.testing.assert_array_equal(drift, sde.drift(x, t))
    np.testing.assert_array_equal(diffusion, sde.diffusion(t))


@every_sde
def test_log_snr_inverts(sde: SDE) -> None:
    t: Any = np.linspace(1e-3, 1.0, 101, dtype=np.float32) * np.float32(sde.T)
    log_snr = sde.log_snr(t)
    np.testing.assert_allclose(sde.time_of_log_snr(log_snr), t, rtol=2e-5, atol=2e-6)
    bisect = jax.jit(lambda log_snr: SDE.time_of_log_snr(sde, log_snr))
    np.testing.assert_allclose(bisect(log_snr), t, rtol=2e-5, atol=2e-6)


@every_class
def test_at_the_end_the_data_are_forgotten(cls: type[SDE]) -> None:
    sde = cls()
    end = jnp.float32(sde.T)
    # VE: 1/50; VP: exp(-5); EDM: 1/80. The tutorial's SDE ends at sqrt((25^2 - 1) / log(25^2)).
    most = 1 / 9.84 if cls is SigmaPowerSDE else 0.021
    assert sde.alpha(end) / sde.sigma(end) < most
    np.testing.assert_allclose(sde.sigma(end), sde.prior_std, rtol=1e-4)


@every_sde
def test_prior_is_the_gaussian_of_scipy(sde: SDE) -> None:
    x: Any = sde.prior_std * np.random.default_rng(0).normal(size=(3, 4, 2, 1)).astype(np.float32)
    expected = scipy.stats.norm.logpdf(x, scale=sde.prior_std).sum((1, 2, 3))
    np.testing.assert_allclose(jax.jit(sde.prior_logp)(x), expected, rtol=1e-6)
    np.testing.assert_allclose(sde.prior_sampling(x), x * exact_prior_std(sde), rtol=1e-6)


def exact_prior_std(sde: SDE) -> float:
    if isinstance(sde, SigmaPowerSDE | Interpolant):
        return float(exact_marginal(sde, sde.T)[1])
    return sde.sigma_max if isinstance(sde, VESDE | EDMSDE) else 1.0


# Between two times.


@every_sde
def test_transition_and_posterior_obey_bayes_rule(sde: SDE) -> None:
    t: Any = np.array([0.011, 0.1, 0.5, 0.9, 1.0], np.float32) * np.float32(sde.T)
    s: Any = np.array([0.010, 0.0, 0.4, 0.2, 0.99], np.float32) * np.float32(sde.T)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = exact_marginal(sde, t), exact_marginal(sde, s)
    a, v = sde.transition(t, s)
    np.testing.assert_allclose(a, alpha_t / alpha_s, rtol=1e-5)
    np.testing.assert_allclose(v, sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2, rtol=3e-4)

    x, x0 = np.random.default_rng(0).normal(size=(2, 5, 3))
    score = (alpha_t[:, None] * x0 - x) / sigma_t[:, None] ** 2  # Tweedie: E[x_0 | x_t] = x0
    a, v = alpha_t / alpha_s, sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = 1 / (1 / sigma_s**2 + a**2 / v)
        likeliest = (alpha_s / sigma_s**2)[:, None] * x0 + (a / v)[:, None] * x
        expected = np.where(sigma_s[:, None] > 0, variance[:, None] * likeliest, x0)
    mean, std = sde.posterior(x.astype(np.float32), score.astype(np.float32), t, s)
    np.testing.assert_allclose(mean, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(std, np.sqrt(variance), rtol=2e-4)


# Discretisation.


def step_times(sde: SDE) -> Any:
    """Times of steps 0..N-1, a hair late so that rounding does not cut i to i - 1."""
    times = np.arange(sde.N) / (sde.N - 1) * (1 + 3e-7) + 1e-9
    return (sde.T * times).astype(np.float32)


def chain_moments(sde: SDE) -> tuple[np.ndarray, np.ndarray]:
    """Factor on x_0 and variance after each of the N steps of `discretize`, from x_0 itself."""
    t = step_times(sde)
    f, G = (np.asarray(v, np.float64) for v in jax.jit(sde.discretize)(np.ones_like(t), t))
    a = np.cumprod(1.0 + f)
    v = np.zeros(sde.N + 1)
    for i in range(sde.N):
        v[i + 1] = (1.0 + f[i]) ** 2 * v[i] + G[i] ** 2
    return a, v[1:]


def test_vp_chain_has_the_marginals_of_its_tables() -> None:
    sde = VPSDE(N=200)
    betas = 0.1 / 200 + np.arange(200) / 199 * (20.0 - 0.1) / 200
    cumprod = np.cumprod(1.0 - betas)
    tables = {
        "discrete_betas": betas,
        "alphas": 1.0 - betas,
        "alphas_cumprod": cumprod,
        "sqrt_alphas_cumprod": np.sqrt(cumprod),
        "sqrt_1m_alphas_cumprod": np.sqrt(1.0 - cumprod),
    }
    for table, expected in tables.items():
        np.testing.assert_allclose(getattr(sde, table), expected, rtol=1e-6, err_msg=table)
        other = getattr(SubVPSDE(N=200), table)
        np.testing.assert_array_equal(getattr(sde, table), other, err_msg=table)
    a, v = chain_moments(sde)
    np.testing.assert_allclose(a, np.sqrt(cumprod), rtol=2e-5)
    np.testing.assert_allclose(v, 1.0 - cumprod, rtol=2e-5)


def test_the_interpolant_has_straight_noise_unless_it_is_told_otherwise() -> None:
    """x_t = (1 - t^2) x_0 + t z."""
    sde, t = sde_lib.PowerInterpolant(), jnp.array([0.3, 0.7])
    np.testing.assert_allclose(sde.alpha(t), 1 - t**2, rtol=1e-6)
    np.testing.assert_allclose(sde.sigma(t), t, rtol=1e-6)


def test_the_derivative_of_the_cosine_is_a_number_on_both_of_its_branches() -> None:
    """-beta / 2, by differentiation of log alpha: early, late, and where beta is clipped."""
    sde, t = CosineVPSDE(), jnp.array([0.2, 0.49, 0.51, 0.9, 0.9995])
    slope = jax.vmap(jax.grad(sde.log_alpha))(t)
    np.testing.assert_allclose(slope, -0.5 * sde.beta(t), rtol=1e-4)


def test_cosine_chain_is_the_published_one() -> None:
    """alpha-bar of Nichol and Dhariwal 2021, eq. 17, at i / N, and their clip of the last beta."""
    sde = CosineVPSDE(N=1000)
    bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(sde.alphas_cumprod[:-1], (bar / bar[0])[1:-1], rtol=1e-5)
    betas = np.asarray(sde.discrete_betas)
    np.testing.assert_allclose(betas[:-1], 1.0 - bar[1:-1] / bar[:-2], rtol=1e-5)
    assert betas[-1] == np.float32(0.999)
    assert betas[-2] < 0.8
    a, v = chain_moments(sde)
    alpha, sigma = exact_marginal(sde, (np.arange(1000) + 1) / 1000)
    np.testing.assert_allclose(a, alpha, rtol=2e-5, atol=2e-3)
    np.testing.assert_allclose(v, sigma**2, rtol=2e-5)


@pytest.mark.parametrize("sde", [VPSDE(N=200), CosineVPSDE(N=200)], ids=name)
def test_a_discrete_network_sees_the_levels_of_the_chain(sde: VPSDE | CosineVPSDE) -> None:
    """alpha-bar of DDPM at the times of its steps, and at those beside them; the rest of the
    process as it is. Other processes are their own chains."""
    log_alpha = 0.5 * np.cumsum(np.log1p(-sde.step_betas()))
    for shift in (-0.4, 0.0, 0.4):
        t = jnp.clip((jnp.arange(200) + shift) / 199, 0.0, 1.0)
        np.testing.assert_allclose(sde.chain.log_alpha(t), log_alpha, rtol=1e-6)
        sigma = np.sqrt(-np.expm1(2.0 * log_alpha))
        np.testing.assert_allclose(sde.chain.sigma(t), sigma, rtol=1e-6)
    t, x = jnp.asarray(TIMES), jnp.ones((len(TIMES), 2))
    np.testing.assert_array_equal(sde.chain.drift(x, t), sde.drift(x, t))
    np.testing.assert_array_equal(sde.chain.diffusion(t), sde.diffusion(t))
    assert sde.chain.prior_std == sde.prior_std
    assert sde.chain.sampling_eps == sde.sampling_eps
    assert sde.chain == dataclasses.replace(sde).chain
    for other in (VESDE(), SubVPSDE(), EDMSDE()):
        assert other.chain is other


def test_edm_chain_climbs_evenly() -> None:
    """Level i has sigma = t = i T / (N - 1)."""
    sde = EDMSDE(N=200, sigma_max=10.0)
    a, v = chain_moments(sde)
    np.testing.assert_array_equal(a, 1.0)
    np.testing.assert_allclose(v[1:], (10.0 * np.arange(1, 200) / 199) ** 2, rtol=1e-5)


def test_ve_chain_climbs_through_its_levels() -> None:
    sde = VESDE(N=200)
    levels = 0.01 * (50.0 / 0.01) ** (np.arange(200) / 199)
    np.testing.assert_allclose(sde.discrete_sigmas, levels, rtol=1e-6)
    a, v = chain_moments(sde)
    np.testing.assert_array_equal(a, 1.0)
    np.testing.assert_allclose(v, levels**2, rtol=1e-5)


@pytest.mark.parametrize("cls", [VPSDE, SubVPSDE])
def test_chain_converges_to_the_process_at_order_one(cls: type[SDE]) -> None:
    steps = [50, 100, 200, 400]
    errors = []
    for n in steps:
        sde = cls(N=n)
        a, v = chain_moments(sde)
        alpha, sigma = exact_marginal(sde, (np.arange(n) + 1) / n)
        errors.append([np.abs(a - alpha).max(), np.abs(v - sigma**2).max()])
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    np.testing.assert_allclose(order, 1.0, atol=0.1)


def test_ve_steps_converge_to_the_diffusion_at_order_one() -> None:
    """(N - 1) G^2 -> g^2 at fixed t: the levels are T / (N - 1) apart."""
    steps, errors = [101, 201, 401, 801], []
    for n in steps:
        sde = VESDE(N=n)
        t = jnp.float32(0.5 + 1e-4)
        g2 = (sde.sigma_min * np.exp(0.5 * sde.log_ratio)) ** 2 * 2 * sde.log_ratio
        errors.append(abs((n - 1) * float(sde.discretize(t[None], t[None])[1][0]) ** 2 / g2 - 1))
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(1.0, abs=0.1)


def test_step_alpha_is_one_minus_the_discrete_beta() -> None:
    t: Any = np.array([0.0, 0.5, 1.0], np.float32)
    betas: Any = np.array([0.1, 0.1 + 499 / 999 * 19.9, 20.0])  # t = 0.5 is step 499.5, cut to 499
    expected: Any = 1.0 - betas / 1000
    np.testing.assert_allclose(VPSDE().step_alpha(t), expected, rtol=1e-6)
    np.testing.assert_allclose(SubVPSDE().step_alpha(t), expected, rtol=1e-6)
    np.testing.assert_array_equal(VESDE().step_alpha(t), 1.0)
    np.testing.assert_allclose(
        SDE.step_alpha(SubVPSDE(), t), 1.0 - np.array([0.1, 10.05, 20.0]) / 1000, rtol=1e-6
    )
    few = SDE.step_alpha(SubVPSDE(N=10), t)  # beta_i of 0.01, 1.005 and 2
    np.testing.assert_allclose(few, [0.99, 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("cls", INTERPOLANTS)
def test_the_chain_of_an_interpolant_has_the_marginals_of_its_levels(cls: type[SDE]) -> None:
    """Few levels or many: level i is at i T / (N - 1), and `alpha_i` is the square of its a."""
    for steps in (3, 40):
        sde = cls(N=steps)
        t = step_times(sde)
        a, v = chain_moments(sde)
        alpha, sigma = exact_marginal(sde, t)
        start = exact_marginal(sde, 0.0)[1]  # noise of the data themselves, here none
        np.testing.assert_allclose(a[1:], alpha[1:], rtol=1e-3)
        np.testing.assert_allclose(v[1:], sigma[1:] ** 2 - (alpha[1:] * start) ** 2, rtol=1e-4)
        factor = alpha[1:] / exact_marginal(sde, t[:-1])[0]
        np.testing.assert_allclose(sde.step_alpha(t)[1:], factor**2, rtol=1e-3)
        assert (sde.step_alpha(t) > 0.0).all()


@every_sde
def test_rates_are_the_derivatives_of_the_marginals(sde: SDE) -> None:
    t = TIMES[1:-1].astype(np.float64) * sde.T
    step = 1e-6 * t
    ends = [np.stack(exact_marginal(sde, t + sign * step)) for sign in (-1, 1)]
    expected = (ends[1] - ends[0]) / (2 * step)
    rates = np.stack(sde.rates(jnp.asarray(t, jnp.float32)))
    np.testing.assert_allclose(rates, expected, rtol=3e-5, atol=1e-5)
    np.testing.assert_array_equal(sde.chain.rates(jnp.asarray(t, jnp.float32)), rates)


@pytest.mark.parametrize("cls", INTERPOLANTS)
def test_an_interpolant_ends_a_thousandth_short_of_noise_alone(cls: type[SDE]) -> None:
    """What the prior is off p_T, by SciPy's normals: relative entropy to Gaussian data's p_T."""
    sde = cls()
    alpha, sigma = exact_marginal(sde, np.float64(np.float32(sde.T)))
    assert alpha == pytest.approx(1e-3, rel=1e-3)
    mean, std = alpha * MU, np.hypot(alpha * S, sigma)
    ours = scipy.stats.norm(0.0, sde.prior_std)
    truth = scipy.stats.norm(mean, std)
    entropy = truth.expect(lambda x: truth.logpdf(x) - ours.logpdf(x))
    assert 0 <= entropy <= 1.001 * alpha**2 * (MU**2 + S**2) / (2 * sigma**2) < 2e-6


# Time reversal, for Gaussian data N(MU, S^2), whose marginals and score are known.

MU, S = 1.5, 0.7


def gaussian(sde: SDE, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of p_t for Gaussian data."""
    return sde.alpha(t) * MU, (sde.alpha(t) * S) ** 2 + sde.sigma(t) ** 2


def gaussian_score(sde: SDE):
    def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        mean, variance = gaussian(sde, t)
        return batch_mul(1.0 / variance, batch_mul(mean, jnp.ones_like(x)) - x)

    return score_fn


@every_sde
@pytest.mark.parametrize("flow", [False, True], ids=["sde", "flow"])
def test_reversal_transports_the_marginals(sde: SDE, flow: bool) -> None:
    """Moments of the Fokker-Planck equation in reverse time: dm/dt = F(m), dv/dt = 2 F' v - g^2."""
    reverse = sde.reverse(gaussian_score(sde), probability_flow=flow)
    t = jnp.asarray(TIMES[2:]) * sde.T
    (mean, variance), (mean_dot, variance_dot) = jax.jvp(
        lambda t: gaussian(sde, t), (t,), (jnp.ones_like(t),)
    )
    drift, slope = jax.jvp(lambda x: reverse.drift(x, t), (mean,), (jnp.ones_like(t),))
    np.testing.assert_allclose(drift, mean_dot, rtol=1e-4, atol=1e-5)
    change = 2.0 * slope * variance - reverse.diffusion(t) ** 2
    rounding = 3e-6 * sde.diffusion(t) ** 2 + 3e-7 * jnp.abs(variance_dot)
    assert (jnp.abs(change - variance_dot) <= rounding).all()
    pair = reverse.sde(mean, t)
    np.testing.assert_array_equal(pair[0], drift)
    np.testing.assert_array_equal(pair[1], 0.0 if flow else sde.diffusion(t))


@pytest.mark.parametrize(
    "base",
    [
        VPSDE(),
        SubVPSDE(),
        VESDE(),
        CosineVPSDE(),
        EDMSDE(sigma_max=5.0),
        SigmaPowerSDE(sigma_base=5),
        *(cls() for cls in INTERPOLANTS),
    ],
    ids=name,
)
@pytest.mark.parametrize("flow", [False, True], ids=["sde", "flow"])
def test_reverse_diffusion_converges_to_the_data_at_order_one(base: SDE, flow: bool) -> None:
    """Moments of x_i = x_{i+1} - f' + G' z from t = T down to the data, against the exact ones."""
    if flow and base.steep_end:
        pytest.skip("the sampler refuses it: the last betas do not shrink with the steps")
    steps, errors = [100, 200, 400, 800], []

    @jax.jit
    def chains() -> Any:
        """f' at 0 and its slope, which is the same for all x, and G', of the steps from T on."""
        found = []
        for n in steps:
            sde = dataclasses.replace(base, N=n)
            reverse = sde.reverse(gaussian_score(sde), probability_flow=flow)
            t = jnp.asarray(step_times(sde)[::-1])
            move = functools.partial(reverse.discretize, t=t)
            (f, G), (slope, _) = jax.jvp(move, (jnp.zeros_like(t),), (jnp.ones_like(t),))
            found.append((f, slope, G))
        return gaussian(base, jnp.float32(base.T)), found

    start, found = jax.device_get(chains())
    for chain in found:
        mean, variance = map(float, start)
        for f, slope, G in np.stack(chain, 1).astype(np.float64):
            mean -= f + slope * mean
            variance = (1.0 - slope) ** 2 * variance + G**2
        errors.append(abs(mean - MU) + abs(variance - S**2))
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order == pytest.approx(1.0, abs=0.15)


# Using and extending them.


def enter_the_documented_sde(sdes: dict[str, type[SDE]]) -> None:
    """Runs the example of the module's docstring, which ends with its line of `SDES`."""
    assert sde_lib.__doc__
    source = sde_lib.__doc__.partition("would vanish:\n\n")[2].partition("\n\nIts constructor")[0]
    assert len(source.splitlines()) < 30
    namespace = {**vars(sde_lib), "SDES": sdes, "__name__": "sde_lib"}
    exec("from __future__ import annotations\n" + dedent(source), namespace)


def test_the_documented_sde_works_as_written() -> None:
    """The module docstring's: f = -t x / (1 - t^2), g^2 = 2 t / (1 - t^2), T = 0.999."""
    sdes: dict[str, type[SDE]] = {}
    enter_the_documented_sde(sdes)
    sde = sdes["linear_noise"](N=40)
    t = jnp.array([0.1, 0.5, 0.999])
    np.testing.assert_allclose(sde.drift(t, t), -t * t / (1.0 - t * t), rtol=1e-5)
    g = np.sqrt(2.0 * t / (1.0 - t * t))
    np.testing.assert_allclose(sde.diffusion(t), g, rtol=1e-5)
    np.testing.assert_allclose(sde.discretize(t, t)[1], g * np.sqrt(0.999 / 40), rtol=1e-5)
    np.testing.assert_allclose(sde.time_of_log_snr(sde.log_snr(t)), t, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda z: sde.prior_sampling(z))(t), 0.999 * t, rtol=1e-6)
    np.testing.assert_array_equal(sde.timestep(t), [3, 19, 39])


def test_a_new_sde_trains_and_samples_by_its_name_in_a_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The documented lines are all that it takes: shapes of a training step and of samples."""
    sdes = dict(sde_lib.SDES)
    enter_the_documented_sde(sdes)
    monkeypatch.setattr(sde_lib, "SDES", sdes)
    settings = mixture_dsm_vp.get_config()
    settings.training.sde = "linear_noise"
    parts, averaging = experiment.build(settings), ema.from_config(settings)
    assert type(parts.sde).__name__ == "LinearNoiseSDE"
    optimizer = optax.sgd(0.1)
    objective = objective_from_config(settings, parts)
    train = make_train_step(objective, optimizer, averaging, flip=False, axis_name=None)
    batch = {"image": jnp.zeros((1, 4, 1, 1, 2), jnp.uint8), "label": jnp.zeros((1, 4), jnp.int32)}

    def train_and_sample() -> Any:
        state = new_state(parts.module, optimizer, 0, parts.image_shape, averaging.further)
        state, metrics = train(state, batch)
        keys = devices.image_keys(state.key, jnp.arange(3))
        noise = image_noise(keys, parts.image_shape)
        score_fn = parts.score(state.ema_params)
        return metrics, sampling.from_config(settings)(parts.sde, score_fn, noise).x

    metrics, x = jax.eval_shape(train_and_sample)
    assert metrics["loss"].shape == (1,)
    assert x.shape == (3, *parts.image_shape)


@every_class
def test_an_sde_is_a_value(cls: type[SDE]) -> None:
    sde = cls(N=50)
    assert sde == cls(N=50)
    assert hash(sde) == hash(cls(N=50))
    assert sde != cls(N=51)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sde.N = 3  # type: ignore[misc]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (4, 4, 3)])
def test_batch_mul_scales_each_image(shape: tuple[int, ...]) -> None:
    a, x = jnp.arange(3.0), jnp.ones((3, *shape))
    expected = np.stack([np.full(shape, b, np.float32) for b in range(3)])
    np.testing.assert_array_equal(batch_mul(a, x), expected)


def config(sde: str, **model: Any) -> ConfigDict:
    return ConfigDict({"training": {"sde": sde}, "model": model})


def test_from_config_reads_every_parameter() -> None:
    numbers = {"num_scales": 70, "beta_min": 0.2, "beta_max": 9.0}
    numbers |= {"sigma_min": 0.3, "sigma_max": 4.0, "sigma_base": 7.0}
    assert sde_lib.from_config(config("vpsde", **numbers)) == VPSDE(70, 0.2, 9.0)
    assert sde_lib.from_config(config("SubVPSDE", **numbers)) == SubVPSDE(70, 0.2, 9.0)
    assert sde_lib.from_config(config("vesde", **numbers)) == VESDE(70, 0.3, 4.0)
    assert sde_lib.from_config(config("cosine_vpsde", **numbers)) == CosineVPSDE(70)
    assert sde_lib.from_config(config("edm", **numbers)) == EDMSDE(70, 0.3, 4.0)
    assert sde_lib.from_config(config("rectified", **numbers)) == RectifiedSDE(70)
    assert sde_lib.from_config(config("flow_ot", **numbers)) == FlowOTSDE(70, 0.3)
    assert sde_lib.from_config(config("trigonometric", **numbers)) == TrigonometricSDE(70)
    numbers |= {"time_power": 2.0, "data_power": 1.5, "noise_power": 1.0}
    assert sde_lib.from_config(config("interpolant", **numbers)) == PowerInterpolant(70, 2, 1.5, 1)
    assert sde_lib.from_config(config("sigma_power", **numbers)) == SigmaPowerSDE(70, 7.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sde_lib.from_config(config("ve")), "training.sde 've'; known: cosine_vpsde, edm,"),
        (lambda: sde_lib.from_config(config("vesde", num_scales=3)), "config.model.sigma_min"),
        (lambda: VPSDE(N=0), "N .* is 0"),
        (lambda: VPSDE(beta_min=3.0, beta_max=2.0), "beta_min <= beta_max"),
        (lambda: SubVPSDE(beta_min=-0.1), "beta_min is -0.1"),
        (lambda: VPSDE(beta_min=0.0, beta_max=0.0), "beta_max > 0"),
        (lambda: VPSDE(beta_max=float("nan")), "beta_max nan"),
        (lambda: VESDE(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: VESDE(sigma_max=0.01), "sigma_max 0.01"),
        (lambda: EDMSDE(sigma_min=0.0), "EDMSDE: sigma_min is 0"),
        (lambda: FlowOTSDE(sigma_min=1.0), "sigma_min is 1.0; use 0 <= sigma_min < 1"),
        (lambda: FlowOTSDE(sigma_min=-0.1), "sigma_min is -0.1"),
        (lambda: PowerInterpolant(data_power=0.5), "data_power is 0.5; powers are 1 or more"),
        (lambda: PowerInterpolant(noise_power=float("inf")), "noise_power is inf"),
        (lambda: SigmaPowerSDE(sigma_base=1.0), "sigma_base is 1.0; use above 1"),
        (lambda: VPSDE(N=10).discrete_betas, "N=10 .*reach beta_max/N=2, .*use N >= 21"),
        (lambda: VPSDE(N=20).check_betas(), "use N >= 21"),
        (lambda: SubVPSDE(N=10).alphas, "below 1"),
        (lambda: VPSDE(N=10).discretize(jnp.ones(1), jnp.ones(1)), "below 1"),
    ],
)
def test_refusals_are_one_clear_line(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_few_steps_are_enough_where_no_table_is_needed() -> None:
    assert float(VPSDE(N=21).alphas[-1]) == pytest.approx(1 / 21, rel=1e-5)
    f, G = SubVPSDE(N=10).discretize(jnp.ones((1, 2)), jnp.ones(1))
    assert np.isfinite(np.asarray(f)).all()
    assert np.isfinite(float(G[0]))


# Numbers from the original code.

KINDS: dict[str, Any] = {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE}
E_SDE = golden_cases.about("math", "sde")


def tags(pattern: str) -> list[Any]:
    """Files with each of their tags: what `pattern` matches at the start of a key."""
    cases = []
    for path in E_SDE:
        keys = {m[0] for key in golden_cases.load(path) if (m := re.match(pattern, key))}
        cases += [pytest.param(path, tag, id=f"{path.stem}-{tag}") for tag in sorted(keys)]
    return cases


def golden_sde(stored: dict[str, Any], tag: str) -> SDE:
    """The SDE of a tag such as `vp_N1000` or `ve_N10_smax5`, with the file's beta and sigma."""
    meta = stored["meta_json"]
    meta = {**meta, **(meta[tag] if isinstance(meta.get(tag), dict) else {})}
    kind = tag.partition("_")[0]
    named: dict[str, Any] = dict(re.findall(r"(N|[bs]min|[bs]max)(\d[\d.]*(?:e-?\d+)?)", tag))
    N = int(named.get("N", meta.get("N", 1000)))
    short, pair = ("s", "sigma") if kind == "ve" else ("b", "beta")
    default = [0.01, 50.0] if kind == "ve" else [0.1, 20.0]
    low, high = meta.get(pair, default)
    low, high = named.get(f"{short}min", low), named.get(f"{short}max", high)
    return KINDS[kind](N, float(low), float(high))


def analytic_score(x: jax.Array, t: jax.Array) -> jax.Array:
    return batch_mul(-1.0 / (1.0 + t), x)


@pytest.mark.golden
@pytest.mark.parametrize(("path", "tag"), tags(r"(vp|subvp|ve)_[^/]+(?=/)"))
def test_sde_gives_the_original_numbers(path: pathlib.Path, tag: str) -> None:
    stored = golden_cases.load(path)
    sde = golden_sde(stored, tag)
    want = {k.removeprefix(f"{tag}/"): v for k, v in stored.items() if k.startswith(f"{tag}/")}
    x, t = jnp.asarray(stored["x"]), jnp.asarray(stored["t"])
    ours: dict[str, Any] = {"T": np.float32(sde.T)}
    ours["drift"], ours["diffusion"] = jax.jit(sde.sde)(x, t)
    ours["mean"], ours["std"] = jax.jit(sde.marginal_prob)(x, t)
    ours["prior_logp"] = sde.prior_logp(sde.prior_std * x if isinstance(sde, VESDE) else x)
    ours["prior_sample"] = sde.prior_sampling(want["prior_sample_z"])
    reverses = {
        "rev": sde.reverse(analytic_score),
        "rev_pf": sde.reverse(analytic_score, probability_flow=True),
    }
    for prefix, reverse in reverses.items():
        ours[f"{prefix}_drift"], ours[f"{prefix}_diffusion"] = jax.jit(reverse.sde)(x, t)
    refused = isinstance(sde, VPSDE) and sde.beta_max >= sde.N
    if refused:
        for process in [sde.discretize, *(r.discretize for r in reverses.values())]:
            with pytest.raises(ValueError, match="below 1"):
                process(x, t)
    else:
        ours["disc_f"], ours["disc_G"] = jax.jit(sde.discretize)(x, t)
        for prefix, reverse in reverses.items():
            ours[f"{prefix}_disc_f"], ours[f"{prefix}_disc_G"] = jax.jit(reverse.discretize)(x, t)
        ours |= {k: getattr(sde, k.removeprefix("table_")) for k in want if k.startswith("table_")}
    unseen = want.keys() - ours.keys() - {"prior_sample_z"}
    assert not {k for k in unseen if not (refused and re.search("disc_|table_", k))}
    for key in want.keys() & ours.keys():
        # What the original loses: near t = 0 in 1 - exp(.), in differences of neighbouring levels
        # (N / log(sigma_max / sigma_min) roundings), and one rounding of x in sqrt(alpha) x - x.
        golden, discrete = want[key], "disc" in key
        slack = 1e-5 * np.abs(golden).max() + (1.2e-7 * np.abs(x).max() if discrete else 0.0)
        rtol = 1e-5 + (2e-8 * sde.N if discrete else 0.0)
        np.testing.assert_allclose(ours[key], golden, rtol=rtol, atol=slack, err_msg=key)
        assert np.shape(ours[key]) == golden.shape, key


@pytest.mark.golden
@pytest.mark.full_compilation  # near t = 0 a last digit of linspace is 1.4e-5 of the time
@pytest.mark.parametrize(("path", "tag"), tags(r"grid_(vp|ve)_N\d+"))
def test_times_map_to_the_original_steps_and_labels(path: pathlib.Path, tag: str) -> None:
    stored = golden_cases.load(path)
    sde = golden_sde(stored, tag.removeprefix("grid_"))
    t = stored[f"{tag}_t"]
    ours = jax.jit(lambda: jnp.linspace(sde.T, sde.sampling_eps, sde.N))()
    np.testing.assert_allclose(ours, t, rtol=1e-5)
    np.testing.assert_array_equal(sde.timestep(t), stored[f"{tag}_timestep"])
    np.testing.assert_array_equal(sde.timestep(ours), stored[f"{tag}_timestep"])

    def label(x: jax.Array, labels: jax.Array) -> jax.Array:
        return batch_mul(labels.astype(jnp.float32), jnp.ones_like(x))

    ve = VESDE(N=sde.N)
    labels = models.score_fn(ve, label, continuous=False)(jnp.zeros((len(t), 1, 1, 1)), t)
    np.testing.assert_array_equal(labels[:, 0, 0, 0], stored[f"{tag}_velabel"])


@pytest.mark.golden
@pytest.mark.parametrize(("path", "tag"), tags(r"get_sigmas_\w+"))
def test_sigmas_descend_as_the_original_ones(path: pathlib.Path, tag: str) -> None:
    stored = golden_cases.load(path)
    sde = golden_sde(stored, "ve_" + tag.removeprefix("get_sigmas_"))
    assert isinstance(sde, VESDE)
    np.testing.assert_allclose(sde.discrete_sigmas[::-1], stored[tag], rtol=1e-5)


@pytest.mark.golden
@pytest.mark.parametrize(("path", "tag"), tags(r"ddpm_params[^/]*(?=/)"))
def test_ddpm_tables_are_the_original_ones(path: pathlib.Path, tag: str) -> None:
    stored = golden_cases.load(path)
    steps = int(stored[f"{tag}/num_diffusion_timesteps"])
    betas = stored[f"{tag}/betas"].astype(np.float64)
    sde = VPSDE(steps, float(betas[0]) * steps, float(betas[-1]) * steps)
    np.testing.assert_allclose(sde.discrete_betas, betas, rtol=1e-6)
    for table in ("alphas", "alphas_cumprod", "sqrt_alphas_cumprod", "sqrt_1m_alphas_cumprod"):
        golden = stored[f"{tag}/{table}"]
        np.testing.assert_allclose(getattr(sde, table), golden, rtol=1e-5, atol=1e-6, err_msg=table)
