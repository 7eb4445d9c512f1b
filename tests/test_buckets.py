"""Runs and statistics in buckets: the same files, the same numbers, and one line where it fails."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from control.prior import prior_from_config
from evaluation.metrics import statistics
from evaluation.metrics.moments import Gaussian
from generation import guides
from planning import plan, table
from runtime import bucket_lock, buckets, cluster, errors, experiment, files, lock, step_writers
from runtime.arrays import read_arrays
from runtime.buckets import BucketError, BucketPath
from runtime.checkpoints import Checkpoints
from runtime.ema_snapshots import Snapshots
from runtime.workdir import results_folder
from tests import network, pod, test_control, test_guides, tiny
from tests.test_metric_log import events
from tests.test_training import use_devices
from training import loggers, metric_log
from training.profile import Profile

STATE = {"params": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.ones(3, np.float32)}}
SAVES = ((1, 0.3), (2, 0.5), (4, 0.7), (5, None), (6, 0.6))  # step and metric


@pytest.fixture
def memory() -> Iterator[pathlib.Path]:
    """An empty folder of a bucket in the memory of this process."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield files.as_path("memory://bucket/run")
    assert not pathlib.Path("memory:").exists()
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["memory", *(pytest.param(s, marks=pytest.mark.slow) for s in ("s3", "gs"))])
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty folder of a bucket, behind a server on this machine for `s3` and `gs`."""
    buckets._filesystem.cache_clear()
    monkeypatch.setattr(bucket_lock, "BEAT", 0.05)
    monkeypatch.setattr(bucket_lock, "LOOK", 0.05)
    monkeypatch.setattr(bucket_lock, "DEAD", 0.5)
    if request.param == "memory":
        yield request.getfixturevalue("memory")
        return
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if request.param == "s3":
        s3fs, server = (pytest.importorskip(name) for name in ("s3fs", "moto.server"))
        running = server.ThreadedMotoServer(port=0)
        running.start()
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(bucket)
    else:
        gcsfs, server = (pytest.importorskip(n) for n in ("gcsfs", "gcp_storage_emulator.server"))
        running = server.create_server("localhost", 0, in_memory=True, default_bucket=bucket)
        running.start()
        port = running._api._httpd.socket.getsockname()[1]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        gcsfs.GCSFileSystem.clear_instance_cache()
    yield files.as_path(f"{request.param}://{bucket}/run")
    running.stop()
    buckets._filesystem.cache_clear()


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """The content of every file below a folder of a bucket or of this disk, by its name there."""
    content: dict[str, bytes] = {}
    for path in folder.iterdir():
        if path.is_dir():
            content |= {f"{path.name}/{name}": data for name, data in tree(path).items()}
        else:
            content[path.name] = path.read_bytes()
    return content


# --- paths ---


def test_a_text_means_a_local_path_or_one_in_a_bucket(tmp_path: pathlib.Path) -> None:
    assert files.as_path("runs/x/") == pathlib.Path("runs/x")
    assert files.as_path(tmp_path) is not None
    assert type(files.as_path("a:b//c")) is type(pathlib.Path())
    assert files.as_path("file:///tmp/a%20b") == pathlib.Path("/tmp/a b")
    path = files.as_path("memory://bucket/run/")
    assert str(path) == "memory://bucket/run"
    assert files.as_path(path) is path
    assert str(path / "a" / "b.npz") == "memory://bucket/run/a/b.npz"
    assert str((path / "a").parent.parent.parent) == "memory://bucket"
    assert (path / "b.npz").suffix == ".npz"
    assert sorted([path / "b", path / "a"])[0].name == "a"
    assert files.contains(path, path / "eval")
    assert not files.contains(path, path / ".." / "eval")
    with pytest.raises(ValueError, match=r"not inside memory://bucket/run; it must be"):
        results_folder(path, "../eval")


@pytest.mark.parametrize("use", [pathlib.Path, open, os.stat, lambda path: np.savez(path, a=1)])
def test_a_path_in_a_bucket_is_no_local_path_to_anybody(use: Any) -> None:
    with pytest.raises(TypeError):
        use(files.as_path("memory://bucket/run"))


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("ftp://host/run", r"ftp:// is not read; a folder, or a bucket of gs://, s3://"),
        ("gs://", r"names no bucket: gs://<bucket>/<folder>"),
        ("file://host/run", r"it names another machine; file:///folder does not"),
        (
            "s3://bucket/run",
            r"the library for s3:// is not here \(Install s3fs\): pip install -e '",
        ),
    ],
)
def test_what_is_no_bucket_is_refused_in_one_line(
    url: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs")

    buckets._filesystem.cache_clear()
    monkeypatch.setattr(fsspec, "filesystem", absent)
    with pytest.raises(ValueError, match=f"^eval.stats_path={url}:? {line}"):
        statistics.read(url)
    code, said = tiny.run(capsys, *tiny.arguments(url, "train"))  # type: ignore[arg-type]
    assert code == 1
    assert len(said) == 1
    assert said[0].startswith(f"error: --workdir={url}")
    assert not pathlib.Path(f"{url.partition('/')[0]}").exists()


def test_a_bucket_that_cannot_be_reached_stops_before_anything(
    memory: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("Network is unreachable\n(in a library)")

    for name in ("cat_file", "pipe_file"):
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, name, unreachable)
            code, said = tiny.run(capsys, *tiny.arguments(memory, "train"))
        reason = "cannot be read or written: Network is unreachable (in a library)"
        assert (code, said) == (1, [f"error: {memory}/.lock {reason}"])


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--mode=import --source=gs://b/x.pth", "--source=gs://b/x.pth: a path on this machine is"),
        ("--mode=export --target=gs://b/x", "--target=gs://b/x: a path on this machine is needed"),
    ],
)
def test_what_has_to_be_local_says_so(
    argument: str, line: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["main.py", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"]
    code, said = tiny.run(capsys, *command, *argument.split())
    assert code == 1
    assert len(said) == 1
    assert said[0].startswith(f"error: {line}")


# --- files ---


def test_files_are_put_whole_or_not_at_all(folder: pathlib.Path) -> None:
    path = folder / "a" / "results.json"
    assert not path.exists()
    assert not folder.is_dir()
    assert [*folder.glob("*")] == []
    with pytest.raises(FileNotFoundError) as absent:
        path.read_bytes()
    assert errors.one_line(absent.value) == f"{path}: No such file or directory"
    files.write_json(path, {"a": 1})
    with contextlib.suppress(KeyError), files.whole(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert files.read_json(path, "") == {"a": 1}
    assert path.is_file()
    assert not path.is_dir()
    assert folder.is_dir()
    assert [each.name for each in folder.iterdir()] == ["a"]

    files.append_text(path.with_name("log.txt"), "one\r\n")
    files.append_text(path.with_name("log.txt"), "two \xe4\n")
    assert path.with_name("log.txt").read_text() == "one\ntwo \xe4\n"
    with path.with_name("log.txt").open("rb") as file:
        file.seek(5)
        assert file.read() == "two \xe4\n".encode()
    with files.filled(folder / "a") as place:
        for name in ("1.png", ".2.png", "3.npz"):
            (place / name).write_text(name)
    assert sorted(path.name for path in (folder / "a").glob("*.png")) == [".2.png", "1.png"]
    assert [path.name for path in (folder / "a").glob("[!.]*.np?")] == ["3.npz"]
    assert (folder / "a" / "1.png").replace(folder / "b" / "x.png").read_text() == "1.png"
    assert not (folder / "a" / "1.png").exists()
    if not str(folder).startswith("gs://"):  # the emulator asks no condition
        with pytest.raises(FileExistsError):
            folder.joinpath("b", "x.png").write_bytes(b"", new=True)  # type: ignore[call-arg]
    files.remove_folder(folder / "a")
    files.remove_folder(folder / "a")
    assert tree(folder) == {"b/x.png": b"1.png"}


def test_a_bucket_that_is_not_there_is_said(folder: pathlib.Path) -> None:
    if isinstance(folder, BucketPath) and folder.scheme != "memory":
        path = BucketPath(folder.scheme, "nowhere/run/config.json")
        with pytest.raises(BucketError, match=r"config\.json cannot be written: there is no such"):
            path.write_bytes(b"")


def test_statistics_are_written_and_read_there(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    gaussian = Gaussian(np.arange(3.0), np.eye(3))
    stored = statistics.Statistics(gaussian, gaussian, None, statistics.Origin(dataset="x/train"))
    for place in (f"{folder}/s.npz", str(tmp_path / "s.npz")):
        statistics.write(place, stored)
    there, here = statistics.read(f"{folder}/s.npz"), statistics.read(tmp_path / "s.npz")
    assert there.path == f"{folder}/s.npz"
    assert (there.origin, there.sha256) == (here.origin, here.sha256)
    np.testing.assert_array_equal(there.pool.covariance, np.eye(3))
    with pytest.raises(FileNotFoundError, match=f"^{folder}/t.npz: there are no statistics"):
        statistics.read(f"{folder}/t.npz")


# --- checkpoints ---


def test_checkpoints_are_those_of_a_disk(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The same steps stay, with the same files; either is read in the other's place."""
    kept = []
    for place in (folder, tmp_path):
        run = Checkpoints(place, keep_every=4)
        for step, metric in SAVES:
            assert run.save(step, STATE, {"at": step}, '{"x": 1}', metric)
        assert not run.save(6, STATE)
        run.wait()
        kept.append((run.steps(), run.metrics(), run.config()))
    assert kept[0] == kept[1]
    assert kept[0][0] == [1, 4, 5, 6]
    there, here = tree(folder), tree(tmp_path)
    assert there.items() <= here.items()
    assert {name.partition("/")[2] for name in there} == {
        f"{item}/{step_writers.JSON}" for item in ("data", "config", "checksums")
    } | {f"state/{step_writers.ARRAYS}"}
    for name, data in there.items():
        files.with_parent(tmp_path / "copy" / name).write_bytes(data)
    for place in (folder, tmp_path / "copy"):
        restored = Checkpoints(place).restore(STATE, "best")
        assert (restored.step, restored.data_state) == (1, {"at": 1})
        np.testing.assert_array_equal(
            restored.state["params"]["kernel"], STATE["params"]["kernel"], strict=True
        )
    (run := Checkpoints(tmp_path / "copy")).save(7, STATE)
    run.wait()
    assert run.steps() == [1, 6, 7]


