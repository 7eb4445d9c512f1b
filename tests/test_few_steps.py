"""Solvers with few steps against closed forms: their orders, exact moments and conversions."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import sampling
from diffusion import few_steps, flow_maps, grids, multistep
from diffusion.noise import image_noise, recorded_noise
from diffusion.trajectory import Samples, denoised
from sde_lib import SDE, VESDE, VPSDE, BetaSDE, CosineVPSDE, batch_mul
from tests import gaussians
from tests.test_sampling import MEAN, STD, Counter, config_of, keys_of, normal_noise

DETERMINISTIC: dict[str, tuple[Any, dict[str, Any], float]] = {
    "ddim": (few_steps.ddim, {}, 1),
    "dpm_1": (few_steps.dpm_solver, {"order": 1}, 1),
    "dpm_2": (few_steps.dpm_solver, {"order": 2}, 2),
    "dpm_3": (few_steps.dpm_solver, {"order": 3}, 3),
    "dpmpp_2m": (few_steps.dpm_solver_pp, {"order": 2}, 2),
    "dpmpp_3m": (few_steps.dpm_solver_pp, {"order": 3}, 3),
    "unipc_2": (few_steps.unipc, {"order": 2}, 3),
    "unipc_3": (few_steps.unipc, {"order": 3}, 4),
    "edm": (few_steps.edm, {}, 2),
    "deis_1": (few_steps.deis, {"order": 1}, 1),
    "deis_2": (few_steps.deis, {"order": 2}, 2),
    "deis_3": (few_steps.deis, {"order": 3}, 3),
    "deis_3_rho": (few_steps.deis, {"order": 3, "variable": "rho"}, 3),
    "deis_3_lambda": (few_steps.deis, {"order": 3, "variable": "lambda"}, 3),
    "sa_solver_1": (few_steps.sa_solver, {"order": 1, "tau": 0.0}, 2),
    "sa_solver_2": (few_steps.sa_solver, {"order": 2, "tau": 0.0}, 3),
}


@pytest.mark.parametrize(
    "kind",
    ["vp", *(pytest.param(k, marks=pytest.mark.slow) for k in ("ve", "subvp", "cosine", "edm"))],
)
def test_every_deterministic_solver_has_its_order(kind: str) -> None:
    """Halving the steps in lambda divides the error by 2^order, on a mixture, in float64.

    UniPC's corrector adds one to the order of its predictor. The solution ends where the noise is
    still there: after that, errors only shrink, and those of the third-order multistep method
    cancel to order 4. (Its first step is of order 1, which shows below these errors only.)
    """
    sde, end = gaussians.EVERY_SDE[kind], {"ve": 0.5, "edm": 0.7}.get(kind, 0.3)
    with jax.enable_x64(True):
        mixture = gaussians.Mixture(*(jnp.asarray(v, float) for v in gaussians.two_modes((2,))))
        score_fn = mixture.score_fn(sde)
        noise = recorded_noise(np.random.default_rng(0).standard_normal((1, 8, 2)))

        @functools.partial(jax.jit, static_argnums=0)
        def solve(steps: int) -> Any:
            times = grids.time_grid(sde, "log_snr", steps, end)
            return {
                name: solver(sde, score_fn, noise, times, denoise=False, **options).x
                for name, (solver, options, _) in DETERMINISTIC.items()
            }

        @jax.jit
        def reference() -> jax.Array:
            return sampling.ode_sampler(
                sde,
                score_fn,
                noise,
                rtol=1e-12,
                atol=1e-12,
                method="Dopri8",
                max_steps=2000,
                eps=end,
            ).x

        exact = np.asarray(reference())
        coarse, fine = (
            {name: float(np.abs(x - exact).max()) for name, x in solve(steps).items()}
            for steps in (200, 400)
        )
    for name, (_, _, order) in DETERMINISTIC.items():
        measured = np.log2(coarse[name] / fine[name])
        assert abs(measured - order) < 0.2, (name, measured)


def noise_at(sde: SDE, score_fn: Any, x: jax.Array, t: Any) -> Any:
    """-sigma score."""
    times = jnp.full(len(x), t, x.dtype)
    return -batch_mul(sde.sigma(times), score_fn(x, times))


def level_of(sde: SDE, t: Any) -> tuple[Any, Any]:
    """alpha and sigma of one time."""
    return sde.alpha(jnp.asarray(t, float)), sde.sigma(jnp.asarray(t, float))


def denoised_by(sde: SDE, score_fn: Any, x: jax.Array, t: Any) -> Any:
    """E[x_0 | x] = (x - sigma noise) / alpha."""
    alpha, sigma = level_of(sde, t)
    return (x - sigma * noise_at(sde, score_fn, x, t)) / alpha


@pytest.mark.parametrize("order", [2, 3])
def test_steps_of_the_singlestep_solver_are_those_of_its_authors(order: int) -> None:
    """Algorithms 1 and 2 of Lu et al. (2022), arXiv:2206.00927, with their r, s, u and D, and then
    the posterior mean at the last time, which is not the one of a step."""
    with jax.enable_x64(True):
        sde, draws = VPSDE(), np.random.default_rng(0).standard_normal((1, 4, 3))
        score_fn = gaussians.two_modes((3,)).score_fn(sde)
        times = grids.time_grid(sde, "log_snr", 2)
        found = few_steps.dpm_solver(sde, score_fn, recorded_noise(draws), times, order=order)
        eps = functools.partial(noise_at, sde, score_fn)
        x = jnp.asarray(draws[0])
        for t0, t in itertools.pairwise(times):
            lam = [float(0.5 * sde.log_snr(jnp.asarray(time, float))) for time in (t0, t)]
            h = lam[1] - lam[0]
            r = [1 / 2] if order == 2 else [1 / 3, 2 / 3]
            s = [
                float(sde.time_of_log_snr(jnp.asarray(2 * (lam[0] + part * h), float)))
                for part in r
            ]
            (a0, _), (a, std) = level_of(sde, t0), level_of(sde, t)
            inner = [level_of(sde, time) for time in s]
            e = eps(x, t0)
            u = inner[0][0] / a0 * x - inner[0][1] * np.expm1(r[0] * h) * e
            if order == 2:
                x = a / a0 * x - std * np.expm1(h) * eps(u, s[0])
                continue
            d1 = eps(u, s[0]) - e
            (a2, std2), h2 = inner[1], r[1] * h
            u2 = a2 / a0 * x - std2 * np.expm1(h2) * e
            u2 -= std2 * r[1] / r[0] * (np.expm1(h2) / h2 - 1) * d1
            d2 = eps(u2, s[1]) - e
            x = a / a0 * x - std * np.expm1(h) * e - std / r[1] * (np.expm1(h) / h - 1) * d2
        expected = denoised_by(sde, score_fn, x, times[-1])
        np.testing.assert_allclose(found.x, expected, rtol=1e-5, atol=1e-6)
        assert found.nfe == 2 * order + 1


def test_second_order_multistep_on_an_uneven_grid_is_that_of_its_authors() -> None:
    """Algorithm 2 of Lu et al. (2022), arXiv:2211.01095, and its form for the SDE: with
    r = h_(i-1) / h_i the prediction is D = (1 + 1 / 2r) x0_(i-1) - 1 / 2r x0_(i-2)."""
    grid = grids.levels(VPSDE(), np.array([1.0, 0.6, 0.5, 0.1]))
    h = np.diff(grid.lam)
    r = h[:-1] / h[1:]
    both = np.stack([1 + 1 / (2 * r), -1 / (2 * r)], 1)
    for stochastic in (False, True):
        made = multistep._dpmpp_2m(grid, stochastic)
        ratio = grid.sigma[1:] / grid.sigma[:-1]
        np.testing.assert_allclose(made.carry, ratio * (np.exp(-h) if stochastic else 1.0))
        gain = grid.alpha[1:] * (1 - np.exp(-2 * h if stochastic else -h))
        np.testing.assert_allclose(made.gains[0], [gain[0], 0.0])
        np.testing.assert_allclose(made.gains[1:], gain[1:, None] * both)
        std = grid.sigma[1:] * np.sqrt(1 - np.exp(-2 * h)) if stochastic else 0 * h
        np.testing.assert_allclose(made.std, std)


def test_ddim_takes_its_share_of_the_ancestral_noise_and_ends_at_the_last_time() -> None:
    """eta times the deviation of p(x_s | x_t, x_0); E[x_0 | x] is asked for at the last time."""
    sde, times = VPSDE(), np.array([1.0, 0.6, 0.5, 0.1])
    grid = grids.levels(sde, times)
    ratio = grid.alpha[:-1] * grid.sigma[1:] / (grid.alpha[1:] * grid.sigma[:-1])
    std = grid.sigma[1:] * np.sqrt(1 - ratio**2)
    np.testing.assert_allclose(multistep._ddim(grid, 0.7).std, 0.7 * std)
    score_fn = gaussians.two_modes((3,)).score_fn(sde)
    noise = recorded_noise(np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32))

    @jax.jit
    def both() -> tuple[Any, Any]:
        run = functools.partial(few_steps.ddim, sde, score_fn, noise, times, eta=0.7)
        return run().x, denoised(sde, score_fn, run(denoise=False).x, times[-1])

    whole, expected = both()
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)


def test_third_order_multistep_is_exact_for_parabolas() -> None:
    """Weights of (0, -1, -3) integrate exp(s - h) times 1, s, s^2 exactly."""
    h = 0.7
    nodes = np.array([0.0, -1.0, -3.0])
    weights = multistep._weights(nodes, 0.0, h)
    exact = [1 - np.exp(-h), h - 1 + np.exp(-h), h**2 - 2 * h + 2 - 2 * np.exp(-h)]
    np.testing.assert_allclose([weights @ nodes**k for k in range(3)], exact, rtol=1e-10)


STOCHASTIC: dict[str, tuple[Any, dict[str, Any], int]] = {
    "ddim_eta_1": (few_steps.ddim, {"eta": 1.0}, 1),
    "ddim_eta_half": (few_steps.ddim, {"eta": 0.5}, 1),
    "dpmpp_2m_sde": (few_steps.dpm_solver_pp, {"stochastic": True}, 2),
    "edm_churn": (few_steps.edm, {"churn": 10.0}, 2),
    "sa_solver_1": (few_steps.sa_solver, {"order": 1, "tau": 0.5}, 2),
}


@pytest.mark.parametrize("kind", gaussians.SDES)
def test_stochastic_solvers_have_their_weak_order(kind: str) -> None:
    """On Gaussian data a sampler is affine in its draws, so its moments need no sampling.

    Image i has one draw equal to 1 and all others 0: its distance to the image without any is the
    coefficient of that draw, and the variance of a sample is the sum of their squares.
    """
    sde = gaussians.SDES[kind]
    score_fn = gaussians.linear_score(sde, MEAN, STD)

    names = list(STOCHASTIC) if kind == "vp" else ["ddim_eta_1", "dpmpp_2m_sde"]
    end = jnp.asarray(np.full(1, sde.sampling_eps), jnp.float32)
    alpha, sigma = float(sde.alpha(end)[0]), float(sde.sigma(end)[0])

    def errors(steps: int) -> dict[str, tuple[float, float]]:
        draws = np.zeros((steps + 1, steps + 2, 1, 1, 1), np.float32)
        draws[np.arange(steps + 1), np.arange(steps + 1)] = 1.0
        times = grids.time_grid(sde, "log_snr", steps)

        @jax.jit
        def run(draws: jax.Array) -> dict[str, jax.Array]:
            return {
                name: solver(
                    sde, score_fn, recorded_noise(draws), times, denoise=False, **options
                ).x
                for name, (solver, options, _) in STOCHASTIC.items()
                if name in names
            }

        def error(last: jax.Array) -> tuple[float, float]:
            x = np.asarray(last, np.float64).ravel()
            std = np.sqrt(np.sum((x[:-1] - x[-1]) ** 2))
            return x[-1] - alpha * MEAN, std / np.sqrt(alpha**2 * STD**2 + sigma**2) - 1

        return {name: error(x) for name, x in run(draws).items()}

    few, many = errors(60), errors(120)
    for name in names:
        order = STOCHASTIC[name][2]
        (mean, coarse), (_, fine) = few[name], many[name]
        assert abs(mean) < 0.002, (name, mean)
        assert abs(fine) < (0.06 if order == 1 else 0.004), (name, fine)
        assert abs(np.log2(abs(coarse / fine)) - order) < 0.2, (name, coarse, fine)


def test_sa_solver_without_noise_is_unipc_and_with_it_the_sde() -> None:
    """tau 0 are the exact coefficients of UniPC; tau 1 of order 1 without its corrector is the
    first step of DPM-Solver++ for the SDE."""
    sde = VPSDE()
    grid = grids.levels(sde, grids.time_grid(sde, "log_snr", 6))
    score_fn = gaussians.two_modes((3,)).score_fn(sde)
    z = np.random.default_rng(2).standard_normal((7, 4, 3)).astype(np.float32)

    @jax.jit
    def pairs() -> list[tuple[jax.Array, jax.Array]]:
        arguments = (sde, score_fn, recorded_noise(z), grid.t)
        orders = (2, 3)
        flows = [few_steps.sa_solver(*arguments, order=order, tau=0.0).x for order in orders]
        exact = [few_steps.unipc(*arguments, order=order).x for order in orders]
        one = (few_steps.deis(*arguments, order=1).x, few_steps.ddim(*arguments).x)
        return [*zip(flows, exact, strict=True), one]

    for made, expected in pairs():
        np.testing.assert_allclose(made, expected, atol=2e-5)
    table, first = multistep._stochastic_adams(grid, 1, 1.0), multistep._dpmpp_2m(grid, True)
    np.testing.assert_allclose(table.carry, first.carry, rtol=1e-12)
    np.testing.assert_allclose(table.std, first.std, rtol=1e-12)
    np.testing.assert_allclose(table.gains[:, 0], first.gains.sum(1), rtol=1e-9)


def test_a_restart_forgets_what_was_before() -> None:
    """On Gaussian data each return multiplies what is left of the prior's draw by the flow's factor
    over the stretch, the ratio of the deviations at its ends, and the variance stays exact."""
    sde, steps = VPSDE(), 120
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    times = grids.time_grid(sde, "karras", steps)
    levels = np.exp(-grids.half_log_snr(sde, times))
    low = levels[np.argmin(np.abs(np.log(levels / 0.2)))]
    options: Any = {"restart_min": 0.2, "restart_max": 2.0, "restart_steps": 40}

    def coefficients(repeats: int) -> np.ndarray:
        """Of every draw in the last state, by images of which each has one draw equal to 1."""
        count = 1 + steps + 40 * repeats
        draws = jnp.asarray(np.eye(count, count + 1)[:, :, None], jnp.float32)

        @jax.jit
        def run() -> Any:
            return few_steps.restart(
                *(sde, score_fn, recorded_noise(draws), times),
                **{**options, "restart_repeats": repeats, "denoise": False},
            )

        samples = run()
        assert samples.nfe == 2 * (count - 1)
        x = np.asarray(samples.x, np.float64).ravel()
        return x[:-1] - x[-1]

    without, twice = coefficients(0), coefficients(2)
    np.testing.assert_array_equal(np.flatnonzero(without), [0])
    assert len(np.flatnonzero(twice)) == 3  # the prior's, and one at each return
    factor = np.sqrt((STD**2 + low**2) / (STD**2 + 2.0**2))
    assert twice[0] / without[0] == pytest.approx(factor**2, rel=0.01)
    assert np.sqrt(np.sum(twice**2)) == pytest.approx(np.sqrt(np.sum(without**2)), rel=0.005)


def test_without_a_restart_it_is_edm() -> None:
    sde = VESDE()
    score_fn = gaussians.two_modes((3,)).score_fn(sde)
    z = np.random.default_rng(1).standard_normal((60, 2, 3)).astype(np.float32)
    arguments = (sde, score_fn, recorded_noise(z), grids.time_grid(sde, "karras", 9))

    @jax.jit
    def both() -> tuple[Samples, Samples]:
        return few_steps.edm(*arguments), few_steps.restart(*arguments, restart_repeats=0)

    plain, none = both()
    np.testing.assert_array_equal(none.x, plain.x)
    assert none.nfe == plain.nfe
    outside: tuple[Any, ...] = ({"restart_min": 0.5}, {"restart_min": 1e-3}, {"restart_max": 60.0})
    for bad in outside:
        with pytest.raises(ValueError, match=r"within the noise levels .* of VESDE"):
            few_steps.restart(*arguments, **bad)
    with pytest.raises(ValueError, match=r"take more steps"):
        few_steps.restart(*arguments[:3], np.array([1.0, 0.4, 1e-3]), restart_min=0.1)
    wrong: tuple[Any, ...] = ({"restart_steps": 0}, {"restart_repeats": -1})
    for bad in wrong:
        with pytest.raises(ValueError, match="they must be at least 1 and 0"):
            few_steps.restart(*arguments, **bad)


def test_ddim_with_eta_one_is_the_ancestral_step() -> None:
    """The standard deviation and mean are those of p(x_s | x_t, x_0), from Bayes' rule."""
    sde = VPSDE()
    score_fn = gaussians.two_modes((3,)).score_fn(sde)
    draws = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    times = np.array([1.0, 0.4])

    @jax.jit
    def both() -> tuple[jax.Array, jax.Array]:
        noise = recorded_noise(draws)
        samples = few_steps.ddim(sde, score_fn, noise, times, eta=1.0, denoise=False)
        t, s = jnp.full(5, 1.0), jnp.full(5, 0.4)
        mean, std = sde.posterior(draws[0], score_fn(draws[0], t), t, s)
        return samples.x, mean + std[:, None] * draws[1]

    made, expected = both()
    np.testing.assert_allclose(made, expected, atol=1e-4)


