"""Feynman-Kac correction and steering: weights that make a guided sampler draw what it names.

A reverse SDE that follows the score S of a density q_t(x) which is named at every t, but not
diffused from one t to the next (a product of experts, a guided density, one at a temperature), does
not draw q_0. Particles that carry the weights of a Feynman-Kac model, and are resampled by them,
do, in the limit of many particles and small steps.

For the product q_t = prod_i p_i,t^w_i of densities with scores s_i, which all diffuse by the same
SDE, the two Fokker-Planck equations differ by a term without derivatives, so that

    d log w = (g^2 / 2) (|S|^2 - sum_i w_i |s_i|^2) dtau,    g^2 dtau = sigma^2 dlambda,

tau running from noise to data and lambda the log-SNR (Skreta et al. 2025, arXiv:2503.02819: for
classifier-free guidance at scale w the bracket is w (w - 1) |s_y - s|^2, for two experts
2 <s_1, s_2>, for a temperature b (b - 1) |s|^2). A reward r(x_0) tilts what is drawn to
q_0(x) exp(r(x)): the particles carry exp(r) of their present estimate of x_0, and each step
multiplies their weights by the ratio of its new value to the last one, so that at the end it is
that of x_0 itself (Singhal et al. 2025, arXiv:2501.06848, the potential "difference"). The reward
needs no gradient, and how good the estimates are on the way decides the variance only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion import particles
from diffusion.guidance import Product
from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Samples, drive, samples_ending_on
from sde_lib import SDE, Images, ScoreFn, batch_mul

Reward = Callable[[Array], Array]  # x_0 [B, ...], in the network's range -> r [B]
THRESHOLD = 0.5  # share of the particles below which their effective number has them resampled


class _Sight(NamedTuple):
    """What is known at a particle: its score, rate d log w / dlambda, estimate of x_0 and reward.

    Attributes:
      score: [B K, ...].
      rate: [B K].
      estimate: [B K, ...].
      reward: [B K].
    """

    score: Array
    rate: Array
    estimate: Array
    reward: Array


def cloud(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    count: int,
    *,
    reward: Reward | None = None,
    threshold: float = THRESHOLD,
) -> particles.Cloud:
    """Weighted draws of q_0(x) exp(reward(x)), `count` of each image, in steps on a grid.

    An ancestral step predicts; the estimate of x_0 where it ends, taken to have grown linearly in
    the log-SNR from the one where it began, corrects it, for no further evaluation: it is of second
    weak order for smooth scores. Weights grow by the trapezoidal rule. The initial particles are of
    the prior to the power of the product's total weight; their estimates E[x_0 | x] at the last
    time are returned. `Cloud.evidence` estimates the logarithm of E[exp(reward(x_0))] where the
    score is that of data. A bias is left of the order of the squared steps, and one of 1 / `count`.

    Args:
      score_fn: with a `Product`, q is that product; any other score is taken for one of data.
      times: decreasing, [M + 1]; see `grids.time_grid`.
      threshold: particles are resampled where their effective number falls below this share of them
        (0: never).

    Raises:
      ValueError: fewer than one particle, or a threshold outside of [0, 1].
    """
    if count < 1:
        raise ValueError(f"{count} particles of an image; use 1 or more")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"the threshold of resampling is {threshold:g}; use 0 to 1")
    product = score_fn if isinstance(score_fn, Product) else Product((score_fn,), (1.0,))
    draws, last = particles.noise_of_particles(noise, count), len(times) - 1

    def look(x: Images, time: Array) -> _Sight:
        t = jnp.full(len(x), time, x.dtype)
        score, excess = product.with_excess(x, t)
        estimate = convert(sde, x, t, score, "score", "x0")
        value = reward(estimate) if reward else jnp.zeros(len(x), x.dtype)
        return _Sight(score, 0.5 * jnp.square(sde.sigma(t)) * excess, estimate, value)

    def step(
        x: Images, memory: tuple[particles.Cloud, _Sight], at: tuple[Array, ...]
    ) -> tuple[Images, tuple[particles.Cloud, _Sight]]:
        now, sight = memory
        start, end, growth, number = at
        t, s = jnp.full(len(x), start), jnp.full(len(x), end)
        mean, std = sde.posterior(x, sight.score, t, s)
        ahead = mean + batch_mul(std, draws(number))
        after = look(ahead, end)
        share = 1.0 + jnp.expm1(-growth) / growth
        x = ahead + batch_mul(share * sde.alpha(s), after.estimate - sight.estimate)
        gain = 0.5 * growth * (sight.rate + after.rate) + after.reward - sight.reward
        weighted = now._replace(x=x, log_weights=now.log_weights + gain.reshape(-1, count))
        u = particles.uniform(noise, (last + 1) * count + number)
        now, parents = particles.resampled(weighted, u, threshold)
        after = jax.tree.map(lambda leaf: particles.children(leaf, parents), after)
        return now.x, (now, after)

    x = sde.prior_sampling(draws(0)) / math.sqrt(product.total)
    first = particles.cloud(x, count)
    sight = look(x, jnp.asarray(times[0], x.dtype))
    first = first._replace(log_weights=sight.reward.reshape(-1, count))
    with jax.ensure_compile_time_eval():
        growth = np.diff(np.asarray(sde.log_snr(jnp.asarray(times, jnp.float32))))
    ends = (jnp.asarray(v, x.dtype) for v in (times[:-1], times[1:], growth))
    _, (end, sight), _ = drive(step, x, (first, sight), (*ends, 1 + jnp.arange(last)))
    return end._replace(x=sight.estimate)


def sample(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    count: int,
    *,
    reward: Reward | None = None,
    threshold: float = THRESHOLD,
) -> Samples:
    """One draw of each image from its `cloud`, chosen by weight.

    Each image has particles of its own, so that images are independent. `nfe` counts those of all
    particles of an image.
    """
    end = cloud(sde, score_fn, noise, times, count, reward=reward, threshold=threshold)
    u = particles.uniform(noise, len(times) * (count + 1))
    return samples_ending_on(particles.one_of_each(end, u), count * len(times), None)
