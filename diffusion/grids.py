"""Time grids of few-step solvers, and the noise levels on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from configs.names import lookup
from diffusion.times import last_time
from sde_lib import SDE, VESDE, CosineVPSDE, VariancePreservingSDE

# Time grids.


def _uniform(sde: SDE, share: np.ndarray, eps: float) -> np.ndarray:
    return sde.T + share * (eps - sde.T)


def _quadratic(sde: SDE, share: np.ndarray, eps: float) -> np.ndarray:
    times: np.ndarray = (sde.T**0.5 + share * (eps**0.5 - sde.T**0.5)) ** 2
    return times


def _log_snr(sde: SDE, share: np.ndarray, eps: float) -> np.ndarray:
    first, last = half_log_snr(sde, np.array([sde.T, eps]))
    return times_of(sde, first + share * (last - first))


def _karras(sde: SDE, share: np.ndarray, eps: float, rho: float = 7.0) -> np.ndarray:
    first, last = np.exp(-half_log_snr(sde, np.array([sde.T, eps])) / rho)
    return times_of(sde, -rho * np.log(first + share * (last - first)))


GRIDS: dict[str, Callable[[SDE, np.ndarray, float], np.ndarray]] = {
    "uniform": _uniform,
    "quadratic": _quadratic,
    "log_snr": _log_snr,
    "karras": _karras,
}


def time_grid(sde: SDE, name: str, num_steps: int, eps: float | None = None) -> np.ndarray:
    """`num_steps` + 1 decreasing times from T to `eps` (`sde.sampling_eps` if None).

    Equally spaced in t ("uniform"), in sqrt(t) ("quadratic", DDIM), in log(alpha / sigma)
    ("log_snr", DPM-Solver) or in (sigma / alpha)^(1/7) ("karras", EDM equation 5).

    Raises:
      ValueError: unknown grid, fewer than one step, eps not between 0 and T.
    """
    spread = lookup(GRIDS, name, "time grid")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")
    eps = last_time(sde, eps)
    times: np.ndarray = np.array(spread(sde, np.linspace(0.0, 1.0, num_steps + 1), eps))
    times[0], times[-1] = sde.T, eps
    return times


def sampling_times(sde: SDE, eps: float | None = None) -> np.ndarray:
    """N times [N] from T down to `eps`, equally spaced, in float32: the levels of a discrete chain.

    They are late by 3e-7 of themselves: `sde.timestep` cuts to an integer, and a time rounded down
    would repeat one level of the discrete chain and skip another.

    Raises:
      ValueError: not 0 < eps < T.
    """
    times = np.linspace(sde.T, last_time(sde, eps), sde.N)
    return np.minimum(times * (1.0 + 3e-7), sde.T).astype(np.float32)


LENGTH = 64  # of the arrays for which the operations on a grid are compiled, or twice that, ...


def evaluated(function: Callable[[Array], Array], values: np.ndarray) -> np.ndarray:
    """An SDE's function at `values`, computed while tracing, in float64 from its own float32.

    JAX compiles each of its operations for each length of an array: the last value is repeated up
    to a length that grids of other numbers of steps have too. The numbers stay the same.
    """
    flat = np.ravel(values)
    size = max(LENGTH, 1 << (len(flat) - 1).bit_length())
    filled = np.pad(flat, (0, size - len(flat)), mode="edge")
    with jax.ensure_compile_time_eval():
        results = np.asarray(function(jnp.asarray(filled)), np.float64)
    return results[: len(flat)].reshape(np.shape(values))


def half_log_snr(sde: SDE, times: np.ndarray) -> np.ndarray:
    """lambda = log(alpha / sigma) at `times` [n], computed while tracing."""
    return 0.5 * evaluated(sde.log_snr, times)


def times_of(sde: SDE, half_log_snr: np.ndarray) -> np.ndarray:
    """The times at which log(alpha / sigma) is `half_log_snr`, computed while tracing."""
    return evaluated(sde.time_of_log_snr, 2.0 * half_log_snr)


class Levels(NamedTuple):
    """alpha, sigma and lambda = log(alpha / sigma) at the times of a grid, on the host."""

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    lam: np.ndarray


def on_levels(sde: SDE, times: np.ndarray) -> np.ndarray:
    """`times` moved to the nearest of the N levels i T / (N - 1), i >= 1, and each kept once.

    There a network that was trained with discrete labels knows its noise, that of `sde.chain`.

    Raises:
      ValueError: fewer than two levels are left.
    """
    last = max(sde.N - 1, 1)
    levels = np.unique(np.maximum(np.rint(times / sde.T * last), 1.0))[::-1]
    if len(levels) < 2:
        raise ValueError(
            f"num_steps={len(times) - 1} meets {len(levels)} of the network's N={sde.N} noise "
            "levels; it takes 2 or more"
        )
    return levels / last * sde.T


def levels(sde: SDE, times: np.ndarray) -> Levels:
    """The noise levels at `times`, computed while tracing, in float64 from the SDE's float32."""
    alpha, sigma = evaluated(sde.alpha, times), evaluated(sde.sigma, times)
    return Levels(times, alpha, sigma, half_log_snr(sde, times))


# Grids of noise levels sigma / alpha, of which the last step to none is no part.


def geometric_noise(share: np.ndarray, largest: float, smallest: float, rho: float) -> np.ndarray:
    """Levels equally spaced in their logarithm, as those of SMLD."""
    del rho
    levels: np.ndarray = largest * (smallest / largest) ** share
    return levels