def test_churn_raises_the_noise_by_at_most_the_square_root_of_two() -> None:
    """Algorithm 2 of EDM: the factor is 1 + min(churn / M, sqrt(2) - 1)."""
    sde = VPSDE()
    score_fn = gaussians.two_modes((3,)).score_fn(sde)
    draws = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
    times = grids.time_grid(sde, "karras", 3)

    @jax.jit
    def run() -> list[jax.Array]:
        noise = recorded_noise(draws)
        churns = [3.0 * share for share in (0.4, 2**0.5 - 1.0, 100.0)]
        return [few_steps.edm(sde, score_fn, noise, times, churn=churn).x for churn in churns]

    below, at, above = run()
    assert np.abs(np.asarray(below) - at).max() > 1e-4
    np.testing.assert_allclose(above, at, rtol=1e-5, atol=1e-6)


def test_steps_with_churn_are_those_of_algorithm_2_of_edm() -> None:
    """Karras et al. (2022), in the variables x / alpha and t = sigma / alpha of VP's process."""
    with jax.enable_x64(True):
        sde, draws = VPSDE(), np.random.default_rng(0).standard_normal((4, 4, 3))
        score_fn = gaussians.two_modes((3,)).score_fn(sde)
        times = grids.time_grid(sde, "karras", 3)
        options: Any = {"churn": 0.9, "churn_noise": 1.2, "churn_max": 100.0}
        found = few_steps.edm(sde, score_fn, recorded_noise(draws), times, **options)

        def time_of(level: float) -> float:
            return float(sde.time_of_log_snr(jnp.asarray(-2 * np.log(level), float)))

        def slope(y: Any, level: float) -> Any:
            t = time_of(level)
            return noise_at(sde, score_fn, level_of(sde, t)[0] * y, t)

        levels = [float(np.divide(*reversed(level_of(sde, t)))) for t in times]
        y = jnp.asarray(draws[0]) / level_of(sde, times[0])[0]
        for draw, (low, end) in zip(draws[1:], itertools.pairwise(levels), strict=True):
            high = min(low * (1 + min(0.9 / 3, 2**0.5 - 1) * (low <= 100.0)), levels[0])
            y += 1.2 * np.sqrt(high**2 - low**2) * draw
            d = slope(y, high)
            y += (end - high) * (d + slope(y + (end - high) * d, end)) / 2
        expected = denoised_by(sde, score_fn, level_of(sde, times[-1])[0] * y, times[-1])
        np.testing.assert_allclose(found.x, expected, rtol=1e-5, atol=1e-6)
        assert found.nfe == 7


