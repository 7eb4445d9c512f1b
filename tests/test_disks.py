"""Hosts with disks of their own: one run, of which each keeps a copy and gets what it lacks."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from runtime import hosts
from runtime.checkpoints import Checkpoints
from runtime.disks import Disk, merged
from tests import network, tiny
from tests.pod import Pod, pod

LENGTH = "--config.training.n_iters"


def disks(*steps: dict[int, Any]) -> list[Disk]:
    """Disks by their steps, each a checksum and a metric, or None."""
    return [Disk(f"host{i}", f"/{i}/checkpoints", each) for i, each in enumerate(steps)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (({}, {}), {}),
        (({}, {50: (1, None), 100: (2, 0.5)}), {50: None, 100: 0.5}),
        (({50: (1, None)}, {}, {50: (1, None), 100: (2, 0.5)}), {50: None, 100: 0.5}),
        (({100: None}, {50: (1, 0.25), 100: (2, 0.5)}), {50: 0.25, 100: 0.5}),
        (({100: None}, {50: (1, 0.25)}), {50: 0.25, 100: None}),
        # the second one connects the first and the third
        (({1: (1, None)}, {1: (1, None), 2: (2, None)}, {2: (2, None)}), {1: None, 2: None}),
    ],
)
def test_the_steps_of_one_run_are_those_of_all_disks(
    steps: tuple[dict[int, Any], ...], expected: dict[int, float | None]
) -> None:
    assert merged(disks(*steps)) == expected
    assert list(merged(disks(*steps))) == sorted(expected)
    assert merged(disks(*reversed(steps))) == expected


def test_two_checkpoints_of_one_step_are_refused() -> None:
    steps = {50: (1, None), 100: (2, None)}, {50: (1, None), 100: (3, None)}
    with pytest.raises(ValueError, match="step 100") as refused:
        merged(disks({}, *steps))
    assert str(refused.value) == (
        "the checkpoints of step 100 of process 1 (host1:/1/checkpoints) and of process 2 "
        "(host2:/2/checkpoints) are two different ones; move the wrong folder away, and its host "
        "gets what it lacks from the others"
    )


def test_checkpoints_that_nothing_connects_are_refused() -> None:
    steps = {100: (1, None), 200: (2, None)}, {150: (3, None), 200: None}
    with pytest.raises(ValueError, match="none in common") as refused:
        merged(disks(*steps))
    assert str(refused.value).startswith(
        "process 0 (host0:/0/checkpoints) has checkpoints of steps 100, 200, and process 1 "
        "(host1:/1/checkpoints) of 150: none in common, so nobody knows whether they are of one "
        "run; move"
    )


def test_a_disk_comes_by_json() -> None:
    words = {"host": "a", "folder": "/b", "steps": {3: [7, 0.5], 4: None, 5: [8, None]}}
    disk = Disk.of(json.loads(json.dumps(words)))
    assert disk == Disk("a", "/b", {3: (7, 0.5), 4: None, 5: (8, None)})
    assert disk.whole() == {3: 7, 5: 8}


@pytest.mark.parametrize("size", [1, 4, 16, 64])
def test_arrays_are_sent_in_pieces_of_any_size(size: int) -> None:
    arrays = [np.arange(n, dtype=np.uint8) for n in (3, 0, 17, 1, 0, 11)]
    starts = np.cumsum([0, *(array.size for array in arrays)])
    sent = np.concatenate(arrays)
    received = [np.zeros_like(array) for array in arrays]
    for begin in range(0, sent.size, size):
        chunk = np.zeros(size, np.uint8)
        for part, piece in hosts._pieces(arrays, starts, begin, size):
            chunk[part] = piece
        rest = sent[begin : begin + size]
        np.testing.assert_array_equal(chunk[: rest.size], rest)
        for part, piece in hosts._pieces(received, starts, begin, size):
            piece[:] = chunk[part]
    for one, other in zip(received, arrays, strict=True):
        np.testing.assert_array_equal(one, other)


class Group:
    """Stands for `jax` with several processes, of which this one is process 0 and lacks what it is
    asked for, and for what process 1 sends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
        monkeypatch.setattr(jax, "process_count", lambda: 1 + len(texts))
        monkeypatch.setattr(hosts, "texts", lambda text: [text, *texts])


