"""Guidance by y = A(x_0) + noise that takes p(x_0 | x_t) for a Gaussian with a simple covariance.

    grad_x log p_t(y | x) = (d x0 / dx)' J' S^-1 (y - A(x0)),    x0 = E[x_0 | x_t = x],

where J is the Jacobian of A at x0, A itself if it is linear, and S is the covariance that y then
has. `inverse.posterior_guided` has the S of the true covariance of x_0, by conjugate gradients with
a backward pass of the network each. PiGDM and TMPD have cheaper ones.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from diffusion.inverse import (
    MAX_ITERATIONS,
    Operator,
    conjugate_gradients,
    denoised_with_pullback,
    linearised,
)
from sde_lib import SDE, Images, ScoreFn, Times, batch_mul


def variance_of_data(sde: SDE, t: Times, data_std: float) -> Times:
    """The variance of x_0 given x_t, for data N(m, data_std^2 I); [B].

    It is sigma^2 data_std^2 / (alpha^2 data_std^2 + sigma^2). A standard deviation of 1 gives the
    sigma^2 / (alpha^2 + sigma^2) of PiGDM.
    """
    alpha, variance = sde.alpha(t), jnp.square(sde.sigma(t))
    return variance * data_std**2 / (jnp.square(alpha) * data_std**2 + variance)


def pigdm(
    sde: SDE,
    score_fn: ScoreFn,
    operator: Operator,
    y: Array,
    *,
    noise_std: float,
    data_std: float = 1.0,
    scale: float = 1.0,
    iterations: int = MAX_ITERATIONS,
) -> ScoreFn:
    """The score with pseudo-inverse guidance (PiGDM, Song et al. 2023, OpenReview 9_gsMA8MRKQ).

    S = r^2 J J' + noise_std^2 I with the r^2 of `variance_of_data`: the network's Jacobian is left
    out of it, so that its inverse costs no evaluation, and a guided score one backward pass. It is
    exact for data N(m, data_std^2 I), and then equals `inverse.posterior_guided`. Their A^+ for
    operators that are not linear is the linearisation here.

    Args:
      y: [B, ...] as the operator gives it.
      noise_std: standard deviation of the measurement's noise, in the range of the images.
      data_std: standard deviation of the data, in the same range.

    Raises:
      ValueError: a negative noise_std, or a data_std that is not positive.
    """
    check_deviations(noise_std, data_std)

    def conditional(x: Images, t: Times) -> Images:
        score, x0, pull = denoised_with_pullback(sde, score_fn, x, t)
        value, push, back = linearised(operator, x0)
        spread = variance_of_data(sde, t, data_std)

        def normal(v: Array) -> Array:
            return batch_mul(spread, push(back(v))) + noise_std**2 * v

        weights = conjugate_gradients(normal, y - value, iterations)
        return score + scale * pull(back(weights))

    return conditional


def tmpd(
    sde: SDE,
    score_fn: ScoreFn,
    operator: Operator,
    y: Array,
    *,
    noise_std: float,
    scale: float = 1.0,
) -> ScoreFn:
    """The score guided by Tweedie moments (Boys et al. 2023, arXiv:2310.06721), diagonally.

    With V = (sigma^2 / alpha) d x0 / dx, the true covariance of x_0 given x_t, their S is
    J V J' + noise_std^2 I, whose first part is replaced by the diagonal matrix of its row sums,
    J V J' 1: a second backward pass, and no system to solve. Where J V J' is diagonal this is
    `inverse.posterior_guided` with enough iterations, which solves for the whole S. Elsewhere the
    row sums count what is correlated with a measurement as its own spread; sums below 0 count as 0.

    Args:
      y: [B, ...] as the operator gives it.
      noise_std: standard deviation of the measurement's noise, in the range of the images.

    Raises:
      ValueError: a negative noise_std.
    """
    check_deviations(noise_std)

    def conditional(x: Images, t: Times) -> Images:
        score, x0, pull = denoised_with_pullback(sde, score_fn, x, t)
        value, push, back = linearised(operator, x0)
        spread = jnp.square(sde.sigma(t)) / sde.alpha(t)
        sums = push(batch_mul(spread, pull(back(jnp.ones_like(y)))))
        variances = jnp.maximum(sums, 0.0) + noise_std**2
        weights = jnp.where(
            variances > 0, (y - value) / jnp.where(variances > 0, variances, 1.0), 0.0
        )
        return score + scale * pull(back(weights))

    return conditional


def check_deviations(noise_std: float, data_std: float = 1.0) -> None:
    """Refuses standard deviations of noise below 0, and of data not above 0."""
    if noise_std < 0 or not data_std > 0:
        raise ValueError(
            f"noise_std={noise_std:g} must be 0 or more, and data_std={data_std:g} positive"
        )
