"""A checkpoint comes back bit for bit, or not at all: then the step before it does."""

from __future__ import annotations

import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import ml_dtypes
import numpy as np
import optax
import pytest

from configs import stored
from runtime.arrays import flatten, unflatten
from runtime.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent


def make_state(step: int, seed: int = 0):
    """A training state in small: every dtype, shape and container that a run stores."""
    rng = np.random.default_rng([seed, step])
    kernel = rng.standard_normal((50, 20)).astype(np.float32)
    params = {"Conv_0": {"kernel": kernel, "bias": np.full((3, 1), -0.0, np.float32)}}
    return {
        "params": params,
        "opt_state": jax.tree.map(np.array, optax.adam(1e-3).init(params)),
        "key": rng.integers(0, 2**32, 2, dtype=np.uint32),
        "step": np.asarray(step, np.int32),
        "mixed": [
            rng.standard_normal(7).astype(ml_dtypes.bfloat16),
            rng.standard_normal(5),
            np.array([np.nan, np.inf, 1e-45], np.float32),
            np.array([True, False]),
            np.asfortranarray(rng.standard_normal((3, 4)))[::2],
            np.zeros((0, 4), np.float32),
        ],
    }


def assert_same_bits(a, b):
    def assert_same(x, y):
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())

    jax.tree.map(assert_same, a, b)


def files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def largest(directory: pathlib.Path) -> pathlib.Path:
    return max(files(directory), key=lambda path: path.stat().st_size)


def flip_byte(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("absl.logging.warning", lambda message, *args: lines.append(message % args))
    return lines


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> pathlib.Path:
    """A directory with steps 10 and 20, to be copied by tests that damage it."""
    directory = tmp_path_factory.mktemp("two_steps")
    saved = Checkpoints(directory)
    for step in (10, 20):
        assert saved.save(step, make_state(step), {"position": step}, '{"lr": 0.5}', metric=-step)
    saved.wait()
    return directory


@pytest.fixture
def damageable(two_steps, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def test_round_trip_is_bit_exact(tmp_path):
    state = make_state(3)
    expected = jax.tree.map(np.copy, state)
    saved = Checkpoints(tmp_path / "new" / "directory")
    assert saved.save(3, state, b"\x00\xff", json.dumps({"model": {"nf": 64}}))
    for leaf in jax.tree.leaves(state):
        leaf[...] = 0  # the training loop may reuse its buffers at once
    saved.wait()

    restored = Checkpoints(tmp_path / "new" / "directory").restore(expected)
    assert restored.step == 3
    assert_same_bits(restored.state, expected)
    assert restored.data_state == b"\x00\xff"
    assert json.loads(restored.config_json) == {"model": {"nf": 64}}


def test_one_file_serves_any_part_of_the_state(two_steps):
    restored = Checkpoints(two_steps).restore()
    state = make_state(20)
    assert restored.state.keys() == flatten(state).keys()
    assert restored.data_state == {"position": 20}
    template = jax.eval_shape(lambda: state["params"])
    params = unflatten(template, restored.state, "params")
    assert_same_bits(params, state["params"])


def test_state_that_does_not_fit_is_named(two_steps, warnings):
    template = make_state(20)
    template["params"]["Conv_1"] = template["params"].pop("Conv_0")
    template["key"] = np.zeros(4, np.uint32)
    template["step"] = np.zeros((), np.float32)
    with pytest.raises(ValueError, match="does not fit") as error:
        Checkpoints(two_steps).restore(template)
    for problem in (
        "key is uint32[2], expected uint32[4]",
        "params/Conv_0/kernel is not expected",
        "params/Conv_1/kernel is missing",
        "step is int32[], expected float32[]",
    ):
        assert problem in str(error.value)
    assert "\n" not in str(error.value)
    assert not warnings, "a wrong template is no damage"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"key": jax.random.key(0)}, "key cannot be stored"),
        ({"name": np.array(["a"])}, "name has dtype <U1"),
        ({"a/b": np.zeros(1), "a": {"b": np.zeros(1)}}, "two leaves of the state are named a/b"),
    ],
)
def test_unstorable_state_is_refused(tmp_path, state, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path / "new").save(1, state)
    assert not (tmp_path / "new").exists()


def test_no_checkpoint(tmp_path, two_steps):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .*nowhere"):
        Checkpoints(tmp_path / "nowhere").restore()
    assert not (tmp_path / "nowhere").exists(), "reading creates nothing"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 15 in .*there are 10, 20"):
        Checkpoints(two_steps).restore(step=15)
    with pytest.raises(
        ValueError, match=r"eval\.checkpoint='newest': valid values are a step's number"
    ):
        Checkpoints(two_steps).restore(step="newest")