def test_an_error_of_another_process_is_raised_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"line": "x/config.json belongs to another run", "os": False, "host": "host1"}
    good = {"line": "", "os": False, "host": "host2"}
    Group(monkeypatch, [json.dumps(words), json.dumps(good)])
    with (
        pytest.raises(ValueError, match=r"^process 1 of 3 \(host1\): x/config\.json belongs to"),
        hosts.together(),
    ):
        pass
    Group(monkeypatch, [json.dumps(words | {"line": "is full", "os": True})])
    with pytest.raises(OSError, match=r"^process 0 of 2 \(.+\): it fails"), hosts.together():
        raise OSError("it fails")


def test_an_error_that_all_have_is_said_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    same = json.dumps({"line": "it is damaged", "os": False, "host": "host1"})
    Group(monkeypatch, [same, same])
    with pytest.raises(ValueError, match=r"^it is damaged$"), hosts.together():
        raise ValueError("it is damaged")


class Wire:
    """Stands for `broadcast_one_to_all`: what the first process sends, the second one receives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[np.ndarray] = []
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", self.broadcast)

    def broadcast(self, array: Any, is_source: bool) -> np.ndarray:
        if is_source:
            self.sent.append(np.array(array))
            return self.sent[-1]
        received = self.sent.pop(0)
        assert received.shape == np.shape(array)
        return received


def test_arrays_arrive_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "step": np.int32(7).reshape(()),
        "kernel": rng.standard_normal((3, 50)).astype(np.float32).T,
        "half": jnp.asarray(rng.standard_normal(9), jnp.bfloat16).__array__(),
        "nothing": np.zeros((0, 3)),
        "key": np.array([1, 2], np.uint32),
    }
    monkeypatch.setattr(hosts, "CHUNK", 256)
    wire = Wire(monkeypatch)
    hosts._sent(0, arrays, {"config": "ä"})
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    kept = [np.array(array) for array in wire.sent]
    received, more = hosts._sent(0, None, None)
    assert more == {"config": "ä"}
    assert received.keys() == arrays.keys()
    for name, array in arrays.items():
        assert received[name].dtype == array.dtype
        assert received[name].shape == array.shape
        np.testing.assert_array_equal(received[name], array)
    kept[-1][0] ^= 1
    wire.sent = kept
    with pytest.raises(ValueError, match="was damaged on its way from another process"):
        hosts._sent(0, None, None)


def test_a_single_process_asks_nobody() -> None:
    assert hosts.is_writer()
    assert not hosts.maybe_several_disks()
    assert hosts.texts("x") == [hosts.text_of(0, "x")] == ["x"]
    assert hosts.by_primary(lambda: [1, "x"]) == [1, "x"]
    assert hosts.from_any(None) is None
    with hosts.disks(writes=False, shared=False):
        assert not hosts.is_writer()
        assert hosts.several_disks()
    assert not hosts.several_disks()


@pytest.fixture
def machines(tmp_path: pathlib.Path) -> Iterator[Pod]:
    """Three hosts with disks of their own."""
    with network.Network(3) as net:
        yield Pod(net, tmp_path, several_disks=True)


def states(machines: Pod, run: str) -> list[dict[str, np.ndarray]]:
    """The newest checkpoint on each disk."""
    folders = [machines.workdir(run, host) / "checkpoints" for host in range(3)]
    return [Checkpoints(folder).restore().state for folder in folders]


@pod
@pytest.mark.slow
def test_a_disk_that_is_lost_is_made_up_for(machines: Pod) -> None:
    """The run goes on to the bit, whoever's it was, and samples are the same."""
    more = (
        "--config.training.shard_state=True",
        "--config.training.ema_profiles=(0.1,)",
        "--config.training.ema_snapshot_freq=10",
    )
    machines.finish("whole", f"{LENGTH}=40", *more)
    machines.finish("run", f"{LENGTH}=20", *more)
    assert [machines.saved("run", host) for host in range(3)] == [[10, 20]] * 3
    shutil.rmtree(machines.workdir("run", 0))
    machines.finish("run", f"{LENGTH}=30", *more)
    assert "resuming at step 20" in machines.text(0)
    shutil.rmtree(machines.workdir("run", 2))
    machines.finish("run", f"{LENGTH}=40", *more)
    assert "resuming at step 30" in machines.text(0)
    for name in ("run", "whole"):
        assert [machines.saved(name, host)[-1] for host in range(3)] == [40] * 3
    expected, *others = states(machines, "whole") + states(machines, "run")
    for state in others:
        assert state.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(state[name], array)
    lines = (machines.workdir("run") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20, 30, 40]
    shutil.rmtree(machines.workdir("run", 0))  # the second one alone has early averages
    sample = (
        "--mode=sample",
        "--config.sampling.num_samples=60",
        "--config.sampling.batch_size=60",
    )
    weights = "--config.eval.ema=posthoc:0.1@30"
    images = []
    for name in ("run", "whole"):
        machines.finish(name, *more, *sample, weights)
        images.append(np.load(machines.workdir(name) / "samples/shard_000000.npz")["image"])
    np.testing.assert_array_equal(*images)


