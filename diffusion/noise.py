"""Noise sources: callables from i to the i-th standard-normal draw, [B, ...]."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Key

Keys = Key[Array, "batch"]
Noise = Callable[[ArrayLike], Array]  # i may be traced


@dataclasses.dataclass(frozen=True)
class ImageNoise:
    """Noise source in which image b's draw number i depends on `keys[b]` and i alone.

    Attributes:
      keys: typed keys [B].
      shape: of one image.
    """

    keys: Keys
    shape: tuple[int, ...]

    def keys_of(self, i: ArrayLike) -> Keys:
        """The keys [B] of draw number i."""
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(self.keys, i)

    def __call__(self, i: ArrayLike) -> Array:
        return jax.vmap(lambda key: jax.random.normal(key, self.shape))(self.keys_of(i))


def image_noise(keys: Keys, shape: tuple[int, ...]) -> ImageNoise:
    """Standard-normal draws for images of this shape, each from its own key; see `ImageNoise`."""
    return ImageNoise(keys, shape)


def recorded_noise(draws: ArrayLike) -> Noise:
    """Noise source that repeats `draws` [number of draws, B, ...]."""
    array = jnp.asarray(draws)
    return lambda i: array[i]
