"""EDM2's network: the numbers of its own code, and the magnitudes that it promises to keep."""

from __future__ import annotations

import functools
import pathlib
import re
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import edm2
from runtime import ema, experiment
from tests import golden_cases, tiny
from tests.test_models import relative_error
from tests.weights import normal_weights
from training import optimizers
from training.objective import objective_from_config
from training.state import state_from_config
from training.step import make_train_step

SMALL = edm2.EDM2(
    nf=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), head_channels=8, num_labels=3
)
TINY = SMALL.clone(ch_mult=(1,), attn_resolutions=())
X = np.random.default_rng(1).standard_normal((2, 8, 8, 3)).astype(np.float32)
LEVELS = np.array([0.3, 4.0], np.float32)


def normal_params(network: edm2.EDM2) -> Any:
    """Parameters as they begin: weights of N(0, 1), and gains of 0."""
    init = functools.partial(models.init, network, image_shape=(8, 8, 3))
    weights = normal_weights(jax.eval_shape(init, jax.random.key(0)), 1.0)
    return jax.tree.map(lambda leaf: leaf * np.float32(np.ndim(leaf) > 0), weights)


Path = tuple[str, ...]


def path_of(torch_name: str) -> Path:
    """`("enc_8_block0", "conv_res0", "kernel")` of `enc.8x8_block0.conv_res0.weight`."""
    owner = re.sub(r"^(enc|dec)\.(\d+)x\d+_", r"\1_\2_", torch_name)
    return tuple(owner.replace(".weight", ".kernel").split("."))


def params_of(stored: dict[str, Any]) -> Any:
    """Our parameters from the flat weights of a golden file."""
    flat, start = {}, 0
    for name, shape, _ in stored["names_json"]:
        size = int(np.prod(shape))
        array = stored["weights"][start : start + size].reshape(shape)
        start += size
        order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim))
        flat[path_of(name)] = array.transpose(*order)
    return flax.traverse_util.unflatten_dict(flat)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases.files("edm2"), ids=lambda path: path.stem)
def test_output_and_gradients_are_those_of_the_original(path: pathlib.Path) -> None:
    stored = golden_cases.load(path)
    given = stored["config_json"]
    network = edm2.EDM2(
        nf=given["model_channels"],
        ch_mult=given["channel_mult"],
        num_res_blocks=given["num_blocks"],
        attn_resolutions=given["attn_resolutions"],
        head_channels=given["channels_per_head"],
        num_labels=given["label_dim"],
    )
    params, y = params_of(stored), stored.get("y")

    @jax.jit
    def run(params: Any, x: jax.Array) -> Any:
        def loss(params: Any, x: jax.Array) -> Any:
            out = network.apply({"params": params}, x, jnp.asarray(stored["sigma"]), y=y)
            return jnp.sum(out * stored["v"]), out

        grads, out = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return out, *grads[::-1]

    out, gradient, grads = run(params, stored["x"])
    assert relative_error(out, stored["out"]) < 2e-5
    assert relative_error(gradient, stored["gradx"]) < 2e-5
    flat = flax.traverse_util.flatten_dict(grads)
    for name, _, norm in stored["names_json"]:
        found = np.linalg.norm(np.asarray(flat[path_of(name)]))
        np.testing.assert_allclose(found, norm or 0.0, 1e-3, err_msg=name)
    if y is not None:
        null = jax.jit(lambda params, x: network.apply({"params": params}, x, stored["sigma"]))
        assert relative_error(null(params, stored["x"]), stored["out_null"]) < 2e-5


