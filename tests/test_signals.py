"""SIGINT and SIGTERM to real commands, in every mode, at work and while they start."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from runtime import stop
from tests import tiny
from tests.test_killed import CASES, Command, case, goes_on, undisturbed
from tests.test_killed import trained as trained  # a fixture
from tests.test_training import ROOT, start, start_two, subprocess_environment

SIGNALS = ((signal.SIGINT, 130), (signal.SIGTERM, 143))
LINE = re.compile(
    r"stopped.*; the same command goes on( from what is on disk)?"
    r"|stopped when the command was finished"
    r"|stopped at once; what was finished is on disk"  # an import, or the program's own end
)


def lines_of(output: str) -> list[str]:
    """What a command printed, progress bars aside."""
    lines = re.split(r"[\r\n]+", output)
    return [line for line in lines if line.strip() and not re.search(r"%\||\dit \[", line)]


def check_stop(output: str) -> None:
    """A stop has one line, at the end, and no traceback."""
    *before, last = lines_of(output)
    assert LINE.fullmatch(last), output
    assert not [line for line in before if re.search(r"stopped|Traceback|Error", line)], output


TRAIN = case("train", "run", "--config.training.n_iters=20", trained=False)
MODES = {"train": TRAIN, **CASES}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_a_signal_stops_a_command_that_works_and_the_same_command_goes_on(
    name: str, trained: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, folder = Command(MODES[name], tmp_path / "home", trained), MODES[name].folder
    count, whole = undisturbed(command)
    stops = []
    for (number, exit_code), share, delay in zip(SIGNALS, (0.35, 0.75), (0.0, 0.02), strict=True):
        moment = max(1, round(share * count))
        command.prepare()
        code, _, output = command(moment, delay, number)
        if code == 0 and delay:  # it was quicker
            code, _, output = command(moment, 0.0, number)
        assert code == exit_code, f"{number} at moment {moment} of {count}: {output}"
        check_stop(output)
        stops.append(lines_of(output)[-1])
        finished = finished_files(command.home / folder)
        goes_on(command, whole, f"{number} at moment {moment} of {count}")
        kept = finished_files(command.home / folder)
        assert not [path for path, when in finished.items() if kept.get(path, when) != when]
    with capsys.disabled():
        print(f"\n{name}: {len(stops)} signals over {count} moments: {stops}")


def finished_files(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    """When the shards and checkpoints of a folder were written."""
    files = [*folder.rglob("shard_*.npz"), *folder.rglob("checkpoints/*/checksums/*")]
    return {path: path.stat().st_mtime_ns for path in files}


def caught(process: subprocess.Popen[str]) -> None:
    """Waits until the process has a handler of SIGTERM: before, it is Python that starts."""
    status = pathlib.Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("this system does not say which signals a process handles")
    while process.poll() is None:
        mask = re.search(r"SigCgt:\s*(\w+)", status.read_text())
        if mask and int(mask[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "sample", "reproduction"])
def test_a_signal_to_a_command_that_starts_ends_it_in_one_line(
    program: str, trained: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-m", "benchmarks.reproduction", f"--workdir={trained.with_name('small')}"]
    if program != "reproduction":
        options = tiny.arguments(trained, program)

    def begin() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *options],
            cwd=ROOT,
            env=subprocess_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        caught(process)
        return process

    whole, began = begin(), time.monotonic()
    assert whole.stdout is not None
    text = ""
    while "%|" not in text:  # the first bar
        text += (character := whole.stdout.read(1))
        assert character, text
    seconds = time.monotonic() - began
    whole.kill()
    whole.communicate()
    tries = 12
    for i in range(tries):
        process = begin()
        time.sleep(i / tries * 0.8 * seconds)
        number, exit_code = SIGNALS[i % 2]
        process.send_signal(number)
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == exit_code, output
        *before, last = lines_of(output)
        assert last.startswith("stopped"), output
        resumed = r"resuming at step \d+" if program == "reproduction" else "resuming at step 6"
        assert not before or re.fullmatch(resumed, "\n".join(before)), output
    with capsys.disabled():
        print(f"\n{program}: {tries} signals in the {seconds:.1f} s of its start")


@pytest.mark.slow
def test_the_second_signal_ends_a_command_at_once(trained: pathlib.Path) -> None:
    """In a batch of minutes; the first one twice, as GNU's `timeout` sends it, is one."""
    process = start(trained, "--config.sampling.num_steps=1000000", mode="sample")
    assert process.stdout is not None
    text = ""
    while not re.search(r"starting, ([2-9]|\d\d)\d s", text):  # it has compiled
        text += (character := process.stdout.read(1))
        assert character, text
    process.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    time.sleep(2 * stop.TWIN)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 130
    assert lines_of(output)[-1] == "stopped at once; what was finished is on disk"


