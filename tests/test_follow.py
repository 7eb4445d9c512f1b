"""Evaluation beside a training: each checkpoint once, in order, none passed over, an end to it."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation import batch_cache, evaluate, follow
from runtime import files, stop
from tests import tiny

FOLLOW: dict[str, Any] = {
    "eval__checkpoint": "follow",
    "eval__begin_ckpt": 1,
    "eval__end_ckpt": 9,
    "eval__follow_minutes": 2.0,
    "training__n_iters": 420,  # snapshot_freq is 100
}


def arrivals(config: Any, workdir: pathlib.Path) -> Iterator[list[int]]:
    checkpoints = evaluate.open_run(config, workdir, training=False)
    return follow.arrivals(config.eval, config.training, workdir, checkpoints)


class Training:
    """A training whose checkpoints come while somebody sleeps."""

    def __init__(self, *naps: tuple[int, ...]) -> None:
        self.steps: list[int] = []
        self.naps, self.clock, self.slept = iter(naps), 0.0, 0

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        self.slept += 1
        self.steps += next(self.naps, ())


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Training]:
    """Starts a training beside; its config is the tiny one with `FOLLOW`."""

    def start(*naps: tuple[int, ...]) -> Training:
        training = Training(*naps)
        run = SimpleNamespace(steps_anywhere=lambda: list(training.steps))
        monkeypatch.setattr(evaluate, "open_run", lambda config, workdir, training: run)
        monkeypatch.setattr(follow, "stored_config", lambda workdir: tiny.config(**FOLLOW))
        clock = SimpleNamespace(sleep=training.sleep, monotonic=lambda: training.clock)
        monkeypatch.setattr(follow, "time", clock)
        return training

    return start


def test_each_kept_checkpoint_is_given_once_in_order(
    beside: Callable[..., Training], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 250 and 390, which training does not keep, none; the last step is none of the multiples.
    Those that came while the ones before were evaluated are not passed over."""
    training = beside((), (100,), (), (400, 420))
    given = []
    for steps in arrivals(tiny.config(**FOLLOW), tmp_path):
        given.append(steps)
        if steps == [100]:
            training.steps += [200, 250, 300, 390]
    assert given == [[100], [200, 300], [400, 420]]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"waiting for checkpoints in {tmp_path} (not begun); Ctrl-C ends it"
    assert "(at step 390 of 420)" in lines[1]
    assert lines[-1] == "training has reached its last step, 420"


def test_a_run_that_is_over_is_not_waited_for(
    beside: Callable[..., Training], tmp_path: pathlib.Path
) -> None:
    training = beside()
    training.steps = [100, 200, 300, 400, 420]
    config = tiny.config(**FOLLOW | {"eval__begin_ckpt": 2, "eval__end_ckpt": 3})
    assert list(arrivals(config, tmp_path)) == [[200, 300, 420]]
    assert training.slept == 0


def test_without_news_it_ends_and_any_checkpoint_is_news(
    beside: Callable[..., Training], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = [()] * int(1.9 * 60 / follow.POLL)
    training = beside((100,), *quiet, (130,), *quiet, (160,))
    assert list(arrivals(tiny.config(**FOLLOW), tmp_path)) == [[100]]
    since_the_last = 120.0
    assert training.clock == pytest.approx(
        follow.POLL * (3 + 2 * len(quiet)) + since_the_last, abs=2 * follow.POLL
    )
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == ("no new checkpoint for 2 minutes, at step 160 of 420; the same command goes on")


def test_a_run_that_never_begins_is_an_error(
    beside: Callable[..., Training], tmp_path: pathlib.Path
) -> None:
    beside((), ())
    with pytest.raises(FileNotFoundError, match=r"no checkpoint to evaluate for 2 minutes.*-1$"):
        list(arrivals(tiny.config(**FOLLOW), tmp_path))


def test_a_signal_ends_the_wait(
    beside: Callable[..., Training], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside()
    with stop.handled():
        import os
        import signal

        def interrupted(seconds: float) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(follow.time, "sleep", interrupted)
        with pytest.raises(stop.Stopped, match="the same command goes on"):
            list(arrivals(tiny.config(**FOLLOW), tmp_path))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Evaluations that take no time, and the folders of those that were made."""
    made: list[str] = []

    def one_run(config: Any, workdir: pathlib.Path, folder: str) -> dict[str, Any]:
        if config.eval.checkpoint == "follow":
            return whole(config, workdir, folder)
        made.append(folder)
        step = int(config.eval.checkpoint)
        results = {
            "step": step,
            "weights": "EMA weights",
            "weights_sha256": "0" * 64,
            "nfe": 5.0,
            "frechet_distance": 100.0 / step,
            "loss": 1.0 / step,
            "loss_images": 8,
            "num_samples": 8,
            "num_train": 16,
            "examples": "images",
            "features": "a classifier",
            "seed": config.sampling.seed,
            "versions": {},
            "made_by": evaluate.made_by(config),
            "program": batch_cache.program(batch_cache.EVALUATION),
        }
        files.write_json(workdir / folder / "results.json", results)
        return results

    whole = evaluate.evaluate
    monkeypatch.setattr(evaluate, "weights_of", lambda *_: "0" * 64)
    monkeypatch.setattr(evaluate, "evaluate", one_run)
    return made


def test_it_goes_on_where_it_was_and_ends_with_curves(
    beside: Callable[..., Training], quick: list[str], tmp_path: pathlib.Path
) -> None:
    training = beside(*[()] * 30)
    training.steps = [100, 200]
    config = tiny.config(**FOLLOW)
    evaluate.evaluate(config, tmp_path, "eval")
    assert quick == ["eval/step_100", "eval/step_200"]
    training.steps += [300, 400, 420]
    patient = tiny.config(**FOLLOW | {"eval__follow_minutes": 9.0})  # makes no other numbers
    runs = evaluate.evaluate(patient, tmp_path, "eval")["runs"]
    assert quick[2:] == ["eval/step_300", "eval/step_400", "eval/step_420"]
    assert [run["step"] for run in runs.values()] == [100, 200, 300, 400, 420]
    folder = tmp_path / "eval"
    assert not list(folder.glob("earlier_*"))  # of the same run, a part of it
    page = (folder / "report.html").read_text()
    assert (folder / "by_step.png").is_file()
    assert (folder / "by_step_loss.png").is_file()
    assert "over step</figcaption>" in page
    assert "Test loss over step" in page
    rows = list(csv.DictReader((folder / "all.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [100, 200, 300, 400, 420]
    assert [float(row["loss"]) for row in rows] == [run["loss"] for run in runs.values()]
    other = tiny.config(**FOLLOW | {"sampling__seed": 1})
    evaluate.evaluate(other, tmp_path, "eval")
    assert len(quick) == 10
    assert len(list(folder.glob("earlier_*"))) == 1


def test_several_samplers_of_each(
    beside: Callable[..., Training], quick: list[str], tmp_path: pathlib.Path
) -> None:
    beside().steps = [100, 420]
    config = tiny.config(**FOLLOW | {"eval__samplers": ("ddim:5", "ode")})
    evaluate.evaluate(config, tmp_path, "eval")
    ends = ("100_ddim_5", "100_ode", "420_ddim_5", "420_ode")
    assert quick == [f"eval/step_{end}" for end in ends]
