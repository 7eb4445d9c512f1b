"""Trajectories of samples: the one scan over steps, and what a sampler returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.parametrisation import convert
from sde_lib import SDE, ScoreFn

Array = jax.Array


class Samples(NamedTuple):
    """What a sampler returns.

    Attributes:
      x: final images [B, ...], in the range of the training data as the network saw it.
      nfe: evaluations of the score that each image needed; an int, or [B] for adaptive solvers.
      ok: [B], False where the image is not a solution (solver gave up, or not finite).
      trajectory: [K, B, ...] states at K equally spaced steps, prior first, `x` last; or None.
    """

    x: Array
    nfe: int | Array
    ok: Array
    trajectory: Array | None = None


def all_finite(x: Array) -> Array:
    """[B]: whether every entry of image b of `x` [B, ...] is finite."""
    return jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))


def drive(
    step: Callable[[Array, Any, Any], tuple[Array, Any]],
    x: Array,
    memory: Any,
    inputs: Any,
    num_frames: int = 0,
) -> tuple[Array, Any, Array | None]:
    """Applies `x, memory = step(x, memory, inputs[i])` for every i, in one `lax.scan`.

    Returns the last x, the last memory, and `num_frames` of the states x that were passed (or
    None), equally spaced from the first to the last. No other state is ever stored.

    Raises:
      ValueError: more frames than states.
    """
    num_steps = jax.tree.leaves(inputs)[0].shape[0]
    if not 0 <= num_frames <= num_steps + 1:
        raise ValueError(
            f"num_frames is {num_frames}; {num_steps} steps pass {num_steps + 1} states"
        )
    if not num_frames:
        (x, memory), _ = jax.lax.scan(lambda c, i: (step(*c, i), None), (x, memory), inputs)
        return x, memory, None

    slots = np.full(num_steps + 1, num_frames)  # one past the end: not stored
    last_first = np.linspace(num_steps, 0, num_frames).round().astype(int)
    slots[last_first] = np.arange(num_frames)[::-1]
    frames = jnp.zeros((num_frames, *x.shape), x.dtype).at[slots[0]].set(x, mode="drop")

    def body(carry: Any, i: Any) -> tuple[Any, None]:
        x, memory, frames = carry
        x, memory = step(x, memory, i[1])
        return (x, memory, frames.at[i[0]].set(x, mode="drop")), None

    (x, memory, frames), _ = jax.lax.scan(
        body, (x, memory, frames), (jnp.asarray(slots[1:]), inputs)
    )
    return x, memory, frames


def denoised(sde: SDE, score_fn: ScoreFn, x: Array, t: Any) -> Array:
    """E[x_0 | x_t = x] by Tweedie's formula, t a scalar."""
    t = jnp.full(x.shape[0], t, x.dtype)
    return convert(sde, x, t, score_fn(x, t), "score", "x0")
