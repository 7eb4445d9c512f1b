"""Decoupled annealing posterior sampling (DAPS, Zhang et al. 2024, arXiv:2407.01521, algorithm 1).

If x_t has the law p(x_t | y), then x_s has its own, for any s < t, when x_0 is drawn from
p(x_0 | x_t, y) and noised to s: no error is carried from one level to the next. p(x_0 | x_t) is
taken for N(x0(x_t), r^2 I), with the r^2 of `moment_guidance.variance_of_data`; from its product
with p(y | x_0) a linear A lets draw exactly, others by Langevin steps, which call no network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion import grids
from diffusion.inverse import Operator
from diffusion.moment_guidance import check_deviations, variance_of_data
from diffusion.noise import Noise
from diffusion.svd import SVD
from diffusion.trajectory import Samples, denoised, drive, samples_ending_on
from sde_lib import SDE, Images, ScoreFn, batch_mul

POWERS = 12  # of J' J, after which its largest eigenvalue is known well enough for a step size


class Conditional(NamedTuple):
    """A draw from p(x_0 | y) for the prior N(x0, v I) of x_0.

    Attributes:
      draws: standard-normal draws [B, ...] that one takes.
      draw: from x0 [B, ...], v [B] and a source of these draws to x_0.
    """

    draws: int
    draw: Callable[[Images, Array, Noise], Images]


def linear_conditional(svd: SVD, y: Array, noise_std: float) -> Conditional:
    """The exact draw for y = A x_0 + noise: independent Gaussians in the coordinates V' x_0.

    Raises:
      ValueError: a negative noise_std.
    """
    check_deviations(noise_std)
    c, variances = svd.estimate(y), jnp.asarray(np.square(noise_std / svd.values), y.dtype)

    def draw(x0: Images, v: Array, noise: Noise) -> Images:
        z, v = noise(0), v[:, None]
        own, gain = svd.coordinates(x0), v / (v + variances)
        seen = own + gain * (c - own) + jnp.sqrt(gain * variances) * svd.coordinates(z)
        x = x0 + batch_mul(jnp.sqrt(v[:, 0]), z)
        return x + svd.image(seen - svd.coordinates(x))

    return Conditional(1, draw)


def langevin_conditional(
    operator: Operator, y: Array, noise_std: float, *, steps: int = 20, step_size: float = 0.3
) -> Conditional:
    """Langevin steps from x0 towards the posterior, for any differentiable operator:

        x <- x + d grad log p(x | y) + sqrt(2 d) z,    d = step_size / (1 / v + L^2 / noise_std^2),

    where L^2, the largest eigenvalue of J' J at x0, is found by `POWERS` products: the stiffest
    direction says how long a step may be. For a linear operator their law goes to a Gaussian
    of the right mean whose variance is too large by a factor 1 / (1 - share step_size / 2), share
    the curvature in its direction over the largest one.

    Raises:
      ValueError: no noise, no step, or a step_size outside (0, 2).
    """
    if not noise_std > 0 or steps < 1 or not 0.0 < step_size < 2.0:
        raise ValueError(
            "Langevin steps in DAPS need a positive noise_std, 1 step or more and a step_size "
            f"between 0 and 2, not {noise_std:g}, {steps} and {step_size:g}"
        )

    def draw(x0: Images, v: Array, noise: Noise) -> Images:
        curvature = 1.0 / v + largest_eigenvalue(operator, x0) / noise_std**2
        size = step_size / curvature

        def step(k: Array, x: Images) -> Images:
            value, back = jax.vjp(operator, x)
            slope = back(y - value)[0] / noise_std**2 - batch_mul(1.0 / v, x - x0)
            return x + batch_mul(size, slope) + batch_mul(jnp.sqrt(2.0 * size), noise(k))

        x: Images = jax.lax.fori_loop(0, steps, step, x0)
        return x

    return Conditional(steps, draw)


def largest_eigenvalue(operator: Operator, x: Images) -> Array:
    """The largest eigenvalue [B] of J' J, J the Jacobian of the operator at x [B, ...]."""
    _, push = jax.linearize(operator, x)
    back = jax.linear_transpose(push, x)
    axes = tuple(range(1, x.ndim))
    draw = np.random.RandomState(0).standard_normal(x.shape[1:])

    def norm(v: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(v), axes))

    def power(_: Array, v: Array) -> Array:
        image = back(push(v))[0]
        return batch_mul(1.0 / jnp.maximum(norm(image), 1e-20), image)

    v = jnp.broadcast_to(jnp.asarray(draw, x.dtype), x.shape)
    v = batch_mul(1.0 / norm(v), v)
    v = jax.lax.fori_loop(0, POWERS, power, v)
    image: Array = back(push(v))[0]
    return norm(image)


