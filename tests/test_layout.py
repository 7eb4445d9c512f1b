"""Moments and averages in slices: the same numbers as whole ones, in less memory."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import devices, ema
from runtime.checkpoints import Checkpoints
from tests import tiny
from tests.test_training import use_devices
from training import layout, loop, metric_log, optimizers
from training.state import TrainState
from training.step import make_train_step

SHAPES = {"a": (3, 5), "b": {"c": (8,), "d": (), "GaussianFourierProjection_0": (2, 1, 3)}}


def tree(seed: int, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32),
        SHAPES,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def objective(params: Any, images: Any, *arguments: Any, **options: Any) -> Any:
    """A loss of an image whose gradient depends on all parameters and on the image."""
    labels, step_key, *_ = arguments
    del labels, options
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
    noise = jax.random.normal(step_key, flat.shape)
    waves = jnp.sin(images.reshape(len(images), -1).astype(jnp.float32).mean(1)[:, None] + flat)
    per_image = jnp.sum((waves - noise) ** 2, axis=1)
    return per_image, {"t": per_image}


OBJECTIVE: Any = objective


def new_state(optimizer):
    params = tree(0)
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params),
        ema_params=tree(1), key=jax.random.key(3), averages={"one": tree(2)},
    )  # fmt: skip


def trained(in_slices: bool, calls: int = 2, **options):
    """The state on the host after some calls of three steps, its layout, and the metrics."""
    norm = (lambda t: layout.norm(t, devices.AXIS)) if in_slices else optax_norm
    optimizer = optimizers.make_optimizer(1e-2, norm=norm, **options)
    averaging = ema.Averaging(ema.constant(0.9), {"one": ema.power(0.1)})
    step = make_train_step(OBJECTIVE, optimizer, averaging, False, devices.AXIS, 2, in_slices)
    state = new_state(optimizer)
    place = (layout.Sliced if in_slices else layout.Whole)(state.params)
    on_devices, metrics = place.place(state), None
    pmapped = jax.pmap(step, axis_name=devices.AXIS)
    rng = np.random.default_rng(5)
    for _ in range(calls):
        batch = {
            "image": rng.integers(0, 256, (3, 16, 2, 2, 1), np.uint8),
            "label": np.zeros((3, 16), np.int32),
        }
        on_devices, metrics = pmapped(on_devices, devices.lay_out(batch))
    return place.on_host(on_devices), on_devices, devices.fetch(metrics)


def optax_norm(updates):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(updates)))


@pytest.mark.parametrize("kind", [layout.Whole, layout.Sliced])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_lies_on_devices_is_the_same_on_the_host(monkeypatch, count, kind):
    use_devices(monkeypatch, count)
    state = new_state(optimizers.make_optimizer(1e-3))
    place = kind(state.params)
    on_devices = place.place(state)
    jax.tree.map(
        np.testing.assert_array_equal,
        place.on_host(on_devices),
        state.replace(key=jax.random.key_data(state.key)),
    )
    jax.tree.map(np.testing.assert_array_equal, place.on_host(on_devices.averages), state.averages)
    copies = place.whole(on_devices.ema_params)
    for copy, leaf in zip(jax.tree.leaves(copies), jax.tree.leaves(state.ema_params), strict=True):
        np.testing.assert_array_equal(copy, np.stack([leaf] * count))
    if kind is layout.Sliced:
        for leaf, own in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(on_devices.averages["one"]), strict=True
        ):
            assert own.shape == (count, -(-leaf.size // count)), "a slice on each device"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("Adam", "Lion") else pytest.mark.slow)
        for name in optimizers.OPTIMIZERS
    ],
)
def test_steps_in_slices_are_those_of_the_whole(name):
    """With a limit that every gradient exceeds, decay of weights, two averages and two parts."""
    options = {"name": name, "grad_clip": 0.5, "weight_decay": 0.1}
    whole, _, metrics = trained(False, **options)
    sliced, _, others = trained(True, **options)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (whole, sliced)]
    assert structures[0] == structures[1]
    assert (metrics["gradient_norm"] > 0.5).all()
    for name in metrics:
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-6)
    for found, expected in zip(jax.tree.leaves(sliced), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    first = new_state(optimizers.make_optimizer(1e-2, **options))
    assert not np.allclose(whole.params["a"], first.params["a"], atol=1e-3)


def test_as_many_bytes_cross_the_links():
    """Gradients are scattered and parameters exchanged, in place of one sum that all get."""

    def sent(in_slices: bool) -> dict[str, int]:
        optimizer = optimizers.make_optimizer(1e-2)
        averaging = ema.Averaging(ema.constant(0.9))
        step = make_train_step(OBJECTIVE, optimizer, averaging, False, "i", 1, in_slices)
        params = {"w": jnp.zeros((64, 32))}
        state = TrainState(
            step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params),
            ema_params=params, key=jax.random.key(0),
        )  # fmt: skip
        place = (layout.Sliced if in_slices else layout.Whole)(params)
        batch = {"image": jnp.zeros((4, 1, 2, 2, 2, 1), jnp.uint8), "label": jnp.zeros((4, 1, 2))}
        mapped = jax.pmap(step, axis_name="i")
        jaxpr = jax.make_jaxpr(mapped)(place.place(state), batch)
        totals: dict[str, int] = {}
        collect(jaxpr.jaxpr, totals)
        return totals

    whole, sliced = sent(False), sent(True)
    assert whole["psum"] >= 64 * 32
    assert sliced["psum"] < 100
    assert sliced["reduce_scatter"] == 64 * 32
    assert sliced["all_gather"] == 64 * 32 // 4


def collect(jaxpr, totals: dict[str, int]) -> None:
    """Adds up the numbers that enter collectives."""
    from runtime.peak_memory import inner

    for equation in jaxpr.eqns:
        name = equation.primitive.name.replace("psum_invariant", "psum")
        if name in ("psum", "reduce_scatter", "all_gather"):
            sizes = [int(np.prod(v.aval.shape)) for v in equation.invars]
            totals[name] = totals.get(name, 0) + sum(sizes)
        for program in inner(equation):
            collect(program, totals)


@pytest.mark.slow
def test_a_run_goes_on_in_the_other_layout(tmp_path: pathlib.Path, monkeypatch) -> None:
    """Six steps whole; and three in slices, then three whole, then two in slices on two devices."""
    use_devices(monkeypatch, 4)
    one, other = tmp_path / "one", tmp_path / "other"

    def config(steps: int, in_slices: bool):
        changed = tiny.config()
        changed.training.n_iters, changed.training.shard_state = steps, in_slices
        return changed

    loop.train(config(8, False), one)
    loop.train(config(4, True), other)
    loop.train(config(6, False), other)
    use_devices(monkeypatch, 2)
    loop.train(config(8, True), other)
    left, right = (Checkpoints(path / "checkpoints").restore().state for path in (one, other))
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(right[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    losses = [metric_log.read_metrics(path / "metrics.jsonl") for path in (one, other)]
    for name in ("loss", "eval_loss", "gradient_norm"):
        np.testing.assert_allclose(losses[1][name][1], losses[0][name][1], rtol=1e-5, err_msg=name)
