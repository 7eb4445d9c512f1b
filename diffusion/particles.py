"""Particles: weighted samples, several for each image, that are resampled by their weights.

K particles of B images are one batch x [B K, ...], those of an image side by side, so that a score
function sees them as it sees images. Their log-weights are [B, K]; every image is on its own.
Equations are those of Feynman-Kac models: Chopin and Papaspiliopoulos 2020, "An introduction to
sequential Monte Carlo", algorithm 10.1; Doucet and Johansen 2009, section 3.5.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffusion.noise import Noise

BELOW_ONE = 1.0 - 2.0**-24  # the largest float32 below 1


class Cloud(NamedTuple):
    """The particles of each image.

    Attributes:
      x: [B K, ...], those of an image side by side.
      log_weights: [B, K], since the last resampling; in total not normalised.
      log_evidence: [B], of what was resampled away; see `evidence`.
    """

    x: Array
    log_weights: Array
    log_evidence: Array

    @property
    def evidence(self) -> Array:
        """The logarithm [B] of an unbiased estimate of the normalising constant.

        The constant is that of the product of all weights, E[prod_i G_i] under the particles' own
        moves; each resampling leaves the mean weight of the particles as a factor.
        """
        return self.log_evidence + log_mean(self.log_weights)


def cloud(x: Array, count: int) -> Cloud:
    """Particles x [B K, ...], `count` of each image, of equal weight.

    Raises:
      ValueError: a count below 1, or one that does not divide the number of particles.
    """
    if count < 1 or len(x) % count:
        raise ValueError(f"{len(x)} particles are not {count} for each image; use 1 or more")
    images = len(x) // count
    return Cloud(x, jnp.zeros((images, count), x.dtype), jnp.zeros(images, x.dtype))


def noise_of_particles(noise: Noise, count: int) -> Noise:
    """The source of draws [B K, ...]: draw i of particle k is its image's draw number i K + k."""

    def draws(i: ArrayLike) -> Array:
        z = jax.vmap(noise)(i * jnp.int32(count) + jnp.arange(count))  # [K, B, ...]
        return jnp.swapaxes(z, 0, 1).reshape(-1, *z.shape[2:])

    return draws


def uniform(noise: Noise, i: ArrayLike) -> Array:
    """A number for each image, uniform in [0, 1): Phi of the first entry of draw number i; [B]."""
    z = noise(i)
    return jnp.minimum(jax.scipy.special.ndtr(z.reshape(len(z), -1)[:, 0]), BELOW_ONE)


def log_mean(log_weights: Array) -> Array:
    """The logarithm of the mean weight, [B] of [B, K]."""
    return jax.nn.logsumexp(log_weights, 1) - math.log(log_weights.shape[1])


def effective_number(log_weights: Array) -> Array:
    """(sum_k w_k)^2 / sum_k w_k^2, from 1 to K: [B] of [B, K]."""
    return jnp.exp(2.0 * jax.nn.logsumexp(log_weights, 1) - jax.nn.logsumexp(2.0 * log_weights, 1))


def systematic(log_weights: Array, u: Array) -> Array:
    """Indices [B, K] of the parents: particle k has floor or ceil(K W_k) children, K W_k in mean.

    W are the normalised weights. The j-th parent is where their cumulative sum passes (j + u) / K
    (Carpenter et al. 1999). Where all weights are 0 (-inf), everyone is the first one's child.

    Args:
      u: [B], uniform in [0, 1).
    """
    count = log_weights.shape[1]
    return _passed(log_weights, (jnp.arange(count) + u[:, None]) / count)


def _passed(log_weights: Array, places: Array) -> Array:
    """The particles [B, J] at which the sum of the normalised weights passes places in [0, 1)."""
    sums = jnp.cumsum(jax.nn.softmax(log_weights, 1), 1)
    indices = jax.vmap(lambda s, p: jnp.searchsorted(s, p, side="right"))(sums, places)
    # Rounding may leave the last sum below the last place: the last particle of any weight has it.
    last = log_weights.shape[1] - 1 - jnp.argmax(jnp.flip(log_weights, 1) > -jnp.inf, 1)
    return jnp.minimum(indices, last[:, None])


def children(x: Array, parents: Array) -> Array:
    """The particles x [B K, ...] of the `parents` [B, J], of each image its own; [B J, ...]."""
    images = len(parents)
    apart = x.reshape(images, -1, *x.shape[1:])
    taken: Array = jax.vmap(lambda particles, indices: particles[indices])(apart, parents)
    return jnp.reshape(taken, (-1, *x.shape[1:]))


def resampled(particles: Cloud, u: Array, threshold: float = 1.0) -> tuple[Cloud, Array]:
    """The cloud after systematic resampling, and the parents [B, K] that it was made of.

    An image is resampled where `effective_number` is below `threshold` K; threshold 0 is never, and
    1 always, save where all weights are equal or all are 0. What belongs to a particle besides x
    follows by `children`.
    """
    log_weights = particles.log_weights
    count = log_weights.shape[1]
    few = effective_number(log_weights) < threshold * count
    parents = jnp.where(few[:, None], systematic(log_weights, u), jnp.arange(count))
    left = jnp.where(few[:, None], 0.0, log_weights)
    evidence = particles.log_evidence + jnp.where(few, log_mean(log_weights), 0.0)
    return Cloud(children(particles.x, parents), left, evidence), parents


def one_of_each(particles: Cloud, u: Array) -> Array:
    """A particle of each image, chosen by its weight with u [B] uniform in [0, 1); [B, ...]."""
    return children(particles.x, _passed(particles.log_weights, u[:, None]))