def test_steps_only_increase(damageable):
    saved = Checkpoints(damageable)
    before = {path: path.read_bytes() for path in files(damageable)}
    assert not saved.save(20, make_state(20, seed=1))
    assert not saved.save(15, make_state(15))
    assert {path: path.read_bytes() for path in files(damageable)} == before
    assert saved.save(30, make_state(30))
    saved.wait()
    assert saved.restore(step="30").step == 30


@pytest.mark.parametrize(
    ("metrics", "keep_every", "remaining", "best"),
    [
        ([1, 2, 3, 4, 5], None, [1, 4, 5], 1),  # the newest is the worst: both ends stay
        ([5, 4, 3, 2, 1], None, [4, 5], 5),
        ([3, 1, 3, 1, float("nan")], None, [4, 5], 4),  # of equal ones the newer
        ([None, None, 7, 8, 9], 2, [2, 3, 4, 5], 3),
    ],
)
def test_retention(tmp_path, metrics, keep_every, remaining, best):
    for run in (slice(0, 3), slice(3, None)):  # metrics are known again after a restart
        saved = Checkpoints(tmp_path, keep_every=keep_every)
        for step, metric in list(enumerate(metrics, start=1))[run]:
            assert saved.save(step, {"x": np.full(3, step)}, metric=metric)
        saved.wait()
    assert saved.steps() == remaining
    assert saved.restore().step == 5
    assert saved.restore(step="best").step == best
    assert saved.restore(step="best").state["x"][0] == best


def test_best_needs_a_metric(tmp_path):
    saved = Checkpoints(tmp_path)
    saved.save(1, {"x": np.zeros(1)})
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* has a metric"):
        saved.restore(step="best")


def test_any_flipped_byte_is_found(damageable, two_steps, warnings):
    """Whichever file is hit: the right values of step 20, or those of step 10 and a warning."""
    fallbacks = []
    for path in files(damageable / "20"):
        original = path.read_bytes()
        flip_byte(path)
        warnings.clear()
        restored = Checkpoints(damageable).restore(make_state(0))
        assert_same_bits(restored.state, make_state(restored.step))
        assert restored.data_state == {"position": restored.step}
        assert restored.config_json == '{"lr": 0.5}'
        assert restored.step == (10 if warnings else 20), path
        if warnings:
            fallbacks.append(path)
            assert len(warnings) == 1
            assert f"{damageable / '20'} is damaged" in warnings[0]
            assert warnings[0].endswith("; falling back to step 10")
            assert "\n" not in warnings[0]
        path.write_bytes(original)
    damaged = {path.relative_to(damageable / "20").parts[0] for path in fallbacks}
    assert damaged == {"state", "checksums", "config", "data"}
    assert largest(damageable / "20" / "state") in fallbacks


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step": np.asarray(21, np.int32)}, "step does not match its checksum"),
        ({"step": np.asarray(20, np.uint32)}, "step does not match its checksum"),
        ({"key": make_state(20)["key"][None]}, "key does not match its checksum"),
        ({"mixed/0": None}, "mixed/0 is missing"),
    ],
)
def test_arrays_are_held_against_their_checksums(damageable, changes, problem):
    """A sound archive, but not the one that was saved."""
    path = damageable / "20" / "state" / "arrays.npz"
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=f"20 is damaged: array {problem}"):
        Checkpoints(damageable).restore(step=20)


@pytest.mark.parametrize(
    ("item", "old", "new", "problem"),
    [
        ("data", ": 20", ": 21", "data does not match its checksum"),
        ("config", "0.5", "0.7", "config does not match its checksum"),
        ("checksums", "-20", "-30", "checksums do not match their own checksum"),
    ],
)
def test_descriptions_are_held_against_their_checksums(damageable, item, old, new, problem):
    path = damageable / "20" / item / "metadata"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=f"20 is damaged: {problem}"):
        Checkpoints(damageable).restore(step=20)


@pytest.mark.parametrize("damage", [flip_byte, truncate, pathlib.Path.unlink])
def test_damaged_step_is_passed_over_and_saved_again(damageable, damage, warnings):
    damage(largest(damageable / "20" / "state"))
    saved = Checkpoints(damageable)
    with pytest.raises(ValueError, match=r"checkpoint .*20 is damaged: [^\n]+$"):
        saved.restore(step=20)
    assert saved.restore(step="best").step == 10  # 20 had the better metric
    saved = Checkpoints(damageable)
    restored = saved.restore(make_state(0))
    assert restored.step == 10
    assert_same_bits(restored.state, make_state(10))
    assert len(warnings) == 2

    assert saved.save(15, make_state(15))
    assert saved.save(20, make_state(20, seed=1))
    saved.wait()
    assert saved.steps() == [10, 15, 20] or saved.steps() == [15, 20]
    assert_same_bits(saved.restore(make_state(0)).state, make_state(20, seed=1))


