"""Training: the same numbers on any number of devices, and after any interruption."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import data
import losses
import models
import sde_lib
from runtime import chips, devices, ema, experiment
from runtime.arrays import read_arrays
from runtime.checkpoints import Checkpoints
from runtime.ema_snapshots import Snapshots
from runtime.workdir import Trained, load_weights, open_run
from tests import tiny
from training import held_out, loop, metric_log, optimizers
from training.objective import Objective, objective_from_config
from training.state import TrainState, new_state
from training.step import make_train_step

ROOT = pathlib.Path(__file__).parent.parent


def use_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Lets the loops see only the first `count` of the fake devices."""
    monkeypatch.setattr(jax, "local_device_count", lambda: count)
    monkeypatch.setattr(jax, "device_count", lambda: count)


def final_arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return Checkpoints(workdir / "checkpoints").restore().state


@pytest.fixture(scope="module")
def one_device_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of an uninterrupted tiny run on one device."""
    workdir = tmp_path_factory.mktemp("run") / "one"
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        patch.setattr(chips, "of_kind", lambda kind: chips.CHIPS["v5e"])
        loop.train(tiny.config(), workdir)
    return workdir


def test_a_run_leaves_what_it_promises(one_device_run: pathlib.Path) -> None:
    state = final_arrays(one_device_run)
    assert state["step"] == 6
    assert np.isfinite(state["params/Conv_0/kernel"]).all()
    assert not np.array_equal(state["params/Conv_0/kernel"], state["ema_params/Conv_0/kernel"])
    steps, losses = metric_log.read_metrics(one_device_run / "metrics.jsonl")["loss"]
    assert steps.tolist() == [2, 4, 6]
    assert np.isfinite(losses).all()
    for name in ("loss.png", "loss_by_time.png"):
        assert (one_device_run / name).stat().st_size > 0
    assert Snapshots(one_device_run / "ema").steps() == [2, 4, 6]
    assert list((one_device_run / "tensorboard").iterdir())
    speeds = metric_log.read_metrics(one_device_run / "metrics.jsonl")
    steps, seconds = speeds["step_seconds"]
    assert set(steps) <= {4, 6}, "none before the second call"
    np.testing.assert_allclose(
        speeds["images_per_second"][1] * seconds, tiny.config().training.batch_size
    )
    at_peak = speeds["mfu"][1] * seconds
    assert at_peak[0] > 0
    np.testing.assert_allclose(at_peak, at_peak[0])


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_losses_and_weights_do_not_depend_on_the_device_count(
    count: int,
    one_device_run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_devices(monkeypatch, count)
    loop.train(tiny.config(), tmp_path)
    one, many = (
        metric_log.read_metrics(path / "metrics.jsonl") for path in (one_device_run, tmp_path)
    )
    for name in ("loss", "eval_loss", "gradient_norm"):
        np.testing.assert_allclose(many[name][1], one[name][1], rtol=1e-5)
    a, b = final_arrays(one_device_run), final_arrays(tmp_path)
    for name, array in a.items():
        if name.startswith("ema_params"):
            np.testing.assert_allclose(b[name], array, rtol=1e-3, atol=1e-5, err_msg=name)


def subprocess_environment(**more: str) -> dict[str, str]:
    keep_all = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # for the next of the processes
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        **keep_all,
        **more,
    }
    flags = re.sub(r"(device_count)=\d+", r"\1=1", environment["XLA_FLAGS"])
    return {**environment, "XLA_FLAGS": flags}


def start(
    workdir: pathlib.Path, *more: str, mode: str = "train", **environment: str
) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *tiny.arguments(workdir, mode, *more)],
        cwd=ROOT,
        env=subprocess_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_run_resumes_to_the_bit(tmp_path: pathlib.Path) -> None:
    """kill -9 at a random moment after the first checkpoint; then the same command again."""
    options = (
        "--config.training.n_iters=80",
        "--config.training.snapshot_freq=40",
        "--config.training.snapshot_sampling=True",
        "--config.training.snapshot_freq_for_preemption=8",
        "--config.training.eval_freq=40",
        "--config.training.ema_snapshot_freq=20",
    )
    whole = start(tmp_path / "whole", *options)
    output, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0, output

    killed = start(tmp_path / "killed", *options)
    folder = tmp_path / "killed" / "checkpoints"
    while killed.poll() is None and not [p for p in folder.glob("*") if p.name.isdecimal()]:
        time.sleep(0.02)
    time.sleep(np.random.default_rng().uniform(0.0, 0.5))
    assert killed.poll() is None, "the run ended before it could be killed: make it longer"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()

    resumed = start(tmp_path / "killed", *options)
    output, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, output
    assert re.search(r"resuming at step|is already at step 80", output), output
    expected, arrays = final_arrays(tmp_path / "whole"), final_arrays(tmp_path / "killed")
    assert expected.keys() == arrays.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    folders = [tmp_path / run / "ema" for run in ("whole", "killed")]
    assert Snapshots(folders[0]).steps() == Snapshots(folders[1]).steps()
    for step in Snapshots(folders[0]).steps():
        whole_run, killed_run = (read_arrays(path / f"{step}.npz") for path in folders)
        for name, array in whole_run.items():
            np.testing.assert_array_equal(killed_run[name], array, err_msg=f"{step}: {name}")
    for name in ("samples_in_training/step_0000040.png", "training_samples.png"):
        pictures = [(tmp_path / run / name).read_bytes() for run in ("whole", "killed")]
        assert pictures[0] == pictures[1], name


def start_two(workdir: pathlib.Path, *more: str, mode: str = "train") -> list[subprocess.Popen]:
    """Two processes of one cluster, each with one device."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    return [
        start(
            workdir,
            "--distributed",
            *more,
            mode=mode,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_train_as_one(one_device_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for process in start_two(tmp_path, "--config.training.snapshot_sampling=True"):
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    assert (tmp_path / "samples_in_training" / "step_0000006.png").exists()
    one, two = (
        metric_log.read_metrics(path / "metrics.jsonl") for path in (one_device_run, tmp_path)
    )
    for name in ("loss", "eval_loss"):
        np.testing.assert_allclose(two[name][1], one[name][1], rtol=1e-5)


def test_processes_ask_each_other_to_stop_call_by_call() -> None:
    """By numbers without a gap, however many steps a call has: they agree on one of the next."""
    batches: Any = iter([{"label": np.zeros((2, 8), np.int32)}] * 3)
    history: Any = types.SimpleNamespace(add=lambda step, metrics: None, speed=metric_log.Speed(8))
    calls: list[int] = []

    def step_fn(state: Any, arrays: Any) -> Any:
        return state, {}

    def asked(call: int) -> bool:
        calls.append(call)
        return False

    state: Any = None
    assert loop.take_steps(step_fn, state, batches, history, (), 4, 10, asked) == 10
    assert calls == [1, 2]  # the last one ends the run


@functools.cache
def traced_step(n_jitted_steps: int, batch_size: int = 8, **changes: str) -> tuple:
    """The pmapped training step on all devices, with all it can do, and arguments for it."""
    config = tiny.config(**changes)
    parts = experiment.build(config)
    optimizer, rules = optimizers.from_config(config), ema.from_config(config)
    step = make_train_step(
        objective_from_config(config, parts), optimizer, rules, True, devices.AXIS, 2
    )
    count = jax.local_device_count()
    fresh = functools.partial(
        new_state, parts.module, optimizer, 0, parts.image_shape, rules.further
    )
    state = jax.eval_shape(
        jax.vmap(lambda _: fresh(), axis_size=count), jax.ShapeDtypeStruct((count,), jnp.int32)
    )
    shape = (count, n_jitted_steps, batch_size // count, *parts.image_shape)
    batches = {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape[:3], jnp.int32),
    }
    return jax.pmap(step, axis_name=devices.AXIS, donate_argnums=0), (state, batches)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_pmapped_step_lowers_for_accelerators(platform: str) -> None:
    step, arguments = traced_step(2)
    lowered = jax.jit(lambda *a: step(*a)).trace(*arguments).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert "all_reduce" in text
    assert "stablehlo.convolution" in text


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps_per_call() -> None:
    def temporary(n: int) -> int:
        step, arguments = traced_step(n)
        return step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporary(25) <= 1.02 * temporary(2)


def test_a_replicated_state_compiles_the_step_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step returns the very types and layouts that `replicate` gives, also after a restart."""
    use_devices(monkeypatch, 2)
    traced = []

    def count_up(state):
        traced.append(state)
        return jax.tree.map(lambda leaf: leaf + 1, state)

    step = jax.pmap(count_up, axis_name=devices.AXIS)
    state = devices.replicate({"a": np.zeros(3, np.float32), "step": np.int32(0)})
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    after = step(state)
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == before
    step(after)
    assert len(traced) == 1


def test_the_step_key_makes_every_step_and_image_draw_its_own() -> None:
    """Two equal images in a batch, or one image in two steps, must not get equal noise."""
    config = tiny.config()
    parts = experiment.build(config)
    images = jnp.zeros((4, *parts.image_shape), jnp.uint8)
    all_keys = []

    def spy(network, x0, keys, u, y):
        all_keys.append(jax.random.key_data(keys))
        return jnp.zeros(len(x0)), {}

    objective = dataclasses.replace(objective_from_config(config, parts), loss=spy)
    key = jax.random.key(0)
    for step in range(2):
        step_key, numbers = jax.random.fold_in(key, step), jnp.arange(4)
        objective({}, images, numbers, step_key, numbers, 4, train=True, flip=False)
    rows = np.concatenate(all_keys)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_bfloat16_computes_and_float32_remembers() -> None:
    """The types in a step of a bfloat16 network: state, moments, averages, loss, gradient."""
    step, (state, batches) = traced_step(2, model__dtype="bfloat16")
    program, (after, metrics) = jax.make_jaxpr(step, return_shape=True)(state, batches)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    for tree in (after.params, after.ema_params, after.averages, after.opt_state[2][1:], metrics):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} == {"float32"}
    assert "bf16" in str(program)


def dense(variables: dict, x: jax.Array, labels: jax.Array, dropout_keys: Any = None) -> jax.Array:
    """A network for images of 8x8 pixels, with dropout."""
    params = variables["params"]
    h = jnp.tanh(x.reshape(len(x), -1) @ params["a"] + labels[:, None])
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, h.shape[1:]))(dropout_keys)
    return (h * keep @ params["b"]).reshape(x.shape)


def test_micro_batches_are_one_batch() -> None:
    """Loss, gradient and so the state after a step, each image with its own dropout and noise."""

    def loss(network: Any, x0: jax.Array, keys: jax.Array, u: jax.Array, y: Any) -> tuple:
        z = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(keys)
        error = jnp.mean((network(x0 + z, u) - z) ** 2, (1, 2, 3))
        return error, {"noise_mse": error, "t": u}

    objective = Objective(dense, loss, 17, True, False, time_draws="stratified")
    optimizer = optimizers.make_optimizer(1.0, name="SGD")
    rules = ema.Averaging(ema.constant(0.5), {"rate_0.9": ema.constant(0.9)})
    draw = np.random.default_rng(0)
    params = {name: draw.normal(0, 0.1, (64, 64)).astype(np.float32) for name in "ab"}
    state = TrainState(
        step=jnp.int32(3),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=params,
        key=jax.random.key(0),
        averages={"rate_0.9": params},
    )
    images = draw.integers(0, 17, (1, 12, 8, 8, 1)).astype(np.uint8)
    batches = {"image": images, "label": np.zeros((1, 12), np.int32)}

    quickly = functools.partial(
        jax.jit,
        compiler_options={
            "xla_llvm_disable_expensive_passes": True,
            "xla_backend_optimization_level": 0,
        },
    )

    step = make_train_step(objective, optimizer, rules, False, None, accumulation=4)
    after, metrics = quickly(step)(state, batches)

    def whole(params: Any) -> jax.Array:
        step_key, numbers = jax.random.fold_in(state.key, 3), jnp.arange(12)
        examples = jnp.asarray(images[0]), jnp.zeros(12, jnp.int32)
        return objective(params, *examples, step_key, numbers, 12, train=True, flip=False)[0].mean()

    value, gradient = quickly(jax.value_and_grad(whole))(params)
    assert metrics.keys() == {"loss", "noise_mse", "gradient_norm"}
    np.testing.assert_allclose(metrics["loss"][0], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"][0], optax.tree.norm(gradient), rtol=1e-6)
    for name in params:
        np.testing.assert_allclose(after.params[name], params[name] - gradient[name], atol=1e-6)
        assert np.abs(gradient[name]).max() > 1e-3
        for average, share in [(after.ema_params, 0.5), (after.averages["rate_0.9"], 0.1)]:
            expected = params[name] - share * gradient[name]
            np.testing.assert_allclose(average[name], expected, atol=1e-6)


def test_a_class_is_told_and_sometimes_withheld() -> None:
    """It is the null class with the probability of label_dropout, in training alone."""
    count = 4000
    images, classes = jnp.zeros((count, 8, 8, 1), jnp.uint8), jnp.arange(count) % 10
    key, numbers = jax.random.key(0), jnp.arange(count)

    def labels(num_labels: int, dropout: float, training: bool) -> jax.Array | None:
        """The classes that the network sees, which are made the loss."""
        config = tiny.config(model__num_labels=num_labels, training__label_dropout=dropout)
        config.data.uniform_dequantization = False
        objective = dataclasses.replace(
            objective_from_config(config, experiment.build(config)),
            apply=lambda variables, x, labels, **more: more.get("y"),
            loss=lambda network, x0, keys, u, y: (network(x0, u), {}),
        )
        call = functools.partial(objective, total=count, train=training, flip=False)
        return jax.jit(call)({}, images, classes, key, numbers)[0]

    assert labels(0, 0.0, True) is None
    np.testing.assert_array_equal(labels(12, 0.25, False), classes)
    in_training = np.asarray(labels(12, 0.25, True))
    withheld = in_training == 12
    np.testing.assert_array_equal(in_training[~withheld], classes[~withheld])
    assert abs(withheld.mean() - 0.25) < 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__accumulation": 3}, "training.accumulation=3 does not divide the 8 images of "),
        ({"training__label_dropout": 0.1}, "label_dropout is 0.1, but model.num_labels is 0"),
        ({"model__num_labels": 5}, "model.num_labels is 5, but digits has 10 classes; valid val"),
        (
            {"training__ema_profiles": (0.3,)},
            r"ema_profiles is \(0.3,\); it must be a tuple ",
        ),
        ({"training__ema_rates": (0.9, 0.9)}, "ema_rates is .*; it must be a tuple of different"),
    ],
)
def test_what_training_refuses(
    changes: dict, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    with pytest.raises(ValueError, match=message):
        loop.train(tiny.config(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_without_further_averages_has_the_checkpoints_it_had() -> None:
    config = tiny.config(training__ema_rates=(), training__ema_profiles=())
    fresh = functools.partial(
        new_state,
        models.from_config(config),
        optimizers.from_config(config),
        0,
        (8, 8, 1),
        ema.from_config(config).further,
    )
    leaves = jax.tree_util.tree_leaves_with_path(vars(jax.eval_shape(fresh)))
    names = {path[0].key for path, _ in leaves}
    assert names == {"step", "params", "opt_state", "ema_params", "key"}


def test_weights_are_chosen_by_name(
    one_device_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eval.ema` of evaluation, sampling and export, against what checkpoint and snapshots hold."""
    state = final_arrays(one_device_run)
    name = "Conv_0/kernel"
    arrays = {k.removeprefix("params/"): a for k, a in state.items() if k.startswith("params")}
    params = traverse_util.unflatten_dict(arrays, sep="/")
    monkeypatch.setattr(models, "init", lambda module, key, image_shape: params)

    def load(choice: str, **changes: str) -> Trained:
        config = tiny.config(eval__ema=choice, **changes)
        trained = load_weights(config, models.from_config(config), (8, 8, 1), one_device_run)
        return trained._replace(params=trained.params["Conv_0"]["kernel"])

    expected = {
        "": ("ema_params", "EMA weights"),
        "raw": ("params", "raw weights"),
        "0.999": ("ema_params", "EMA weights"),
        "0.9": ("averages/rate_0.9", "EMA weights of rate 0.9"),
    }
    for choice, (stored, label) in expected.items():
        trained = load(choice)
        np.testing.assert_array_equal(trained.params, state[f"{stored}/{name}"])
        assert (trained.label, trained.step) == (label, 6)
    for choice in ("posthoc:0.1", "posthoc:0.1@6"):
        trained = load(choice)
        average = state[f"averages/sigma_rel_0.1/{name}"]
        np.testing.assert_allclose(trained.params, average, atol=1e-6)
        assert trained.label.startswith("post-hoc EMA of width 0.1 (from 6 averages, error of its ")
    earlier = load("posthoc:0.05@4")
    with np.load(one_device_run / "ema" / "4.npz") as snapshot:
        np.testing.assert_allclose(earlier.params, snapshot[f"sigma_rel_0.05/{name}"], atol=1e-6)
    assert earlier.step == 4
    different = [load(choice).params for choice in ("", "raw", "0.9", "posthoc:0.1", "posthoc:0.2")]
    assert len({array.tobytes() for array in different}) == 5

    for choice, message in [
        ("0.99", r"eval.ema is '0.99', but this run kept the averages of rate 0.999, 0.9 only"),
        ("best", r"eval.ema is 'best'; valid values: '', 'raw', a rate such as '0.9999', 'posthoc"),
        ("posthoc:0.1@", r"eval.ema is 'posthoc:0.1@'; valid values"),
        ("posthoc:0.1@7", r"eval.ema is 'posthoc:0.1@7', but the run has come to step 6 only"),
        ("posthoc:0.1@1", r"there is no snapshot of a profile up to step 1 in .* \(steps: 2, 4, 6"),
        ("posthoc:0.5", r"relative width of an average is 0.5; it must be positive and at most"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(choice)


def test_the_held_out_loss_by_time_is_its_mean_in_order(one_device_run: pathlib.Path) -> None:
    metrics = metric_log.read_metrics(one_device_run / "metrics.jsonl")
    steps, losses = metrics["eval_loss_by_time"]
    assert (steps.tolist(), losses.shape) == ([2, 4, 6], (3, 8))
    np.testing.assert_allclose(losses.mean(1), metrics["eval_loss"][1], rtol=1e-4)
    t, log_snr = metrics["eval_t_by_time"][1], metrics["eval_log_snr_by_time"][1]
    assert (np.diff(t) > 0).all()
    assert (np.diff(log_snr) < 0).all()
    assert (t[0] == t[2]).all(), "the times are those of the first evaluation"

    values = np.arange(7.0)
    losses_and_times = held_out.HeldOut(0.0, {"t": values[::-1] / 10, "loss": values})
    assert losses_and_times.by_time(3) == {"t": [0.1, 0.35, 0.55], "loss": [5.0, 2.5, 0.5]}


@pytest.mark.parametrize("sde", ["vesde", "vpsde"])
def test_discrete_levels_have_times_in_the_curve(sde: str) -> None:
    """The part "t" of the loss is the time whose label the network saw."""
    config = tiny.config(
        training__sde=sde,
        training__continuous=False,
        training__time_draws="stratified",
        model__num_scales=50,
    )
    model_sde = sde_lib.from_config(config)
    seen_labels = []

    def network(x: jax.Array, labels: jax.Array) -> jax.Array:
        seen_labels.append(labels)
        return x

    keys = devices.image_keys(jax.random.key(0), jnp.arange(5))
    loss = losses.from_config(config, model_sde)
    t = loss(network, jnp.zeros((5, 1, 1, 1)), keys, jnp.arange(5) / 5)[1]["t"]
    assert np.unique(seen_labels[0]).size == 5
    np.testing.assert_array_equal(models.discrete_labels(model_sde, t), seen_labels[0])


def test_a_run_says_where_it_goes_on() -> None:
    workdir = pathlib.Path("runs/x")
    assert loop.beginning(6, 7, workdir) == "resuming at step 6"
    for n_iters in (6, 3):
        assert loop.beginning(6, n_iters, workdir) == (
            f"runs/x is already at step 6, and training.n_iters is {n_iters}: nothing to train; "
            "a larger one goes on"
        )


@pytest.mark.slow
def test_a_run_that_has_come_further_is_left_as_it_is(
    one_device_run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_devices(monkeypatch, 1)
    workdir = tmp_path / "run"
    shutil.copytree(one_device_run, workdir)
    loop.train(tiny.config(training__n_iters=3), workdir)
    assert f"{workdir} is already at step 6" in capsys.readouterr().out
    for name in ("config.json", "metrics.jsonl"):
        assert (workdir / name).read_bytes() == (one_device_run / name).read_bytes()
    assert final_arrays(workdir)["step"] == 6


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    loop.train(tiny.config(), tmp_path)
    config = tiny.config(training__n_iters=12)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["optim"]["lr"] = 1e30
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config.optim.lr = 1e30
    with pytest.raises(FloatingPointError, match=r"the loss at step (7|8|9|10) is (nan|inf)"):
        loop.train(config, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 6
    assert np.isfinite(final_arrays(tmp_path)["params/Conv_0/kernel"]).all()


def test_a_workdir_of_another_run_is_refused(one_device_run: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"model.nf: 8 \(stored\) != 16 \(given\)"):
        open_run(tiny.config(model__nf=16), one_device_run)
    open_run(tiny.config(training__n_iters=99, sampling__num_steps=50), one_device_run)


def test_without_config_json_the_newest_checkpoint_says_whose_it_is(
    one_device_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(one_device_run / "checkpoints", tmp_path / "checkpoints")
    open_run(tiny.config(), tmp_path)
    message = r"checkpoints belongs to another run: model.beta_max: 20.0 \(stored\) != 5.0"
    with pytest.raises(ValueError, match=message):
        open_run(tiny.config(model__beta_max=5.0), tmp_path)


def test_fields_newer_than_a_run_had_their_defaults(
    one_device_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    earlier = json.loads((one_device_run / "config.json").read_text())
    del earlier["classifier"], earlier["model"]["pytorch"]
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    open_run(tiny.config(), tmp_path)
    with pytest.raises(ValueError, match=r"model.pytorch: False \(stored\) != True \(given\)"):
        open_run(tiny.config(model__pytorch=True), tmp_path)


def test_sigterm_saves_and_leaves(tmp_path: pathlib.Path) -> None:
    process = start(tmp_path, "--config.training.n_iters=100000",
                    "--config.training.snapshot_freq_for_preemption=100000",
                    "--config.training.eval_freq=100000",
                    "--config.training.snapshot_freq=100000")  # fmt: skip
    log = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    last_logged = metric_log.read_metrics(log)["loss"][0][-1]
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] >= last_logged


def test_batches_go_on_where_the_state_was_saved() -> None:
    """The last call of a run may hold fewer steps; the stored position counts steps, not calls."""
    dataset = data.load("digits", "train")
    batches = data.Batches(dataset, 8, 0, num_steps=4)
    first = next(batches)["image"]
    state = {**batches.get_state(), "step": 3}
    resumed = data.Batches(dataset, 8, 0, num_steps=1)
    resumed.set_state(state)
    np.testing.assert_array_equal(next(resumed)["image"][0], first[3])
