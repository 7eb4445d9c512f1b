"""Time grids of few-step solvers, and the noise levels on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs.names import lookup
from diffusion.times import last_time
from sde_lib import SDE

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


def half_log_snr(sde: SDE, times: np.ndarray) -> np.ndarray:
    """lambda = log(alpha / sigma) at `times`, computed while tracing."""
    with jax.ensure_compile_time_eval():
        return 0.5 * np.asarray(sde.log_snr(jnp.asarray(times)), np.float64)


def times_of(sde: SDE, half_log_snr: np.ndarray) -> np.ndarray:
    """The times at which log(alpha / sigma) is `half_log_snr`, computed while tracing."""
    with jax.ensure_compile_time_eval():
        return np.asarray(sde.time_of_log_snr(jnp.asarray(2.0 * half_log_snr)), np.float64)


class Levels(NamedTuple):
    """alpha, sigma and lambda = log(alpha / sigma) at the times of a grid, on the host."""

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    lam: np.ndarray


def on_levels(sde: SDE, times: np.ndarray) -> np.ndarray:
    """`times` moved to the nearest of the N levels i T / (N - 1), i >= 1, and each kept once.

    There a network that was trained with discrete labels knows its noise: exactly for SMLD's
    levels, up to the half step between DDPM's table and the continuous process for VP.

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
    with jax.ensure_compile_time_eval():
        t = jnp.asarray(times)
        alpha, sigma = np.asarray(sde.alpha(t), np.float64), np.asarray(sde.sigma(t), np.float64)
    return Levels(times, alpha, sigma, half_log_snr(sde, times))
