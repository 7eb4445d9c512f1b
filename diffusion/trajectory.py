"""Trajectories of samples: the one scan over steps, and what a sampler returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from diffusion.parametrisation import convert
from sde_lib import SDE, Images, ScoreFn

Draws = Float[Array, "draws batch *image"]  # standard normal
Frames = Float[Array, "frames batch *image"]
Flags = Bool[Array, "batch"]

Memory = TypeVar("Memory")
Inputs = TypeVar("Inputs")


class Samples(NamedTuple):
    """The result of a sampler.

    Attributes:
      x: final images [B, ...], in the range of the training data as the network saw it.
      nfe: evaluations of the score that each image needed; an int, or [B] for adaptive solvers.
      ok: [B], False where the image is not a solution (solver gave up, or not finite).
      trajectory: [K, B, ...] states at K equally spaced steps, prior first, `x` last; or None.
    """

    x: Images
    nfe: int | Array
    ok: Flags
    trajectory: Frames | None = None


def all_finite(x: Images) -> Flags:
    """True where every entry of image b of `x` [B, ...] is finite; [B]."""
    return jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))


def samples_ending_on(
    x: Images, nfe: int | Array, frames: Frames | None, ok: Flags | None = None
) -> Samples:
    """Samples x [B, ...], which become the last of their `frames` too.

    Args:
      ok: False where the solver gave up; images that are not finite are marked in any case.
    """
    trajectory = None if frames is None else frames.at[-1].set(x)
    finite = all_finite(x)
    return Samples(x, nfe, finite if ok is None else ok & finite, trajectory)


def drive(
    step: Callable[[Array, Memory, Inputs], tuple[Array, Memory]],
    x: Images,
    memory: Memory,
    inputs: Inputs,
    num_frames: int = 0,
) -> tuple[Images, Memory, Frames | None]:
    """Applies `x, memory = step(x, memory, inputs[i])` for every i, in one `lax.scan`.

    Returns the last x, the last memory, and `num_frames` of the states x that were passed (or
    None), equally spaced from the first to the last; all states where there are fewer. No other
    state is ever stored.

    Raises:
      ValueError: a negative number of frames.
    """
    if num_frames < 0:
        raise ValueError(f"num_frames is {num_frames}; it must be 0 or more")
    num_steps = jax.tree.leaves(inputs)[0].shape[0]
    num_frames = min(num_frames, num_steps + 1)
    if not num_frames:
        (x, memory), _ = jax.lax.scan(lambda c, i: (step(*c, i), None), (x, memory), inputs)
        return x, memory, None

    slots = np.full(num_steps + 1, num_frames)  # one past the end: not stored
    last_first = np.linspace(num_steps, 0, num_frames).round().astype(int)
    slots[last_first] = np.arange(num_frames)[::-1]
    frames = jnp.zeros((num_frames, *x.shape), x.dtype).at[slots[0]].set(x, mode="drop")

    def body(
        carry: tuple[Array, Memory, Array], i: tuple[Array, Inputs]
    ) -> tuple[tuple[Array, Memory, Array], None]:
        x, memory, frames = carry
        x, memory = step(x, memory, i[1])
        return (x, memory, frames.at[i[0]].set(x, mode="drop")), None

    (x, memory, frames), _ = jax.lax.scan(
        body, (x, memory, frames), (jnp.asarray(slots[1:]), inputs)
    )
    return x, memory, frames


def denoised(sde: SDE, score_fn: ScoreFn, x: Images, t: ArrayLike) -> Images:
    """E[x_0 | x_t = x] by Tweedie's formula, t a scalar."""
    t = jnp.full(x.shape[0], t, x.dtype)
    return convert(sde, x, t, score_fn(x, t), "score", "x0")
