"""Twisted sequential Monte Carlo (Wu et al. 2023, arXiv:2306.17775): exact as particles are many.

Particles take ancestral steps that are guided by a guess of p_t(y | x), and weights make up for the
guess: whatever it is, the weighted particles tend to p(x_0 | y) of the discretised model, and the
mean weight is an unbiased estimate of p(y).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion import particles
from diffusion.inverse import Operator
from diffusion.moment_guidance import check_deviations, variance_of_data
from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Samples, drive, samples_ending_on
from sde_lib import SDE, Images, ScoreFn, Times, batch_mul


class Twist(NamedTuple):
    """What a particle knows at its time.

    Attributes:
      score: of the prior, [B K, ...].
      x0: E[x_0 | x_t], [B K, ...].
      log_guess: log of the guess of p_t(y | x), [B K].
      slope: its gradient, [B K, ...].
    """

    score: Images
    x0: Images
    log_guess: Array
    slope: Images


def twisted(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    operator: Operator,
    y: Array,
    **options: Any,
) -> Samples:
    """One particle of each image's cloud, drawn by its weight; see `twisted_particles`.

    Its evaluations are those of all particles of the image. One draw more.
    """
    cloud, draws = twisted_particles(sde, score_fn, noise, times, operator, y, **options)
    x = particles.one_of_each(cloud, particles.uniform(noise, draws))
    return samples_ending_on(x, cloud.log_weights.shape[1] * len(times), None)


def twisted_particles(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    operator: Operator,
    y: Array,
    *,
    noise_std: float,
    count: int = 16,
    data_std: float = 1.0,
    gain: float = 1.0,
    threshold: float = 0.5,
) -> tuple[particles.Cloud, int]:
    """The weighted particles of E[x_0 | x] at the last time, with log p(y) as their `evidence`.

    The guess of p_t(y | x) is N(y; A(x0), v I), v = noise_std^2 + gain r^2, with the r^2 of
    `moment_guidance.variance_of_data`: the truth for data N(m, data_std^2 I) and A A' = gain I. At
    the last time it is p(y | x0) itself. A particle goes from t to s by

        x_s ~ N(m + slope v_ts / a, std^2),   m, std of p(x_s | x_t) as ancestral sampling has them,

    and its weight gains p(x_s | x_t) guess(x_s) / (guess(x_t) N(x_s; m + slope v_ts / a, std^2)).
    An image is resampled, systematically, where its effective number of particles is below
    `threshold` of them. y may come from any differentiable operator.

    Args:
      times: decreasing, [M + 1]; see `grids.time_grid`.
      y: [B, ...] as the operator gives it.
      noise_std: standard deviation of the measurement's noise, in the range of the images.
      count: K, the particles of each image.
      gain: the mean square that A makes of an entry; see `gain_of`.

    Returns:
      The cloud, and the number of `noise`'s draws that it took: K (M + 1) of the particles, and one
      a step to resample.

    Raises:
      ValueError: no noise, which would leave no particle any weight, no particle, or a data_std or
        gain that is not positive.
    """
    check_deviations(noise_std, data_std)
    if not noise_std > 0 or count < 1 or not gain > 0:
        raise ValueError(
            "twisted SMC needs a positive noise_std, 1 particle or more and a positive gain, not "
            f"{noise_std:g}, {count} and {gain:g}"
        )
    moves, steps = particles.noise_of_particles(noise, int(count)), len(times) - 1
    y = jnp.repeat(y, int(count), 0)

    def log_normal(error: Array, variance: Array) -> Array:
        squares = jnp.sum(jnp.square(error), tuple(range(1, error.ndim)))
        size = math.prod(error.shape[1:])
        return -0.5 * (squares / variance + size * jnp.log(2.0 * math.pi * variance))

    def twist(x: Images, t: Times) -> Twist:
        variance = noise_std**2 + gain * variance_of_data(sde, t, data_std)

        def log_guess(x: Images) -> tuple[Array, tuple[Images, Images, Array]]:
            score = score_fn(x, t)
            x0 = convert(sde, x, t, score, "score", "x0")
            values = log_normal(y - operator(x0), variance)
            return jnp.sum(values), (score, x0, values)

        slope, (score, x0, values) = jax.grad(log_guess, has_aux=True)(x)
        return Twist(score, x0, values, slope)

    def step(
        x: Images, memory: tuple[particles.Cloud, Twist], at: tuple[Array, ...]
    ) -> tuple[Images, tuple[particles.Cloud, Twist]]:
        start, end, draw = at
        cloud, known = memory
        u = particles.uniform(noise, (steps + 1) * jnp.int32(count) + draw - 1)
        cloud, parents = particles.resampled(cloud, u, threshold)
        known = jax.tree.map(lambda leaf: particles.children(leaf, parents), known)
        t, s = jnp.full(len(x), start), jnp.full(len(x), end)
        mean, std = sde.posterior(cloud.x, known.score, t, s)
        guided, _ = sde.posterior(cloud.x, known.score + known.slope, t, s)
        z = moves(draw)
        x = guided + batch_mul(std, z)
        ratio = log_normal(x - mean, jnp.square(std)) - log_normal(x - guided, jnp.square(std))
        following = twist(x, s)
        gained = (ratio + following.log_guess - known.log_guess).reshape(cloud.log_weights.shape)
        return x, (cloud._replace(x=x, log_weights=cloud.log_weights + gained), following)

    x = sde.prior_sampling(moves(0))
    known = twist(x, jnp.full(len(x), times[0], x.dtype))
    cloud = particles.cloud(x, int(count))
    cloud = cloud._replace(log_weights=known.log_guess.reshape(cloud.log_weights.shape))
    ends = (jnp.asarray(v, x.dtype) for v in (times[:-1], times[1:]))
    _, (cloud, known), _ = drive(step, x, (cloud, known), (*ends, 1 + jnp.arange(steps)))
    exact = log_normal(y - operator(known.x0), jnp.full(len(x), noise_std**2, x.dtype))
    gained = (exact - known.log_guess).reshape(cloud.log_weights.shape)
    cloud = cloud._replace(x=known.x0, log_weights=cloud.log_weights + gained)
    return cloud, (steps + 1) * int(count) + steps


def gain_of(operator: Operator, shape: tuple[int, ...], centre: float = 0.0) -> float:
    """The mean square of J z over the entries of y, z standard normal: the mean diagonal of J J'.

    J is the Jacobian at an image of `shape` that is `centre` everywhere, plus noise of 0.1, so that
    an operator with a kink there has one; 64 fixed draws. At least 1e-6.
    """
    rng = np.random.RandomState(0)
    x, z = (rng.standard_normal((64, *shape)).astype(np.float32) for _ in range(2))

    @jax.jit
    def mean_square(x: Array, z: Array) -> Array:
        _, image = jax.jvp(operator, (x,), (z,))
        return jnp.mean(jnp.square(image))

    with jax.ensure_compile_time_eval():
        return max(float(mean_square(centre + 0.1 * x, z)), 1e-6)
