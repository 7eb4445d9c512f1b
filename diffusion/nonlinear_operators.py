"""Operators that are not linear: clipping, magnitudes of Fourier coefficients, JPEG.

Each is a function of images [B, H, W, C] that acts on each alone and has a derivative, by which
guidance linearises it. `low` and `high` are the ends of the images' range, black and white.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion.inverse import Operator

BLOCK = 8  # pixels a side of JPEG's blocks
SMALL = 1e-10  # added to squared magnitudes, so that they have a root's derivative everywhere

# Steps of quantisation at quality 50 (ITU-T T.81, tables K.1 and K.2): of light, and of colour.
LIGHT = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
COLOUR = np.full((BLOCK, BLOCK), 99)
COLOUR[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# Rows: light and two differences of colour, of red, green and blue (JFIF 1.02).
YCC = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.886 / 1.772],
        [0.701 / 1.402, -0.587 / 1.402, -0.114 / 1.402],
    ]
)


def clipping(limit: float, low: float = -1.0, high: float = 1.0) -> Operator:
    """A sensor that saturates: values farther from the middle of the range than `limit` half ranges
    are cut to that.

    Raises:
      ValueError: limit not above 0 and below 1.
    """
    if not 0.0 < limit < 1.0:
        raise ValueError(f"the limit of clipping must be between 0 and 1, not {limit:g}")
    middle, reach = 0.5 * (low + high), 0.5 * limit * (high - low)
    return lambda x: jnp.clip(x, middle - reach, middle + reach)


def phase_retrieval(low: float = -1.0) -> Operator:
    """The magnitudes [B, 2 H, 2 W, C] of the Fourier coefficients of an image without their phases.

    The image, black being 0, is padded by black to twice its sides: its magnitudes then determine
    it up to a shift and a rotation by half a turn, in general. The transform is unitary.
    """

    def magnitudes(x: Array) -> Array:
        _, height, width, _ = x.shape
        padded = jnp.pad(x - low, ((0, 0), (0, height), (0, width), (0, 0)))
        coefficients = jnp.fft.fft2(padded, axes=(1, 2), norm="ortho")
        squares = jnp.square(jnp.real(coefficients)) + jnp.square(jnp.imag(coefficients))
        return jnp.sqrt(squares + SMALL)

    return magnitudes


def jpeg(quality: int, low: float = -1.0, high: float = 1.0) -> Operator:
    """What JPEG leaves of an image, before its decoder rounds and clips (ITU-T T.81).

    Light and colours, none of them at a lower resolution, in blocks of 8x8 pixels: their cosine
    transforms are rounded to steps of `quality`. The derivative of rounding is taken for 1, that of
    a straight line through its steps. Sides that are no multiples of 8 are continued by their last
    pixels.

    Raises:
      ValueError: quality not between 1 and 100; (when it is called) not 1 or 3 channels.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"the quality of JPEG must be 1 to 100, not {quality}")
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = [np.clip((table * percent + 50) // 100, 1, 255) for table in (LIGHT, COLOUR, COLOUR)]
    places = np.arange(BLOCK)
    cosines = np.cos(np.pi / BLOCK * places[:, None] * (places + 0.5)) * np.sqrt(2.0 / BLOCK)
    cosines[0] /= np.sqrt(2.0)  # rows: an orthonormal basis
    basis = jnp.asarray(cosines, jnp.float32)

    def compressed(x: Array) -> Array:
        batch, height, width, channels = x.shape
        if channels not in (1, 3):
            raise ValueError(f"JPEG is of 1 or 3 channels, not {channels}")
        levels = (x - low) * (255.0 / (high - low))
        levels = levels @ jnp.asarray(YCC.T, x.dtype) if channels == 3 else levels
        levels -= jnp.asarray([128.0, 0.0, 0.0][:channels], x.dtype)
        more = [-side % BLOCK for side in (height, width)]
        levels = jnp.pad(levels, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)), mode="edge")
        rows, columns = (height + more[0]) // BLOCK, (width + more[1]) // BLOCK
        blocks = levels.reshape(batch, rows, BLOCK, columns, BLOCK, channels)
        table = jnp.asarray(np.stack(steps[:channels], -1)[:, None], x.dtype)  # [8, 1, 8, C]
        shares = jnp.einsum("ui,briljc,vj->brulvc", basis, blocks, basis) / table
        shares += jax.lax.stop_gradient(jnp.round(shares) - shares)
        blocks = jnp.einsum("ui,brulvc,vj->briljc", basis, shares * table, basis)
        levels = blocks.reshape(batch, rows * BLOCK, columns * BLOCK, channels)
        levels = levels[:, :height, :width]
        levels += jnp.asarray([128.0, 0.0, 0.0][:channels], x.dtype)
        levels = levels @ jnp.asarray(np.linalg.inv(YCC).T, x.dtype) if channels == 3 else levels
        return low + levels * ((high - low) / 255.0)

    return compressed