def karras_noise(share: np.ndarray, largest: float, smallest: float, rho: float) -> np.ndarray:
    """Levels equally spaced in level^(1 / rho) (Karras et al. 2022, equation 5)."""
    first, last = largest ** (1 / rho), smallest ** (1 / rho)
    levels: np.ndarray = (first + share * (last - first)) ** rho
    return levels


def vp_noise(share: np.ndarray, largest: float, smallest: float, rho: float) -> np.ndarray:
    """Levels at equally spaced times of a VP SDE from 1 to 1e-3, whose betas give both ends."""
    del rho
    betas = vp_betas(largest, smallest)
    return betas.noise(1.0 + share * (VP_EPS - 1.0))


def iddpm_noise(share: np.ndarray, largest: float, smallest: float, rho: float) -> np.ndarray:
    """Equally spaced levels of the chain of 1000 steps of Nichol and Dhariwal 2021
    (arXiv:2102.09672), of those between the ends.

    Raises:
      ValueError: no level is between the ends.
    """
    del rho
    table = discrete_noise(CosineVPSDE(1000))[::-1]
    # The ends may be levels of the chain itself, rounded.
    table = table[(table <= largest * (1 + END)) & (table >= smallest * (1 - END))]
    if not len(table):
        raise ValueError(f"no noise level of iDDPM lies between {smallest:g} and {largest:g}")
    levels: np.ndarray = table[np.rint(share * (len(table) - 1)).astype(int)]
    return levels


END = 1e-3  # by which a noise level may be beyond an end, in units of itself
VP_EPS = 1e-3  # the last time of VP's samplers

NOISE_GRIDS: dict[str, Callable[[np.ndarray, float, float, float], np.ndarray]] = {
    "karras": karras_noise,
    "log_snr": geometric_noise,
    "vp": vp_noise,
    "iddpm": iddpm_noise,
}


class VPBetas(NamedTuple):
    """A linear beta(t) of the VP SDE, from beta(0) with this slope."""

    beta_min: float
    slope: float

    def noise(self, t: np.ndarray) -> np.ndarray:
        """sigma / alpha at the times t."""
        levels: np.ndarray = np.sqrt(np.expm1(0.5 * self.slope * t**2 + self.beta_min * t))
        return levels

    def time(self, noise: np.ndarray) -> np.ndarray:
        """The time at which sigma / alpha is `noise`."""
        area = np.log1p(noise**2)
        times: np.ndarray = (
            2.0 * area / (self.beta_min + np.sqrt(self.beta_min**2 + 2.0 * self.slope * area))
        )
        return times


def vp_betas(largest: float, smallest: float) -> VPBetas:
    """The betas for which sigma / alpha is `largest` at t = 1 and `smallest` at t = 1e-3."""
    first, last = np.log1p(largest**2), np.log1p(smallest**2)
    slope = 2.0 * (last / VP_EPS - first) / (VP_EPS - 1.0)
    return VPBetas(first - 0.5 * slope, slope)


def discrete_noise(sde: VESDE | VariancePreservingSDE) -> np.ndarray:
    """The N noise levels sigma / alpha of SMLD's or DDPM's chain, from the smallest up."""
    if isinstance(sde, VESDE):
        return np.geomspace(sde.sigma_min, sde.sigma_max, sde.N)
    levels: np.ndarray = np.sqrt(np.expm1(-np.cumsum(np.log1p(-sde.step_betas()))))
    return levels


def noise_range(sde: SDE, discrete: bool, eps: float | None = None) -> tuple[float, float]:
    """The largest and the smallest noise level: of a discrete network's chain, or at T and `eps`.

    Raises:
      ValueError: not 0 < eps < T.
    """
    eps = last_time(sde, eps)
    if discrete and isinstance(sde, VESDE | VariancePreservingSDE):
        table = discrete_noise(sde)
        return float(table[-1]), float(table[0])
    return noise_at(sde, sde.T), noise_at(sde, eps)


def noise_at(sde: SDE, t: float) -> float:
    """sigma / alpha at time t."""
    return float(np.exp(-half_log_snr(sde, np.array([t])))[0])


def rounded_noise(sde: SDE, noise: np.ndarray, discrete: bool) -> np.ndarray:
    """The nearest levels of a discrete network's chain; of any other network `noise` itself."""
    if not discrete or not isinstance(sde, VESDE | VariancePreservingSDE):
        return noise
    table = discrete_noise(sde)
    nearest: np.ndarray = table[_nearest(table, noise)]
    return nearest


def _nearest(table: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The number in `table` of the level nearest to each of `noise`."""
    numbers: np.ndarray = np.argmin(np.abs(table - noise[:, None]), axis=1)
    return numbers


def levels_of_noise(sde: SDE, noise: np.ndarray, discrete: bool) -> Levels:
    """What a network is told at the levels `noise` [M] of sigma / alpha, computed while tracing.

    A discrete network is told the nearest level of its chain, of which `t` and `sigma` are, and
    with which its prediction of the noise became a score.
    """
    if not discrete or not isinstance(sde, VESDE | VariancePreservingSDE):
        return levels(sde, times_of(sde, -np.log(noise)))
    table = discrete_noise(sde)
    index = _nearest(table, noise)
    alpha, own = np.ones_like(noise), np.ones_like(noise)
    if isinstance(sde, VariancePreservingSDE):
        alpha, own = 1.0 / np.sqrt(1.0 + noise**2), 1.0 / np.sqrt(1.0 + table[index] ** 2)
    times = index / max(sde.N - 1, 1) * sde.T
    return Levels(times, alpha, table[index] * own, -np.log(noise))