@pod
@pytest.mark.slow
def test_evaluation_and_control_find_the_weights_on_whichever_disk(machines: Pod) -> None:
    """Their results are those of before process 0's disk was lost, and are on its new one."""
    digits = ["--config=configs/quickstart.py", *tiny.arguments(machines.folder, "train")[4:]]
    digits = [*digits, "--config.training.batch_size=24", f"{LENGTH}=10"]
    machines.finish("run", *digits)
    found = []
    for lost in (False, True):
        if lost:
            shutil.rmtree(machines.workdir("run", 0))
        for mode, more in (
            ("eval", ("--config.eval.num_samples=30", "--config.eval.batch_size=24")),
            ("control", ("--config.control.task=inpaint", "--config.control.num_images=3")),
        ):
            settings = [a for a in tiny.arguments(machines.folder, mode)[4:] if "batch" not in a]
            machines.finish("run", *settings, *digits, f"--mode={mode}", *more)
        results = json.loads((machines.workdir("run") / "eval/results.json").read_text())
        picture = (machines.workdir("run") / "control/inpaint").glob("*.png")
        found.append((results["weights_sha256"], results["loss"], sorted(p.name for p in picture)))
        assert not (machines.workdir("run", 1) / "control").exists()
    assert found[0] == found[1]
    assert found[0][2]


@pod
@pytest.mark.slow
def test_a_disk_that_is_full_ends_all_with_a_line(machines: Pod) -> None:
    """What the others have written by then is what the run goes on from."""
    small = machines.folder / "disk2"
    small.mkdir()
    machines.net.ask(mount=str(small), kilobytes=2500)  # one checkpoint
    machines.start("run", f"{LENGTH}=4000")
    (code, line), *others = machines.ends()
    assert others == [(code, line)] * 2
    folder = machines.workdir("run", 2) / "checkpoints"
    assert (code, line) == (
        1,
        "error: process 2 of 3 (host2): checkpoint of step 20 could not be written to "
        f"{folder} (No space left on device); the last good step is 10",
    )
    assert machines.saved("run", 0) == machines.saved("run", 1) == [10, 20]
    machines.net.ask(mount=str(small), kilobytes=25000)
    machines.finish("run", f"{LENGTH}=30")
    assert "resuming at step 20" in machines.text(0)


@pod
@pytest.mark.slow
def test_disks_of_two_runs_are_refused_on_every_host(machines: Pod) -> None:
    machines.finish("run", f"{LENGTH}=10")
    folder = machines.workdir("run", 2) / "checkpoints"
    restored = Checkpoints(folder).restore()
    other = {name: np.copy(array) for name, array in restored.state.items()}
    other["params/" + next(n for n in other if n.startswith("params/"))[7:]] += 1
    kept = folder.rename(folder.with_name("kept"))
    for step in (10, 30):
        shutil.rmtree(folder, ignore_errors=True)
        written = Checkpoints(folder)
        data_state = {**restored.data_state, "step": step}
        written.save(step, other, data_state, restored.config_json)
        written.wait()
        machines.start("run", f"{LENGTH}=40")
        (code, line), *others = machines.ends()
        assert others == [(code, line)] * 2
        assert code == 1
        words = "two different ones" if step == 10 else "none in common"
        assert f"(host2:{folder})" in line
        assert words in line
    shutil.rmtree(folder)
    kept.rename(folder)
    path = machines.workdir("run", 1) / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "seed": 77}))
    machines.start("run", f"{LENGTH}=40")
    line = f"error: process 1 of 3 (host1): {path} belongs to another run: seed"
    for code, end in machines.ends():
        assert code == 1
        assert end.startswith(line)
