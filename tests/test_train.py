"""Training: the same numbers on any number of devices, and after any interruption."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
import parallel
import reports
import train
from checkpoints import Checkpoints
from tests import tiny

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
        train.train(tiny.config(), workdir)
    return workdir


def test_a_run_leaves_what_it_promises(one_device_run: pathlib.Path) -> None:
    state = final_arrays(one_device_run)
    assert state["step"] == 6
    assert np.isfinite(state["params/Conv_0/kernel"]).all()
    assert not np.array_equal(state["params/Conv_0/kernel"], state["ema_params/Conv_0/kernel"])
    steps, losses = reports.read_metrics(one_device_run / "metrics.jsonl")["loss"]
    assert steps.tolist() == [2, 4, 6]
    assert np.isfinite(losses).all()
    assert (one_device_run / "loss.png").stat().st_size > 0
    assert list((one_device_run / "tensorboard").iterdir())


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_losses_and_weights_do_not_depend_on_the_device_count(
    count: int,
    one_device_run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_devices(monkeypatch, count)
    train.train(tiny.config(), tmp_path)
    one, many = (
        reports.read_metrics(path / "metrics.jsonl") for path in (one_device_run, tmp_path)
    )
    for name in ("loss", "eval_loss", "gradient_norm"):
        np.testing.assert_allclose(many[name][1], one[name][1], rtol=1e-5)
    a, b = final_arrays(one_device_run), final_arrays(tmp_path)
    for name, array in a.items():
        if name.startswith("ema_params"):
            np.testing.assert_allclose(b[name], array, rtol=1e-3, atol=1e-5, err_msg=name)


def subprocess_environment(**more: str) -> dict[str, str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **more}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    return environment


def start(workdir: pathlib.Path, *more: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *tiny.arguments(workdir, "train", *more)],
        cwd=ROOT,
        env=subprocess_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_run_resumes_to_the_bit(tmp_path: pathlib.Path) -> None:
    """kill -9 at a random moment after the first checkpoint; then the same command again."""
    steps = "--config.training.n_iters=120"
    whole = start(tmp_path / "whole", steps)
    output, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0, output

    killed = start(tmp_path / "killed", steps)
    folder = tmp_path / "killed" / "checkpoints"
    while killed.poll() is None and not [p for p in folder.glob("*") if p.name.isdecimal()]:
        time.sleep(0.02)
    time.sleep(np.random.default_rng().uniform(0.0, 0.5))
    assert killed.poll() is None, "the run ended before it could be killed: make it longer"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()

    resumed = start(tmp_path / "killed", steps)
    output, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, output
    assert "resuming at step" in output
    expected, found = final_arrays(tmp_path / "whole"), final_arrays(tmp_path / "killed")
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_two_processes_train_as_one(one_device_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    processes = [
        start(
            tmp_path,
            "--distributed",
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    one, two = (reports.read_metrics(path / "metrics.jsonl") for path in (one_device_run, tmp_path))
    for name in ("loss", "eval_loss"):
        np.testing.assert_allclose(two[name][1], one[name][1], rtol=1e-5)


@functools.cache
def traced_step(n_jitted_steps: int, batch_size: int = 8) -> tuple:
    """The pmapped training step on all devices, and arguments for it."""
    config = tiny.config()
    parts = train.build(config)
    optimizer = train.optimizer_from_config(config)
    step = train.make_train_step(parts.objective, optimizer, 0.99, True, True, parallel.AXIS)
    count = jax.local_device_count()
    fresh = functools.partial(train.new_state, parts.module, optimizer, 0, parts.image_shape)
    state = jax.eval_shape(
        jax.vmap(lambda _: fresh(), axis_size=count), jax.ShapeDtypeStruct((count,), jnp.int32)
    )
    shape = (count, n_jitted_steps, batch_size // count, *parts.image_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return jax.pmap(step, axis_name=parallel.AXIS, donate_argnums=0), (state, images)


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
    """What a step returns has the very type and layout of what `replicate` and a restart give."""
    use_devices(monkeypatch, 2)
    traced = []

    def count_up(state):
        traced.append(state)
        return jax.tree.map(lambda leaf: leaf + 1, state)

    step = jax.pmap(count_up, axis_name=parallel.AXIS)
    state = parallel.replicate({"a": np.zeros(3, np.float32), "step": np.int32(0)})
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    after = step(state)
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == before
    step(after)
    assert len(traced) == 1


def test_the_step_key_makes_every_step_and_image_draw_its_own() -> None:
    """Two equal images in a batch, or one image in two steps, must not get equal noise."""
    parts = train.build(tiny.config())
    images = jnp.zeros((4, *parts.image_shape), jnp.uint8)
    seen = []

    def spy(network, x0, keys):
        seen.append(jax.random.key_data(keys))
        return jnp.zeros(len(x0)), {}

    objective = train.dataclasses.replace(parts.objective, loss=spy)
    key = jax.random.key(0)
    for step in range(2):
        keys = parallel.image_keys(jax.random.fold_in(key, step), jnp.arange(4))
        objective({}, images, keys, train=True, flip=False)
    rows = np.concatenate(seen)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    train.train(tiny.config(), tmp_path)
    config = tiny.config(training__n_iters=12)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["optim"]["lr"] = 1e30
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config.optim.lr = 1e30
    with pytest.raises(FloatingPointError, match=r"the loss at step (7|8|9|10) is (nan|inf)"):
        train.train(config, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 6
    assert np.isfinite(final_arrays(tmp_path)["params/Conv_0/kernel"]).all()


def test_a_workdir_of_another_run_is_refused(one_device_run: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"model.nf: 8 \(stored\) != 16 \(given\)"):
        train.open_run(tiny.config(model__nf=16), one_device_run)
    train.open_run(tiny.config(training__n_iters=99, sampling__num_steps=50), one_device_run)


def test_fields_newer_than_a_run_had_their_defaults(
    one_device_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    earlier = json.loads((one_device_run / "config.json").read_text())
    del earlier["classifier"], earlier["model"]["pytorch"]
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    train.open_run(tiny.config(), tmp_path)
    with pytest.raises(ValueError, match=r"model.pytorch: False \(stored\) != True \(given\)"):
        train.open_run(tiny.config(model__pytorch=True), tmp_path)


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
    assert process.returncode == 0, output
    last_logged = reports.read_metrics(log)["loss"][0][-1]
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
