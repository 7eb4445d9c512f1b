"""Pillow's bicubic resize on all devices, as FD-DINOv2 and CMMD prepare images."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pillow_resized(images: jax.Array, size: int) -> jax.Array:
    """Pixels 0..255, [B, H, W, C], to whole numbers 0..255 in float32, [B, size, size, C].

    `Image.resize` with BICUBIC: Keys' kernel (slope -1/2 at 1), as wide as the step where images
    become smaller, with weights of sum 1; rows first, then columns, and after each the rounding to
    8 bits. Pillow's weights are of fixed point, so that a value halfway may be rounded otherwise.
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        if x.shape[axis] != size:
            shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
            x = jnp.clip(jnp.floor(jax.image.resize(x, shape, "cubic") + 0.5), 0.0, 255.0)
    return x