def test_damage_found_after_saving_with_the_same_object(tmp_path, warnings):
    saved = Checkpoints(tmp_path)
    for step in (10, 20):
        saved.save(step, make_state(step))
    saved.wait()
    flip_byte(largest(tmp_path / "20"))
    assert saved.restore().step == 10
    assert saved.save(20, make_state(20))
    assert saved.restore().step == 20


@pytest.mark.parametrize("damage", [flip_byte, truncate])
def test_damaged_descriptions_do_not_stop_saving(damageable, damage, warnings):
    """The newest steps count, whatever has become of the older ones and of interrupted saves."""
    for path in files(damageable):
        if path.name != "arrays.npz":
            damage(path)
    (damageable / "25.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    saved = Checkpoints(damageable)
    assert saved.save(30, make_state(30), metric=0.0)
    assert saved.restore().step == 30
    assert saved.restore(step="best").step == 30
    assert not list(damageable.glob("*tmp*"))


def test_a_renamed_step_is_not_believed(damageable, warnings):
    newest = Checkpoints(damageable).steps()[-1]
    (damageable / str(newest)).rename(damageable / "999")
    with pytest.raises(ValueError, match=rf"999 is damaged: it is that of step {newest}; give"):
        Checkpoints(damageable).restore(step=999)
    assert Checkpoints(damageable).restore().step < newest


def test_everything_damaged(damageable, warnings):
    for step in ("10", "20"):
        flip_byte(largest(damageable / step / "state"))
    with pytest.raises(
        ValueError, match=r"every checkpoint in .*; checkpoint .*20 is damaged.*copy"
    ):
        Checkpoints(damageable).restore()


def test_who_asked_for_damage_is_told_what_to_do(damageable, warnings):
    flip_byte(largest(damageable / "20" / "state"))
    with pytest.raises(ValueError, match=r"; eval\.checkpoint may name another: 10$"):
        Checkpoints(damageable).restore(step=20)
    shutil.rmtree(damageable / "10")
    advice = f"put a copy of them there, or move {damageable} away, and --mode=train begins anew"
    for step in (20, "latest", "best"):
        with pytest.raises(ValueError, match=f"the run has no other weights: {advice}$"):
            Checkpoints(damageable).restore(step=step)


def test_disk_full(tmp_path, capfd, caplog):
    """No file may grow beyond 64 kB: one line of error, and step 1 as good as before."""
    saved = Checkpoints(tmp_path)
    saved.save(1, make_state(1))
    saved.wait()
    before = {path: path.read_bytes() for path in files(tmp_path)}
    big = {"x": np.random.default_rng(0).standard_normal(100_000)}

    def save_and_wait(step):
        saved.save(step, big)
        saved.wait()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(OSError, match=r"step 2 could not be written .*good step is 1") as error:
            save_and_wait(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{tmp_path} (File too large)" in str(error.value)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not caplog.records, "orbax would log a traceback"

    assert saved.save(2, big)
    assert saved.restore().step == 2


def python(script: str, *args: object, **options) -> subprocess.Popen:
    environment = dict(os.environ, XLA_FLAGS="", JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_sigkill_while_saving(tmp_path, warnings):
    script = """
        import sys
        import numpy as np
        from runtime import checkpoints
        saved = checkpoints.Checkpoints(sys.argv[1])
        for step in range(1, 10_000):
            rng = np.random.default_rng(step)
            saved.save(step, {"x": rng.standard_normal(200_000)}, {"position": step})
    """
    writers = [(tmp_path / str(i), python(script, tmp_path / str(i))) for i in range(2)]
    for i, (directory, writer) in enumerate(writers):
        deadline = time.monotonic() + 60
        while Checkpoints(directory).steps()[-1:] < [2] and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.013 * i)
        writer.send_signal(signal.SIGKILL)
        assert "Error" not in writer.communicate()[0]
        saved = Checkpoints(directory)
        restored = saved.restore()
        assert restored.step >= 2
        assert restored.data_state == {"position": restored.step}
        expected = np.random.default_rng(restored.step).standard_normal(200_000)
        np.testing.assert_array_equal(restored.state["x"], expected)
        assert not warnings, "an interrupted save leaves no step behind"
        assert saved.save(restored.step + 1, {"x": expected})
        assert saved.restore().step == restored.step + 1
        assert not list(directory.glob("*tmp*"))


def test_two_processes_share_one_checkpoint(tmp_path):
    script = """
        import sys
        import jax
        jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
        import numpy as np
        from runtime import checkpoints
        saved = checkpoints.Checkpoints(sys.argv[1])
        state = lambda step: {"x": np.random.default_rng(step).standard_normal((1000, 10))}
        for step in (1, 2, 3):
            assert saved.save(step, state(step), {"position": step})
        saved.wait()
        assert saved.steps() == [2, 3], saved.steps()
        restored = saved.restore(state(0))
        assert restored.step == 3 and (restored.state["x"] == state(3)["x"]).all()
        jax.experimental.multihost_utils.sync_global_devices("read")
        if jax.process_index() == 0:
            path = max(saved.directory.glob("3/state/*"), key=lambda p: p.stat().length)
            path.write_bytes(path.read_bytes()[:1000])
        jax.experimental.multihost_utils.sync_global_devices("damaged")
        assert saved.restore(state(0)).step == 2
        assert saved.save(3, state(3))
        assert saved.restore(state(0)).step == 3
        print("done")
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [python(script, tmp_path, port, i) for i in range(2)]
    try:
        for process in processes:
            output = process.communicate(timeout=60)[0]
            assert process.returncode == 0, output
            assert output.rstrip().endswith("done"), output
    finally:
        for process in processes:
            process.kill()
    alone = Checkpoints(tmp_path).restore()  # one process reads what two wrote
    assert (alone.step, alone.data_state) == (3, None)


@pytest.mark.parametrize("kind", ["file", "renamed", "empty", "other contents", "temporary"])
def test_what_is_not_a_finished_step_is_passed_over(tmp_path, warnings, kind):
    folder = tmp_path / "run"
    checkpoints = Checkpoints(folder)
    state = {"w": np.arange(3.0)}
    for step in (2, 4):
        checkpoints.save(step, state)
    checkpoints.wait()
    name = {"renamed": "0004", "temporary": "9.orbax-checkpoint-tmp-1"}.get(kind, "9")
    if kind == "file":
        (folder / name).write_text("a note")
    elif kind == "renamed":
        shutil.copytree(folder / "4", folder / name)
    else:
        (folder / name).mkdir()
    if kind == "other contents":
        (folder / name / "notes.txt").write_text("a note")
    reader = Checkpoints(folder)
    assert reader.steps() == [2, 4] == reader.steps()
    assert reader.restore().step == 4
    assert len(warnings) == (kind != "temporary")
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 9"):
        reader.restore(step=9)
    for step in (6, 9, 10):  # beside it, and in its place
        assert reader.save(step, state)
    reader.wait()
    assert reader.steps() == [9, 10]
    np.testing.assert_array_equal(reader.restore(step=9).state["w"], state["w"])
    if kind != "temporary":
        name = name if kind == "renamed" else f"{name}.not-a-checkpoint"
        assert (folder / name).exists()


def test_a_step_that_vanishes_while_it_is_read_is_replaced_by_the_newest(damageable, monkeypatch):
    checkpoints = Checkpoints(damageable)
    read = checkpoints._read

    def retired(step):
        if step == checkpoints.steps()[-1] and len(checkpoints.steps()) > 1:
            shutil.rmtree(damageable / str(step))
        return read(step)

    monkeypatch.setattr(checkpoints, "_read", retired)
    assert checkpoints.restore().step == 10


def test_an_unknown_choice_names_the_field(two_steps):
    with pytest.raises(ValueError, match=r"eval\.checkpoint='foo'.*latest"):
        Checkpoints(two_steps).restore(step="foo")


def test_config_differences():
    old = {"model": {"nf": 64, "ch_mult": [1, 2], "fir": True}, "seed": 1, "log": {"freq": 5}}
    new = {"model": {"nf": 32, "ch_mult": (1, 2), "ema": 0.9}, "seed": 1, "log": {"freq": 9}}
    assert stored.config_differences(old, new, ignore=["log.*"]) == [
        "model.ema: nothing (stored), 0.9 (given)",
        "model.fir: True (stored), nothing (given)",
        "model.nf: 64 (stored) != 32 (given)",
    ]
    assert stored.config_differences(old, json.loads(json.dumps(old))) == []
    assert stored.config_differences({"a": {}}, {"a": {"b": None}}) == [
        "a: {} (stored), nothing (given)",
        "a.b: nothing (stored), None (given)",
    ]
    assert stored.config_differences({"a": [1, float("nan")]}, {"a": (1, float("nan"))}) == []
