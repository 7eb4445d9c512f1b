"""Parameters in few arrays: the same numbers, and the same steps, as in a tree."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import devices, ema
from training import joined, layout, optimizers
from training.state import TrainState
from training.step import apply_gradients


def tree(seed: int) -> Any:
    """Parameters of several shapes, some frozen and some large."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "conv": {"kernel": normal(3, 3, 4, 8), "bias": normal(8)},
        "GaussianFourierProjection_0": {"W": normal(16)},
        "dense": {"kernel": normal(256, 256), "scale": normal()},
        "last": normal(2, 1, 0),
    }


def test_joined_and_split_again_on_host_and_device():
    first = tree(0)
    for concatenate, kind in ((np.concatenate, np.ndarray), (jnp.concatenate, jax.Array)):
        few = joined.join(first, concatenate)
        assert [leaf.shape for leaf in few.large] == [(256, 256)]
        assert few.fourier.shape == (16,)
        assert few.small.shape == (3 * 3 * 4 * 8 + 8 + 1,)
        assert isinstance(few.small, kind)
        jax.tree.map(np.testing.assert_array_equal, joined.split(few, first), first)
    assert math.prod(few.large[0].shape) == joined.LARGE


def test_what_is_frozen_is_so_when_it_is_joined():
    paths = jax.tree_util.tree_leaves_with_path(joined.join(tree(0)))
    assert [joined.frozen(*pair) for pair in paths] == [True, False, False]


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_steps_of_joined_parameters_have_the_same_bits(name):
    """Also with decay of weights, which leaves out what is frozen, and two averages."""
    optimizer = optimizers.make_optimizer(1e-2, weight_decay=0.1, name=name)
    averaging = ema.Averaging(ema.constant(0.9), {"one": ema.power(0.1)})
    params = tree(1)
    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params),
        ema_params=tree(2), key=jax.random.key(3), averages={"one": tree(4)},
    )  # fmt: skip

    def apply(state: TrainState, grads: Any) -> TrainState:
        return apply_gradients(state, grads, optimizer, averaging)

    def apply_joined(state: TrainState, grads: Any) -> TrainState:
        return layout.apply_to_joined(apply, state, joined.join(grads))

    whole = layout.Whole(params)
    joint = whole.joined(state, jnp.concatenate)
    for seed in (5, 6):
        state = jax.jit(apply)(state, tree(seed))
        joint = jax.jit(apply_joined)(joint, tree(seed))
    found = whole.on_host(devices.replicate(joint))
    for (path, expected), leaf in zip(
        jax.tree_util.tree_leaves_with_path(vars(state.replace(key=None))),
        jax.tree.leaves(vars(found.replace(key=None))),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, expected, err_msg=jax.tree_util.keystr(path))
