"""EDM's sampler: Heun's steps in x / alpha and sigma / alpha, with churn, or with restarts."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion import grids
from diffusion.multistep import finished
from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Frames, Samples, drive
from sde_lib import SDE, Images, ScoreFn


class Stretch(NamedTuple):
    """Steps, [M] each: noise of deviation `std` raises x / alpha from its time to another, and a
    step of Heun's leads from there to the end.

    Attributes:
      times, raised, ends: of x, of x with the noise, and of the step's end.
      upper, lower: noise levels sigma / alpha at `raised` and `ends`.
    """

    times: np.ndarray
    raised: np.ndarray
    ends: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    std: np.ndarray


def heun_along(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    stretch: Stretch,
    stochastic: bool,
    num_frames: int,
) -> tuple[Images, Frames | None]:
    """x from the prior along the steps of a stretch, two evaluations each, and its frames.

    In y = x / alpha and s = sigma / alpha the probability flow is dy / ds = noise(x, s). Draws: the
    prior's, then, where `stochastic`, one a step.
    """
    x = sde.prior_sampling(noise(0))
    start, end = grids.levels(sde, stretch.raised), grids.levels(sde, stretch.ends)
    scale = grids.levels(sde, stretch.times).alpha

    def step(x: Images, memory: None, at: tuple[Array, ...]) -> tuple[Images, None]:
        t, alpha, level, scale, std, draw = at
        y = x / scale
        if stochastic:
            y += std * noise(draw)

        def slope(y: Images, k: int) -> Images:
            ts = jnp.full(x.shape[0], t[k])
            return convert(sde, alpha[k] * y, ts, score_fn(alpha[k] * y, ts), "score", "noise")

        first = slope(y, 0)
        second = slope(y + (level[1] - level[0]) * first, 1)
        return alpha[1] * (y + (level[1] - level[0]) * 0.5 * (first + second)), None

    pairs = ((start.t, end.t), (start.alpha, end.alpha), (stretch.upper, stretch.lower))
    inputs = tuple(jnp.asarray(np.stack(pair, 1), x.dtype) for pair in pairs)
    scalars = [jnp.asarray(v, x.dtype) for v in (scale, stretch.std)]
    draws = 1 + jnp.arange(len(stretch.times))
    x, _, frames = drive(step, x, None, (*inputs, *scalars, draws), num_frames)
    return x, frames


def edm(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = np.inf,
    churn_noise: float = 1.0,
    denoise: bool = True,
    num_frames: int = 0,
) -> Samples:
    """EDM's Heun sampler with churn (Karras et al. 2022, arXiv:2206.00364, algorithm 2).

    For any SDE in the variables x / alpha and s = sigma / alpha, where the probability flow is
    d(x / alpha) / ds = noise(x, s). Each step first raises s by the factor 1 + min(churn / M,
    sqrt(2) - 1), if s lies in [churn_min, churn_max], but not above its value at T. Two evaluations
    a step; the last, to s = 0, is `denoise`. Draws: the prior's, then one a step if churn > 0.

    Raises:
      ValueError: churn below 0.
    """
    if churn < 0.0:
        raise ValueError(f"churn must be at least 0, not {churn}")
    steps = len(times) - 1
    level = np.exp(-grids.half_log_snr(sde, times))
    inside = (level[:-1] >= churn_min) & (level[:-1] <= churn_max)
    upper = level[:-1] * (1.0 + min(churn / steps, np.sqrt(2.0) - 1.0) * inside)
    upper = np.minimum(upper, level[0])
    raised = np.where(upper > level[:-1], grids.times_of(sde, -np.log(upper)), times[:-1])
    std = churn_noise * np.sqrt(upper**2 - level[:-1] ** 2)
    stretch = Stretch(times[:-1], raised, times[1:], upper, level[1:], std)
    x, frames = heun_along(sde, score_fn, noise, stretch, churn > 0.0, num_frames)
    return finished(sde, score_fn, x, times[-1], 2 * steps, denoise, frames)


def restart(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    *,
    restart_min: float = 0.06,
    restart_max: float = 0.3,
    restart_steps: int = 6,
    restart_repeats: int = 10,
    denoise: bool = True,
    num_frames: int = 0,
) -> Samples:
    """Restart sampling (Xu et al. 2023, arXiv:2306.14878, algorithm 1) with Heun's steps.

    On its way down the grid `times`, as soon as the noise level sigma / alpha is the one nearest
    to `restart_min`, noise takes x back up to `restart_max` and `restart_steps` steps,
    spaced as Karras et al.'s (2022, equation 5), down again, `restart_repeats` times. What a step
    has gathered of errors before is forgotten in the noise, which the flow alone never does. Two
    evaluations a step. Draws: the prior's, then one for each step.

    Raises:
      ValueError: levels that do not rise or that the SDE does not have, a grid too coarse for them,
        no steps, or negative repeats.
    """
    level = np.exp(-grids.half_log_snr(sde, times))
    if not level[-1] <= restart_min < restart_max <= level[0]:
        raise ValueError(
            f"the restart goes from {restart_min:g} to {restart_max:g} (sampling.restart_min, "
            f"restart_max); they must rise, within the noise levels {level[-1]:.3g} to "
            f"{level[0]:.4g} of {type(sde).__name__}"
        )
    if restart_steps < 1 or restart_repeats < 0:
        raise ValueError(
            f"restart_steps is {restart_steps} and restart_repeats {restart_repeats}; they must be "
            "at least 1 and 0"
        )
    place = int(np.argmin(np.abs(np.log(level / restart_min))))
    if not level[place] < restart_max:
        raise ValueError(
            f"of the noise levels of {len(times) - 1} steps {level[place]:.3g} is the nearest to "
            f"restart_min={restart_min:g}, and not below restart_max={restart_max:g}; take more "
            "steps, or another time_grid"
        )
    share = np.linspace(0.0, 1.0, restart_steps + 1)
    again = grids.karras_noise(share, restart_max, level[place], 7.0)
    back = grids.times_of(sde, -np.log(again))
    back[-1] = times[place]
    std = np.append(np.sqrt(restart_max**2 - level[place] ** 2), np.zeros(restart_steps - 1))
    at = np.append(times[place], back[1:-1])
    loop = np.stack([at, back[:-1], back[1:], again[:-1], again[1:], std])
    down = np.stack(
        [times[:-1], times[:-1], times[1:], level[:-1], level[1:], np.zeros(len(times) - 1)]
    )
    steps = np.concatenate([down[:, :place], *[loop] * restart_repeats, down[:, place:]], 1)
    x, frames = heun_along(sde, score_fn, noise, Stretch(*steps), restart_repeats > 0, num_frames)
    return finished(sde, score_fn, x, times[-1], 2 * steps.shape[1], denoise, frames)
