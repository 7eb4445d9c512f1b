"""Adaptive solution of one ordinary differential equation per image, on the device.

Runge-Kutta pairs of diffrax under `vmap`: every image has its own step sizes, so that its solution,
its number of steps and its failure are its own, whatever else is in the batch.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

from configs.names import lookup
from sde_lib import SDE, ScoreFn

if TYPE_CHECKING:  # it takes a second, and is imported where an equation is solved
    import diffrax

# The first step is 1 % of the interval, but at most the starting time itself: a flow that starts at
# eps << 1 changes on that scale, and a step across it can pass the error control by accident.
FIRST_STEP = 0.01
SMALLEST_STEP = 1e-8  # of the interval; below it a float32 time no longer moves


@functools.cache
def solvers() -> dict[str, type[diffrax.AbstractERK]]:
    """Every explicit Runge-Kutta pair of diffrax, by its name there.

    Its implicit solvers do not finish at the dimension of images, and the others have no error
    estimate to control the step with.
    """
    import diffrax

    return {
        name: solver
        for name, solver in vars(diffrax).items()
        if inspect.isclass(solver)
        and issubclass(solver, diffrax.AbstractERK)
        and solver is not diffrax.AbstractERK
    }


class Solution(NamedTuple):
    """State at the final time, evaluations of the field, success, and states on the way."""

    y: PyTree[Array]  # [B, ...] leaves
    nfe: Array  # [B] int
    ok: Array  # [B] bool
    frames: PyTree[Array] | None  # [K, B, ...] leaves


def evaluations(solver: diffrax.AbstractERK, steps: Array) -> Array:
    """Evaluations of the field in `steps` attempted steps.

    A pair whose last stage is the next step's first ("first same as last") saves one of its stages.
    """
    tableau: Any = solver.tableau
    stages: int = tableau.num_stages
    return (stages - 1) * steps + 1 if tableau.fsal else stages * steps


def norm(error: PyTree[Array]) -> Array:
    """Root mean square over all leaves; infinite where not a number, so that the step shrinks."""
    leaves = jax.tree.leaves(error)
    total = sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
    return jnp.nan_to_num(jnp.sqrt(total / sum(leaf.size for leaf in leaves)), nan=jnp.inf)


def solve(
    field: Callable[[ArrayLike, PyTree[Array], PyTree[Array]], PyTree[Array]],
    y: PyTree[Array],
    t0: float,
    t1: float,
    *,
    args: PyTree[Array] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: str = "Tsit5",
    max_steps: int = 4096,
    num_frames: int = 0,
    error_norm: Callable[[PyTree[Array]], Array] = norm,
) -> Solution:
    """Integrates dy/dt = field(t, y, args) from `t0` to `t1` (either may be the larger).

    `field` sees one image: a scalar t, leaves without batch axis. `y` and `args` have leaves
    [B, ...] (args may be None). The `error_norm` of a step's local error, of one image's leaves of
    error / (atol + rtol |y|), is kept below 1. `num_frames` states at equally spaced
    times from t0 to t1 are interpolated if asked for. `ok` is False where the solver gave up
    (max_steps reached, or steps too small) or the result is not finite: `y` is no solution there.

    Raises:
      ValueError: unknown solver, tolerances or max_steps not positive.
    """
    import diffrax

    method: diffrax.AbstractERK = lookup(solvers(), solver, "ODE solver")()
    if rtol <= 0 or atol <= 0:
        raise ValueError(f"rtol and atol must be positive, not {rtol} and {atol}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, not {max_steps}")
    control = diffrax.PIDController(
        rtol=rtol,
        atol=atol,
        norm=error_norm,
        dtmin=SMALLEST_STEP * abs(t1 - t0),
        force_dtmin=False,
    )
    size = min(FIRST_STEP * abs(t1 - t0), abs(t0) or math.inf)
    first_step = math.copysign(size, t1 - t0)
    ts = jnp.linspace(t0, t1, num_frames) if num_frames else None

    def one(y: PyTree[Array], args: PyTree[Array] | None) -> tuple[PyTree[Array], Array, Array]:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            method,
            t0=t0,
            t1=t1,
            dt0=first_step,
            y0=y,
            args=args,
            stepsize_controller=control,
            saveat=diffrax.SaveAt(ts=ts, t1=True),
            max_steps=max_steps,
            throw=False,
        )
        finite = [jnp.all(jnp.isfinite(leaf[-1])) for leaf in jax.tree.leaves(solution.ys)]
        ok = jnp.all(jnp.array(finite)) & (solution.result == diffrax.RESULTS.successful)
        return solution.ys, evaluations(method, solution.stats["num_steps"]), ok

    ys, nfe, ok = jax.vmap(one)(y, args)
    frames = None
    if num_frames:
        frames = jax.tree.map(lambda leaf: jnp.moveaxis(leaf[:, :-1], 1, 0), ys)
    return Solution(jax.tree.map(lambda leaf: leaf[:, -1], ys), nfe, ok, frames)


def heun_steps(field: Callable[[ArrayLike, Array], Array], x: Array, times: np.ndarray) -> Array:
    """x [B, ...] carried from the first of `times` to the last by Heun's method, a step for each.

    `x' = x + h (k_1 + k_2) / 2` with `k_1 = field(t, x)` and `k_2 = field(t + h, x + h k_1)`: two
    evaluations a step, of order 2. `field` sees all images at a scalar t.
    """

    def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        t, end = at
        first = field(t, x)
        second = field(end, x + (end - t) * first)
        return x + 0.5 * (end - t) * (first + second), None

    ends = jnp.asarray(times, x.dtype)
    return jax.lax.scan(step, x, (ends[:-1], ends[1:]))[0]


def probability_flow(sde: SDE, score_fn: ScoreFn) -> Callable[[ArrayLike, Array], Array]:
    """The field of the probability-flow ODE for one image (Song et al. 2021, equation 13).

    dx/dt = f(x, t) - g(t)^2 score(x, t) / 2, as a function of a scalar t and x [...].
    """
    reverse = sde.reverse(score_fn, probability_flow=True)

    def field(t: ArrayLike, x: Array) -> Array:
        return reverse.drift(x[None], jnp.reshape(t, (1,)))[0]

    return field