def daps(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    conditional: Conditional,
    *,
    data_std: float = 1.0,
    ode_steps: int = 1,
) -> Samples:
    """Draws x_0 from its `conditional` at each time, and noises it to the next.

    With one of the `ode_steps`, x0(x_t) is E[x_0 | x_t], and for data N(m, data_std^2 I) all is
    exact at any number of levels. More are the paper's way: x0(x_t) is where the probability flow
    from x_t ends, by that many Euler steps even in log(alpha / sigma): a draw of p(x_0) itself that
    follows several modes, to which r^2 then adds. The last x_0 is drawn without noise. Evaluations:
    `ode_steps` at each of the M + 1 times. Draws: the prior's, then at each time those of the
    conditional and one to noise it.

    Args:
      times: decreasing, [M + 1]; see `grids.time_grid`.
      data_std: standard deviation of the data, in the range of the images.

    Raises:
      ValueError: ode_steps below 1, or a data_std that is not positive.
    """
    check_deviations(0.0, data_std)
    if ode_steps < 1:
        raise ValueError(f"DAPS takes ode_steps of 1 or more, not {ode_steps}")
    lam = grids.half_log_snr(sde, times)
    shares = np.arange(ode_steps) / ode_steps
    ways = lam[:, None] + shares * (lam[-1] - lam)[:, None]  # [M + 1, ode_steps]
    nodes = grids.times_of(sde, ways.reshape(-1)).reshape(ways.shape)
    nodes[:, 0] = times
    grid = grids.levels(sde, nodes.reshape(-1))
    alpha, sigma = (v.reshape(ways.shape) for v in (grid.alpha, grid.sigma))
    kept = np.ones_like(sigma)
    kept[:, :-1] = sigma[:, 1:] / sigma[:, :-1]
    gained = np.zeros_like(sigma)
    gained[:, :-1] = alpha[:, 1:] - kept[:, :-1] * alpha[:, :-1]
    x = sde.prior_sampling(noise(0))
    way = tuple(jnp.asarray(v, x.dtype) for v in (nodes, kept, gained))

    def estimate(x: Images, way: tuple[Array, ...]) -> Images:
        def along(
            state: tuple[Images, Images], at: tuple[Array, ...]
        ) -> tuple[tuple[Images, Images], None]:
            t, kept, gained = at
            x0 = denoised(sde, score_fn, state[0], t)
            return (kept * state[0] + gained * x0, x0), None

        return jax.lax.scan(along, (x, x), way)[0][1]

    def given(x: Images, way: tuple[Array, ...], draws: Noise) -> Images:
        t = jnp.full(x.shape[0], way[0][0])
        return conditional.draw(estimate(x, way), variance_of_data(sde, t, data_std), draws)

    def step(
        x: Images, memory: None, at: tuple[tuple[Array, ...], Array, Array]
    ) -> tuple[Images, None]:
        way, end, draw = at
        x0 = given(x, way, lambda k: noise(draw + k))
        mean, std = sde.marginal_prob(x0, jnp.full(x.shape[0], end))
        return mean + batch_mul(std, noise(draw + conditional.draws)), None

    steps = len(times) - 1
    draws = 1 + (conditional.draws + 1) * jnp.arange(steps)
    inputs = (tuple(v[:-1] for v in way), jnp.asarray(times[1:], x.dtype), draws)
    x, _, _ = drive(step, x, None, inputs)
    x = given(x, tuple(v[-1] for v in way), lambda k: jnp.zeros_like(x))
    return samples_ending_on(x, ode_steps * (steps + 1), None)
