"""Straightness: how far the paths of the probability flow are from lines passed at even speed.

Where they are such lines, one step of Euler's method carries the prior to the data.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffusion import ode
from diffusion.times import last_time
from sde_lib import SDE, Images, ScoreFn, Times


class Paths(NamedTuple):
    """The paths of a batch from prior to data.

    Attributes:
      straightness: [B], the mean over a path and over dimensions of what its velocity is off.
      x: [B, ...], where they end.
      nfe: [B], evaluations of the score.
      ok: [B], False where the solver gave up: the others mean nothing there.
    """

    straightness: Times
    x: Images
    nfe: Array
    ok: Array


def straightness(
    sde: SDE,
    score_fn: ScoreFn,
    z: Images,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: str = "Dopri5",
    eps: float | None = None,
) -> Paths:
    """The straightness of the paths from z at T to eps, which is 0 for straight ones.

    `integral over s in [0, 1] of |x(1) - x(0) - dx/ds|^2 ds / D` with s the share of the way from T
    to eps (Liu et al. 2022, arXiv:2209.03003, section 2.2, in whose sum over the dimensions D is a
    factor). It is in squared units of the data; its mean over the prior is that of the flow. A path
    solved with an error of some size has it to about that. It depends on the SDE's clock: a flow of
    straight paths whose speed varies, such as EDM's of one point, is not straight in it.

    Args:
      z: [B, ...], the prior's draws times its standard deviation.
      rtol: relative tolerance of a step, on path and integral together.
      atol: absolute tolerance of a step.
      solver: a name in `ode.solvers`.
      eps: last time; `sde.sampling_eps` if None.

    Raises:
      ValueError: unknown solver, or a number out of range.
    """
    end = last_time(sde, eps)
    length = sde.T - end
    flow = ode.probability_flow(sde, score_fn)

    def field(share: ArrayLike, state: tuple[Array, Array], _: None) -> tuple[Array, Array]:
        velocity = -length * flow(sde.T - length * jnp.asarray(share), state[0])
        return velocity, jnp.mean(jnp.square(velocity))

    # From 1 to 2, since a solver's first step is at most the time at which it starts.
    solution = ode.solve(
        lambda s, state, _: field(s - 1.0, state, _),
        (z, jnp.zeros(len(z))),
        1.0,
        2.0,
        rtol=rtol,
        atol=atol,
        solver=solver,
    )
    x, energy = solution.y
    way = jnp.mean(jnp.square(x - z), axis=tuple(range(1, z.ndim)))
    return Paths(energy - way, x, solution.nfe, solution.ok)
