"""Solvers with few steps: DDIM, EDM, DPM-Solver, DPM-Solver++ and UniPC, for every SDE.

Written in alpha(t), sigma(t) and lambda = log(alpha / sigma) alone. The coefficients of a method
depend on the time grid only; they are computed once, on the host, in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion import grids
from diffusion.heun import heun
from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Frames, Samples, denoised, drive, samples_ending_on
from sde_lib import SDE, Images, ScoreFn

# Linear multistep methods: x' = carry x + sum_k gains[k] x0[-k] + std z, all from one table.


class Table(NamedTuple):
    """Coefficients of each step [M]: on x, on the last K predictions of x_0 [M, K], on the noise.

    `correct` [M, K + 2], if given, first replaces x by its correction: coefficients on x itself, on
    the corrected x of the step before, and on the last K predictions.
    """

    carry: np.ndarray
    gains: np.ndarray
    std: np.ndarray
    correct: np.ndarray | None = None


def _ddim(grid: grids.Levels, eta: float) -> Table:
    h = np.diff(grid.lam)
    share = eta * np.sqrt(np.maximum(-np.expm1(-2.0 * h), 0.0))
    rest = np.sqrt(1.0 - share**2)  # of the old noise
    gains = grid.alpha[1:] * (1.0 - np.exp(-h) * rest)
    return Table(grid.sigma[1:] / grid.sigma[:-1] * rest, gains[:, None], share * grid.sigma[1:])


def _dpmpp_2m(grid: grids.Levels, stochastic: bool) -> Table:
    h = np.diff(grid.lam)
    rate = 2.0 if stochastic else 1.0
    gain = -grid.alpha[1:] * np.expm1(-rate * h)
    slope = np.append(0.0, 0.5 * h[1:] / h[:-1])
    carry = grid.sigma[1:] / grid.sigma[:-1] * np.exp(-(rate - 1.0) * h)
    std = grid.sigma[1:] * np.sqrt(-np.expm1(-2.0 * h)) if stochastic else np.zeros_like(h)
    return Table(carry, np.stack([gain * (1.0 + slope), -gain * slope], 1), std)


def _adams(grid: grids.Levels, order: int, corrector: bool) -> Table:
    steps = len(grid.lam) - 1
    gains = np.zeros((steps, order))
    correct = np.zeros((steps, order + 3))
    correct[0, 0] = 1.0
    for i in range(steps):
        nodes = grid.lam[max(0, i - order + 1) : i + 1][::-1]
        gains[i, : len(nodes)] = grid.alpha[i + 1] * _weights(nodes, grid.lam[i], grid.lam[i + 1])
        if i:
            nodes = grid.lam[max(0, i - order) : i + 1][::-1]
            correct[i, 1] = grid.sigma[i] / grid.sigma[i - 1]
            weights = _weights(nodes, grid.lam[i - 1], grid.lam[i])
            correct[i, 2 : 2 + len(nodes)] = grid.alpha[i] * weights
    carry = grid.sigma[1:] / grid.sigma[:-1]
    if not corrector:
        return Table(carry, gains, np.zeros(steps))
    return Table(carry, np.pad(gains, ((0, 0), (0, 1))), np.zeros(steps), correct)


def _weights(nodes: np.ndarray, start: float, end: float) -> np.ndarray:
    """Integrals from start to end of exp(s - end) L_j(s), L_j Lagrange polynomials of `nodes`."""
    points, shares = np.polynomial.legendre.leggauss(24)
    s = 0.5 * (start + end) + 0.5 * (end - start) * points
    shares = 0.5 * (end - start) * shares * np.exp(s - end)
    polynomials = [
        np.prod([(s - m) / (n - m) for m in nodes if m != n], axis=0) * np.ones_like(s)
        for n in nodes
    ]
    return np.array([np.sum(shares * p) for p in polynomials])


def multistep(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    table: Callable[[grids.Levels], Table],
    *,
    denoise: bool = True,
    num_frames: int = 0,
) -> Samples:
    """Samples with the linear multistep method whose coefficients are `table` of the time grid.

    One evaluation a step. Draw 0 of `noise` is the prior's; a stochastic method takes one a step.
    With `denoise`, the result is E[x_0 | x] at the last time, for one evaluation more.
    """
    grid = grids.levels(sde, times)
    coefficients = table(grid)
    x = sde.prior_sampling(noise(0))
    stochastic = bool(np.any(coefficients.std))
    correct = coefficients.correct
    history = [jnp.zeros_like(x)] * coefficients.gains.shape[1]

    def step(
        x: Images, memory: tuple[Array | None, list[Array]], at: tuple[Array, ...]
    ) -> tuple[Images, tuple[Array | None, list[Array]]]:
        t, carry, gains, std, correct, draw = at
        previous, history = memory
        history = [denoised(sde, score_fn, x, t), *history[:-1]]
        if previous is not None:
            x = correct[0] * x + correct[1] * previous
            x += sum(correct[k + 2] * x0 for k, x0 in enumerate(history))
            previous = x
        x = carry * x + sum(gains[k] * x0 for k, x0 in enumerate(history))
        if stochastic:
            x += std * noise(draw)
        return x, (previous, history)

    steps = len(times) - 1
    inputs = (
        *(jnp.asarray(v, x.dtype) for v in (times[:-1], *coefficients[:3])),
        jnp.asarray(np.zeros(steps) if correct is None else correct, x.dtype),
        1 + jnp.arange(steps),
    )
    memory = (None if correct is None else x, history)
    x, _, frames = drive(step, x, memory, inputs, num_frames)
    return _finish(sde, score_fn, x, times[-1], steps, denoise, frames)


def _finish(
    sde: SDE,
    score_fn: ScoreFn,
    x: Images,
    t: float,
    nfe: int,
    denoise: bool,
    frames: Frames | None,
) -> Samples:
    if denoise:
        x, nfe = denoised(sde, score_fn, x, t), nfe + 1
    return samples_ending_on(x, nfe, frames)


def ddim(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    *,
    eta: float = 0.0,
    **options: Any,
) -> Samples:
    """DDIM (Song et al. 2021, arXiv:2010.02502, equations 12 and 16), for any alpha and sigma.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) noise + d z, where d is `eta` times the standard
    deviation of p(x_s | x_t, x_0): eta = 0 is a first-order solver of the probability flow, eta = 1
    ancestral sampling.

    Raises:
      ValueError: eta outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie between 0 and 1, not {eta}")
    return multistep(sde, score_fn, noise, times, lambda grid: _ddim(grid, eta), **options)


