"""The log of a run holds all its numbers, also after a crash or restart."""

from __future__ import annotations

import json
import math
import pathlib

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from runtime import figures
from tests.test_figures import images
from training import loggers, metric_log


def events(workdir: pathlib.Path) -> list[Event]:
    """Every TensorBoard event: length (8 bytes), its CRC (4), the event, its CRC (4)."""
    events = []
    for path in sorted((workdir / "tensorboard").glob("*tfevents*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_metrics_come_back(tmp_path):
    run = tmp_path / "run"
    log = metric_log.MetricLog(run, 0, loggers.opened(("tensorboard",), run, 0, {}))
    log.write(10, {"loss": np.float32(0.5), "rate": 100, "loss_by_time": [1, math.nan]})
    log.write(20, {"loss": math.inf, "loss_by_time": np.array([3, 4])})
    log.write_images(20, "samples", images(4, 8, 8, 3))
    log.write_images(20, "grey", images(4, 8, 8, 1))
    log.close()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).keys() for line in lines] == [
        {"step", "time", "loss", "rate", "loss_by_time"},
        {"step", "time", "loss", "loss_by_time"},
    ]
    curves = metric_log.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert curves.keys() == {"loss", "rate", "loss_by_time"}
    np.testing.assert_array_equal(curves["loss"], ([10, 20], [0.5, np.nan]))
    np.testing.assert_array_equal(curves["rate"], ([10], [100]))
    np.testing.assert_array_equal(curves["loss_by_time"][1], [[1.0, np.nan], [3.0, 4.0]])

    logged = [
        (event.step, value.tag, value.simple_value, value.image.width)
        for event in events(tmp_path / "run")
        for value in event.summary.value
    ]
    assert logged[0] == (10, "loss", 0.5, 0)
    assert logged[3][:2] == (20, "samples")
    assert logged[3][3] == logged[4][3] == figures.grid(images(4, 8, 8)).shape[1]


def test_metrics_of_a_killed_and_resumed_run(tmp_path):
    log = metric_log.MetricLog(tmp_path, 0, loggers.opened(("tensorboard",), tmp_path, 0, {}))
    for step in (10, 20, 30):
        log.write(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # the crash
    assert metric_log.read_metrics(tmp_path / "metrics.jsonl")["loss"][0].tolist() == [10, 20, 30]

    events_too = loggers.opened(("tensorboard",), tmp_path, 20, {})
    log = metric_log.MetricLog(tmp_path, 20, events_too)
    log.write(30, {"loss": -1.0})
    log.close()
    np.testing.assert_array_equal(
        metric_log.read_metrics(tmp_path / "metrics.jsonl")["loss"], ([10, 20, 30], [10, 20, -1])
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    restarts = [e.step for e in events(tmp_path) if e.session_log.status]
    assert 21 in restarts, "TensorBoard drops what it has from step 21 on"


ODD = (
    *(b'{"loss": 3}', b'{"step": "3"}', b'{"step": 3, "loss": "low"}', b"[1, 2]", b"7", b"", b"{"),
    *(b'{"step": true}', b'{"step": -1}', b'{"step": 1e3}', b'{"step": 1, "loss": [[1]]}'),
    *(b"\xff\xfe\x00\x80", b'{"step": 3, "loss": 1' + b"0" * 400 + b"}", b"[" * 10_000),
)


@pytest.mark.parametrize("odd", ODD)
def test_odd_lines_of_metrics_are_passed_over_with_a_warning(
    odd: bytes, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They stop no run: neither the one that resumes, nor, as it reads them, its curves."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10, "loss": 2, "by": [1]}\n' + odd + b'\n{"step": 20, "loss": 1}\n')
    assert metric_log.read_metrics(path)["loss"][0].tolist() == [10, 20]
    (line,) = caplog.messages
    assert line.startswith(f"{path} has 1 line(s) that are no records of metrics, and are passed")
    assert "the first is line 2: " in line
    assert "\n" not in line
    log = metric_log.MetricLog(tmp_path, start=20)
    log.write(30, {"loss": -1.0, "by": [1, 2]})
    log.close()
    caplog.clear()
    curves = metric_log.read_metrics(path)
    assert not caplog.messages, "they are in a file of their own"
    kept = (tmp_path / "metrics_odd.txt").read_text()
    assert kept == odd.decode(errors="replace") + "\n"
    assert curves["loss"][1].tolist() == [2, 1, -1]
    assert curves["by"][1].tolist() == [[1, 2]], "lists of the newest length"


def test_curves_of_odd_metrics_are_drawn(tmp_path: pathlib.Path) -> None:
    """Nulls, and numbers that no float holds, on a logarithmic axis."""
    lines = [
        '{"step": 1, "loss": null}',
        '{"step": 2, "loss": 0.5}',
        '{"step": 3, "eval_loss": 1e400}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, "odd", ""]))
    metric_log.save_curves(tmp_path)
    assert (tmp_path / "loss.png").stat().st_size > 0


def test_speed_is_of_steps_after_the_first_call_and_of_work_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metric_log.time, "perf_counter", lambda: now[0])
    history = metric_log.History(None, batch_size=64)

    def call(first_step: int, seconds: float) -> None:
        with history.speed.at_work():
            now[0] += seconds
            history.add(first_step, {"loss": jax.numpy.zeros((1, 5))})

    monkeypatch.setattr(
        metric_log.devices, "fetch", lambda tree: {"loss": np.asarray(tree["loss"][0])}
    )
    call(0, 100.0)  # compiles
    assert history.speed.take() == {}
    call(5, 40.0)  # waits for the first one
    call(10, 2.0)
    call(15, 3.0)
    now[0] += 1000.0  # a checkpoint, the loss of test images
    history.settle()
    assert history.speed.take() == {"step_seconds": 5.0 / 15, "images_per_second": 64 * 15 / 5.0}
    assert history.speed.last == 64 * 15 / 5.0
    assert history.speed.take() == {}
    history.speed.at_peak = 0.125
    call(20, 1.0)
    call(25, 1.5)
    history.settle()
    assert history.speed.take()["mfu"] == 0.125 * 10 / 2.5
