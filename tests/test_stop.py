"""Signals: the first one asks, the second one ends; in this process and in real ones."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from runtime import devices, endings, stop
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_stops_where_nobody_listens(number: int, code: int) -> None:
    before = signal.getsignal(number)

    def receive() -> None:
        with stop.handled():
            os.kill(os.getpid(), number)
            time.sleep(1.0)

    with pytest.raises(stop.Stopped, match=r"^stopped; the same command goes on") as stopped:
        receive()
    assert stopped.value.code == code
    assert signal.getsignal(number) is before
    assert not stop.requested()


def test_a_loop_that_listens_is_asked_and_only_the_outermost_stops() -> None:
    with stop.handled(), stop.listening() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.requested()
        with stop.listening() as inner:
            assert (outer, inner) == (True, False)
        stop.check("not here")
    with stop.listening() as outermost:
        assert outermost


def test_an_image_map_finishes_its_batch_and_says_how_far_it_came() -> None:
    batch = devices.fitting_batch(1)
    run = devices.ImageMap(lambda params, i, arrays: i + 1, batch, "batch")
    results: list[object] = []

    def collect() -> None:
        for numbers, _ in run((), np.arange(4 * batch), description="counting"):
            results.extend(numbers)
            if len(results) == 2 * batch:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
                results.append("kept")  # what a caller does with a batch is not interrupted

    with stop.handled(), pytest.raises(stop.Stopped) as stopped:
        collect()
    assert results[-1] == "kept"
    assert len(results) == 2 * batch + 1
    assert stopped.value.code == 130
    assert f"stopped at image {2 * batch} of {4 * batch} (counting)" in str(stopped.value)


def busy_inside(contexts: str) -> subprocess.Popen[str]:
    """A process whose main thread is in C for a minute, and cannot run a handler."""
    script = f"""if True:
        import hashlib, sys
        sys.path.insert(0, {str(ROOT)!r})
        from runtime import stop
        with {contexts}:
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)  # a minute
    """
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)  # until it is there
    return process


def test_the_second_signal_ends_a_process_that_runs_no_python() -> None:
    """As in XLA's compiler, the main thread is in C, and cannot run a handler."""
    process = busy_inside("stop.handled()")
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)  # from a wrapper that passes on what both received
    time.sleep(2 * stop.TWIN)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, lines = process.communicate(timeout=20)
    assert process.returncode == 130
    assert lines.split("\n") == ["", "stopped at once; what was finished is on disk", ""]


def test_the_first_signal_ends_a_process_that_compiles_and_has_nothing_to_keep() -> None:
    process = busy_inside("stop.handled(), stop.listening(), stop.compiling(True)")
    process.send_signal(signal.SIGTERM)
    _, lines = process.communicate(timeout=20)
    assert process.returncode == 143
    assert lines == "\nstopped at once; what was finished is on disk\n"


def test_a_signal_in_a_destructor_is_not_lost() -> None:
    """Python ignores what is raised there."""

    class Interrupted:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.0)

    def receive() -> None:
        with stop.handled():
            Interrupted()
            time.sleep(5.0)

    with pytest.raises(stop.Stopped) as stopped:
        receive()
    assert stopped.value.code == 143


def test_a_signal_in_an_import_ends_the_process_at_once(tmp_path: pathlib.Path) -> None:
    """An exception there makes extension modules crash."""
    (tmp_path / "extension.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(5)"
    )
    script = "from runtime import stop\nwith stop.handled():\n    import extension"
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path += {[str(ROOT), str(tmp_path)]}\n{script}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert ended.returncode == 143
    assert ended.stderr == "\nstopped at once; what was finished is on disk\n"


def test_what_a_library_makes_of_a_stop_is_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        with endings.in_one_line():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
            except stop.Stopped:
                raise RuntimeError("a callback failed") from None

    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"{stop.STOPPED}\n"


def interrupted(
    arguments: list[str], number: int, ready: str | pathlib.Path
) -> tuple[int, list[str]]:
    """The command's exit code and last lines, after a signal once the file, or line, is there."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        if isinstance(ready, pathlib.Path):
            while not ready.exists():
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.05)
        else:
            while ready not in text:
                character = process.stdout.read(1)
                assert character, text
                text += character
        os.killpg(process.pid, number)  # as Ctrl-C does
        text += process.communicate(timeout=120)[0]
    finally:
        process.kill()
    lines = re.split(r"[\r\n]+", text)
    return process.returncode, [line for line in lines if line.strip() and "%|" not in line]


@pytest.mark.slow
def test_ctrl_c_in_training_saves_and_says_so_in_one_line(tmp_path: pathlib.Path) -> None:
    long = tiny.arguments(tmp_path, "train", "--config.training.n_iters=100000")
    code, lines = interrupted(long, signal.SIGINT, tmp_path / "checkpoints" / "2")
    assert code == 130, lines
    *before, last = lines
    assert all("compiling" in line for line in before), lines
    match = re.fullmatch(r"stopped at step (\d+) of 100000; the same command goes on", last)
    assert match
    assert (tmp_path / "checkpoints" / match[1]).is_dir()
    assert not (tmp_path / ".lock").exists()
