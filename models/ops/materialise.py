"""Identities that make XLA's CPU backend compute a value once and keep it.

It fuses sums and products into each of their consumers, however many there are and however long
the chain: the gradient of a residual network, a running sum over all blocks, is then computed anew
for every convolution and every bias. Training steps became twice as fast by stopping it at the
operands of convolutions and at the sums of residual blocks. Elsewhere nothing is changed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from models.ops import native

EXACT = lax.Precision.HIGHEST  # accelerators would round the factors of a product


def _cpu(x: jax.Array) -> jax.Array:
    """x, in a form that is never copied into several fusions: it reads x in two operands.

    The condition, a number above infinity, is false for every float. (XLA drops
    `lax.optimization_barrier` before it fuses, and copies freely what has one operand.)
    """
    first = lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(())
    return jnp.where(first > jnp.asarray(jnp.inf, x.dtype), -x, x)


def _identity(name: str) -> Primitive:
    """A primitive that returns its operand, whose transpose is `materialise`."""
    primitive = Primitive(name)
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    ad.deflinear2(primitive, lambda g, x: [materialise_p.bind(g)])
    batching.defvectorized(primitive)
    mlir.register_lowering(primitive, mlir.lower_fun(lambda x: x, multiple_results=False))
    return primitive


materialise_p = _identity("materialise")
materialise_cotangent_p = _identity("materialise_cotangent")
mlir.register_lowering(materialise_p, mlir.lower_fun(_cpu, multiple_results=False), "cpu")


def materialise(x: jax.Array) -> jax.Array:
    """x; on CPU it and its cotangent are computed once, not by each of their consumers."""
    return materialise_p.bind(x)


def materialise_cotangent(x: jax.Array) -> jax.Array:
    """x; on CPU the cotangent of x is computed once, not by each of its consumers."""
    return materialise_cotangent_p.bind(x)


def spread(a: jax.Array, count: int) -> jax.Array:
    """a [B, C] repeated over pixels, [B, count, C]; its transpose is `sum_pixels`."""
    if not native.for_cpu():
        return jnp.broadcast_to(a[:, None], (len(a), count, a.shape[1]))
    ones = lax.full((len(a), 1, count), 1, a.dtype)
    return lax.dot_general(ones, a[:, None], (((1,), (1,)), ((0,), (0,))), EXACT)


def sum_pixels(x: jax.Array) -> jax.Array:
    """The sum over pixels of x [B, pixels, C], [B, C].

    On CPU a matrix product is several times faster than a sum along strides, and ends a fusion.
    """
    if not native.for_cpu():
        return x.sum(1)
    ones = lax.full((len(x), x.shape[1]), 1, x.dtype)
    return lax.dot_general(ones, x, (((1,), (1,)), ((0,), (0,))), EXACT)
