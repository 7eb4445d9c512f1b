"""How the training state lies on the devices: whole on each, or partly in slices, one a device.

In slices lie the optimiser's moments and the averages (Rajbhandari et al. 2020, "ZeRO", stage 1,
arXiv:1910.02054). A device gets its slice of the mean gradients, makes that of the new parameters,
and all of them exchange these: as many bytes cross the links as for gradients that all devices get,
since an all-reduce is such a scatter and such an exchange. A leaf of s numbers becomes a vector,
filled up with zeros to n k numbers, k = ceil(s / n), of which device i has those from i k on.

Where they are whole, moments and averages of small parameters lie in one vector, see
`training.joined`. On the host, and so in checkpoints, everything is as the parameters are.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from runtime import devices
from training import joined
from training.state import TrainState

Tree = Any
HELD = ("opt_state", "ema_params", "averages")  # of a `TrainState`, where they are as parameters


class Layout(abc.ABC):
    """How a state lies on the devices.

    Args:
      params: the parameters or their shapes.
    """

    def __init__(self, params: Tree):
        self.params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
        self.structure: Any = jax.tree.structure(params)

    @abc.abstractmethod
    def place(self, state: TrainState) -> TrainState:
        """The state on all devices, of one on the host or on one of them."""

    @abc.abstractmethod
    def whole(self, tree: Tree) -> Tree:
        """Averages as they lie on the devices, as copies on all of them, built as parameters."""

    @abc.abstractmethod
    def on_host(self, tree: Tree) -> Tree:
        """The NumPy tree that a checkpoint holds."""

    def each(
        self,
        function: Callable[[Tree], Tree],
        tree: Tree,
        otherwise: Callable[[Any], Any],
    ) -> Tree:
        """Applies a function to all trees in `tree` that are built as the parameters are.

        Args:
          otherwise: what is applied to other leaves.
        """

        def is_like(subtree: Tree) -> bool:
            return bool(jax.tree.structure(subtree) == self.structure)

        return jax.tree.map(
            lambda subtree: function(subtree) if is_like(subtree) else otherwise(subtree),
            tree,
            is_leaf=is_like,
        )


class Whole(Layout):
    """Everything lies on every device; moments and averages are `Joined`."""

    def place(self, state: TrainState) -> TrainState:
        return devices.replicate(self.joined(state, np.concatenate))

    def joined(self, state: TrainState, concatenate: Callable[..., Any]) -> TrainState:
        """The state with moments and averages that are joined by a function."""
        join = functools.partial(joined.join, concatenate=concatenate)
        return state.replace(
            **{name: self.each(join, getattr(state, name), lambda leaf: leaf) for name in HELD}
        )

    def whole(self, tree: Tree) -> Tree:
        return devices.replicate(self.on_host(tree))

    def on_host(self, tree: Tree) -> Tree:
        def is_joined(node: Any) -> bool:
            return isinstance(node, joined.Joined)

        return jax.tree.map(
            lambda node: joined.split(node, self.params) if is_joined(node) else node,
            devices.fetch(tree),
            is_leaf=is_joined,
        )


class Sliced(Layout):
    """Moments and averages lie in slices."""

    def __init__(self, params: Tree):
        super().__init__(params)
        own = functools.partial(part, axis_name=devices.AXIS)
        self._split = jax.pmap(
            lambda _, tree: jax.tree.map(own, tree), axis_name=devices.AXIS, in_axes=(0, None)
        )
        self._join = jax.pmap(
            functools.partial(gathered, like=params, axis_name=devices.AXIS), axis_name=devices.AXIS
        )

    def place(self, state: TrainState) -> TrainState:
        split = functools.partial(self._split, np.arange(jax.local_device_count()))
        slices = {name: self.each(split, getattr(state, name), devices.replicate) for name in HELD}
        rest = devices.replicate(state.replace(**dict.fromkeys(HELD)))
        return rest.replace(**slices)

    def whole(self, tree: Tree) -> Tree:
        return self.each(self._join, tree, lambda leaf: leaf)

    def on_host(self, tree: Tree) -> Tree:
        def fetch(slices: Tree) -> Tree:
            return devices.fetch(self._join(slices))

        if not isinstance(tree, TrainState):
            return self.each(fetch, tree, devices.fetch)
        slices = {name: self.each(fetch, getattr(tree, name), devices.fetch) for name in HELD}
        rest: TrainState = devices.fetch(tree.replace(**dict.fromkeys(HELD)))
        return rest.replace(**slices)


def from_config(config: ml_collections.ConfigDict, state: TrainState) -> Layout:
    """The layout of `training.shard_state`, of a state or its shapes."""
    return Sliced(state.params) if config.training.shard_state else Whole(state.params)


# Inside a mapped function.


def part(leaf: jax.Array, axis_name: str) -> jax.Array:
    """This device's slice [k] of a leaf that all have."""
    slices = _slices(leaf, axis_name)
    return jax.lax.dynamic_index_in_dim(slices, jax.lax.axis_index(axis_name), keepdims=False)


def mean_part(leaf: jax.Array, axis_name: str) -> jax.Array:
    """This device's slice [k] of the mean of a leaf over the devices."""
    total = jax.lax.psum_scatter(_slices(leaf, axis_name), axis_name)
    return total / jax.lax.axis_size(axis_name)


def gathered(slices: Tree, like: Tree, axis_name: str) -> Tree:
    """The tree that all devices have the slices of, in the shapes of `like`."""

    def one(own: jax.Array, leaf: Any) -> jax.Array:
        vector = jax.lax.all_gather(own, axis_name, tiled=True)
        return vector[: math.prod(leaf.shape)].reshape(leaf.shape)

    return jax.tree.map(one, slices, like)


def norm(slices: Tree, axis_name: str) -> jax.Array:
    """The Euclidean norm of a tree in slices, over all of its leaves and devices."""
    squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(slices))
    return jnp.sqrt(jax.lax.psum(squares, axis_name))


def apply_in_slices(
    apply: Callable[[TrainState, Tree], TrainState],
    state: TrainState,
    grads: Tree,
    axis_name: str,
) -> TrainState:
    """The state after `apply(state, gradients)`, where a device does it for its slices alone.

    Args:
      apply: acts on each number for itself, but for `norm`.
      state: with whole parameters.
      grads: slices of the gradients.
    """
    own = jax.tree.map(functools.partial(part, axis_name=axis_name), state.params)
    new = apply(state.replace(params=own), grads)
    return new.replace(params=gathered(new.params, state.params, axis_name))


def apply_to_joined(
    apply: Callable[[TrainState, Tree], TrainState], state: TrainState, grads: joined.Joined
) -> TrainState:
    """The state after `apply(state, gradients)`, where all but the parameters are joined.

    Args:
      apply: as for `apply_in_slices`.
    """
    new = apply(state.replace(params=joined.join(state.params)), grads)
    return new.replace(params=joined.split(new.params, state.params))


def _slices(leaf: jax.Array, axis_name: str) -> jax.Array:
    """A leaf as [n, k], filled up with zeros."""
    count = jax.lax.axis_size(axis_name)
    zeros = filled_up(leaf.size, count) - leaf.size
    return jnp.pad(leaf.ravel(), (0, zeros)).reshape(count, -1)


def filled_up(size: int, count: int) -> int:
    """The numbers in all slices of a leaf of `size` numbers, n k, on `count` devices."""
    return size + -size % count
