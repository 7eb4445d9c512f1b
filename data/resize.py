r"""Antialiased resampling of pictures, separable, in float32.

Along an axis of n pixels that becomes one of m, output pixel i lies at f = (i + 1/2) n / m, in
input pixels, and is a weighted mean of the input pixels j around it:

    w_ij = k((j + 1/2 - f) / s),   s = max(n / m, 1),   y_i = \sum_j w_ij x_j / \sum_j w_ij,

where k is a kernel of `KERNELS`, widened by s where the axis shrinks, so that no pixel is passed
over. Pixels beyond the edge do not count. The weights are computed in float32, step by step as
TensorFlow's `ScaleAndTranslate` does, with which the official input pipelines of score_sde resize:
in float64 results would differ from theirs by up to 1e-5 of the range.

Keys, Cubic convolution interpolation for digital image processing, IEEE TASSP 29, 1981: the cubic
kernel, with a = -1/2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from configs.names import lookup


class Kernel(NamedTuple):
    """A kernel k(|x|) of float32 distances, zero from `radius` on."""

    radius: float
    function: Callable[[np.ndarray], np.ndarray]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(np.float32(1.0) - x, np.float32(0.0))


def _keys_cubic(x: np.ndarray) -> np.ndarray:
    near = ((np.float32(1.5) * x - np.float32(2.5)) * x) * x + np.float32(1.0)
    far = ((np.float32(-0.5) * x + np.float32(2.5)) * x - np.float32(4.0)) * x + np.float32(2.0)
    return np.where(x >= 2.0, np.float32(0.0), np.where(x >= 1.0, far, near))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(x < 3.0, np.sinc(x) * np.sinc(x / np.float32(3.0)), 0.0).astype(np.float32)


KERNELS: Mapping[str, Kernel] = {
    "bilinear": Kernel(1.0, _triangle),
    "bicubic": Kernel(2.0, _keys_cubic),
    "lanczos": Kernel(3.0, _lanczos),
}


class Taps(NamedTuple):
    """The input pixels that make each output pixel: `span` of them from `start` on.

    Attributes:
      start: int [m], the first input pixel.
      weights: float32 [m, span]; zero past the last pixel of an output pixel that has fewer.
    """

    start: np.ndarray
    weights: np.ndarray


@functools.lru_cache(maxsize=256)
def taps(before: int, after: int, method: str) -> Taps:
    """The weights with which `before` pixels along an axis become `after`.

    Raises:
      ValueError: an unknown method.
    """
    kernel = lookup(KERNELS, method, "data.resize")
    one, half = np.float32(1.0), np.float32(0.5)
    inverse = one / (np.float32(after) / np.float32(before))
    scale = max(inverse, one)
    centres = (np.arange(after, dtype=np.float32) + half) * inverse
    reach = np.float32(kernel.radius) * scale
    start = np.maximum(np.ceil(centres - reach - half), 0.0).astype(int)
    end = np.minimum(np.floor(centres + reach - half), before - 1.0).astype(int)
    columns = start[:, None] + np.arange(np.max(end - start) + 1)
    distances = np.abs(columns.astype(np.float32) + half - centres[:, None]) * (one / scale)
    table = np.where(columns <= end[:, None], kernel.function(distances), np.float32(0.0))
    totals = np.zeros(after, np.float32)
    for column in table.T:
        totals += column
    return Taps(start, table * (one / totals)[:, None])


def resize(picture: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    """A picture [H, W, C], of any type, as float32 [height, width, C].

    Rows first, then columns; an axis that keeps its length is left as it is. Sums are taken from
    the first pixel to the last, so that they round alike on every machine.

    Raises:
      ValueError: an unknown method.
    """
    pixels = np.asarray(picture, np.float32)
    if pixels.shape[0] != height:
        pixels = _weighted(pixels, taps(pixels.shape[0], height, method))
    if pixels.shape[1] != width:
        columns = np.ascontiguousarray(pixels.swapaxes(0, 1))
        pixels = _weighted(columns, taps(columns.shape[0], width, method)).swapaxes(0, 1)
    return pixels


def _weighted(pixels: np.ndarray, filters: Taps) -> np.ndarray:
    """Weighted sums over the first axis of pixels [n, ...]: [m, ...]."""
    last = len(pixels) - 1
    result = np.zeros((len(filters.start), *pixels.shape[1:]), np.float32)
    for k, weight in enumerate(filters.weights.T):
        rows = np.minimum(filters.start + k, last)
        result += weight.reshape(-1, *[1] * (pixels.ndim - 1)) * pixels[rows]
    return result


def centre_crop(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle [height, width, C] of a picture; an odd pixel that is left over is at the end."""
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def shorter_side(picture: np.ndarray, size: int, method: str) -> np.ndarray:
    """A picture float32 whose shorter side is `size`; the longer one is rounded half to even."""
    height, width = picture.shape[:2]
    ratio = np.float32(size) / np.float32(min(height, width))
    rows, columns = (int(np.round(np.float32(side) * ratio)) for side in (height, width))
    return resize(picture, rows, columns, method)


def unit(picture: np.ndarray) -> np.ndarray:
    """Levels uint8 as float32 in [0, 1], by one multiplication, as `tf.image.convert_image_dtype`
    has it: x * float32(1 / 255), of which half of the values differ from x / 255 in the last bit.
    """
    return picture * np.float32(1 / 255)


def levels(pixels: np.ndarray) -> np.ndarray:
    """Pixels float32 in [0, 1] as levels float32 in [0, 255], with their fractions.

    Cut off they are those that the official evaluation makes of its images, (255 x) as uint8.
    """
    return np.clip(pixels * np.float32(255.0), np.float32(0.0), np.float32(255.0))


def truncated(pixels: np.ndarray) -> np.ndarray:
    """Levels uint8 of float pixels, as TensorFlow casts them: cut off, and 0 or 255 beyond."""
    return np.clip(pixels, 0.0, 255.0).astype(np.uint8)
