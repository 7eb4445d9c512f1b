"""Ancestral sampling at some of a process's levels, with a variance that the network may tell.

Ho et al. 2020 (arXiv:2006.11239, algorithm 2) and, for fewer steps and learned variances, Nichol
and Dhariwal 2021 (arXiv:2102.09672, sections 3.1 and 4), written in alpha and sigma of the levels;
without noise, DDIM (Song et al. 2021, arXiv:2010.02502).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from configs.names import lookup
from diffusion import grids
from diffusion.noise import Noise
from diffusion.times import last_time
from diffusion.trajectory import Samples, drive, samples_ending_on
from sde_lib import SDE, Images, ScoreFn, Times, VariancePreservingSDE

Numbers = np.ndarray | Array
VARIANCES = ("small", "large", "learned", "none")


@dataclasses.dataclass(frozen=True)
class ScoreAndVariance:
    """A score function that tells the variance of a step, too.

    Attributes:
      both: (x [B, ...], t [B]) -> the score, and a share v [B, ...]: the logarithm of the variance
        is (1 + v) / 2 of the way from that of "small" to that of "large".
      guidance: (x [B, ...], t [B]) -> what guidance adds to that score; None: nothing.
    """

    both: Callable[[Images, Times], tuple[Images, Images]]
    guidance: ScoreFn | None = None

    def __call__(self, x: Images, t: Times) -> Images:
        score = self.both(x, t)[0]
        return score if self.guidance is None else score + self.guidance(x, t)

    def guided(self, gradient: ScoreFn) -> ScoreAndVariance:
        """The same with this gradient added to the score."""
        earlier = self.guidance
        if earlier is None:
            return dataclasses.replace(self, guidance=gradient)
        both = earlier
        return dataclasses.replace(self, guidance=lambda x, t: both(x, t) + gradient(x, t))


class Steps(NamedTuple):
    """Coefficients of the steps between neighbouring levels, the noisiest first, each [M].

    The last step is to the data, and has no noise.

    Attributes:
      t: the time of the level that a step begins at.
      alpha, variance: of that level, `p(x_t | x_0) = N(alpha x_0, variance I)`.
      below, left: alpha and variance of the level that it ends at.
      of_x0, of_x: coefficients of the mean of `p(x_s | x_t, x_0)`.
      log_small: the logarithm of the variance of `p(x_s | x_t, x_0)`.
      log_large: that of `p(x_t | x_s)`.
    """

    t: Numbers
    alpha: Numbers
    variance: Numbers
    below: Numbers
    left: Numbers
    of_x0: Numbers
    of_x: Numbers
    log_small: Numbers
    log_large: Numbers


def ancestral(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    *,
    num_steps: int,
    variance: str = "small",
    clip: bool = False,
    discrete: bool = False,
    eps: float | None = None,
    denoise: bool = True,
    num_frames: int = 0,
) -> Samples:
    """Draws `p(x_s | x_t, x_0)` with x_0 replaced by its estimate, from level to level.

    Draw 0 of `noise` is the prior's; each step takes one, and the last adds none of it. With a
    learned variance, guidance moves the mean of a step by the variance times its gradient (Dhariwal
    and Nichol 2021, arXiv:2105.05233, algorithm 1); else it is a part of the score. Of a score that
    tells its variance, the estimate of x_0 is clipped before guidance acts (algorithms 1 and 2).

    Args:
      num_steps: M, levels out of N, equally spaced from the first to the last; those of DDIM (see
        `levels`) without noise.
      variance: a name in VARIANCES: that of `p(x_s | x_t, x_0)`, or of `p(x_t | x_s)`, or what
        `ScoreAndVariance` tells, or none, where the noise that is in x goes on as it is.
      clip: the estimate of x_0 is clipped to [-1, 1].
      discrete: the levels are those of DDPM's chain, for an SDE that has one, not of the process.
      eps: last time of a process; `sde.sampling_eps` if None.
      denoise: take the last step, to the data.
      num_frames: states to keep.

    Raises:
      ValueError: an unknown variance, one that the score does not tell, or a number out of range.
    """
    lookup(dict.fromkeys(VARIANCES), variance, "sampling.variance")
    if variance == "learned" and not isinstance(score_fn, ScoreAndVariance):
        raise ValueError(
            "sampling.variance is 'learned', but this score tells no variance; it needs a network "
            "with model.learned_variance=True, as it is or guided by a classifier; others are "
            "served by small and large"
        )
    x = sde.prior_sampling(noise(0))
    table = steps(sde, levels(sde.N, num_steps, variance == "none"), discrete, eps)
    count = num_steps if denoise else num_steps - 1
    rows = Steps(*(jnp.asarray(column[:count], x.dtype) for column in table))

    def step(x: Images, _: None, at: tuple[Steps, Array]) -> tuple[Images, None]:
        row, draw = at
        if variance == "none":
            return without_noise(score_fn, x, row, clip), None
        mean, log_variance = transition(score_fn, x, row, variance, clip)
        std = jnp.where(row.of_x > 0.0, jnp.exp(0.5 * log_variance), 0.0)
        return mean + std * noise(draw), None

    x, _, frames = drive(step, x, None, (rows, 1 + jnp.arange(count)), num_frames)
    return samples_ending_on(x, count, frames)


def transition(
    score_fn: ScoreFn, x: Images, row: Steps, variance: str, clip: bool
) -> tuple[Images, Array]:
    """The mean of a step from x, and the logarithm of its variance."""
    times = jnp.full(x.shape[0], row.t, x.dtype)
    guidance = None
    if variance == "learned" and isinstance(score_fn, ScoreAndVariance):
        score, share = score_fn.both(x, times)
        small, large = jnp.asarray(row.log_small), jnp.asarray(row.log_large)
        log_variance = small + 0.5 * (share + 1.0) * (large - small)
        guidance = score_fn.guidance
    else:
        score = score_fn(x, times)
        log_variance = jnp.asarray(row.log_large if variance == "large" else row.log_small)
    mean = jnp.asarray(row.of_x0 * _estimate(x, score, row, clip) + row.of_x * x)
    if guidance is not None:
        mean += jnp.exp(log_variance) * guidance(x, times)
    return mean, log_variance


def without_noise(score_fn: ScoreFn, x: Images, row: Steps, clip: bool) -> Images:
    """DDIM's step: the noise in x goes on to the next level as it is."""
    times, sigma = jnp.full(x.shape[0], row.t, x.dtype), jnp.sqrt(row.variance)
    guidance = None
    if isinstance(score_fn, ScoreAndVariance):
        score, guidance = score_fn.both(x, times)[0], score_fn.guidance
    else:
        score = score_fn(x, times)
    x0 = _estimate(x, score, row, clip)
    z = (x - row.alpha * x0) / sigma
    if guidance is not None:
        z -= sigma * guidance(x, times)
        x0 = (x - sigma * z) / row.alpha
    return jnp.asarray(row.below * x0 + jnp.sqrt(row.left) * z)