def test_every_layer_keeps_the_magnitude_of_its_input() -> None:
    """At random weights the root mean square of all features is 1, to the noise of the draws.

    Attention is left out: where all pixels look alike to it their mean is smaller than they are.
    """
    network = SMALL.clone(nf=32, head_channels=128)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((64, 8, 8, 3)).astype(np.float32)
    levels = np.exp(rng.standard_normal(64)).astype(np.float32)
    params = normal_params(network)

    @jax.jit
    def run(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        _, state = network.apply({"params": params}, x, levels, capture_intermediates=True)
        return {
            name: value["__call__"][0]
            for name, value in state["intermediates"].items()
            if name.startswith(("enc", "dec"))
        }

    features = run(params, x)
    assert len(features) == 11
    for name, h in features.items():
        assert 0.85 < np.sqrt(np.mean(np.square(h))) < 1.15, name


@jax.jit
def tiny_outputs(params: Any, levels: jax.Array, y: jax.Array) -> jax.Array:
    return TINY.apply({"params": params}, X, levels, y=y)  # type: ignore[return-value]


def test_weights_count_by_their_direction_alone() -> None:
    params = normal_params(TINY)
    params["out_gain"] = np.ones((), np.float32)
    longer = jax.tree.map(lambda w: 7.0 * w if w.ndim > 1 else w, params)
    constrained = jax.jit(edm2.unit_weights)(longer)
    expected = tiny_outputs(params, LEVELS, np.array([0, 2]))
    for other in (longer, constrained):
        found = tiny_outputs(other, LEVELS, np.array([0, 2]))
        np.testing.assert_allclose(found, expected, atol=2e-3)
    for path, w in flax.traverse_util.flatten_dict(constrained).items():
        if w.ndim > 1:
            rms = np.sqrt(np.mean(np.square(w), tuple(range(w.ndim - 1))))
            np.testing.assert_allclose(rms, 1.0, rtol=2e-3, err_msg=str(path))


def test_weights_and_frequencies_begin_normal_and_phases_uniform() -> None:
    features = edm2.MPFourier(4096).init(jax.random.key(0), jnp.zeros(2))["params"]
    phases = np.asarray(features["phases"]) / (2 * np.pi)
    assert 0 <= phases.min() < 0.01
    assert 0.99 < phases.max() <= 1
    np.testing.assert_allclose(np.std(features["freqs"]) / (2 * np.pi), 1, atol=0.05)
    layer = edm2.MPConv(256).init(jax.random.key(1), jnp.ones((1, 64)))["params"]
    np.testing.assert_allclose(np.std(layer["kernel"]), 1, atol=0.03)


def test_images_from_0_to_1_are_seen_from_minus_1_to_1() -> None:
    params = normal_params(TINY)
    params["out_gain"] = np.ones((), np.float32)
    other = TINY.clone(centered=False)
    found = jax.jit(lambda: other.apply({"params": params}, (X + 1) / 2, LEVELS, y=np.ones(2, int)))
    expected = tiny_outputs(params, LEVELS, np.ones(2, int))
    np.testing.assert_allclose(found(), expected, atol=1e-4)


def test_output_begins_at_zero_and_classes_matter() -> None:
    params = models.init(TINY, jax.random.key(0), (8, 8, 3))
    without_class = jax.jit(lambda params: TINY.apply({"params": params}, X, LEVELS))
    assert not np.any(np.asarray(without_class(params)))
    params["out_gain"] = np.ones((), np.float32)
    for block in params.values():
        if isinstance(block, dict) and "emb_gain" in block:
            block["emb_gain"] = np.ones((), np.float32)

    def run(*y: int) -> np.ndarray:
        return np.asarray(tiny_outputs(params, LEVELS, np.array(y)))

    first, null = run(0, 0), np.asarray(without_class(params))
    np.testing.assert_array_equal(null, run(3, 3))
    assert np.abs(first - null).max() > 0.01
    mixed = run(0, 3)
    np.testing.assert_allclose(mixed[0], first[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], null[1], atol=1e-5)


def test_a_step_of_training_begins_with_weights_of_unit_size() -> None:
    """The state after a step from weights that are seven times as long is the same state."""
    config = tiny.config(
        model__name="edm2", model__head_channels=8, model__dropout=0.0, optim__warmup=0
    )
    parts, optimizer = experiment.build(config), optimizers.from_config(config)
    step = make_train_step(
        objective_from_config(config, parts),
        optimizer,
        ema.from_config(config),
        flip=False,
        axis_name=None,
        constraint=models.constraint(config),
    )
    images = np.random.default_rng(0).integers(0, 17, (1, 4, 8, 8, 1)).astype(np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.zeros((1, 4), jnp.int32)}
    state = state_from_config(config, parts, optimizer)
    longer = jax.tree.map(lambda w: 7.0 * np.asarray(w) if w.ndim > 1 else w, state.params)
    run = jax.jit(step)
    once, _ = run(state, batch)
    again, _ = run(state.replace(params=longer), batch)
    for a, b in zip(jax.tree.leaves(once.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)


def test_refusals_are_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"embedding_type .*fourier, positional"):
        edm2.EDM2(embedding_type="log_positional")
    with pytest.raises(ValueError, match="cannot be halved 1 times"):
        SMALL.init(jax.random.key(0), jnp.zeros((1, 7, 7, 3)), LEVELS[:1])
