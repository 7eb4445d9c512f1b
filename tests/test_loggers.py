"""Loggers: each gets the metrics and pictures of a run, and goes on with a run that resumes."""

from __future__ import annotations

import importlib
import pathlib
import sqlite3

import numpy as np
import pytest

from tests import tiny
from tests.test_figures import images
from training import loggers, metric_log


def log_of(names: tuple[str, ...], workdir: pathlib.Path, start: int) -> metric_log.MetricLog:
    made = loggers.opened(names, workdir, start, {"model.nf": 8, "training.sde": "vpsde"})
    return metric_log.MetricLog(workdir, start, made)


@pytest.mark.parametrize("name", ["wandb", "mlflow.tracking"])
def test_without_its_library_a_logger_is_refused_in_one_line(name, tmp_path, monkeypatch):
    def absent(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", absent)
    extra = name.partition(".")[0]
    message = f"training.loggers: {extra} is not installed: pip"
    with pytest.raises(ValueError, match=message) as caught:
        loggers.opened((extra,), tmp_path, 0, {})
    assert "\n" not in str(caught.value)


def test_unknown_loggers_are_refused_before_any_is_opened(tmp_path):
    with pytest.raises(ValueError, match=r"unknown training\.loggers 'tensorbord'; known: mlflow"):
        loggers.opened(("tensorboard", "tensorbord"), tmp_path, 0, {})
    assert not list(tmp_path.iterdir())


def test_a_run_that_resumes_goes_on_with_its_name_and_a_new_one_does_not(tmp_path):
    path = tmp_path / loggers.RUN
    assert loggers.known(path, 20) is None
    path.write_text("run0\n")
    assert loggers.known(path, 20) == "run0"
    assert loggers.known(path, 0) is None


def test_every_logger_gets_numbers_and_pictures(tmp_path, monkeypatch):
    taken: list[object] = []

    class Everything:
        def __init__(self, workdir, start, config):
            taken.append((workdir, start, config["model.nf"]))

        def write(self, step, scalars):
            taken.append((step, scalars))

        def write_image(self, step, name, page):
            taken.append((step, name, page.dtype))

        def flush(self):
            taken.append("flush")

        def close(self):
            taken.append("close")

    monkeypatch.setattr(loggers, "LOGGERS", {"everything": Everything})
    log = log_of(("everything",), tmp_path, 20)
    log.write(30, {"loss": np.float32(0.5), "by_time": [1, 2]})
    log.write_images(30, "samples", images(4, 8, 8, 3))
    log.flush()
    log.close()
    assert taken == [
        (tmp_path, 20, 8),
        (30, {"loss": 0.5}),
        (30, "samples", np.dtype(np.uint8)),
        *("flush", "close"),
    ]


@pytest.mark.slow
def test_mlflow_has_the_numbers_of_a_run_and_of_its_resumption(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for start, loss in ((0, 2.0), (20, 1.0)):
        log = log_of(("mlflow",), tmp_path / "run", start)
        log.write(start + 10, {"loss": loss})
        log.write_images(start + 10, "samples", images(4, 8, 8, 3))
        log.close()
    folder = tmp_path / "run" / "mlflow"
    uri = f"sqlite:///{folder / 'runs.db'}"
    client = tracking.MlflowClient(tracking_uri=uri, registry_uri=uri)
    run = (folder / loggers.RUN).read_text()
    history = client.get_metric_history(run, "loss")
    assert [(m.step, m.value) for m in history] == [(10, 2.0), (30, 1.0)]
    assert client.get_run(run).data.params == {"model.nf": "8", "training.sde": "vpsde"}
    assert len(list((folder / "artifacts").rglob("samples/step_*.png"))) == 2
    with sqlite3.connect(folder / "runs.db") as base:
        assert base.execute("select count(*) from runs").fetchone() == (1,)


@pytest.mark.slow
def test_weights_and_biases_writes_offline_under_one_name(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start in (0, 20):
        log = log_of(("wandb",), tmp_path / "run", start)
        log.write(start + 10, {"loss": 1.0})
        log.write_images(start + 10, "samples", images(4, 8, 8, 3))
        log.close()
    folder = tmp_path / "run" / "wandb"
    name = (folder / loggers.RUN).read_text()
    offline = [path for path in folder.iterdir() if path.name.startswith("offline-run-")]
    assert len(offline) == 2
    assert {path.name.rpartition("-")[2] for path in offline} == {name}
    assert all(list(path.glob("files/media/images/*.png")) for path in offline)


def test_an_unknown_name_is_refused_before_anything_is_built(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "--config.training.loggers=('tensorbord',)"
    code, lines = tiny.run(capsys, *tiny.arguments(tmp_path / "run", "train", names))
    assert (code, len(lines)) == (1, 1)
    assert "training.loggers" in lines[0]
    assert "tensorboard" in lines[0]
    assert not list((tmp_path / "run").glob("*")), "nothing was written"
