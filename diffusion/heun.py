"""Euler's and Heun's steps of Karras et al. 2022 along any noise schedule and scaling, with churn.

Their general sampler (arXiv:2206.00364, algorithms 1 and 2, table 1) solves the probability flow in
x = s(t) (x_0 + sigma(t) noise),

    dx/dt = (s'/s) x + s sigma' noise(x / s; sigma),

where sigma(t), the schedule, and s(t), the scaling, are those of the sampler: the network may have
been trained with any others, as it is asked at noise levels alone. Each step first adds noise,
which raises the level by the factor 1 + gamma (churn). All coefficients of the steps are computed
on the host, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from configs.names import lookup
from diffusion import grids
from diffusion.noise import Noise
from diffusion.trajectory import Samples, drive, samples_ending_on
from sde_lib import SDE, Images, ScoreFn

Function = Callable[[np.ndarray], np.ndarray]


class Schedule(NamedTuple):
    """sigma(t), its derivative, and the time at which it has a value."""

    sigma: Function
    slope: Function
    time: Function


def _linear(largest: float, smallest: float) -> Schedule:
    """sigma = t, as in EDM."""
    del largest, smallest
    return Schedule(lambda t: t, np.ones_like, lambda sigma: sigma)


def _ve(largest: float, smallest: float) -> Schedule:
    """sigma = sqrt(t): noise of constant variance in equal times."""
    del largest, smallest
    return Schedule(np.sqrt, lambda t: 0.5 / np.sqrt(t), np.square)


def _vp(largest: float, smallest: float) -> Schedule:
    """sigma / alpha of the VP SDE whose betas give both ends."""
    betas = grids.vp_betas(largest, smallest)

    def slope(t: np.ndarray) -> np.ndarray:
        sigma = betas.noise(t)
        return 0.5 * (betas.beta_min + betas.slope * t) * (sigma + 1.0 / sigma)

    return Schedule(betas.noise, slope, betas.time)


SCHEDULES: dict[str, Callable[[float, float], Schedule]] = {
    "linear": _linear,
    "ve": _ve,
    "vp": _vp,
}


class Scaling(NamedTuple):
    """s as a function of sigma, and the derivative of its logarithm."""

    factor: Function
    log_slope: Function


SCALINGS: dict[str, Scaling] = {
    "none": Scaling(np.ones_like, np.zeros_like),
    "vp": Scaling(lambda s: 1.0 / np.sqrt(1.0 + s**2), lambda s: -s / (1.0 + s**2)),
}


class Steps(NamedTuple):
    """Noise levels and coefficients of each step from y = x / s, [N]; the last ends at no noise.

    With e the noise that the network predicts at the raised level and y', e' those of the second
    evaluation, a step is

        y_hat = y + std z,    y' = middle[0] y_hat + middle[1] e,
        y_next = end[0] y_hat + end[1] e + end[2] y' + end[3] e',

    or, by Euler, y_next = euler[0] y_hat + euler[1] e.
    """

    level: np.ndarray
    raised: np.ndarray
    second: np.ndarray
    std: np.ndarray
    middle: np.ndarray
    end: np.ndarray
    euler: np.ndarray


def steps_of(
    levels: np.ndarray,
    raised: np.ndarray,
    schedule: Schedule,
    scaling: Scaling,
    alpha: float,
    churn_noise: float,
) -> Steps:
    """The steps between the noise levels [N], each from the `raised` one [N]."""
    t = schedule.time(raised)
    start = schedule.sigma(t)
    t_next = np.append(schedule.time(levels[1:]), 0.0)
    h = t_next - t
    scale_next = np.append(scaling.factor(levels[1:]), 1.0)
    # The last step has no second evaluation: the numbers of its start stand in.
    t_second = np.append((t + alpha * h)[:-1], t[-1])
    second = schedule.sigma(t_second)

    def at(sigma: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """s, s'/s and sigma'."""
        slope = schedule.slope(t)
        return scaling.factor(sigma), scaling.log_slope(sigma) * slope, slope

    (s0, k0, m0), (s1, k1, m1) = at(start, t), at(second, t_second)
    w1 = 0.5 / alpha
    w0 = 1.0 - w1
    stay, move = s0 / scale_next, h * s0 / scale_next
    return Steps(
        level=levels,
        raised=start,
        second=second,
        std=churn_noise * np.sqrt(np.maximum(start**2 - levels**2, 0.0)),
        middle=np.stack([s0 / s1 * (1.0 + alpha * h * k0), s0 / s1 * alpha * h * m0], 1),
        end=np.stack(
            [
                *(stay + move * w0 * k0, move * w0 * m0),
                *(h * s1 / scale_next * w1 * k1, h * s1 / scale_next * w1 * m1),
            ],
            1,
        ),
        euler=np.stack([stay + move * k0, move * m0], 1),
    )


def raised_levels(
    levels: np.ndarray, churn: float, churn_min: float, churn_max: float
) -> np.ndarray:
    """The levels times 1 + min(churn / N, sqrt(2) - 1), where they are in [churn_min, churn_max].

    Raises:
      ValueError: churn below 0.
    """
    if churn < 0.0:
        raise ValueError(f"churn must be at least 0, not {churn}")
    inside = (levels >= churn_min) & (levels <= churn_max)
    raised: np.ndarray = levels * (1.0 + min(churn / len(levels), np.sqrt(2.0) - 1.0) * inside)
    return raised


def heun(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    levels: np.ndarray,
    *,
    order: int = 2,
    alpha: float = 1.0,
    schedule: str = "linear",
    scaling: str = "none",
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = np.inf,
    churn_noise: float = 1.0,
    denoise: bool = True,
    num_frames: int = 0,
    discrete: bool = False,
    image_range: tuple[float, float] = (-1.0, 1.0),
) -> Samples:
    """EDM's general sampler at N decreasing noise levels sigma / alpha, and from the last to none.

    Order 2 asks the network twice in each step but the last, which is Euler's: 2 N - 1 evaluations;
    order 1 once. Draw 0 of `noise` is the prior's; with churn each step takes one more.

    Args:
      alpha: where in a step the second evaluation is: 1 for Heun's method, 1/2 for the midpoint
        method, 2/3 for Ralston's.
      schedule: a name in SCHEDULES.
      scaling: a name in SCALINGS.
      denoise: take the last step, to no noise.
      discrete: the network knows the noise levels of its chain alone, to which all are rounded.
      image_range: of the images that the network sees. The prior's mean is its middle, about which
        images are scaled, and schedule and scaling are those of images in [-1, 1].

    Raises:
      ValueError: an unknown name, or a number out of range.
    """
    if order not in (1, 2):
        raise ValueError(f"the order is 1 (Euler) or 2 (Heun), not {order}")
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"alpha must be above 0 and at most 1, not {alpha}")
    levels = grids.rounded_noise(sde, levels, discrete)
    raised = raised_levels(levels, churn, churn_min, churn_max)
    unit, centre = 0.5 * (image_range[1] - image_range[0]), 0.5 * sum(image_range)
    path = lookup(SCHEDULES, schedule, "sampling.schedule")(levels[0] / unit, levels[-1] / unit)
    steps = steps_of(
        levels / unit,
        grids.rounded_noise(sde, raised, discrete) / unit,
        path,
        lookup(SCALINGS, scaling, "sampling.scaling"),
        alpha,
        churn_noise,
    )
    start, second = (
        grids.levels_of_noise(sde, level * unit, discrete) for level in (steps.raised, steps.second)
    )
    scale = grids.levels_of_noise(sde, levels, discrete).alpha

    def images(y: Images) -> Images:
        return unit * y + centre

    def predicted_noise(y: Images, at: Array) -> Images:
        t, alpha, sigma = at
        prediction: Images = -sigma * score_fn(alpha * images(y), jnp.full(y.shape[0], t))
        return prediction

    def raise_level(y: Images, std: Array, draw: Array) -> Images:
        return y + std * noise(draw) if churn > 0.0 else y

    def step(x: Images, memory: None, at: tuple[Array, ...]) -> tuple[Images, None]:
        first, last, middle, end, euler, std, scales, draw = at
        y = raise_level((x / scales[0] - centre) / unit, std, draw)
        e = predicted_noise(y, first)
        if order == 1:
            return scales[1] * images(euler[0] * y + euler[1] * e), None
        y_second = middle[0] * y + middle[1] * e
        e_second = predicted_noise(y_second, last)
        y = end[0] * y + end[1] * e + end[2] * y_second + end[3] * e_second
        return scales[1] * images(y), None

    x = scale[0] * images(levels[0] / unit * noise(0))
    inputs = (
        *(np.stack([at.t, at.alpha, at.sigma], 1) for at in (start, second)),
        *(steps.middle, steps.end, steps.euler, steps.std),
        np.stack([scale, np.append(scale[1:], 1.0)], 1),
    )
    arrays = (*(jnp.asarray(v, x.dtype) for v in inputs), 1 + jnp.arange(len(levels)))
    x, _, frames = drive(step, x, None, tuple(v[:-1] for v in arrays), num_frames)
    nfe = order * (len(levels) - 1)
    if denoise:
        first, _, _, _, euler, std, scales, draw = (v[-1] for v in arrays)
        y = raise_level((x / scales[0] - centre) / unit, std, draw)
        x, nfe = images(euler[0] * y + euler[1] * predicted_noise(y, first)), nfe + 1
    return samples_ending_on(x, nfe, frames)
