"""Latent codes: images carried to noise by the probability flow or DDIM, and how to edit them.

`likelihood.encode` carries images x [B, ...] to their latents at time T along the probability flow
(Song et al. 2021, arXiv:2011.13456, section 4.3 and appendix D), `likelihood.decode` back.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffusion import few_steps
from diffusion.noise import Noise
from diffusion.trajectory import Samples
from sde_lib import SDE, Images, ScoreFn, Times, batch_mul


def slerp(z0: Images, z1: Images, weight: Times) -> Images:
    """Spherical interpolation from latents z0 to z1 [B, ...], at `weight` [B] of the way.

    sin((1 - w) a) / sin(a) z0 + sin(w a) / sin(a) z1, a the angle between the two (Shoemake 1985):
    unlike the straight line it keeps the norm, on which Gaussian latents concentrate. Where a
    vanishes it is the straight line; opposite latents have no shortest way between them.
    """
    axes = tuple(range(1, z0.ndim))

    def length(z: Images) -> Times:
        return jnp.sqrt(jnp.sum(jnp.square(z), axes))

    cosine = jnp.sum(z0 * z1, axes) / (length(z0) * length(z1))
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    close = angle < 1e-3
    safe = jnp.where(close, 1.0, angle)

    def share(w: Times) -> Times:
        return jnp.where(close, w, jnp.sin(w * safe) / jnp.sin(safe))

    return batch_mul(share(1.0 - weight), z0) + batch_mul(share(weight), z1)


def direction(z: Images, has: ArrayLike) -> Array:
    """The mean latent [...] of images that have an attribute (`has` [B]: 1), less that of others.

    Added to a latent it adds the attribute, as far as the latents know of it.
    """
    weights = jnp.asarray(has, z.dtype)

    def mean(weights: Times) -> Array:
        return jnp.tensordot(weights, z, 1) / jnp.sum(weights)

    return mean(weights) - mean(1.0 - weights)


def starting_at(sde: SDE, x: Images) -> Noise:
    """The noise source with which a deterministic solver starts at x [B, ...], not at the prior."""
    return lambda i: x / sde.prior_std


def times_from(times: np.ndarray, start: float) -> np.ndarray:
    """The part of a decreasing grid from the time `start` on.

    Raises:
      ValueError: start not after the grid's last time, or after its first.
    """
    if not times[-1] < start <= times[0]:
        raise ValueError(f"the start must lie in ({times[-1]:g}, {times[0]:g}], not {start:g}")
    return np.concatenate([[start], times[times < start]])


def sdedit(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    x0: Images,
    times: np.ndarray,
    *,
    eta: float = 1.0,
    **options: Any,
) -> Samples:
    """SDEdit (Meng et al. 2021, arXiv:2108.01073): noise x0 to the time times[0], and return.

    The way back is `few_steps.ddim`; eta = 1 is ancestral sampling, the reverse SDE of their paper.
    The more noise, the more realistic and the less faithful. Draw 0 of `noise` is that of x0.

    Args:
      times: decreasing, [M + 1]; see `times_from`.
    """
    mean, std = sde.marginal_prob(x0, jnp.full(len(x0), times[0], x0.dtype))

    def source(i: ArrayLike) -> Images:
        z = noise(i)
        start = (mean + batch_mul(std, z)) / sde.prior_std
        return jnp.where(jnp.equal(i, 0), start, z)

    return few_steps.ddim(sde, score_fn, source, times, eta=eta, **options)


def ddim_encode(sde: SDE, score_fn: ScoreFn, x: Images, times: np.ndarray) -> Images:
    """DDIM inversion (Song et al. 2021, arXiv:2010.02502, section 4.3): x at times[-1] to times[0].

    Euler's method in sigma / alpha, towards the noise; first order, like `ddim_decode`, which
    does not undo it exactly. One evaluation a step.

    Args:
      times: decreasing, [M + 1]; see `grids.time_grid`.
    """
    return few_steps.ddim(sde, score_fn, starting_at(sde, x), times[::-1], denoise=False).x


def ddim_decode(
    sde: SDE, score_fn: ScoreFn, z: Images, times: np.ndarray, **options: Any
) -> Samples:
    """The images of latents z at times[0], by DDIM without noise."""
    return few_steps.ddim(sde, score_fn, starting_at(sde, z), times, eta=0.0, **options)
