"""Networks of real-valued examples: shapes, conditions, derivatives, and what each can tell."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import models
from configs import defaults
from models.transformer import Transformer, examples_of, tokens_of
from models.unet1d import Conv1D, UNet1D
from tests.weights import normal_weights

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "mlp": [(5,), (8, 2), (4, 4, 2)],
    "transformer": [(5,), (8, 2), (4, 4, 2), (2, 4, 2, 3)],
    "unet1d": [(8, 2)],
}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


def config_of(name: str, shape: tuple[int, ...], **changes: Any) -> ConfigDict:
    config = defaults.points("arrays")
    config.data.shape, config.model.name = shape, name
    config.model.nf, config.model.num_res_blocks, config.model.ch_mult = 8, 1, (1, 2)
    config.model.attn_resolutions = (8,) if name == "unet1d" else ()
    config.model.patch_size = 1 if len(shape) == 1 else 2
    config.update_from_flattened_dict({f"model.{k}": v for k, v in changes.items()})
    return config


def normal(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype("f4")


def random_weights(init: Any, std: float) -> Any:
    """Normal weights of the shapes that `init` makes of a key."""
    return normal_weights(jax.eval_shape(init, jax.random.key(0)), std)


@functools.cache
def network(name: str, shape: tuple[int, ...], **changes: Any) -> Any:
    """A network with random weights, also where they begin at zero."""
    module = models.from_config(config_of(name, shape, **changes))
    weights = random_weights(functools.partial(models.init, module, image_shape=shape), 0.4)
    return jax.jit(functools.partial(module.apply, {"params": weights}))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_network_is_told_noise_level_and_class(name: str, shape: tuple[int, ...]) -> None:
    x, labels = np.ones((2, *shape), np.float32), np.array([1.0, 500.0], np.float32)
    apply = network(name, shape, num_labels=3)
    of_class = np.asarray(apply(x, labels, y=np.array([0, 0])))
    assert of_class.shape == x.shape
    assert np.abs(of_class[0] - of_class[1]).max() > 1e-4
    assert np.abs(of_class - apply(x, labels, y=np.array([2, 2]))).max() > 1e-4
    np.testing.assert_array_equal(apply(x, labels), apply(x, labels, y=np.array([3, 3])))


@pytest.mark.parametrize(("name", "shape"), [(name, shapes[0]) for name, shapes in SHAPES.items()])
def test_a_network_without_time_is_the_same_at_all_times(name: str, shape: tuple[int, ...]) -> None:
    x, labels = np.ones((2, *shape), np.float32), np.array([1.0, 5.0], np.float32)
    unaware = np.asarray(network(name, shape, conditional=False)(x, labels))
    np.testing.assert_allclose(unaware[0], unaware[1], rtol=1e-5)
    divided = np.asarray(network(name, shape, conditional=False, scale_by_sigma=True)(x, labels))
    ones = [1] * len(shape)
    np.testing.assert_allclose(divided * labels.reshape(-1, *ones), unaware, rtol=1e-5)


@pytest.mark.parametrize(("name", "shape"), [("transformer", (5,)), ("unet1d", (8, 2))])
def test_every_number_reaches_every_other_and_derivatives_are_right(
    name: str, shape: tuple[int, ...]
) -> None:
    apply, size = network(name, shape), int(np.prod(shape))
    x, v = np.random.default_rng(1).normal(size=(2, size)).astype("f4")

    @jax.jit
    def of(x: jax.Array) -> jax.Array:
        return apply(x.reshape(1, *shape), jnp.array([200.0])).ravel()

    jacobian = np.asarray(jax.jit(jax.jacfwd(of))(x))
    assert np.all(np.abs(jacobian) > 0)
    h = 1e-2
    difference = (np.asarray(of(x + h * v)) - np.asarray(of(x - h * v))) / (2 * h)
    np.testing.assert_allclose(jacobian @ v, difference, rtol=0.05, atol=0.01)


def test_entries_of_a_vector_are_told_apart_by_their_place_alone() -> None:
    """Without the embeddings of places a transformer is equivariant under permutations."""
    module = Transformer(nf=8, num_res_blocks=1, num_heads=2)
    x, labels = normal((1, 5)), np.array([3.0], np.float32)
    weights = random_weights(functools.partial(models.init, module, image_shape=(5,)), 0.5)
    order = np.array([3, 1, 0, 4, 2])

    apply = jax.jit(module.apply)

    def difference(weights: Any) -> float:
        before, after = (
            np.asarray(apply({"params": weights}, y, labels)) for y in (x, x[:, order])
        )
        return float(np.abs(before[:, order] - after).max())

    assert difference(weights) > 1e-3
    assert difference({**weights, "place": np.zeros_like(weights["place"])}) < 1e-5


@pytest.mark.parametrize(("shape", "patch"), [((6,), 1), ((8, 2), 4), ((4, 6, 3), 2)])
def test_tokens_are_patches_and_patches_make_the_example_again(
    shape: tuple[int, ...], patch: int
) -> None:
    x: Any = np.arange(2 * np.prod(shape)).reshape(2, *shape)
    tokens = tokens_of(x, patch)
    np.testing.assert_array_equal(examples_of(tokens, shape, patch), x)
    first = x[0, :1] if len(shape) == 1 else x[0][(slice(patch),) * (len(shape) - 1)]
    np.testing.assert_array_equal(tokens[0, 0], first.ravel())


def test_the_convolution_is_that_of_flax() -> None:
    from flax import linen as nn

    x = normal((2, 8, 3))
    module, reference = Conv1D(5), nn.Conv(5, (3,))
    weights = random_weights(lambda key: module.init(key, x), 0.4)["params"]["Dense_0"]
    kernel = weights["kernel"].reshape(3, 3, 5)
    bias = weights["bias"]
    expected: Any = jax.jit(reference.apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    actual: Any = jax.jit(module.apply)({"params": {"Dense_0": weights}}, x)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_dropout_acts_where_it_has_keys() -> None:
    x, labels = jnp.ones((2, 8, 2)), jnp.array([3.0, 3.0])
    keys = jax.random.split(jax.random.key(2), 2)
    for name in ("transformer", "unet1d"):
        dropped = np.asarray(network(name, (8, 2), dropout=0.5)(x, labels, dropout_keys=keys))
        assert np.abs(dropped[0] - dropped[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "shape", "changes", "words"),
    [
        (
            "unet1d",
            (5,),
            {},
            r"'unet1d', which takes examples of 2 axes, .* mlp, transf",
        ),
        ("ncsnpp", (8, 2), {}, r"takes examples of 3 axes, and they are \(8, 2\); .* unet1d"),
        ("ddpm", (2, 2, 2, 2), {}, r"valid values of model.name: mlp, transformer"),
        ("transformer", (5,), {"nf": 6}, r"model.nf is 6; it must be a multiple of 4 and of 1 hea"),
        ("transformer", (5,), {"num_heads": 3}, r"multiple of 4 and of 3 head\(s\)"),
        ("unet1d", (8, 2), {"nf": 6}, "model.nf is 6; it must be a multiple of 4"),
        ("unet1d", (8, 2), {"attn_resolutions": (3,)}, "no level of the network has height 3"),
    ],
)
def test_networks_that_do_not_fit_are_refused(
    name: str, shape: tuple[int, ...], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        models.from_config(config_of(name, shape, **changes))


def test_lengths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"series of length 9 cannot be halved 2 times"):
        models.init(UNet1D(nf=8), jax.random.key(0), (9, 1))
    with pytest.raises(ValueError, match=r"model.patch_size is 4, but examples are 8 x 6 places"):
        tokens_of(jnp.zeros((1, 8, 6, 1)), 4)
