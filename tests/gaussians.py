"""Data whose diffused density is known: Gaussians and mixtures of Gaussians, for every SDE.

If x_0 ~ sum_k w_k N(m_k, diag(s_k^2)), then
x_t ~ sum_k w_k N(alpha m_k, diag(alpha^2 s_k^2 + sigma^2)).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sde_lib import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    FlowOTSDE,
    PowerInterpolant,
    RectifiedSDE,
    SubVPSDE,
    TrigonometricSDE,
)

SDES: dict[str, SDE] = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}
EVERY_SDE: dict[str, SDE] = {**SDES, "cosine": CosineVPSDE(), "edm": EDMSDE()}
FLOWS: dict[str, SDE] = {
    "rectified": RectifiedSDE(),
    "flow_ot": FlowOTSDE(),
    "trigonometric": TrigonometricSDE(),
    "interpolant": PowerInterpolant(),
}
SHAPE = (2, 2, 1)  # of an image in tests that need no other


class Mixture(NamedTuple):
    """Weights [K], means [K, ...] and standard deviations [K, ...] (broadcast) of the parts."""

    weights: Array
    means: Array
    stds: Array

    def log_prob(self, sde: SDE, x: Array, t: Array) -> Array:
        """log p_t(x) [B] for x [B, ...], t [B]."""
        return _log_probs(self, sde, x, t)

    def score_fn(self, sde: SDE) -> Callable[[Array, Array], Array]:
        """The exact score of p_t."""
        return lambda x, t: _scores(self, sde, x, t)

    def denoised(self, sde: SDE, x: Array, t: Array) -> Array:
        """E[x_0 | x_t = x] by Bayes' rule, without the score."""
        return _denoised(self, sde, x, t)

    def sample(self, key: Array, num: int) -> Array:
        """`num` draws of the data."""
        pick, draw = jax.random.split(key)
        k = jax.random.choice(pick, len(self.weights), (num,), p=self.weights)
        z = jax.random.normal(draw, (num, *self.means.shape[1:]))
        return self.means[k] + jnp.broadcast_to(self.stds, self.means.shape)[k] * z

    def _marginals(self, sde: SDE, t: Array) -> tuple[Array, Array]:
        alpha, sigma = sde.alpha(t[None])[0], sde.sigma(t[None])[0]
        return alpha, jnp.broadcast_to(alpha**2 * self.stds**2 + sigma**2, self.means.shape)

    def _log_parts(self, sde: SDE, x: Array, t: Array) -> Array:
        alpha, variance = self._marginals(sde, t)
        terms = (x - alpha * self.means) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
        return jnp.log(self.weights) - 0.5 * terms.reshape(len(terms), -1).sum(1)

    def _log_prob(self, sde: SDE, x: Array, t: Array) -> Array:
        return jax.nn.logsumexp(self._log_parts(sde, x, t))

    def _denoised(self, sde: SDE, x: Array, t: Array) -> Array:
        alpha, variance = self._marginals(sde, t)
        part = self.means + alpha * self.stds**2 / variance * (x - alpha * self.means)
        return jnp.tensordot(jax.nn.softmax(self._log_parts(sde, x, t)), part, 1)


# Compiled once for each SDE, and traced once where a solver asks often.


@functools.partial(jax.jit, static_argnums=1)
def _log_probs(mixture: Mixture, sde: SDE, x: Array, t: Array) -> Array:
    return jax.vmap(lambda x, t: mixture._log_prob(sde, x, t))(x, t)


@functools.partial(jax.jit, static_argnums=1)
def _scores(mixture: Mixture, sde: SDE, x: Array, t: Array) -> Array:
    return jax.vmap(jax.grad(lambda x, t: mixture._log_prob(sde, x, t)))(x, t)


@functools.partial(jax.jit, static_argnums=1)
def _denoised(mixture: Mixture, sde: SDE, x: Array, t: Array) -> Array:
    return jax.vmap(lambda x, t: mixture._denoised(sde, x, t))(x, t)


@functools.cache
def places(sde: SDE, count: int, seed: int, margin: float) -> tuple[Array, Array]:
    """x and t at which scores are compared, near the marginals of data of unit size.

    The times go from the share `margin` of [0, T] to as much before its end.
    """
    t = jnp.asarray(np.linspace(margin, 1.0 - margin, count) * sde.T, jnp.float32)
    x = np.random.default_rng(seed).standard_normal((count, *SHAPE))
    size = np.hypot(sde.alpha(t), sde.sigma(t)).reshape(-1, 1, 1, 1)
    return jnp.asarray(size * x, jnp.float32), t


def gaussian(mean: float | np.ndarray, std: float | np.ndarray, shape: tuple = SHAPE) -> Mixture:
    """One Gaussian with independent pixels."""
    means = jnp.broadcast_to(jnp.asarray(mean, jnp.float32), shape)[None]
    return Mixture(jnp.ones(1), means, jnp.broadcast_to(jnp.asarray(std, jnp.float32), shape)[None])


def linear_score(sde: SDE, mean: float, std: float) -> Callable[[Array, Array], Array]:
    """The score of N(mean, std^2 I) written out: -(x - alpha mean) / (alpha^2 std^2 + sigma^2)."""

    def score_fn(x: Array, t: Array) -> Array:
        alpha, sigma = (v.reshape(-1, *[1] * (x.ndim - 1)) for v in (sde.alpha(t), sde.sigma(t)))
        return -(x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return score_fn


def flow_map(sde: SDE, mean: float, std: float, x: Array, t0: float, t1: float) -> Array:
    """The probability flow of N(mean, std^2 I) from t0 to t1: a straight rescaling.

    (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2) stays constant along it.
    """
    start, end = (jnp.full((1,), t, jnp.float32) for t in (t0, t1))

    def scale(t: Array) -> Array:
        return jnp.sqrt(sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2)

    return sde.alpha(end) * mean + (x - sde.alpha(start) * mean) * scale(end) / scale(start)


def two_modes(shape: tuple = (2,)) -> Mixture:
    """A mixture of two unequal Gaussians, smooth enough for orders of convergence."""
    rng = np.random.RandomState(0)
    means = jnp.asarray(rng.uniform(-1, 1, (2, *shape)), jnp.float32)
    stds = jnp.asarray(rng.uniform(0.4, 0.7, (2, *shape)), jnp.float32)
    return Mixture(jnp.asarray([0.3, 0.7]), means, stds)
