"""Probes of Hutchinson's trace estimator: random directions v with E[v v'] = I."""

from __future__ import annotations

import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Shaped

AnyKeys = Shaped[Array, "batch"]  # [B], typed keys; `exact` only counts them
Probes = Float[Array, "probes batch *image"]  # [K, B, ...]

# Probes: keys [B] (typed, one per image) and the shape of an image -> [K, B, ...], E[v v'] = I.


@runtime_checkable
class Probe(Protocol):
    def __call__(self, keys: AnyKeys, shape: tuple[int, ...], num_probes: int = 1) -> Probes: ...


def rademacher(keys: AnyKeys, shape: tuple[int, ...], num_probes: int = 1) -> Probes:
    """Probes with independent entries +1 or -1, [num_probes, B, ...]."""
    draw = functools.partial(jax.random.rademacher, shape=(num_probes, *shape), dtype=jnp.float32)
    return jax.vmap(draw, out_axes=1)(keys)


def gaussian(keys: AnyKeys, shape: tuple[int, ...], num_probes: int = 1) -> Probes:
    """Probes with independent standard-normal entries, [num_probes, B, ...]."""
    draw = functools.partial(jax.random.normal, shape=(num_probes, *shape))
    return jax.vmap(draw, out_axes=1)(keys)


def exact(keys: AnyKeys, shape: tuple[int, ...], num_probes: int = 1) -> Probes:
    """The D coordinate directions times sqrt(D), [D, B, ...]: the exact trace, for small D.

    The mean over them of v' J v is the trace of J. `num_probes` changes nothing.
    """
    size = math.prod(shape)
    basis = math.sqrt(size) * jnp.eye(size).reshape(size, 1, *shape)
    return jnp.broadcast_to(basis, (size, len(keys), *shape))


PROBES: dict[str, Probe] = {"rademacher": rademacher, "gaussian": gaussian, "exact": exact}