def test_churn_acts_between_its_limits() -> None:
    """Limits around the noise level of the third of four steps: its draw alone matters."""
    sde = VPSDE()
    score_fn = gaussians.two_modes((3,)).score_fn(sde)
    times = grids.time_grid(sde, "karras", 4)
    level = float(np.exp(-0.5 * sde.log_snr(jnp.asarray(times[2]))))
    draws = np.random.default_rng(0).standard_normal((5, 5, 3)).astype(np.float32)
    others, own = draws.copy(), draws.copy()
    others[[1, 2, 4]] += 1.0
    own[3] += 1.0

    @jax.jit
    def run(draws: jax.Array) -> jax.Array:
        noise = recorded_noise(draws)
        limits: dict[str, Any] = {"churn_min": 0.9 * level, "churn_max": 1.1 * level}
        return few_steps.edm(sde, score_fn, noise, times, churn=1.0, **limits).x

    x = run(draws)
    np.testing.assert_array_equal(run(others), x)
    assert np.abs(np.asarray(run(own)) - x).max() > 1e-4


@pytest.mark.parametrize("kind", gaussians.SDES)
def test_ancestral_sampling_without_noise_is_ddim(kind: str) -> None:
    """One step of the predictor's probability flow, between times T / (N - 1) apart."""
    sde = dataclasses.replace(gaussians.SDES[kind], N=6)
    score_fn = gaussians.two_modes((3,)).score_fn(sde)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)

    @jax.jit
    def both() -> tuple[jax.Array, jax.Array]:
        t = jnp.full(5, 0.8)
        made, _ = sampling.ancestral_sampling(sde, score_fn, x, t, jnp.zeros_like(x), True)
        noise = recorded_noise(x[None] / sde.prior_std)
        times = np.array([0.8, 0.6])
        return made, few_steps.ddim(sde, score_fn, noise, times, denoise=False).x

    made, expected = both()
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_tweedie_is_the_posterior_mean() -> None:
    mixture = gaussians.two_modes((2,))

    @jax.jit
    def both(x: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {
            name: (
                denoised(sde, mixture.score_fn(sde), x, 0.3),
                mixture.denoised(sde, x, jnp.full(5, 0.3)),
            )
            for name, sde in gaussians.EVERY_SDE.items()
        }

    x = 2.0 * np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    for name, (made, expected) in both(x).items():
        np.testing.assert_allclose(made, expected, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("kind", gaussians.EVERY_SDE)
@pytest.mark.parametrize("name", grids.GRIDS)
def test_time_grids_are_even_in_their_own_variable(kind: str, name: str) -> None:
    sde = gaussians.EVERY_SDE[kind]
    times = grids.time_grid(sde, name, 10)
    assert len(times) == 11
    assert (times[0], times[-1]) == (sde.T, sde.sampling_eps)
    assert np.all(np.diff(times) < 0)
    lam = np.asarray(sde.log_snr(jnp.asarray(times))) / 2
    variable = {
        "uniform": times,
        "quadratic": np.sqrt(times),
        "log_snr": lam,
        "karras": np.exp(-lam / 7),
    }[name]
    gaps = np.diff(variable)
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=2e-3)


def test_a_network_with_discrete_labels_is_asked_at_its_own_levels() -> None:
    """With 101 levels, 4 uniform steps meet 100, 75, 50, 25 and 1; of 6, 10 steps meet 5."""
    sde = VPSDE(N=101)
    levels = grids.on_levels(sde, grids.time_grid(sde, "uniform", 4))
    np.testing.assert_allclose(levels, [1.0, 0.75, 0.5, 0.25, 0.01], rtol=1e-7)
    few = VESDE(N=6)
    np.testing.assert_allclose(
        grids.on_levels(few, grids.time_grid(few, "uniform", 10)), np.arange(5, 0, -1) / 5
    )
    with pytest.raises(ValueError, match="num_steps=1 meets 1 of the network's N=2 noise levels"):
        grids.on_levels(VESDE(N=2), np.array([1.0, 0.9]))

    score_fn = gaussians.linear_score(sde, MEAN, STD)
    config = config_of(method="ddim", num_steps=4)
    config.training.continuous = False

    @jax.jit
    def both() -> tuple[jax.Array, jax.Array]:
        made = sampling.from_config(config)(sde, score_fn, normal_noise(2))
        return made.x, few_steps.ddim(sde.chain, score_fn, normal_noise(2), levels).x

    made, expected = both()
    np.testing.assert_allclose(made, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("sde", "method"),
    [
        (VPSDE(N=50), "ddim"),
        pytest.param(VPSDE(N=50), "edm", marks=pytest.mark.slow),
        pytest.param(VPSDE(N=50), "unipc_2", marks=pytest.mark.slow),
        pytest.param(CosineVPSDE(N=50), "ddim", marks=pytest.mark.slow),
        pytest.param(VESDE(N=50), "ddim", marks=pytest.mark.slow),
    ],
)
def test_a_discrete_network_of_one_image_draws_that_image(sde: SDE, method: str) -> None:
    """A network that knows the noise at the levels of its chain, of data that are one point, takes
    any solver to that point: the alpha and sigma of the steps are those by which it was trained.
    """
    x0 = jnp.linspace(-0.9, 0.8, 6).reshape(2, 3, 1)
    if isinstance(sde, BetaSDE):
        alpha_bar = np.cumprod(1.0 - sde.step_betas())
        alpha, sigma = jnp.asarray(alpha_bar**0.5), jnp.asarray((1.0 - alpha_bar) ** 0.5)
        gain = 1.0 / sigma  # of the noise
    else:
        assert isinstance(sde, VESDE)
        sigma = jnp.flip(sde.discrete_sigmas)  # SMLD counts from the highest level down
        alpha, gain = jnp.ones_like(sigma), -1.0 / sigma**2  # of the score

    def network(x: jax.Array, k: jax.Array) -> jax.Array:
        return batch_mul(gain[k], x - batch_mul(alpha[k], jnp.broadcast_to(x0, x.shape)))

    config = config_of(method=method, num_steps=8)
    config.training.continuous = False
    score_fn = models.score_fn(sde, network, continuous=False)
    sampler, noise = sampling.from_config(config), normal_noise(2, x0.shape)
    sample = jax.jit(lambda: sampler(sde, score_fn, noise).x)()
    np.testing.assert_allclose(sample, jnp.broadcast_to(x0, sample.shape), atol=2e-5)


@pytest.mark.parametrize(
    ("method", "nfe"),
    [
        *(("ddim", 5), ("dpm_3", 13), ("dpmpp_2m", 5), ("unipc_3", 5), ("edm", 9)),
        *(("euler", 4), ("heun", 7), ("deis_3", 5), ("sa_solver_2", 5), ("restart", 9 + 2 * 60)),
    ],
)
def test_evaluations_are_counted(method: str, nfe: int) -> None:
    sde = VPSDE()
    counter = Counter(sde)
    config = config_of(method=method, num_steps=4)
    samples = sampling.from_config(config)(sde, counter, normal_noise(2))
    jax.effects_barrier()
    assert samples.nfe == counter.calls == nfe


@pytest.mark.parametrize("method", ["dpmpp_2m_sde", pytest.param("edm", marks=pytest.mark.slow)])
def test_an_image_does_not_depend_on_its_batch(method: str) -> None:
    sde = VPSDE()
    score_fn = gaussians.two_modes((4, 4, 1)).score_fn(sde)
    config = config_of(method=method, num_steps=5, eta=0.7, churn=3.0, num_frames=3)

    @jax.jit
    def run(keys: jax.Array) -> Samples:
        return sampling.from_config(config)(sde, score_fn, image_noise(keys, (4, 4, 1)))

    picked = [6, 1, 3]
    keys = keys_of(range(8))
    whole, part = run(keys), run(keys[np.array(picked)])
    np.testing.assert_allclose(part.x, np.asarray(whole.x)[picked], atol=1e-5)
    assert part.trajectory is not None
    assert whole.trajectory is not None
    expected = np.asarray(whole.trajectory)[:, picked]
    np.testing.assert_allclose(part.trajectory, expected, atol=1e-5)
    np.testing.assert_array_equal(part.trajectory[-1], part.x)


def test_annealed_langevin_dynamics_is_the_update_of_smld() -> None:
    """Algorithm 1 written out, at the levels of the discrete process."""
    sde = VESDE(N=3, sigma_min=0.1, sigma_max=2.0)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    draws = np.random.default_rng(0).standard_normal((7, 2, 2, 2, 1)).astype(np.float32)

    @jax.jit
    def run() -> Samples:
        return sampling.annealed_langevin_dynamics(
            sde, score_fn, recorded_noise(draws), step_size=1e-3, n_steps_each=2
        )

    samples = run()
    x = np.asarray(2.0 * draws[0], np.float64)
    levels = np.geomspace(2.0, 0.1, 3)
    for i, sigma in enumerate(levels):
        step = 1e-3 * (sigma / levels[-1]) ** 2
        for k in (1, 2):
            score = -(x - MEAN) / (STD**2 + sigma**2)
            x = x + step / 2 * score + np.sqrt(step) * np.asarray(draws[2 * i + k])
    x = x - levels[-1] ** 2 * (x - MEAN) / (STD**2 + levels[-1] ** 2)
    np.testing.assert_allclose(samples.x, x, atol=1e-4)
    assert samples.nfe == 7


def test_from_config_makes_every_method() -> None:
    sde = VESDE(N=30)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    draws = np.random.default_rng(0).standard_normal((100, 64, 8, 8, 1)).astype(np.float32)

    @jax.jit
    def run(draws: jax.Array) -> Any:
        return {
            name: sampling.from_config(config_of(method=name, solver=solver, n_steps_each=2))(
                sde, score_fn, normal_noise(64) if name == "sde" else recorded_noise(draws)
            )
            for name in sampling.SAMPLERS.keys() - flow_maps.ASKERS
            for solver in ["SEA" if name == "sde" else "Tsit5"]
        }

    for name, samples in run(draws).items():
        assert samples.ok.all(), name
        assert abs(samples.x.mean() - MEAN) < (0.05 if name != "annealed_langevin" else 5.0), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ddim", "eta": 1.5}, "eta must lie between 0 and 1, not 1.5"),
        ({"method": "edm", "churn": -1.0}, "churn must be at least 0"),
        (
            {"method": "dpm_2", "time_grid": "cubic"},
            "unknown sampling.time_grid 'cubic'; known: ka",
        ),
        ({"method": "dpm_2", "num_steps": -3}, "num_steps must be 0"),
        ({"method": "annealed_langevin", "step_size": 0.0}, "step_size must be positive"),
    ],
)
def test_refusals_name_the_setting_and_the_valid_values(changes: dict, message: str) -> None:
    sde = VPSDE()
    with pytest.raises(ValueError, match=message):
        sampling.from_config(config_of(**changes))(
            sde, gaussians.linear_score(sde, MEAN, STD), normal_noise(1)
        )


