r"""Group normalisation (Wu & He 2018), optionally with swish, and its two derivatives.

For an image x [pixels, C] whose channels form groups of neighbours, with mean m and variance v over
the pixels and channels of a group,

    y = act((x - m) / sqrt(v + epsilon) * scale + bias),      act(y) = y or y / (1 + exp(-y)).

On the CPU it is a primitive with its tangent, `norm_jvp`, and its cotangent, `norm_vjp`, each one
call of a native function (`models/ops/native.py`); derivatives of higher order are JAX's of the
equation. Elsewhere, and for operands that native functions do not take, XLA compiles the equation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from models.ops import native
from models.ops.materialise import spread, sum_pixels


def _norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float, swish: bool
) -> jax.Array:
    """The equation; x [B, pixels, C], scale and bias [C] or, one for each image, [B, C]. Mean and
    variance are taken one after the other, first per channel, where memory is contiguous."""
    pixels, channels = x.shape[1:]

    def group_mean(y: jax.Array) -> jax.Array:
        sums = sum_pixels(y).reshape(-1, groups, channels // groups).sum(2)
        means = sums * (groups / (pixels * channels))
        return jnp.repeat(means, channels // groups, axis=1)

    centred = x - spread(group_mean(x), pixels)
    gain = scale * jax.lax.rsqrt(group_mean(jnp.square(centred)) + epsilon)
    shift = jnp.broadcast_to(bias, gain.shape)
    y = centred * spread(gain, pixels) + spread(shift, pixels)
    return nn.swish(y) if swish else y


def _norm_at_once(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float, swish: bool
) -> jax.Array:
    """The equation for platforms that wait for their memory: x is read once for both sums.

    The variance is E[d^2] - E[d]^2 of d = x - c. The constant c of each group, the mean of its
    first pixel, keeps the difference from cancelling where the mean is large.
    """
    shape, within = (groups, -1), (*range(1, x.ndim - 1), x.ndim)
    parts = x.reshape(*x.shape[:-1], groups, -1)
    first = x[:, *[slice(1)] * (x.ndim - 2)]
    first = first.reshape(*first.shape[:-1], groups, -1).mean(-1, keepdims=True)
    first = jax.lax.stop_gradient(first)
    d = parts - first
    mean, square = (y.mean(within, keepdims=True) for y in (d, jnp.square(d)))
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    gain = scale.reshape(shape) * jax.lax.rsqrt(variance + epsilon)
    shift = bias.reshape(shape) - (mean + first) * gain
    rows = (len(x), *[1] * (x.ndim - 2), x.shape[-1])
    y = x * gain.reshape(rows) + shift.reshape(rows)
    return nn.swish(y) if swish else y


def _norm_jvp(*operands: jax.Array, **options: Any) -> jax.Array:
    """The tangent of y for x, scale, bias and their tangents."""
    return jax.jvp(functools.partial(_norm, **options), operands[:3], operands[3:])[1]


def _norm_vjp(
    x: jax.Array, scale: jax.Array, bias: jax.Array, g: jax.Array, **options: Any
) -> list[jax.Array]:
    """The cotangents [B, pixels, C], [B, C], [B, C] of x, scale and bias in each image."""
    per_image = [jnp.broadcast_to(a, (len(x), x.shape[2])) for a in (scale, bias)]
    return list(jax.vjp(functools.partial(_norm, **options), x, *per_image)[1](g))


def _primitive(name: str, general: Callable[..., Any], mapped: Sequence[int]) -> Primitive:
    """A primitive of float32 arrays; `mapped` operands have one row for each image."""
    primitive = Primitive(name)
    primitive.multiple_results = many = name == "norm_vjp"

    def cpu(*operands: jax.Array, **options: Any) -> Any:
        options["groups"] = np.int64(options["groups"])
        options["epsilon"] = np.float32(options["epsilon"])
        target = name.replace("norm", "norm_swish") if options.pop("swish") else name
        image, sums = operands[0].shape, operands[0].shape[::2]
        out = native.call(target, operands, [image, sums, sums] if many else [image], **options)
        return out if many else out[0]

    def shape(*operands: Any, **options: Any) -> Any:
        out = jax.eval_shape(functools.partial(general, **options), *operands)
        return jax.tree.map(lambda a: jax.core.ShapedArray(a.shape, a.dtype), out)

    def batch(operands: Sequence[jax.Array], axes: Sequence[Any], **options: Any) -> Any:
        size = next(a.shape[i] for a, i in zip(operands, axes, strict=True) if i is not None)
        if any(axis is not None for i, axis in enumerate(axes) if i not in mapped):
            run = jax.vmap(functools.partial(general, **options), tuple(axes))
            out = run(*operands)
            return out, jax.tree.map(lambda _: 0, out)
        folded = list(operands)
        for i in mapped:
            rows = batching.bdim_at_front(operands[i], axes[i], size)
            folded[i] = rows.reshape(-1, *rows.shape[2:])
        out = primitive.bind(*folded, **options)
        out = jax.tree.map(lambda a: a.reshape(size, -1, *a.shape[1:]), out)
        return out, jax.tree.map(lambda _: 0, out)

    def higher(primals: Sequence[Any], tangents: Sequence[Any], **options: Any) -> Any:
        filled = tuple(ad.instantiate_zeros(tangent) for tangent in tangents)
        return jax.jvp(functools.partial(general, **options), tuple(primals), filled)

    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("groups", "epsilon", "swish")))
    primitive.def_abstract_eval(shape)
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = higher
    mlir.register_lowering(primitive, mlir.lower_fun(general, multiple_results=many))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=many), "cpu")
    return primitive


norm_p = _primitive("norm", _norm, mapped=(0,))
norm_jvp_p = _primitive("norm_jvp", _norm_jvp, mapped=(0, 3))
norm_vjp_p = _primitive("norm_vjp", _norm_vjp, mapped=(0, 3))


def _tangent(primals: Sequence[Any], tangents: Sequence[Any], **options: Any) -> Any:
    filled = [ad.instantiate_zeros(tangent) for tangent in tangents]
    return norm_p.bind(*primals, **options), norm_jvp_p.bind(*primals, *filled, **options)


def _cotangent(g: Any, *operands: Any, **options: Any) -> list[Any]:
    if isinstance(g, ad.Zero):
        return [None] * 6
    dx, dscale, dbias = norm_vjp_p.bind(*operands[:3], g, **options)
    linear = zip((dx, dscale.sum(0), dbias.sum(0)), operands[3:], strict=True)
    return [None] * 3 + [out if ad.is_undefined_primal(old) else None for out, old in linear]


ad.primitive_jvps[norm_p] = _tangent
ad.primitive_transposes[norm_jvp_p] = _cotangent


def group_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    groups: int,
    epsilon: float = 1e-6,
    swish: bool = False,
) -> jax.Array:
    """Images `x [B, ..., C]` of float32, normalised within `groups` of channels; with `swish`,
    its activation too. `scale` and `bias` are [C].

    Raises:
      ValueError: the channels do not divide into the groups.
    """
    channels = x.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"GroupNorm: {channels} channels do not divide into {groups} groups; "
            "choose model.nf and model.ch_mult such that every width does"
        )
    options: dict[str, Any] = {"groups": groups, "epsilon": epsilon, "swish": swish}
    if not native.for_cpu():
        return _norm_at_once(x, scale, bias, **options)
    norm = norm_p.bind if native.takes(x, scale, bias) else _norm
    pixels = x.reshape(len(x), -1, channels)
    y: jax.Array = norm(pixels, scale, bias, **options)
    return y.reshape(x.shape)