def dpm_solver_pp(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    *,
    order: int = 2,
    stochastic: bool = False,
    **options: Any,
) -> Samples:
    """Multistep DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095): 2M, 3M and SDE-2M.

    Order 2 is their algorithm 2, and with `stochastic` its form for the reverse SDE. Order 3
    integrates exp(lambda) times the parabola through the last three predictions of x_0 exactly. The
    first steps are of lower order.

    Raises:
      ValueError: order other than 2 and 3; order 3 with `stochastic`.
    """
    if order not in (2, 3) or (stochastic and order != 2):
        raise ValueError(f"DPM-Solver++ has order 2 or 3 (2 if stochastic), not {order}")
    if order == 2:
        return multistep(
            sde, score_fn, noise, times, lambda grid: _dpmpp_2m(grid, stochastic), **options
        )
    return multistep(sde, score_fn, noise, times, lambda grid: _adams(grid, 3, False), **options)


def unipc(
    sde: SDE, score_fn: ScoreFn, noise: Noise, times: np.ndarray, *, order: int = 3, **options: Any
) -> Samples:
    """UniPC (Zhao et al. 2023, arXiv:2302.04867) in x_0, its coefficients solved for exactly.

    A predictor of the given order from the last predictions of x_0, and a corrector (UniC) that
    reuses the evaluation made at the predicted point, hence one evaluation a step and one order
    more.

    Raises:
      ValueError: order other than 2 and 3.
    """
    if order not in (2, 3):
        raise ValueError(f"UniPC has order 2 or 3, not {order}")
    return multistep(sde, score_fn, noise, times, lambda grid: _adams(grid, order, True), **options)


# Methods with several evaluations a step.


