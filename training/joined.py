"""Trees of parameters as few arrays: small ones lie one behind the other in a vector.

A network has hundreds of parameters, and an optimiser with two moments and an average does six
things to each of them. XLA makes a kernel of every one: a third of the time that a small network's
step takes to compile. What acts on each number for itself acts on a vector of them all as well, to
the bit. Large parameters stay as they are, so that joining them takes no memory to speak of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any
LARGE = 2**16  # numbers


class Joined(NamedTuple):
    """A tree of parameters, or of anything built alike, as few arrays.

    Attributes:
      fourier: what is `frozen`, as a vector; its name says so to `frozen` here, too.
      small: what has fewer than `LARGE` numbers, as a vector.
      large: the other leaves.
    """

    fourier: Any
    small: Any
    large: tuple[Any, ...]


def frozen(path: tuple[Any, ...], leaf: Any) -> bool:
    """True if a parameter is fixed by design: the random frequencies of the Fourier embedding."""
    del leaf
    return any("fourier" in str(entry).lower() for entry in path)


def join(tree: Tree, concatenate: Callable[[Sequence[Any]], Any] = jnp.concatenate) -> Joined:
    """The leaves of a tree, of one type, in its order; on the host with `np.concatenate`."""
    vectors: dict[str, list[Any]] = {"fourier": [], "small": []}
    large = []
    for leaf, place in zip(jax.tree.leaves(tree), places(tree), strict=True):
        if place == "large":
            large.append(leaf)
        else:
            vectors[place].append(leaf.reshape(-1))
    empty = jax.tree.leaves(tree)[0].reshape(-1)[:0]
    return Joined(
        **{name: concatenate([*leaves, empty]) for name, leaves in vectors.items()},
        large=tuple(large),
    )


def split(joined: Joined, like: Tree) -> Tree:
    """The inverse of `join` for a tree with the structure and the shapes of `like`."""
    begin = {"fourier": 0, "small": 0}
    large, leaves = iter(joined.large), []
    for leaf, place in zip(jax.tree.leaves(like), places(like), strict=True):
        if place == "large":
            leaves.append(next(large))
        else:
            first = begin[place]
            begin[place] = first + math.prod(leaf.shape)
            leaves.append(getattr(joined, place)[first : begin[place]].reshape(leaf.shape))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def places(tree: Tree) -> list[str]:
    """The attribute of `Joined` in which each leaf lies."""
    return [
        "fourier" if frozen(path, leaf)
        else "large" if math.prod(leaf.shape) >= LARGE
        else "small"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]  # fmt: skip
