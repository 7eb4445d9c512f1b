"""Geometric augmentations of images, on the device, with labels by which a network is told of them.

Karras et al. 2022 (arXiv:2206.00364, appendix F.2), after Karras et al. 2020 (arXiv:2006.06676,
appendix B): an image is mirrored, scaled, rotated, stretched along an axis and shifted, each by
chance. As the network is told by how much, and is told zeros when images are drawn, its samples
show none of it. The image is reflected at its borders, and sampled on a grid twice as fine, which
the low-pass filter of the wavelet sym6 makes and unmakes: where nothing moves, nothing changes.
"""

from __future__ import annotations

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Places = TypeVar("Places", jax.Array, np.ndarray)
NUM_LABELS = 9  # mirrored along x, y; scale; rotation (cos - 1, sin); stretch (x, y); shift (x, y)
STD_OF_SCALE = 0.2  # of the logarithm to the base 2 of both scales
STD_OF_SHIFT = 1 / 8  # in units of the image's side
LOW_PASS = np.array(
    [
        *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
        *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
        *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
    ]
)
CENTRE = 5.0  # the tap at a pixel's own place, as in EDM; the filter's mean is at 5.1


def augment(x: jax.Array, keys: jax.Array, probability: float) -> tuple[jax.Array, jax.Array]:
    """Images [B, H, W, C], each augmented by its own key [B], and their labels [B, NUM_LABELS].

    Half of them are mirrored left to right; everything else has this `probability`.
    """
    return jax.vmap(lambda image, key: _augment(image, key, probability))(x, keys)


def _augment(image: jax.Array, key: jax.Array, probability: float) -> tuple[jax.Array, jax.Array]:
    uniform_key, normal_key = jax.random.split(key)
    u, z = jax.random.uniform(uniform_key, (9,)), jax.random.normal(normal_key, (4,))
    mirrored = u[:2] < jnp.array([0.5, 0.5 * probability])
    image = jnp.where(mirrored[0], image[:, ::-1], image)
    image = jnp.where(mirrored[1], image[::-1], image)
    matrix, shift, labels = random_transform(u[2:], z, probability)
    sides = jnp.array(image.shape[1::-1], jnp.float32)
    moved = transformed(image, matrix, shift * STD_OF_SHIFT * sides)
    image = jnp.where(jnp.any(labels != 0.0), moved, image)
    return image, jnp.concatenate([mirrored.astype(jnp.float32), labels])


def random_transform(
    u: jax.Array, z: jax.Array, probability: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """From places in the result to places in the image: matrix [2, 2] and shift [2], which is
    subtracted first, in units of its standard deviation; and their labels [7].

    Draws are `u` [7], uniform in [0, 1), and `z` [4], standard normal.
    """
    acts = (u[:4] < probability).astype(jnp.float32)
    angles = math.pi * (2.0 * u[5:] - 1.0)
    turn, axis = acts[1] * angles[0], jnp.where(u[4] < 0.5, angles[1], 0.0)
    scale, stretch, shift = acts[0] * z[0], acts[2] * z[1], acts[3] * z[2:]
    factor = jnp.exp2(-STD_OF_SCALE * stretch)
    stretched = rotation(-axis) @ jnp.diag(jnp.array([factor, 1.0 / factor])) @ rotation(axis)
    matrix = jnp.exp2(-STD_OF_SCALE * scale) * rotation(turn) @ stretched
    labels = [
        *(scale, jnp.cos(turn) - 1.0, jnp.sin(turn)),
        *(stretch * jnp.cos(axis), stretch * jnp.sin(axis)),
    ]
    return matrix, shift, jnp.concatenate([jnp.stack(labels), shift])


def rotation(angle: jax.Array) -> jax.Array:
    """The matrix [2, 2] that turns (x, y) by an angle from x towards y."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[cos, -sin], [sin, cos]])


def transformed(image: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """The image [H, W, C] that shows at each place p, an (x, y) from its middle, what is at
    `matrix` (p - `shift`) of the given one, reflected at its borders."""
    height, width = image.shape[:2]
    up_y, up_x = (jnp.asarray(finer(side), image.dtype) for side in (height, width))
    fine = jnp.einsum("yh,xw,hwc->yxc", up_y, up_x, image, precision="highest")

    def places(side: int) -> np.ndarray:
        """Of the taps of the finer grid, in pixels from the middle."""
        return (np.arange(2 * side + len(LOW_PASS) - 2) - CENTRE) / 2 - (side - 1) / 2

    place = jnp.stack(jnp.meshgrid(places(width), places(height)), -1)
    place = jnp.einsum("ij,yxj->yxi", matrix, place - shift, precision="highest")
    tap_x, tap_y = (
        2.0 * reflected(place[..., axis] + (side - 1) / 2, side) + CENTRE
        for axis, side in ((0, width), (1, height))
    )
    x, y = jnp.floor(tap_x).astype(jnp.int32), jnp.floor(tap_y).astype(jnp.int32)
    right, below = (tap_x - x)[..., None], (tap_y - y)[..., None]
    above = (1.0 - right) * fine[y, x] + right * fine[y, x + 1]
    under = (1.0 - right) * fine[y + 1, x] + right * fine[y + 1, x + 1]
    moved = (1.0 - below) * above + below * under
    down_y, down_x = (jnp.asarray(coarser(side), image.dtype) for side in (height, width))
    return jnp.einsum("hy,wx,yxc->hwc", down_y, down_x, moved, precision="highest")


def reflected(place: Places, side: int) -> Places:
    """Places from 0 to side - 1 that are shown, the image reflected about its last pixels."""
    if side == 1:
        return 0 * place
    period = 2 * (side - 1)
    return abs((place + (side - 1)) % period - (side - 1))


def coarser(side: int) -> np.ndarray:
    """The filter from the finer grid of 2 side + 10 places to the pixels, [side, 2 side + 10]."""
    matrix = np.zeros((side, 2 * side + len(LOW_PASS) - 2))
    for row in range(side):
        matrix[row, 2 * row : 2 * row + len(LOW_PASS)] = LOW_PASS
    return matrix


def finer(side: int) -> np.ndarray:
    """The filter from the pixels, reflected at the borders, to the finer grid."""
    margin = len(LOW_PASS) // 2 - 1  # pixels beyond each border that the grid sees
    whole = coarser(side + 2 * margin).T[2 * margin : 2 * margin + 2 * side + len(LOW_PASS) - 2]
    pixels = reflected(np.arange(-margin, side + margin), side)
    matrix = np.zeros((len(whole), side))
    for column, pixel in enumerate(pixels):
        matrix[:, pixel] += whole[:, column]
    return matrix
