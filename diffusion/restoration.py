"""Restoration without gradients of the network: DDRM, DDNM and DiffPIR.

Each step corrects x0 = E[x_0 | x_t] to agree with y = A(x_0) + noise, noises the result to the next
level, and keeps a part of the noise that is already there:

    x_s = alpha_s x0' + sigma_s (sqrt(1 - eta^2) e + eta z),    e = (x_t - alpha_t x0') / sigma_t.

They differ in x0' and in how the noise of y is counted. `eta` None is the share of new noise that
ancestral steps have, sqrt(1 - exp(log_snr_t - log_snr_s)); a constant eta above 0 makes the law of
what is not measured too narrow, the more so the more steps there are. The result is x0' at the last
time. Each takes one evaluation a step and one at the end. Draws: the prior's, then one a step.
What is not measured hears of y by the network at the next step alone: without noise and with
ancestral steps the law is right where it is independent of A x_0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion import grids
from diffusion.inverse import MAX_ITERATIONS, Operator, conjugate_gradients, linearised
from diffusion.noise import Noise
from diffusion.svd import SVD
from diffusion.trajectory import Samples, denoised, drive, samples_ending_on
from sde_lib import SDE, Images, ScoreFn


class Step(NamedTuple):
    """The levels of a step from t to s < t, and its share of new noise, each a number."""

    alpha_t: Array
    sigma_t: Array
    alpha_s: Array
    sigma_s: Array
    eta: Array


Update = Callable[[Images, Images, Step, Array], Images]  # of (x, x0, step, z)


def ddrm(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    svd: SVD,
    y: Array,
    *,
    noise_std: float = 0.0,
    eta: float | None = 0.85,
    eta_b: float = 1.0,
) -> Samples:
    """Denoising diffusion restoration (DDRM, Kawar et al. 2022, arXiv:2201.11793, eqs. 7 and 8).

    In the coordinates V' x / alpha, where y is seen as c = S^-1 U' y with noise l = noise_std / S
    and the level of x is r = sigma / alpha:

        (1 - eta_b) x0 + eta_b c + sqrt(r_s^2 - eta_b^2 l^2) z         where r_s >= l,
        x0 + r_s (sqrt(1 - eta^2) (c - x0) / l + eta z)                where r_s < l.

    What A does not see is drawn as the module says. Without noise and with eta = eta_b = 1 it is
    `ddnm`.

    Args:
      svd: of A; see `svd.decomposition`.
      y: [B, ...] as A gives it.
      noise_std: standard deviation of the measurement's noise, in the range of the images.
      times: decreasing, [M + 1]; see `grids.time_grid`.

    Raises:
      ValueError: a negative noise_std, or eta or eta_b outside [0, 1].
    """
    _check(noise_std, eta)
    if not 0.0 <= eta_b <= 1.0:
        raise ValueError(f"eta_b must lie between 0 and 1, not {eta_b:g}")
    c, spread = svd.estimate(y), jnp.asarray(noise_std / svd.values, y.dtype)

    def update(x: Images, x0: Images, at: Step, z: Array) -> Images:
        rest = _renoised(x, x0, at, z)
        level, own, draw = at.sigma_s / at.alpha_s, svd.coordinates(x0), svd.coordinates(z)
        kept = jnp.sqrt(1.0 - at.eta**2) * (c - own) / jnp.where(spread > 0, spread, 1.0)
        vague = own + level * (kept + at.eta * draw)
        left = jnp.sqrt(jnp.maximum(level**2 - eta_b**2 * spread**2, 0.0))
        sharp = own + eta_b * (c - own) + left * draw
        seen = at.alpha_s * jnp.where(level < spread, vague, sharp)
        return rest + svd.image(seen - svd.coordinates(rest))

    def start(x: Images, at: Step) -> Images:
        left = jnp.square(sde.prior_std) - jnp.square(at.alpha_t * spread)
        draw = svd.coordinates(x)
        share = jnp.sqrt(jnp.maximum(left, 0.0)) / sde.prior_std
        seen = jnp.where(left >= 0, at.alpha_t * c + share * draw, draw)
        return x + svd.image(seen - draw)

    def last(x0: Images, at: Step) -> Images:
        own = svd.coordinates(x0)
        return x0 + svd.image(jnp.where(spread > 0, 0.0, eta_b * (c - own)))

    return _walk(sde, score_fn, noise, times, eta, update, last, start)


def ddnm(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    svd: SVD,
    y: Array,
    *,
    noise_std: float = 0.0,
    eta: float | None = None,
) -> Samples:
    """Null-space restoration (DDNM and DDNM+, Wang et al. 2022, arXiv:2212.00490).

    x0' = x0 + L A^+ (y - A x0). Without noise L = I: y is met, and the null space of A is the
    network's (their algorithm 1). With noise (eqs. 17 to 19) L is diagonal in the coordinates V' x,
    where A^+ y has noise noise_std / S: so large that the noise that x0' brings into x_s does not
    exceed the step's own, eta sigma_s. With the factor a of x0' in x_s,

        L = min(1, eta sigma_s S / (a noise_std)),

    and z is made smaller by what was brought in. The last x0' is x0 itself then.

    Args:
      svd: of A; see `svd.decomposition`.
      y: [B, ...] as A gives it.
      noise_std: standard deviation of the measurement's noise, in the range of the images.
      times: decreasing, [M + 1]; see `grids.time_grid`.

    Raises:
      ValueError: a negative noise_std, eta outside [0, 1], or eta = 0 with noise, which would leave
        y without effect.
    """
    _check(noise_std, eta)
    if noise_std > 0 and eta == 0:
        raise ValueError("DDNM takes the noise of y for a part of its own: eta must be positive")
    c, spread = svd.estimate(y), jnp.asarray(noise_std / svd.values, y.dtype)

    def towards(x0: Images, share: Array | float) -> Images:
        return x0 + svd.image(share * (c - svd.coordinates(x0)))

    def update(x: Images, x0: Images, at: Step, z: Array) -> Images:
        if not noise_std:
            return _renoised(x, towards(x0, 1.0), at, z)
        fresh = at.eta * at.sigma_s
        brought = (at.alpha_s - _kept(at) * at.alpha_t) * spread
        share = jnp.minimum(1.0, fresh / jnp.maximum(brought, 1e-30))
        left = jnp.sqrt(jnp.maximum(fresh**2 - jnp.square(share * brought), 0.0))
        noised = _renoised(x, towards(x0, share), at, z)
        return noised + svd.image((left - fresh) * svd.coordinates(z))

    def last(x0: Images, at: Step) -> Images:
        return x0 if noise_std else towards(x0, 1.0)

    return _walk(sde, score_fn, noise, times, eta, update, last)


def diffpir(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    operator: Operator,
    y: Array,
    *,
    noise_std: float = 0.0,
    weight: float = 1.0,
    eta: float | None = None,
    iterations: int = MAX_ITERATIONS,
) -> Samples:
    """Plug-and-play restoration (DiffPIR, Zhu et al. 2023, arXiv:2305.08995, algorithm 1).

    x0' is the proximal point of the data term: the minimum of

        |y - A(x)|^2 + rho |x - x0|^2,    rho = weight noise_std^2 alpha_t^2 / sigma_t^2,

    x0 + J' (J J' + rho I)^-1 (y - A(x0)) by conjugate gradients, with the Jacobian J of A at x0:
    one step of Gauss and Newton, the minimum itself where A is linear. Their lambda is `weight`,
    their zeta eta^2. Without noise and with a well-conditioned A A' it is `ddnm`.

    Args:
      y: [B, ...] as the operator gives it.
      noise_std: standard deviation of the measurement's noise, in the range of the images.
      times: decreasing, [M + 1]; see `grids.time_grid`.

    Raises:
      ValueError: a negative noise_std, a weight that is not positive, or eta outside [0, 1].
    """
    _check(noise_std, eta)
    if not weight > 0:
        raise ValueError(f"the weight of DiffPIR must be positive, not {weight:g}")

    def proximal(x0: Images, at: Step) -> Images:
        value, push, back = linearised(operator, x0)
        rho = weight * jnp.square(noise_std * at.alpha_t / at.sigma_t)
        weights = conjugate_gradients(lambda v: push(back(v)) + rho * v, y - value, iterations)
        return x0 + back(weights)

    def update(x: Images, x0: Images, at: Step, z: Array) -> Images:
        return _renoised(x, proximal(x0, at), at, z)

    return _walk(sde, score_fn, noise, times, eta, update, proximal)


def _kept(at: Step) -> Array:
    """The factor of x_t that keeps its noise."""
    return jnp.sqrt(1.0 - at.eta**2) * at.sigma_s / at.sigma_t


def _renoised(x: Images, x0: Images, at: Step, z: Array) -> Images:
    """x_s from x0', keeping sqrt(1 - eta^2) of the noise that x has beside it."""
    kept = _kept(at)
    return (at.alpha_s - kept * at.alpha_t) * x0 + kept * x + at.eta * at.sigma_s * z


