"""Flow maps: networks that go along the probability flow in one evaluation, and their samplers.

The flow map takes a point x of a path at time t to the point at an earlier time s of the same path.
Its end at s = 0 is the consistency function f(x, t) (Song et al. 2023, arXiv:2303.01469), constant
along each path, so that `df/dt = 0`. Training in continuous time is that of Lu and Song 2024
(arXiv:2410.11081), in any SDE and with any prediction of the network. The whole map is given by the
mean velocity between two times (mean flows: Geng et al. 2025, arXiv:2505.13447). A network of a
flow map has no score: no other sampler, no likelihood and no guidance can ask it for one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion import grids
from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Samples, drive, samples_ending_on
from sde_lib import SDE, Factors, Images, ScoreFn, Times, batch_mul

Denoiser = Callable[[Images, Times], Images]  # (x [B, ...], t [B]) -> an estimate of x_0
Between = Callable[[Images, Times, Times], Images]  # of x, t and s <= t

# The objectives of flow maps, and the samplers that their networks serve.
SAMPLERS: dict[str, tuple[str, ...]] = {
    "consistency": ("consistency",),
    "mean_flow": ("mean_flow", "consistency"),
}
SOFTENING = 1e-3  # of the errors by which `mean_flow_error` divides
ASKERS = {name for names in SAMPLERS.values() for name in names}  # no score serves these


@dataclasses.dataclass(frozen=True)
class FlowMap:
    """The map of a flow as far as a network knows it.

    Attributes:
      to_data: (x [B, ...], t [B]) -> the end at time 0 of the path through x at t.
      between: (x, t, s [B]) -> the point at s <= t of that path; None: it knows the ends alone.
    """

    to_data: Denoiser
    between: Between | None = None

    def __call__(self, x: Images, t: Times) -> Images:
        return self.to_data(x, t)


def refuse_sampler(objective: str, method: str) -> None:
    """Refuses a sampler that asks for what a network of this objective does not know.

    Raises:
      ValueError: says which samplers, or which objectives, would do.
    """
    served = SAMPLERS.get(objective)
    if served and method not in served:
        raise ValueError(
            f"sampling.method {method!r} asks for the score, but this run learned a map along the "
            f"flow (training.objective is {objective!r}), which serves {', '.join(served)}"
        )
    if not served and method in ASKERS:
        fitting = ", ".join(name for name, names in SAMPLERS.items() if method in names)
        raise ValueError(
            f"sampling.method {method!r} asks for a map along the flow, which this run did not "
            f"learn (training.objective is {objective!r}); valid with it: {fitting}"
        )


# Consistency functions.


def consistency_sampler(
    sde: SDE,
    flow_map: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    *,
    denoise: bool = True,
    num_frames: int = 0,
) -> Samples:
    """Multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1).

    At each of the N + 1 times but the last, f(x, t) is followed by noise of the next time's level:
    `x = alpha f(x, t) + sigma z`. N evaluations; one step is f of a draw from the prior. Draw 0 of
    `noise` is the prior's; each step takes one more.

    Args:
      flow_map: f, of a network that learned it: (x [B, ...], t [B]) -> x_0.
      times: decreasing, from T.
      denoise: end on the last f(x, t), not on its noisy state.
    """
    end = grids.levels(sde, times[1:])
    draws = 1 + np.arange(len(times) - 1)

    def step(x: Images, x0: Images, at: tuple[Array, ...]) -> tuple[Images, Images]:
        t, alpha, sigma, draw = at
        x0 = flow_map(x, jnp.full(x.shape[0], t))
        return alpha * x0 + sigma * noise(draw), x0

    x = sde.prior_sampling(noise(0))
    numbers = [jnp.asarray(v, x.dtype) for v in (times[:-1], end.alpha, end.sigma)]
    inputs = (*numbers, jnp.asarray(draws))
    x, x0, frames = drive(step, x, jnp.zeros_like(x), inputs, num_frames)
    return samples_ending_on(x0 if denoise else x, len(times) - 1, frames)


def consistency_tangent(
    sde: SDE,
    denoiser: Denoiser,
    x: Images,
    t: Times,
    x0: Images,
    of_x: Factors,
    share: Factors = 1.0,
) -> tuple[Images, Images]:
    """f(x, t) and its derivative `df/dl` along the flow in the clock l = log(sigma / alpha).

    The flow passes x with the velocity `alpha' x_0 + sigma' z` that x_0 and x determine. In this
    clock `dt/dl = 2 sigma^2 / g^2`, which is `cos t sin t` for trigonometric paths: one derivative
    of the network along `(dx/dl, dt/dl)` is the rearrangement of Lu and Song 2024 (section 4.1),
    whose terms stay bounded at both ends of time.

    With `f = m x + n F` of a network F, the part `m alpha (f - x_0)` of it is what is learned from
    the error of x_0 alone, as in score matching; `share` is how much of the rest counts, which
    they let grow from 0 to 1 (tangent warm-up).

    Args:
      denoiser: f.
      x0: [B, ...], the image that x was made of, or a teacher's E[x_0 | x].
      of_x: m [B].
      share: r in their algorithm 1.
    """
    clock = 2.0 * jnp.square(sde.sigma(t) / sde.diffusion(t))
    velocity = batch_mul(clock, convert(sde, x, t, x0, "x0", "flow"))
    end, change = jax.jvp(denoiser, (x, t), (velocity, clock))
    pull = batch_mul(of_x * sde.alpha(t), end - x0)
    return end, pull + share * (change - pull)


def consistency_error(
    sde: SDE,
    denoiser: Denoiser,
    x: Images,
    t: Times,
    x0: Images,
    coefficients: tuple[Factors, Factors],
    share: Factors = 1.0,
    softening: float = 0.0,
) -> Times:
    """The squared tangent of a consistency function, per dimension [B], with its training gradient.

    For `f = m x + n F` and the tangent `g = -(df/dl) / n` in units of F, the gradient is that of
    `|F - (F + g)|^2 / D` with the second F and g held fixed (Lu and Song 2024, algorithm 1), which
    moves f against its change along the flow. The number is `|g|^2 / D`, 0 for the true f and
    velocities of the flow itself; of single images it keeps their variance, and its gradient is
    right in the mean.

    Args:
      coefficients: (m, n) [B].
      share: see `consistency_tangent`.
      softening: c; the gradient's g is divided by `|g| / sqrt(D) + c`. 0: it is not.
    """
    of_x, of_network = coefficients
    end, tangent = consistency_tangent(sde, denoiser, x, t, x0, of_x, share)
    axes = tuple(range(1, x.ndim))
    g = batch_mul(-1.0 / of_network, jax.lax.stop_gradient(tangent))
    square = jnp.mean(jnp.square(g), axes)
    target = batch_mul(1.0 / (jnp.sqrt(square) + softening), g) if softening else g
    moved = batch_mul(1.0 / of_network, end - jax.lax.stop_gradient(end)) - target
    return with_gradient_of(square, jnp.mean(jnp.square(moved), axes))


# Mean velocities.


def mean_flow_sampler(
    sde: SDE,
    flow_map: FlowMap,
    noise: Noise,
    times: np.ndarray,
    *,
    denoise: bool = True,
    num_frames: int = 0,
) -> Samples:
    """The flow map from each of the N + 1 times to the next (Geng et al. 2025, algorithm 2).

    Draw 0 of `noise` is the prior's; N evaluations, and no more noise.

    Args:
      times: decreasing, from T.
      denoise: end at time 0, not at the last of the times.

    Raises:
      ValueError: a map that knows the ends of paths alone.
    """
    between = flow_map.between
    if between is None:
        raise ValueError("mean_flow needs the map between any two times, not to the ends alone")
    ends = np.append(times[1:-1], 0.0 if denoise else times[-1])

    def step(x: Images, memory: None, at: tuple[Array, Array]) -> tuple[Images, None]:
        t, s = (jnp.full(x.shape[0], time) for time in at)
        return between(x, t, s), None

    x = sde.prior_sampling(noise(0))
    inputs = jnp.asarray(times[:-1], x.dtype), jnp.asarray(ends, x.dtype)
    x, _, frames = drive(step, x, None, inputs, num_frames)
    return samples_ending_on(x, len(ends), frames)


def mean_flow_error(
    sde: SDE,
    mean_velocity: Between,
    x: Images,
    t: Times,
    s: Times,
    x0: Images,
    power: float = 0.0,
) -> Times:
    """The squared error of the mean velocity, per dimension [B] (Geng et al. 2025, eqs. 6 to 11).

    `u(x, t, s) = (x - X) / (t - s)`, with X the point at s of the path, fulfils
    `u = v - (t - s) du/dt` along the flow, for fixed s; `|u - (v - (t - s) du/dt)|^2 / D` with the
    second part held fixed is the error, and v is the velocity `alpha' x_0 + sigma' z` that x_0 and
    x determine. Where s = t it is flow matching.

    Args:
      mean_velocity: u.
      x0: [B, ...], the image that x was made of, or a teacher's E[x_0 | x].
      power: p; the gradient is divided by `(error + 1e-3)^p`, which makes large errors count less.
        The number is the error all the same.
    """
    velocity = convert(sde, x, t, x0, "x0", "flow")
    u, change = jax.jvp(lambda x, t: mean_velocity(x, t, s), (x, t), (velocity, jnp.ones_like(t)))
    target = jax.lax.stop_gradient(velocity - batch_mul(t - s, change))
    error = jnp.mean(jnp.square(u - target), tuple(range(1, x.ndim)))
    weight = jax.lax.stop_gradient((error + SOFTENING) ** -power)
    return with_gradient_of(error, weight * error)


def with_gradient_of(number: Array, loss: Array) -> Array:
    """`number`, with the gradient of `loss`."""
    return jax.lax.stop_gradient(number) + loss - jax.lax.stop_gradient(loss)
