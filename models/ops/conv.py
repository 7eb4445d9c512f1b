r"""Convolution as one corner of a trilinear form.

With images `x [B, H, W, C]`, kernels `w [h, w, C, O]` and cotangents `g [B, H', W', O]`,

    T(x, w, g) = < conv(x, w), g >

is linear in each argument, and its three partial derivatives are all that reverse and forward
differentiation of any order ever need:

    conv(x, w) = dT/dg        conv_dx(g, w) = dT/dx        conv_dw(x, g) = dT/dw

Each is a bilinear JAX primitive, and the transpose of each is one of the other two. XLA writes the
last two as transposed convolutions, which its CPU backend runs 30 to 80 times slower inside a loop
(`scan`, `while`) than outside. Hence on CPU they are written as forward convolutions: `conv_dx`
with the kernel flipped in space and its channels exchanged, `conv_dw` with batch and channels
exchanged and the cotangent as kernel. Images smaller than the kernel, which that backend convolves
20 times slower than others, are multiplied with it as one matrix of patches. Wherever it can, the
CPU instead calls oneDNN (`models/ops/native.py`). Other platforms get XLA's own form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from models.ops import native
from models.ops.materialise import materialise, materialise_cotangent, spread

Ints = tuple[int, ...]
Padding = str | Sequence[tuple[int, int]]
Initializer = Callable[..., jax.Array]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """The properties of a convolution that two shapes of (x, w, g) do not determine."""

    image: Ints
    window: Ints
    stride: Ints
    dilation: Ints
    padding: tuple[tuple[int, int], ...]

    @property
    def pointwise(self) -> bool:
        """True if the convolution is a product with each pixel alone."""
        return self.window == self.stride == (1, 1) and not np.any(self.padding)


def _conv(x: jax.Array, w: jax.Array, geometry: Geometry, groups: int = 1) -> jax.Array:
    """dT/dg in XLA's own form."""
    if groups == 1 and geometry.pointwise and native.for_cpu():
        return x @ w[0, 0]
    return lax.conv_general_dilated(
        x,
        w,
        geometry.stride,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def _dx_transposed(g: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """dT/dx in XLA's own form, a transposed convolution."""
    x = jax.ShapeDtypeStruct((g.shape[0], *geometry.image, w.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: _conv(x, w, geometry), x)(g)[0]


def _dw_transposed(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """dT/dw in XLA's own form, a transposed convolution."""
    w = jax.ShapeDtypeStruct((*geometry.window, x.shape[3], g.shape[3]), g.dtype)
    return jax.linear_transpose(lambda w: _conv(x, w, geometry), w)(g)[0]


def _conv_cpu(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """dT/dg on the CPU."""
    if not _smaller(x, w):
        return _conv(x, w, geometry)
    return _patches(x, w, geometry.stride, geometry.dilation, geometry.padding, (1, 1))


def _smaller(x: jax.Array, w: jax.Array) -> bool:
    """True if images are smaller than the kernel along an axis."""
    return x.shape[1] < w.shape[0] or x.shape[2] < w.shape[1]


def _patches(
    x: jax.Array,
    w: jax.Array,
    stride: Ints,
    dilation: Ints,
    padding: Sequence[tuple[int, int]],
    spacing: Ints,
) -> jax.Array:
    """The convolution as a product of patches [B, H', W', h w C] of x, spaced out and padded."""
    margins = [(*padding[i], spacing[i] - 1) for i in range(2)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    starts = [x.shape[1 + i] - (w.shape[i] - 1) * dilation[i] for i in range(2)]

    def rows(i: int, tap: int) -> slice:
        first = tap * dilation[i]
        return slice(first, first + starts[i], stride[i])

    taps = [x[:, rows(0, i), rows(1, j)] for i, j in np.ndindex(*w.shape[:2])]
    return jnp.concatenate(taps, -1) @ w.reshape(-1, w.shape[3])


def _dx_forward(g: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """dT/dx on the CPU, a forward convolution with the flipped kernel."""
    padding = []
    for i in range(2):
        reach = (geometry.window[i] - 1) * geometry.dilation[i]
        before = reach - geometry.padding[i][0]
        dilated = (g.shape[1 + i] - 1) * geometry.stride[i] + 1
        padding.append((before, geometry.image[i] + reach - dilated - before))
    w = jnp.flip(w, (0, 1)).swapaxes(2, 3)
    if _smaller(g, w):
        return _patches(g, w, (1, 1), geometry.dilation, padding, geometry.stride)
    return lax.conv_general_dilated(
        g,
        w,
        (1, 1),
        padding,
        lhs_dilation=geometry.stride,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_LAYOUT,
    )


def _dw_forward(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """dT/dw on the CPU, a forward convolution with the cotangent as kernel."""
    padding = []
    for i in range(2):
        before = geometry.padding[i][0]
        dilated = (g.shape[1 + i] - 1) * geometry.stride[i] + 1
        reach = (geometry.window[i] - 1) * geometry.dilation[i]
        padding.append((before, reach + dilated - geometry.image[i] - before))
    w = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        geometry.dilation,
        padding,
        rhs_dilation=geometry.stride,
        dimension_numbers=_LAYOUT,
    )
    return w.transpose(1, 2, 0, 3)


def _bilinear(
    name: str,
    general: Callable[..., jax.Array],
    cpu: Callable[..., jax.Array],
    free: Sequence[tuple[int, int]],
) -> Primitive:
    """A primitive of two arrays; `free[k]` is the axis of operand k that the result keeps, and
    its axis there: mapping one operand alone is a longer free axis."""
    primitive = Primitive(name)

    def batch(operands: Sequence[jax.Array], axes: Sequence[Any], geometry: Geometry) -> Any:
        if None not in axes:
            run = jax.vmap(functools.partial(general, geometry=geometry), tuple(axes))
            return run(*operands), 0
        k = 0 if axes[1] is None else 1
        mapped = jnp.moveaxis(operands[k], axes[k], free[k][0])
        folded = lax.collapse(mapped, free[k][0], free[k][0] + 2)
        operands = (folded, operands[1]) if k == 0 else (operands[0], folded)
        out = primitive.bind(*operands, geometry=geometry)
        axis = free[k][1]
        size = mapped.shape[free[k][0]]
        return out.reshape(*out.shape[:axis], size, -1, *out.shape[axis + 1 :]), axis

    def shape(*operands: Any, geometry: Geometry) -> jax.core.ShapedArray:
        out = jax.eval_shape(functools.partial(general, geometry=geometry), *operands)
        return jax.core.ShapedArray(out.shape, out.dtype)

    def on_cpu(a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
        out = shape(a, b, geometry=geometry)
        if not out.size or np.min(geometry.padding) < 0 or not native.takes(a, b, out):
            return general(a, b, geometry) if geometry.pointwise else cpu(a, b, geometry)
        before, after = zip(*geometry.padding, strict=True)
        strides = {"stride": geometry.stride, "dilation": geometry.dilation}
        attributes = {**strides, "before": before, "after": after}
        arrays = {key: np.array(value, np.int64) for key, value in attributes.items()}
        return native.call(name, (a, b), [out.shape], **arrays)[0]

    primitive.def_impl(jax.jit(primitive.bind, static_argnames="geometry"))
    primitive.def_abstract_eval(shape)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(general, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, multiple_results=False), "cpu")
    return primitive


conv_p = _bilinear("conv", _conv, _conv_cpu, free=((0, 0), (3, 3)))
conv_dx_p = _bilinear("conv_dx", _dx_transposed, _dx_forward, free=((0, 0), (2, 3)))
conv_dw_p = _bilinear("conv_dw", _dw_transposed, _dw_forward, free=((3, 2), (3, 3)))

ad.defbilinear(
    conv_p,
    lambda g, x, w, geometry: conv_dx_p.bind(g, w, geometry=geometry),
    lambda g, x, w, geometry: conv_dw_p.bind(x, g, geometry=geometry),
)
ad.defbilinear(
    conv_dx_p,
    lambda x, g, w, geometry: conv_p.bind(x, w, geometry=geometry),
    lambda x, g, w, geometry: conv_dw_p.bind(x, g, geometry=geometry),
)
ad.defbilinear(
    conv_dw_p,
    lambda w, x, g, geometry: conv_dx_p.bind(g, w, geometry=geometry),
    lambda w, x, g, geometry: conv_p.bind(x, w, geometry=geometry),
)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: Padding = "SAME",
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation of images `x [B, H, W, C]` with `kernel [h, w, C / groups, O]`.

    `padding` is "SAME", "VALID" or ((top, bottom), (left, right)). Operands of different types
    are promoted to their common type, which is the type of the result `[B, H', W', O]`.

    Raises:
      ValueError: the kernel does not have C / groups input channels.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2] * groups:
        raise ValueError(
            f"conv: images {x.shape} and kernel {kernel.shape} do not fit; "
            f"expected [B, H, W, C] and [h, w, C / {groups}, O]"
        )
    x, kernel = nn.dtypes.promote_dtype(x, kernel)
    window = kernel.shape[:2]
    if isinstance(padding, str):
        reach = [(size - 1) * dilation + 1 for size in window]
        padding = lax.padtype_to_pads(x.shape[1:3], reach, (stride, stride), padding)
    geometry = Geometry(
        image=x.shape[1:3],
        window=window,
        stride=(stride, stride),
        dilation=(dilation, dilation),
        padding=tuple((int(before), int(after)) for before, after in padding),
    )
    if groups > 1 or not native.for_cpu():
        return _conv(x, kernel, geometry, groups)
    if window == (1, 1) and not np.any(padding):
        return dense(x[:, ::stride, ::stride], kernel[0, 0])
    return conv_p.bind(materialise(x), kernel, geometry=geometry)


def dense(x: jax.Array, w: jax.Array) -> jax.Array:
    """The product of `x [..., C]` with `w [C, O]`, as a convolution of single pixels."""
    if not native.for_cpu():
        return x @ w
    pixels = x.reshape(len(x), -1, 1, x.shape[-1])
    geometry = Geometry(pixels.shape[1:3], (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
    y = conv_p.bind(pixels, w[None, None], geometry=geometry)
    return y.reshape(*x.shape[:-1], w.shape[1])


def default_init(scale: float = 1.0) -> Initializer:
    """DDPM's initialiser: uniform with variance `scale` over the mean of fan-in and fan-out.

    A scale of zero becomes 1e-10, so that a last layer begins at nearly nothing. Numbers are drawn
    by powers of two: kernels of many shapes then share few generators, which XLA compiles slowly.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        size = math.prod(shape)
        fan = 0.5 * (shape[-2] + shape[-1]) * math.prod(shape[:-2])
        numbers = jax.random.uniform(key, (1 << (size - 1).bit_length(),), dtype, -1.0)
        return numbers[:size].reshape(shape) * math.sqrt(3.0 * (scale or 1e-10) / fan)

    return init


class Conv(nn.Module):
    """A square convolution with parameters `kernel [k, k, C, features]` and `bias [features]`."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Initializer = default_init()
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv(x, kernel, self.stride, dilation=self.dilation)
        if bias is not None:
            y += spread(bias[None], y.size // y.shape[-1]).reshape(y.shape)
        return materialise_cotangent(y)