def _walk(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    eta: float | None,
    update: Update,
    last: Callable[[Images, Step], Images],
    start: Callable[[Images, Step], Images] = lambda x, at: x,
) -> Samples:
    """`update` at every step of the grid, from `start` of the prior to `last` of the last x0."""
    grid, steps = grids.levels(sde, times), len(times) - 1
    x = sde.prior_sampling(noise(0))
    alpha, sigma = (jnp.asarray(v, x.dtype) for v in (grid.alpha, grid.sigma))
    shares = np.sqrt(-np.expm1(-2.0 * np.diff(grid.lam))) if eta is None else np.full(steps, eta)
    at = Step(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], jnp.asarray(shares, x.dtype))
    end = Step(alpha[-1], sigma[-1], alpha[-1], sigma[-1], jnp.zeros((), x.dtype))

    def step(x: Images, memory: None, inputs: tuple[Step, Array, Array]) -> tuple[Images, None]:
        at, t, draw = inputs
        return update(x, denoised(sde, score_fn, x, t), at, noise(draw)), None

    x = start(x, Step(*(v[0] for v in at)))
    inputs = (at, jnp.asarray(times[:-1], x.dtype), 1 + jnp.arange(steps))
    x, _, _ = drive(step, x, None, inputs)
    x = last(denoised(sde, score_fn, x, times[-1]), end)
    return samples_ending_on(x, steps + 1, None)


def _check(noise_std: float, eta: float | None) -> None:
    if noise_std < 0 or not 0.0 <= (eta or 0.0) <= 1.0:
        raise ValueError(f"noise_std={noise_std:g} must be 0 or more, and eta={eta} None or 0 to 1")
