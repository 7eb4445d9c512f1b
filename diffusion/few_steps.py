"""Solvers with few steps, for every SDE, from DDIM to SA-Solver.

Written in alpha(t), sigma(t) and lambda = log(alpha / sigma) alone. Those that take one evaluation
a step are linear multistep methods, see `multistep`; here are the others, and the names of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion import grids
from diffusion.edm import edm, restart
from diffusion.flow_maps import consistency_sampler, mean_flow_sampler
from diffusion.heun import heun
from diffusion.multistep import ddim, deis, dpm_solver_pp, finished, sa_solver, unipc
from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Samples, drive
from sde_lib import SDE, Images, ScoreFn

__all__ = [
    "METHODS", "Method", "ddim", "deis", "dpm_solver", "dpm_solver_pp", "edm", "heun", "restart",
    "sa_solver", "unipc",
]  # fmt: skip


def dpm_solver(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    times: np.ndarray,
    *,
    order: int = 2,
    denoise: bool = True,
    num_frames: int = 0,
) -> Samples:
    """Singlestep DPM-Solver-1, -2, -3 (Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2).

    `order` evaluations a step; an exponential integrator in lambda = log(alpha / sigma) of
    d(x / alpha) / dlambda = -exp(-lambda) noise(x, lambda).

    Raises:
      ValueError: order other than 1, 2 and 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"DPM-Solver has order 1, 2 or 3, not {order}")
    x = sde.prior_sampling(noise(0))
    lam = grids.half_log_snr(sde, times)
    nodes = [grids.levels(sde, times[:-1])]
    for part in np.arange(1, order) / order:
        nodes.append(grids.levels(sde, grids.times_of(sde, lam[:-1] + part * np.diff(lam))))
    nodes.append(grids.levels(sde, times[1:]))
    h = [node.lam - nodes[0].lam for node in nodes]

    def step(x: Images, memory: None, at: tuple[Array, ...]) -> tuple[Images, None]:
        t, alpha, sigma, h = at

        def noise_at(x: Images, k: int) -> Images:
            ts = jnp.full(x.shape[0], t[k])
            return convert(sde, x, ts, score_fn(x, ts), "score", "noise")

        first = noise_at(x, 0)

        def euler(k: int) -> Images:
            return alpha[k] / alpha[0] * x - sigma[k] * jnp.expm1(h[k]) * first

        if order == 1:
            return euler(1), None
        change = noise_at(euler(1), 1) - first
        if order == 2:
            return euler(2) - sigma[2] * jnp.expm1(h[2]) * change, None
        middle = euler(2) - 2.0 * sigma[2] * (jnp.expm1(h[2]) / h[2] - 1.0) * change
        change = noise_at(middle, 2) - first
        return euler(3) - 1.5 * sigma[3] * (jnp.expm1(h[3]) / h[3] - 1.0) * change, None

    columns = [[getattr(node, name) for node in nodes] for name in ("t", "alpha", "sigma")]
    inputs = tuple(jnp.asarray(np.stack(c, 1), x.dtype) for c in (*columns, h))
    x, _, frames = drive(step, x, None, inputs, num_frames)
    return finished(sde, score_fn, x, times[-1], order * (len(times) - 1), denoise, frames)


# Methods by the names that configs use.


class Method(NamedTuple):
    """A solver of this file as `config.sampling` reaches it.

    Attributes:
      solver: takes SDE, score (or what else its networks know: see `flow_maps.SAMPLERS`), noise,
        times, `denoise`, `num_frames` and the settings.
      grid: the time grid that it has unless `time_grid` names another, in `grids.GRIDS`.
      settings: the fields of `config.sampling` that it takes, by their own names.
      between_levels: True if it evaluates at times that are not on its grid.
      noise_levels: True if it takes decreasing noise levels in place of times, `discrete` and
        `image_range`, and the last of its steps leads from the last level to none.
      stochastic: True if its steps add noise whatever the settings are.
      noise: those of the settings that have it add noise where they are not 0.
    """

    solver: Callable[..., Samples]
    grid: str = "log_snr"
    settings: tuple[str, ...] = ()
    between_levels: bool = False
    noise_levels: bool = False
    stochastic: bool = False
    noise: tuple[str, ...] = ()


CHURN = ("churn", "churn_min", "churn_max", "churn_noise")
RESTART = ("restart_min", "restart_max", "restart_steps", "restart_repeats")
GENERAL = ("schedule", "scaling", *CHURN)

METHODS: dict[str, Method] = {
    "consistency": Method(consistency_sampler, "karras", stochastic=True),
    "ddim": Method(ddim, grid="uniform", settings=("eta",), noise=("eta",)),
    "deis_2": Method(functools.partial(deis, order=2)),
    "deis_3": Method(functools.partial(deis, order=3)),
    "dpm_1": Method(functools.partial(dpm_solver, order=1)),
    "dpm_2": Method(functools.partial(dpm_solver, order=2), between_levels=True),
    "dpm_3": Method(functools.partial(dpm_solver, order=3), between_levels=True),
    "dpmpp_2m": Method(functools.partial(dpm_solver_pp, order=2)),
    "dpmpp_3m": Method(functools.partial(dpm_solver_pp, order=3)),
    "dpmpp_2m_sde": Method(
        functools.partial(dpm_solver_pp, order=2, stochastic=True), stochastic=True
    ),
    "edm": Method(edm, "karras", CHURN, noise=("churn",)),
    "euler": Method(
        functools.partial(heun, order=1), "karras", GENERAL, noise_levels=True, noise=("churn",)
    ),
    "heun": Method(heun, "karras", (*GENERAL, "alpha"), noise_levels=True, noise=("churn",)),
    "mean_flow": Method(mean_flow_sampler, "uniform"),
    "restart": Method(restart, "karras", RESTART, noise=("restart_repeats",)),
    "sa_solver_2": Method(functools.partial(sa_solver, order=2), settings=("tau",), noise=("tau",)),
    "sa_solver_3": Method(functools.partial(sa_solver, order=3), settings=("tau",), noise=("tau",)),
    "unipc_2": Method(functools.partial(unipc, order=2)),
    "unipc_3": Method(functools.partial(unipc, order=3)),
}
