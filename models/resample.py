"""Changing the resolution of images, with an anti-aliasing filter (StyleGAN2) or without.

Images are `[B, H, W, C]`. A filter is a tuple of taps `k` along one axis, applied along both: the
2-D filter is the outer product of `k / sum(k)` with itself. Filters are sums of shifted images:
exact derivatives of every order come for free, and nothing is multiplied by an inserted zero.
Sizes that the factor does not divide are rounded down when made smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.ops.conv import Initializer, conv, default_init

Taps = Sequence[float]


def naive_upsample_2d(x: jax.Array, factor: int = 2) -> jax.Array:
    """Nearest neighbour: every pixel becomes a square of `factor` x `factor` pixels."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, factor, w, factor, c))
    return x.reshape(b, h * factor, w * factor, c)


def naive_downsample_2d(x: jax.Array, factor: int = 2) -> jax.Array:
    """The mean of every square of `factor` x `factor` pixels."""
    b, c = x.shape[0], x.shape[3]
    h, w = x.shape[1] // factor, x.shape[2] // factor
    x = x[:, : h * factor, : w * factor].reshape(b, h, factor, w, factor, c)
    return x.mean((2, 4))


def upfirdn_1d(
    x: jax.Array, axis: int, taps: Taps, up: int = 1, down: int = 1, before: int = 0, after: int = 0
) -> jax.Array:
    """Insert zeros, pad, filter and keep every `down`-th entry, along one axis.

    With `z` the sequence `x` with `up - 1` zeros after each entry, then padded with `before` and
    `after` zeros (cropped where negative),

        y[o] = sum_m taps[K - 1 - m] z[o down + m],   0 <= o <= (len(z) - K) / down.

    Output o = q up + r meets only those taps whose m leaves one remainder modulo `up`, and only
    every `down`-th entry of x: a polyphase filter, sums of shifted parts of x.
    """
    length = x.shape[axis]
    size = (length * up + before + after - len(taps)) // down + 1
    count = -(-size // up)
    edges = [(0, 0, 0)] * x.ndim

    def shift(x: jax.Array, low: int, high: int) -> jax.Array:
        return lax.pad(
            x, jnp.zeros((), x.dtype), [*edges[:axis], (low, high, 0), *edges[axis + 1 :]]
        )

    groups = -(-length // down)
    split = shift(x, 0, groups * down - length)
    split = split.reshape(*x.shape[:axis], groups, down, *x.shape[axis + 1 :])

    def every(start: int) -> jax.Array:
        skipped, part = divmod(start, down)
        x = lax.index_in_dim(split, part, axis + 1, keepdims=False)
        return shift(x, -skipped, skipped + count - groups)

    phases = []
    for r in range(up):
        starts = [divmod(r * down + m - before, up) for m in range(len(taps))]
        terms = [
            weight * every(start)
            for weight, (start, remainder) in zip(reversed(taps), starts, strict=True)
            if remainder == 0
        ]
        phases.append(sum(terms[1:], terms[0]))
    if up == 1:
        return phases[0]
    y = jnp.stack(phases, axis + 1)
    y = y.reshape(*x.shape[:axis], count * up, *x.shape[axis + 1 :])
    return lax.slice_in_dim(y, 0, size, 1, axis)


def _upfirdn_2d(
    x: jax.Array, kernel: Taps, gain: int, up: int, down: int, before: int, after: int
) -> jax.Array:
    total = sum(kernel)
    if len(kernel) < max(up, down) or total == 0:
        raise ValueError(
            f"FIR kernel {tuple(kernel)}: expected at least {max(up, down)} taps "
            "(the resampling factor) with a sum that is not zero"
        )
    taps = [float(gain * tap / total) for tap in kernel]
    for axis in (1, 2):
        x = upfirdn_1d(x, axis, taps, up, down, before, after)
    return x


def upsample_2d(x: jax.Array, kernel: Taps, factor: int = 2) -> jax.Array:
    """`factor` times as large; a constant image keeps its value away from the border."""
    extra = len(kernel) - factor
    before, after = (extra + 1) // 2 + factor - 1, extra // 2
    return _upfirdn_2d(x, kernel, factor, factor, 1, before, after)


def downsample_2d(x: jax.Array, kernel: Taps, factor: int = 2) -> jax.Array:
    """`factor` times as small."""
    extra = len(kernel) - factor
    return _upfirdn_2d(x, kernel, 1, 1, factor, (extra + 1) // 2, extra // 2)


def upsample_conv_2d(x: jax.Array, weight: jax.Array, kernel: Taps, factor: int = 2) -> jax.Array:
    """`upsample_2d`, then convolution with `weight [k, k, C, O]`, padded once, at the start."""
    reach = weight.shape[0] - 1
    extra = len(kernel) - factor - reach
    before = reach + (extra + 1) // 2 + factor - 1
    after = reach + extra // 2
    x = _upfirdn_2d(x, kernel, factor, factor, 1, before, after)
    return conv(x, weight, padding="VALID")


def conv_downsample_2d(x: jax.Array, weight: jax.Array, kernel: Taps, factor: int = 2) -> jax.Array:
    """Filter, then convolution with `weight [k, k, C, O]` and stride `factor`, padded once."""
    extra = len(kernel) - factor + weight.shape[0] - 1
    x = _upfirdn_2d(x, kernel, 1, 1, 1, (extra + 1) // 2, extra // 2)
    return conv(x, weight, factor, padding="VALID")


class Conv2d(nn.Module):
    """StyleGAN2's convolution, which may resample: parameters `weight [k, k, C, O]`, `bias [O]`."""

    features: int
    kernel_size: int = 3
    up: bool = False
    down: bool = False
    resample_kernel: Taps = (1, 3, 3, 1)
    use_bias: bool = True
    kernel_init: Initializer = default_init()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        weight = self.param("weight", self.kernel_init, shape)
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        )
        x, weight, bias = nn.dtypes.promote_dtype(x, weight, bias, dtype=self.dtype)
        if self.up:
            x = upsample_conv_2d(x, weight, self.resample_kernel)
        elif self.down:
            x = conv_downsample_2d(x, weight, self.resample_kernel)
        else:
            x = conv(x, weight)
        return x if bias is None else x + bias
