"""The draws of a training loss: each image's own, from parts of its key.

An image's loss never depends on what else is in the batch, nor one draw of it on another.
"""

from __future__ import annotations

import jax
from jax import Array
from jaxtyping import Float, Int

from sde_lib import Keys

Normal = Float[Array, "batch ..."]  # [B, ...]
Indices = Int[Array, "batch"]  # [B]

TIME, NOISE, FURTHER = 0, 1, 2  # parts of a key; further: directions, or the choice of a caption


def part_of(keys: Keys, part: int) -> Keys:
    """The sub-keys [B] of one part of the images' keys [B]."""
    return jax.vmap(lambda key: jax.random.split(key, max(part + 1, 2))[part])(keys)


def noise(keys: Keys, shape: tuple[int, ...]) -> Normal:
    """The standard-normal draws z [B, ...] of images of this shape, from their keys [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(part_of(keys, NOISE))


def uniform(keys: Keys, count: int) -> Normal:
    """`count` uniform draws in [0, 1) for each image [B, count], from its key's further part."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(part_of(keys, FURTHER))


def integers(keys: Keys, part: int, count: int) -> Indices:
    """Uniform draws [B] from 0 .. count - 1, from one part of the images' keys [B]."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(part_of(keys, part))