def wait_for(path: pathlib.Path, *processes: subprocess.Popen[str]) -> None:
    """Waits for a file of processes that run."""
    while not path.exists():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


LONG = "--config.training.n_iters=100000"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "sample"])
def test_of_two_commands_in_a_workdir_the_second_is_told_of_the_first(
    mode: str, trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = Command(case(mode, "run"), tmp_path / "home", trained)
    run.prepare()
    workdir = run.home / "run"
    folder = workdir if mode == "train" else workdir / "samples"
    long: dict[str, Any] = {
        "train": (LONG, workdir / "checkpoints" / "8"),
        "sample": ("--config.sampling.num_samples=100000", folder / "shard_000000.npz"),
    }
    option, sign = long[mode]
    first = start(workdir, option, mode=mode)
    try:
        wait_for(sign, first)
        second = start(workdir, option, mode=mode)
        output, _ = second.communicate(timeout=600)
        assert second.returncode == 1
        assert re.fullmatch(
            rf"error: {re.escape(str(folder))} is in use by --mode={mode} \(process {first.pid} on "
            rf"{re.escape(socket.gethostname())}, since 2\S+\); wait for it, stop it, or .*",
            "".join(lines_of(output)),
        )
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert (folder / ".lock").exists()
    newest = max(int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdecimal())
    more = f"--config.training.n_iters={newest + 4}" if mode == "train" else "--config.seed=42"
    third = start(workdir, more, mode=mode)
    output, _ = third.communicate(timeout=600)
    assert third.returncode == 0, output
    assert not (folder / ".lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "process"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 0)]
)
def test_a_signal_to_one_process_of_two_stops_both_in_training(
    number: int, code: int, process: int, tmp_path: pathlib.Path
) -> None:
    both = start_two(tmp_path, LONG)
    try:
        wait_for(tmp_path / "checkpoints" / "4", *both)
        both[process].send_signal(number)
        outputs = [one.communicate(timeout=300)[0] for one in both]
    finally:
        for one in both:
            one.kill()
    codes = [143, 143]
    codes[process] = code
    assert [one.returncode for one in both] == codes, outputs
    steps = set()
    for output in outputs:
        check_stop(output)
        steps.add(lines_of(output)[-1])
    (line,) = steps
    match = re.fullmatch(r"stopped at step (\d+) of 100000; the same command goes on", line)
    assert match, line
    assert (tmp_path / "checkpoints" / match[1]).is_dir()
    assert not (tmp_path / ".lock").exists()
    for one in start_two(tmp_path, f"--config.training.n_iters={int(match[1]) + 2}"):
        output, _ = one.communicate(timeout=600)
        assert one.returncode == 0, output


@pytest.mark.slow
def test_a_signal_to_one_process_of_two_stops_both_in_sampling(
    trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = Command(case("sample", "run"), tmp_path / "home", trained)
    run.prepare()
    folder = run.home / "run" / "samples"
    both = start_two(run.home / "run", "--config.sampling.num_samples=100000", mode="sample")
    try:
        wait_for(folder / "shard_000000.npz", *both)
        os.kill(both[1].pid, signal.SIGINT)
        outputs = [one.communicate(timeout=300)[0] for one in both]
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [143, 130], outputs
    for output in outputs:
        check_stop(output)
    assert lines_of(outputs[0])[-1] == lines_of(outputs[1])[-1]