def dpm_solver(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    *,
    order: int = 2,
    denoise: bool = True,
    num_frames: int = 0,
) -> Samples:
    """Singlestep DPM-Solver-1, -2, -3 (Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2).

    `order` evaluations a step; an exponential integrator in lambda = log(alpha / sigma) of
    d(x / alpha) / dlambda = -exp(-lambda) noise(x, lambda).

    Raises:
      ValueError: order other than 1, 2 and 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"DPM-Solver has order 1, 2 or 3, not {order}")
    x = sde.prior_sampling(noise(0))
    lam = grids.half_log_snr(sde, times)
    nodes = [grids.levels(sde, times[:-1])]
    for part in np.arange(1, order) / order:
        nodes.append(grids.levels(sde, grids.times_of(sde, lam[:-1] + part * np.diff(lam))))
    nodes.append(grids.levels(sde, times[1:]))
    h = [node.lam - nodes[0].lam for node in nodes]

    def step(x: Images, memory: None, at: tuple[Array, ...]) -> tuple[Images, None]:
        t, alpha, sigma, h = at

        def noise_at(x: Images, k: int) -> Images:
            ts = jnp.full(x.shape[0], t[k])
            return convert(sde, x, ts, score_fn(x, ts), "score", "noise")

        first = noise_at(x, 0)

        def euler(k: int) -> Images:
            return alpha[k] / alpha[0] * x - sigma[k] * jnp.expm1(h[k]) * first

        if order == 1:
            return euler(1), None
        change = noise_at(euler(1), 1) - first
        if order == 2:
            return euler(2) - sigma[2] * jnp.expm1(h[2]) * change, None
        middle = euler(2) - 2.0 * sigma[2] * (jnp.expm1(h[2]) / h[2] - 1.0) * change
        change = noise_at(middle, 2) - first
        return euler(3) - 1.5 * sigma[3] * (jnp.expm1(h[3]) / h[3] - 1.0) * change, None

    columns = [[getattr(node, name) for node in nodes] for name in ("t", "alpha", "sigma")]
    inputs = tuple(jnp.asarray(np.stack(c, 1), x.dtype) for c in (*columns, h))
    x, _, frames = drive(step, x, None, inputs, num_frames)
    return _finish(sde, score_fn, x, times[-1], order * (len(times) - 1), denoise, frames)


def edm(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = np.inf,
    churn_noise: float = 1.0,
    denoise: bool = True,
    num_frames: int = 0,
) -> Samples:
    """EDM's Heun sampler with churn (Karras et al. 2022, arXiv:2206.00364, algorithm 2).

    For any SDE in the variables x / alpha and s = sigma / alpha, where the probability flow is
    d(x / alpha) / ds = noise(x, s). Each step first raises s by the factor 1 + min(churn / M,
    sqrt(2) - 1), if s lies in [churn_min, churn_max], but not above its value at T. Two evaluations
    a step; the last, to s = 0, is `denoise`. Draws: the prior's, then one a step if churn > 0.

    Raises:
      ValueError: churn below 0.
    """
    if churn < 0.0:
        raise ValueError(f"churn must be at least 0, not {churn}")
    steps = len(times) - 1
    x = sde.prior_sampling(noise(0))
    level = np.exp(-grids.half_log_snr(sde, times))
    inside = (level[:-1] >= churn_min) & (level[:-1] <= churn_max)
    upper = level[:-1] * (1.0 + min(churn / steps, np.sqrt(2.0) - 1.0) * inside)
    upper = np.minimum(upper, level[0])
    start = grids.levels(
        sde, np.where(upper > level[:-1], grids.times_of(sde, -np.log(upper)), times[:-1])
    )
    end = grids.levels(sde, times[1:])
    std = churn_noise * np.sqrt(upper**2 - level[:-1] ** 2)
    scale = grids.levels(sde, times[:-1]).alpha

    def step(x: Images, memory: None, at: tuple[Array, ...]) -> tuple[Images, None]:
        t, alpha, level, scale, std, draw = at
        y = x / scale
        if churn > 0.0:
            y += std * noise(draw)

        def slope(y: Images, k: int) -> Images:
            ts = jnp.full(x.shape[0], t[k])
            return convert(sde, alpha[k] * y, ts, score_fn(alpha[k] * y, ts), "score", "noise")

        first = slope(y, 0)
        second = slope(y + (level[1] - level[0]) * first, 1)
        return alpha[1] * (y + (level[1] - level[0]) * 0.5 * (first + second)), None

    pairs = ((start.t, end.t), (start.alpha, end.alpha), (upper, level[1:]))
    inputs = tuple(jnp.asarray(np.stack(pair, 1), x.dtype) for pair in pairs)
    scalars = [jnp.asarray(v, x.dtype) for v in (scale, std)]
    x, _, frames = drive(step, x, None, (*inputs, *scalars, 1 + jnp.arange(steps)), num_frames)
    return _finish(sde, score_fn, x, times[-1], 2 * steps, denoise, frames)


# Methods by the names that configs use.


class Method(NamedTuple):
    """A solver of this file as `config.sampling` reaches it.

    Attributes:
      solver: takes SDE, score, noise, times, `denoise`, `num_frames` and the settings.
      grid: the time grid that it has unless `time_grid` names another, in `grids.GRIDS`.
      settings: the fields of `config.sampling` that it takes, by their own names.
      between_levels: True if it evaluates at times that are not on its grid.
      noise_levels: True if it takes decreasing noise levels in place of times, `discrete` and
        `image_range`, and the last of its steps leads from the last level to none.
    """

    solver: Callable[..., Samples]
    grid: str = "log_snr"
    settings: tuple[str, ...] = ()
    between_levels: bool = False
    noise_levels: bool = False


CHURN = ("churn", "churn_min", "churn_max", "churn_noise")
GENERAL = ("schedule", "scaling", *CHURN)

METHODS: dict[str, Method] = {
    "ddim": Method(ddim, grid="uniform", settings=("eta",)),
    "dpm_1": Method(functools.partial(dpm_solver, order=1)),
    "dpm_2": Method(functools.partial(dpm_solver, order=2), between_levels=True),
    "dpm_3": Method(functools.partial(dpm_solver, order=3), between_levels=True),
    "dpmpp_2m": Method(functools.partial(dpm_solver_pp, order=2)),
    "dpmpp_3m": Method(functools.partial(dpm_solver_pp, order=3)),
    "dpmpp_2m_sde": Method(functools.partial(dpm_solver_pp, order=2, stochastic=True)),
    "edm": Method(edm, "karras", CHURN),
    "euler": Method(functools.partial(heun, order=1), "karras", GENERAL, noise_levels=True),
    "heun": Method(heun, "karras", (*GENERAL, "alpha"), noise_levels=True),
    "unipc_2": Method(functools.partial(unipc, order=2)),
    "unipc_3": Method(functools.partial(unipc, order=3)),
}