def _estimate(x: Images, score: Images, row: Steps, clip: bool) -> Images:
    """E[x_0 | x], clipped to [-1, 1] or not."""
    x0 = (x + row.variance * score) / row.alpha
    return jnp.clip(x0, -1.0, 1.0) if clip else x0


def levels(count: int, num_steps: int, strided: bool = False) -> np.ndarray:
    """The numbers [num_steps], increasing, of levels out of 0 to count - 1.

    They are equally spaced, from the first to the last; with `strided` they are 0, k, 2 k, ...
    below `count`, as DDIM's, if there is a k that makes as many.

    Raises:
      ValueError: not 2 to `count` levels.
    """
    if not 2 <= num_steps <= count:
        raise ValueError(
            f"sampling.num_steps is {num_steps}; ancestral takes 2 or more steps, and no more than "
            f"the N={count} levels (model.num_scales)"
        )
    stride = -(-count // num_steps)
    if strided and len(range(0, count, stride)) == num_steps:
        return np.arange(0, count, stride)
    return np.rint(np.linspace(0, count - 1, num_steps)).astype(int)


def steps(sde: SDE, numbers: np.ndarray, discrete: bool, eps: float | None = None) -> Steps:
    """The steps between the levels of these increasing numbers, and to the data, in float64."""
    first = last_time(sde, eps)
    t = numbers / (sde.N - 1) * sde.T
    if discrete and isinstance(sde, VariancePreservingSDE):
        log_alpha = np.cumsum(0.5 * np.log1p(-sde.step_betas()))[numbers]
        alpha, variance = np.exp(log_alpha), -np.expm1(2.0 * log_alpha)
    else:
        t = np.maximum(t, first)
        ours = grids.levels(sde, t)
        alpha, variance = ours.alpha, ours.sigma**2
    below, left = np.append(1.0, alpha[:-1]), np.append(0.0, variance[:-1])
    a = alpha / below
    added = variance - a**2 * left  # the variance of p(x_t | x_s)
    small = added * left / variance
    small[0] = small[1]  # its logarithm is taken, of a step without noise
    table = Steps(
        t=t,
        alpha=alpha,
        variance=variance,
        below=below,
        left=left,
        of_x0=below * added / variance,
        of_x=a * left / variance,
        log_small=np.log(small),
        log_large=np.log(added),
    )
    return Steps(*(values[::-1] for values in table))
