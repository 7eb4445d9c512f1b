"""Linear multistep methods: one evaluation a step, and coefficients of the time grid alone.

    x' = carry x + sum_k gains[k] p[-k] + std z

with the last predictions p of x_0 or of the noise, for every SDE. The coefficients are computed
once, on the host, in float64, from alpha(t), sigma(t) and lambda = log(alpha / sigma).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from configs.names import lookup
from diffusion import grids
from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Frames, Samples, denoised, drive, samples_ending_on
from sde_lib import SDE, Images, ScoreFn


class Table(NamedTuple):
    """Coefficients of each step [M]: on x, on the last K predictions [M, K], on the noise drawn.

    `correct` [M, K + 2], if given, first replaces x by its correction: coefficients on x itself, on
    the corrected x of the step before, and on the last K predictions. The predictions are of
    `prediction`, "x0" or "noise".
    """

    carry: np.ndarray
    gains: np.ndarray
    std: np.ndarray
    correct: np.ndarray | None = None
    prediction: str = "x0"


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
    s, shares = _quadrature(start, end)
    shares = shares * np.exp(s - end)
    return np.array([np.sum(shares * p) for p in _lagrange(nodes, s)])


def _quadrature(start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """The points of Gauss and Legendre between start and end, and their weights."""
    points, shares = _legendre()
    return 0.5 * (start + end) + 0.5 * (end - start) * points, 0.5 * (end - start) * shares


@functools.cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    """24 of these points on [-1, 1], and their weights."""
    return np.polynomial.legendre.leggauss(24)


def _lagrange(nodes: np.ndarray, s: np.ndarray) -> list[np.ndarray]:
    """The Lagrange polynomials of the nodes, at the points s."""
    return [
        np.prod([(s - m) / (n - m) for m in nodes if m != n], axis=0) * np.ones_like(s)
        for n in nodes
    ]


def _stochastic_adams(grid: grids.Levels, order: int, tau: float) -> Table:
    """SA-Solver's: a step of rate 1 + tau^2 in lambda, corrected by the prediction at its end.

    The corrected x has the noise of the predicted one, so it is that one plus the differences of
    the weights of both.
    """
    rate = 1.0 + tau**2
    steps, h = len(grid.lam) - 1, np.diff(grid.lam)
    gains, correct = np.zeros((steps, order + 1)), np.zeros((steps, order + 3))
    correct[:, 0] = 1.0
    for i in range(steps):
        nodes = grid.lam[max(0, i - order + 1) : i + 1][::-1]
        start, end = rate * grid.lam[i], rate * grid.lam[i + 1]
        gains[i, : len(nodes)] = grid.alpha[i + 1] * _weights(rate * nodes, start, end)
        if i + 1 < steps:
            after = grid.lam[max(0, i - order + 1) : i + 2][::-1]
            weights = grid.alpha[i + 1] * _weights(rate * after, start, end)
            correct[i + 1, 2 : 2 + len(after)] = weights
            correct[i + 1, 3 : 3 + len(nodes)] -= gains[i, : len(nodes)]
    carry = grid.sigma[1:] / grid.sigma[:-1] * np.exp(-(tau**2) * h)
    std = grid.sigma[1:] * np.sqrt(-np.expm1(-2.0 * tau**2 * h))
    return Table(carry, gains, std, correct)


def _deis(sde: SDE, grid: grids.Levels, order: int, variable: str) -> Table:
    """DEIS's: the polynomial through the last predictions of the noise, integrated over rho."""
    of_lambda = lookup(VARIABLES, variable, "variable of DEIS")
    steps = len(grid.lam) - 1
    points = [_quadrature(grid.lam[i], grid.lam[i + 1]) for i in range(steps)]
    places = of_lambda(sde, np.stack([s for s, _ in points]))
    nodes = of_lambda(sde, grid.lam)
    gains = np.zeros((steps, order))
    for i, (s, shares) in enumerate(points):
        last = nodes[max(0, i - order + 1) : i + 1][::-1]
        weights = -grid.alpha[i + 1] * shares * np.exp(-s)  # d rho = -exp(-lambda) d lambda
        gains[i, : len(last)] = [np.sum(weights * p) for p in _lagrange(last, places[i])]
    carry = grid.alpha[1:] / grid.alpha[:-1]
    return Table(carry, gains, np.zeros(steps), prediction="noise")


# The variable of DEIS's polynomials, as a function of lambda.
VARIABLES: dict[str, Callable[[SDE, np.ndarray], np.ndarray]] = {
    "t": grids.times_of,
    "rho": lambda sde, lam: np.exp(-lam),
    "lambda": lambda sde, lam: lam,
}


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
        times = jnp.full(x.shape[0], t)
        prediction = convert(sde, x, times, score_fn(x, times), "score", coefficients.prediction)
        history = [prediction, *history[:-1]]
        if previous is not None:
            x = correct[0] * x + correct[1] * previous
            x += sum(correct[k + 2] * p for k, p in enumerate(history))
            previous = x
        x = carry * x + sum(gains[k] * p for k, p in enumerate(history))
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
    return finished(sde, score_fn, x, times[-1], steps, denoise, frames)


def finished(
    sde: SDE,
    score_fn: ScoreFn,
    x: Images,
    t: float,
    nfe: int,
    denoise: bool,
    frames: Frames | None,
) -> Samples:
    """Samples x at time t after `nfe` evaluations; with `denoise`, E[x_0 | x] for one more."""
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


def deis(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    *,
    order: int = 3,
    variable: str = "t",
    **options: Any,
) -> Samples:
    """DEIS (Zhang and Chen 2022, arXiv:2204.13902, equation 14): Adams and Bashforth's method.

    With rho = sigma / alpha the probability flow is `d(x / alpha) / drho = noise(x, rho)`; the
    noise is taken for the polynomial through its last `order` predictions, which is integrated
    exactly. Order 1 is DDIM, and the first steps are of lower order.

    Args:
      variable: of the polynomial: "t" (their tAB), "rho" (their rhoAB) or "lambda".

    Raises:
      ValueError: an order that is not from 1 to 4, or an unknown variable.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"DEIS has order 1, 2, 3 or 4, not {order}")

    def table(grid: grids.Levels) -> Table:
        return _deis(sde, grid, order, variable)

    return multistep(sde, score_fn, noise, times, table, **options)


def sa_solver(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    *,
    order: int = 3,
    tau: float = 1.0,
    **options: Any,
) -> Samples:
    """SA-Solver (Xue et al. 2023, arXiv:2309.05019, algorithm 1): stochastic Adams methods.

    It solves the SDE with tau times the noise of the reverse-time SDE, which has the marginals of
    both it (tau 1) and the probability flow (tau 0):

        d(x / sigma) = (1 + tau^2) exp(lambda) x0 dlambda - tau^2 (x / sigma) dlambda
                       + sqrt(2) tau dw,

    with a predictor through the last `order` predictions of x_0, and a corrector through these and
    the new one; one evaluation a step.

    Raises:
      ValueError: an order that is not from 1 to 4, or a negative tau.
    """
    if order not in (1, 2, 3, 4) or not tau >= 0.0:
        raise ValueError(
            f"SA-Solver has order 1, 2, 3 or 4 and tau of 0 or more, not {order} and {tau:g}"
        )
    return multistep(
        sde, score_fn, noise, times, lambda grid: _stochastic_adams(grid, order, tau), **options
    )
