"""Too little memory is said before it is asked for."""

from __future__ import annotations

import pathlib
import resource
import subprocess
import sys
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

import data
from runtime import devices, endings, memory, peak_memory
from tests import tiny
from tests.test_training import use_devices
from training import loop

ROOT = pathlib.Path(__file__).parent.parent
ADDRESSES = 12 * 2**30  # of a command that would take more memory than the machine has
WHAT = "training.batch_size=8"


def square(state: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A sum of products of all pairs of rows, of [n, n] in memory."""
    return state + jax.numpy.sort(rows @ rows.T, axis=None)[-1], rows


def arguments(count: int = 500) -> tuple[jax.Array, np.ndarray]:
    shape = (jax.local_device_count(), count, 3)
    state: Any = devices.replicate(np.ones(7, np.float32))
    return state, np.ones(shape, np.float32)


@pytest.fixture
def program() -> Any:
    return jax.pmap(square, axis_name=devices.AXIS, donate_argnums=0)


def test_what_fits_is_compiled_and_traced_once(program: Any) -> None:
    state, rows = arguments()
    durations: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        durations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        peak_memory.require(program, (state, rows), WHAT)
        assert sum("backend_compile" in name for name in durations) == 1
        durations.clear()
        program(state, rows)
        assert not durations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert state.is_deleted()


@pytest.mark.parametrize(("free", "lowered"), [(10_000, False), (3_000_000, True)])
def test_a_program_that_does_not_fit_is_refused_before_it_runs(
    program: Any, monkeypatch: pytest.MonkeyPatch, free: int, lowered: bool
) -> None:
    """What is hopeless, before it is compiled."""
    lower = mock.Mock(side_effect=program.lower)
    program.lower = lower
    monkeypatch.setattr(memory, "free", lambda: free)
    state, rows = arguments()
    with pytest.raises(MemoryError) as caught:
        peak_memory.require(program, (state, rows), WHAT)
    assert lower.called == lowered
    assert not state.is_deleted()
    line, code = endings.ending(caught.value, "train")
    assert code == 1
    assert line.startswith(f"error: out of memory: {WHAT} needs about 0.0 GiB, and ")
    assert line.endswith("; lower it")


def test_what_else_refuses_comes_before_compilation_and_after_what_is_hopeless(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = program.lower = mock.Mock()
    few = mock.Mock(side_effect=ValueError("few"))
    for free, kind in ((10_000, MemoryError), (1 << 40, ValueError)):
        monkeypatch.setattr(memory, "free", lambda free=free: free)
        with pytest.raises(kind):
            peak_memory.require(program, arguments(), WHAT, "it", few)
        assert few.called == (kind is ValueError)
    assert not lower.called


def test_fewer_images_than_a_batch_are_refused_before_compilation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free", lambda: 1 << 50)
    step: Any = jax.pmap(lambda state, batch: (state, batch["label"]))
    step.lower = None
    state: Any = arguments()[0]
    images, labels = np.zeros((1500, 2, 2, 1), np.uint8), np.zeros(1500, np.int32)
    dataset = data.Dataset("few", "train", images, labels, 256, (2, 2, 1), 1)
    training = tiny.config(training__batch_size=1504).training
    call = (state, loop.shapes_of_batches(training, dataset))
    with pytest.raises(
        ValueError, match=r"training\.batch_size=1504 is more than the 1500 .*; it must be 1500 or"
    ):
        loop.require_memory(step, call, training, dataset)


def test_the_peak_is_that_of_arrays_that_are_there_at_once() -> None:
    def chain(w: jax.Array, x: jax.Array) -> jax.Array:
        for _ in range(5):
            x = jax.numpy.sin(x @ w)
        return x.sum()

    w, x = np.ones((10, 10), np.float32), np.ones((300, 10), np.float32)
    forward = peak_memory.peak(jax.make_jaxpr(chain)(w, x).jaxpr)
    backward = peak_memory.peak(jax.make_jaxpr(jax.grad(chain))(w, x).jaxpr)
    assert forward == 2 * x.nbytes
    assert 5 * x.nbytes <= backward <= 8 * x.nbytes


def test_a_batch_that_does_not_fit_leaves_the_workdir_as_it_was(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free", lambda: 1000)
    with pytest.raises(
        MemoryError, match=r"training\.batch_size=8 needs .*; lower it, or .*accumulation"
    ):
        loop.train(tiny.config(), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_images_that_do_not_fit_are_refused_by_their_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = devices.ImageMap(lambda params, i, arrays: (i @ i, i), 400, "sampling.batch_size")
    monkeypatch.setattr(memory, "free", lambda: 100)
    with pytest.raises(memory.Lack, match=r"sampling\.batch_size=400 needs .*; lower it"):
        next(iter(run(None, np.arange(5))))


def test_what_is_free_is_the_least_of_machine_groups_and_limit(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 500 kB\nSwapFree: 100 kB\n")
    (tmp_path / "self" / "statm").write_text("2 1 1 1 0 1 0\n")
    (tmp_path / "self" / "cgroup").write_text("4:memory:/job\n3:cpu:/\n0::/\n")
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    limit = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert memory.free() == 600 * 1024

    for version, folder, stat in (
        (1, "memory/job", "total_inactive_file"),
        (2, "", "inactive_file"),
    ):
        group = tmp_path / "groups" / folder
        group.mkdir(parents=True, exist_ok=True)
        names = memory.FILES[version]
        for name, text in zip(names, (f"{6000 - version}", "4000", ""), strict=True):
            (group / name).write_text(text)
        (group / "memory.stat").write_text(f"anon 7\n{stat} 30\n")
        assert memory.free() == 6000 - version - 4000 + 30
    (tmp_path / "groups" / "memory.max").write_text("max")
    assert memory.free() == 2029

    limit = 3 * resource.getpagesize()
    assert memory.free() == min(2029, resource.getpagesize())
    limit = resource.getpagesize()
    assert memory.free() == 0


def command(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and errors of `main.py`, which cannot take more than `ADDRESSES`."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))

    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    return done.returncode, [line for line in done.stderr.splitlines() if "error: " in line]


@pytest.mark.slow
def test_a_million_images_at_a_time_end_in_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = ("main.py", "--mode=train", "--config=configs/quickstart.py")
    code, lines = command(
        *new, f"--workdir={tmp_path / 'new'}", "--config.training.batch_size=1000000"
    )
    assert code == 1
    assert len(lines) == 1
    assert "training.batch_size=1000000 needs about" in lines[0]
    assert not (tmp_path / "new" / "config.json").exists()

    use_devices(monkeypatch, 1)
    run = tmp_path / "run"
    loop.train(tiny.config(), run)
    before = sorted(path for path in run.rglob("*") if path.name != ".lock")
    many = "--config.sampling.batch_size=20000000"  # of a network with 8 channels
    code, lines = command(*tiny.arguments(run, "sample", many))
    assert code == 1
    assert len(lines) == 1
    assert "sampling.batch_size=20000000 needs about" in lines[0]
    files = sorted(path for path in run.rglob("*") if path.name != ".lock")
    assert [path for path in files if path.is_file()] == [p for p in before if p.is_file()]