def test_a_step_that_was_not_finished_is_none(memory: pathlib.Path) -> None:
    (first := Checkpoints(memory)).save(1, STATE)
    first.wait()
    (run := Checkpoints(memory)).save(2, STATE)
    run.wait()
    (memory / "2" / "checksums" / "metadata").unlink()
    (memory / "3" / "state" / "arrays.npz").parent.parent.joinpath("rest").write_bytes(b"")
    run = Checkpoints(memory)
    assert run.steps() == [1]
    assert run.restore().step == 1
    assert run.save(3, STATE)
    run.wait()
    assert run.steps() == [1, 3]
    assert not (memory / "3" / "rest").exists()


def test_a_damaged_step_is_passed_over_and_an_absent_bucket_is_no_damage(
    memory: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Checkpoints(memory)
    for step in (1, 2):
        run.save(step, STATE)
    run.wait()

    def unreachable(*_: object, **__: object) -> None:
        raise TimeoutError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", unreachable)
        with pytest.raises(BucketError, match=r"arrays\.npz cannot be read or written: no answer"):
            Checkpoints(memory).restore()
    assert not caplog.records
    (memory / "2" / "state" / "arrays.npz").write_bytes(b"PK")
    run = Checkpoints(memory)
    assert run.restore().step == 1
    assert "memory://bucket/run/2 is damaged" in caplog.text
    assert run.save(2, STATE)
    run.wait()
    assert run.restore().step == 2


def test_a_step_that_cannot_be_put_is_said(
    memory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Checkpoints(memory)
    run.save(1, STATE)
    run.wait()

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", full)
        run.save(2, STATE)
        with pytest.raises(
            OSError, match=r"^checkpoint of step 2 could not be written to memory:"
        ) as e:
            run.wait()
    assert "quota exceeded); the last good step is 1" in str(e.value)
    assert run.steps() == [1]
    assert run.save(2, STATE)
    run.wait()
    assert run.steps() == [1, 2]


def test_snapshots_of_averages_are_kept_there(memory: pathlib.Path) -> None:
    snapshots = Snapshots(memory / "ema")
    assert snapshots.steps() == []
    snapshots.save(2, {"sigma_rel_0.1": STATE["params"], "0.9": STATE["params"]})
    assert snapshots.steps() == [2]
    assert snapshots._names(2) == ["sigma_rel_0.1"]
    arrays = read_arrays(memory / "ema" / "2.npz")
    np.testing.assert_array_equal(arrays["sigma_rel_0.1/bias"], np.ones(3), strict=False)


# --- the lock ---


def test_one_program_at_a_time_writes_to_a_folder(folder: pathlib.Path) -> None:
    with lock.held(folder, "--mode=train"):
        with (
            pytest.raises(BlockingIOError, match=f"^{folder} is in use by --mode=train .process"),
            lock.held(folder, "--mode=train"),
        ):
            pass
        with lock.held(folder / "eval", "--mode=eval"):
            assert (folder / "eval" / ".lock").exists()
    assert not (folder / ".lock").exists()


def test_a_dead_holder_is_followed(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = {"host": "elsewhere", "process": 1, "token": "x"}
    (folder / ".lock").write_bytes(json.dumps(dead).encode())
    began = time.monotonic()
    with lock.held(folder, "--mode=train"):
        assert time.monotonic() - began > bucket_lock.DEAD
        assert json.loads((folder / ".lock").read_bytes())["what"] == "--mode=train"
    here = {**lock._holder("--mode=train"), "process": 2**22 + 1}  # above every process's number
    (folder / ".lock").write_bytes(json.dumps(here).encode())
    monkeypatch.setattr(bucket_lock, "DEAD", 60.0)
    with lock.held(folder, "--mode=train"):
        assert json.loads((folder / ".lock").read_bytes())["process"] == os.getpid()


def test_a_holder_that_lost_its_lock_ends(
    memory: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signals: list[int] = []
    monkeypatch.setattr(bucket_lock, "BEAT", 0.02)
    monkeypatch.setattr(os, "kill", lambda _, number: signals.append(number))
    with lock.held(memory, "--mode=train"):
        other = json.dumps({**lock._holder("--mode=eval"), "token": "other"}).encode()
        (memory / ".lock").write_bytes(other)
        for _ in range(500):
            time.sleep(0.01)
            if signals:
                break
    assert signals == [signal.SIGTERM]
    assert ".lock is --mode=eval (process" in caplog.text
    assert (memory / ".lock").read_bytes() == other


def test_a_bucket_that_can_only_be_read_needs_no_lock(
    memory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (memory / "samples" / "shard_000000.npz").write_bytes(b"")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", denied)
    with lock.held(memory / "samples", "--mode=sample", needed=False):
        pass
    with (
        pytest.raises(BucketError, match=r"\.lock cannot be read or written: .*Access Denied"),
        lock.held(memory, "--mode=train"),
    ):
        pass


# --- metrics ---


def test_metrics_are_put_now_and_then_and_before_a_checkpoint(
    memory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = metric_log.MetricLog(memory, 0, loggers.opened(("tensorboard",), memory, 0, {}))
    log.write(10, {"loss": 0.5})
    path = memory / "metrics.jsonl"
    assert not path.exists()
    log.secure()
    log.write(20, {"loss": 0.25})
    assert path.read_text().count("\n") == 1
    monkeypatch.setattr(buckets, "PUT_EVERY", 0.0)
    log.write(30, {"loss": 0.125})
    log.close()
    steps, values = metric_log.read_metrics(path)["loss"]
    np.testing.assert_array_equal(steps, [10, 20, 30])
    np.testing.assert_array_equal(values, [0.5, 0.25, 0.125])
    logged = [event.step for event in events(memory) if event.summary.value]
    assert logged == [10, 20, 30]

    path.write_bytes(path.read_bytes() + b"odd\n")
    metric_log.MetricLog(memory, 20).write(25, {"loss": 1.0})
    steps, _ = metric_log.read_metrics(path)["loss"]
    np.testing.assert_array_equal(steps, [10, 20, 25])
    assert (memory / "metrics_odd.txt").read_text() == "odd\n"


def test_metrics_of_a_run_that_fails_are_put(memory: pathlib.Path) -> None:
    log = metric_log.MetricLog(memory)
    with contextlib.suppress(FloatingPointError), log:
        log.write(10, {"loss": 0.5})
        raise FloatingPointError
    np.testing.assert_array_equal(
        metric_log.read_metrics(memory / "metrics.jsonl")["loss"][0], [10]
    )


# --- what else is written there ---


def test_plans_of_several_topologies_are_kept_there(
    memory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "make", lambda config, name, *_, **__: {"topology": name})
    monkeypatch.setattr(table, "text", str)
    for name in ("v5e:2x2", "h100:1"):
        plan.plan(tiny.config(), name, memory)
    stored = json.loads((memory / "plan.json").read_text())
    assert stored == {name: {"topology": name} for name in ("v5e:2x2", "h100:1")}


def test_a_trace_is_there_when_it_ends(memory: pathlib.Path) -> None:
    profile = Profile(memory, lambda: None)
    for step in range(4, 33, 4):
        profile.after_call(step, None)  # type: ignore[arg-type]
    traces = [name for name in tree(memory) if name.endswith("perfetto_trace.json.gz")]
    assert len(traces) == 1
    assert traces[0].startswith("profile/")


def test_a_guide_is_a_run_there(memory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = test_control.settings(
        guide=test_guides.guide_folder(memory, classifier__num_classes=11)
    )
    assert config.control.guide == str(memory)
    prior = prior_from_config(config, experiment.build(config))
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        guides.load_guide(config.control.guide, prior, "classifier")
    monkeypatch.setattr(guides, "restore", test_control.restored)
    guide = guides.load_guide(config.control.guide, prior, "classifier")
    assert guide.parts.module.num_classes == 11


# --- a run ---


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_of_a_disk(
    memory: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ends, is resumed and goes on there, and every array, sample and number is the same."""
    use_devices(monkeypatch, 1)
    grids = "--config.training.snapshot_sampling=True"
    once = "--config.eval.enable_bpd=False"
    local = tmp_path / "run"
    for workdir in (memory, local):
        for n_iters in (4, 6):
            steps = f"--config.training.n_iters={n_iters}"
            arguments = tiny.arguments(workdir, "train", steps, grids)
            assert tiny.run(capsys, *arguments)[0] == 0
        for mode, more in (("sample", ()), ("eval", (once,))):
            assert tiny.run(capsys, *tiny.arguments(workdir, mode, *more))[0] == 0
    there, here = tree(memory), tree(local)
    assert {named(name) for name in there} <= {named(name) for name in here}
    absent = {named(name) for name in here} - {named(name) for name in there}
    assert all("_CHECKPOINT_METADATA" in name or "commit_success" in name for name in absent)
    for name, data in here.items():
        if name.endswith(".npz") and name in there:
            mine, its = (np.load(io.BytesIO(each)) for each in (data, there[name]))
            for field in set(mine) - {"seconds"}:
                np.testing.assert_array_equal(mine[field], its[field], strict=True, err_msg=name)
        elif name.endswith((".png", ".gif")) and not name.startswith("loss"):
            assert there[name] == data, name
    results = [json.loads(each["eval/results.json"]) for each in (there, here)]
    for each in results:
        each.pop("seconds", None)
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert results[0]["loss"] == results[1]["loss"]
    curves = [metric_log.read_metrics(run / "metrics.jsonl") for run in (memory, local)]
    for name in ("loss", "eval_loss"):
        np.testing.assert_array_equal(curves[0][name], curves[1][name])


def two_processes(workdir: object, n_iters: int) -> list[str]:
    """What two processes say that train together to a step, and end well."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = (*pod.TRAINING, f"--workdir={workdir}", f"--config.training.n_iters={n_iters}")
    processes = []
    for index in range(2):
        place = dict(zip(cluster.VARIABLES, (address, "2", str(index)), strict=True))
        places = {**os.environ, **place, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        command = [sys.executable, "main.py", *options]
        processes.append(
            subprocess.Popen(
                command, cwd=network.ROOT, env=places, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    texts = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["s3", "gs"], indirect=True)
def test_hosts_that_train_together_share_a_bucket(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The run is resumed there, and is that of a disk."""
    assert "several disks" not in two_processes(folder, 10)[0]
    assert "resuming at step 10" in two_processes(folder, 20)[0]
    two_processes(tmp_path / "run", 20)
    there, here = (Checkpoints(each / "checkpoints") for each in (folder, tmp_path / "run"))
    assert there.steps() == here.steps() == [10, 20]
    for name, array in here.restore().state.items():
        np.testing.assert_array_equal(there.restore().state[name], array)


def named(name: str) -> str:
    """A file's name without what a time or a process gave it."""
    return "tensorboard" if name.startswith("tensorboard/") else name
