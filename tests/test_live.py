"""The page of a run that trains (--mode=watch): pace, silence, pictures, and its end."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

import main
from configs import load
from evaluation.report import live
from runtime import stop
from tests import tiny

N_ITERS = 1000


def run_folder(path: pathlib.Path, records: list[dict], n_iters: int = N_ITERS) -> pathlib.Path:
    """A run's folder with these lines of metrics, as training leaves it."""
    path.mkdir(parents=True)
    config = load("quickstart")
    config.training.n_iters = n_iters
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    return path


def records(steps: list[int], times: list[float]) -> list[dict]:
    return [
        {"step": s, "time": t, "loss": 100.0 / s, "images_per_second": 64.0}
        for s, t in zip(steps, times, strict=True)
    ]


def test_the_pace_counts_all_but_the_time_between_two_runs() -> None:
    """2 s a step, of which an hour in between is no part; a run that resumes may repeat steps."""
    steps = np.array([10, 20, 30, 25, 40, 50])
    times = np.array([0.0, 20.0, 40.0, 3600.0, 3630.0, 3650.0])
    assert live.pace_of(steps, times) == pytest.approx(2.0)
    assert live.pace_of(steps[:1], times[:1]) is None
    assert live.pace_of(np.array([5, 5]), np.array([0.0, 1.0])) is None


def test_where_a_run_stands(tmp_path: pathlib.Path) -> None:
    lines = records([100, 200, 300], [1000.0, 1050.0, 1100.0])
    lines[1]["eval_loss"] = 0.25
    workdir = run_folder(tmp_path / "run", lines)
    standing = live.look(workdir, now=1110.0)
    assert standing is not None
    assert (standing.step, standing.n_iters, standing.silent) == (300, N_ITERS, False)
    assert standing.seconds_left == pytest.approx(700 * 0.5)
    assert standing.numbers == {
        "training loss": "0.3333",
        "test loss": "0.25",
        "images per second": "64",
    }


@pytest.mark.parametrize(("now", "silent"), [(1100 + 249, False), (1100 + 251, True)])
def test_silence_is_measured_by_the_run_itself(
    tmp_path: pathlib.Path, now: float, silent: bool
) -> None:
    """Its lines come every 50 s; five times that is long."""
    workdir = run_folder(tmp_path / "run", records([100, 200, 300], [1000.0, 1050.0, 1100.0]))
    standing = live.look(workdir, now)
    assert standing is not None
    assert standing.silent == silent
    assert ("No news since" in live.render(workdir, standing)) == silent


def test_a_run_that_is_finished_is_never_silent(tmp_path: pathlib.Path) -> None:
    workdir = run_folder(tmp_path / "run", records([500, 1000], [0.0, 50.0]))
    standing = live.look(workdir, now=1e9)
    assert standing is not None
    assert standing.is_finished
    assert not standing.silent
    assert standing.seconds_left == 0


def test_before_the_first_line_it_says_that_it_starts(tmp_path: pathlib.Path) -> None:
    assert live.look(tmp_path, now=0.0) is None
    workdir = run_folder(tmp_path / "run", [])
    for _ in range(2):  # a file without lines, then none
        standing = live.look(workdir, now=0.0)
        assert standing == live.Standing(0, N_ITERS, {}, None, None, False)
        assert "compiles its first step" in live.render(workdir, standing)
        (workdir / "metrics.jsonl").unlink(missing_ok=True)
    late = live.look(workdir, now=time.time() + live.LONGEST_START + 60.0)
    assert late is not None
    assert late.silent
    assert "No news at all" in live.render(workdir, late)


def test_a_damaged_config_is_refused_before_anything_is_promised(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder(tmp_path / "run", []) / "config.json").write_text('{"oops":')
    with pytest.raises(ValueError, match=r"config\.json"):
        live.watch(tmp_path / "run")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (7261, "2 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, words: str) -> None:
    assert live.duration(seconds) == words


def test_the_page_renews_itself_until_the_last_step_and_escapes_what_it_shows(
    tmp_path: pathlib.Path,
) -> None:
    workdir = run_folder(tmp_path / "<script>run", records([500, 900], [0.0, 50.0]))
    grid = workdir / "samples_in_training" / "step_0000900.png"
    grid.parent.mkdir()
    Image.new("L", (8, 8)).save(grid)
    standing = live.look(workdir, now=60.0)
    assert standing is not None
    text = live.render(workdir, standing)
    assert '<meta http-equiv="refresh" content="5">' in text
    assert "<script>" not in text
    assert "Samples of step 900" in text
    assert len(re.findall('src="data:image/png;base64,', text)) == 3  # loss, speed, samples
    assert 'http-equiv="refresh"' not in live.render(workdir, standing._replace(step=N_ITERS))


def test_it_follows_a_run_to_its_end(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is written anew with each line of the run, and the last time without renewal."""
    monkeypatch.setattr(live, "POLL", 0.01)
    workdir = run_folder(tmp_path / "run", records([500], [0.0]))
    page, seen = workdir / live.PAGE, []

    def train() -> None:
        while not page.exists():
            time.sleep(0.01)
        seen.append(page.read_text())
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(records([N_ITERS], [50.0])[0]) + "\n")

    thread = threading.Thread(target=train)
    thread.start()
    live.watch(workdir)
    thread.join()
    assert "step <b>500</b>" in seen[0]
    assert "step <b>1,000</b>" in page.read_text()
    assert "1000/1000" in capsys.readouterr().err


def test_a_signal_ends_it_with_a_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "POLL", 0.01)
    workdir = run_folder(tmp_path / "run", records([500], [0.0]))
    with stop.handled():
        threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT)).start()
        with pytest.raises(stop.Stopped, match="whoever trains it goes on"):
            live.watch(workdir)


def test_where_no_page_can_be_written_the_line_goes_on(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = run_folder(tmp_path / "run", records([N_ITERS], [0.0]))
    (workdir / live.PAGE).mkdir()
    live.watch(workdir)
    assert "there will be no page" in "".join(capsys.readouterr())


def test_a_folder_that_is_not_there_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = tiny.run(capsys, "main.py", "--mode=watch", f"--workdir={tmp_path / 'none'}")
    assert (code, len(lines)) == (1, 1)
    assert "no folder of a run" in lines[0]


def test_it_leaves_the_accelerators_to_the_run() -> None:
    assert main.MODES["watch"].platform == "cpu"