@pytest.mark.parametrize("method", ["ddim", "dpm_2", "unipc_3", "edm"])
def test_frames_are_at_most_the_states_that_there_are(method: str) -> None:
    """A config's number of frames serves samplers of fewer steps too."""
    sde = VPSDE()
    score_fn = gaussians.linear_score(sde, MEAN, STD)

    @jax.jit
    def both() -> list[Samples]:
        return [
            sampling.from_config(config_of(method=method, num_steps=2, num_frames=frames))(
                sde, score_fn, normal_noise(1)
            )
            for frames in (3, 24)
        ]

    runs = both()
    assert runs[0].trajectory is not None
    np.testing.assert_array_equal(runs[0].trajectory, runs[1].trajectory)
    np.testing.assert_array_equal(runs[0].x, runs[1].x)


def test_orders_that_do_not_exist_are_refused() -> None:
    sde: SDE = VPSDE()
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    arguments = (sde, score_fn, normal_noise(1), grids.time_grid(sde, "log_snr", 2))
    cases: list[tuple[Any, dict[str, Any]]] = [
        (few_steps.dpm_solver, {"order": 4}),
        (few_steps.dpm_solver_pp, {"order": 1}),
        (few_steps.dpm_solver_pp, {"order": 3, "stochastic": True}),
        (few_steps.unipc, {"order": 1}),
        (few_steps.deis, {"order": 5}),
        (few_steps.sa_solver, {"order": 0}),
        (few_steps.sa_solver, {"tau": -0.1}),
    ]
    for solver, options in cases:
        with pytest.raises(ValueError, match="order"):
            solver(*arguments, **options)
    for name, steps, eps in [("log_snr", 0, 1e-3), ("uniform", 5, 0.0), ("uniform", 5, 2.0)]:
        with pytest.raises(ValueError, match=r"num_steps must be at least 1|eps must lie between"):
            grids.time_grid(sde, name, steps, eps)
