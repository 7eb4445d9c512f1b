"""The metrics of a training run: on their way from the devices, on disk, and as curves."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from runtime import devices, figures, files
from runtime.buckets import GrowingObject
from training.loggers import Logger

METRICS = "metrics.jsonl"
SPEED = ("step_seconds", "images_per_second", "mfu")  # which no two runs have in common


class History:
    """Metrics of finished steps on their way to the log.

    They are fetched one call late, so that the devices are never kept waiting.

    Args:
      log: None on a process that writes none.
      batch_size: images in a step, over all devices.
    """

    def __init__(self, log: MetricLog | None, batch_size: int) -> None:
        self.log = log
        self.speed = Speed(batch_size)
        self.in_flight: list[tuple[int, dict[str, jax.Array]]] = []
        self.unlogged: list[dict[str, np.ndarray]] = []
        self.loss: float | None = None  # the newest on the host

    def add(self, first_step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics [n] of steps first_step + 1 ... first_step + n."""
        self.in_flight.append((first_step, metrics))
        self._settle(keep=1)

    def settle(self) -> None:
        """Fetches what is left.

        Raises:
          FloatingPointError: a loss is not finite; names the step.
        """
        with self.speed.at_work():
            self._settle()

    def _settle(self, keep: int = 0) -> None:
        """Fetches all but the last `keep` calls."""
        while len(self.in_flight) > keep:
            first_step, metrics = self.in_flight.pop(0)
            host = devices.fetch(metrics)
            self.speed.count(len(host["loss"]))
            failures = np.flatnonzero(~np.isfinite(host["loss"]))
            if failures.size:
                row = failures[0]
                raise FloatingPointError(
                    f"the loss at step {first_step + row + 1} is {host['loss'][row]}; "
                    "the checkpoints from before it are kept; try a smaller optim.lr"
                )
            self.unlogged.append(host)
            self.loss = float(host["loss"].mean())

    def write(self, step: int, **more: float | list[float]) -> None:
        """Logs under `step` the means over the steps since the last time, if there are any."""
        self.settle()
        if self.unlogged:
            means = {
                name: float(np.mean(np.concatenate([host[name] for host in self.unlogged])))
                for name in self.unlogged[0]
            }
            self.unlogged = []
            if self.log:
                self.log.write(step, {**means, **self.speed.take(), **more})


class Speed:
    """How long the steps take: waiting for images and for the devices, all else left out.

    The seconds are those inside `at_work`. Those of the first call, which compiles, and of waiting
    for it, do not count, nor do its steps.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.at_peak: float | None = None  # seconds of a step, see `utilisation.seconds_at_peak`
        self.steps, self.seconds = 0, 0.0
        self.last: float | None = None  # images per second
        self.is_warm = False

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, steps are prepared, taken or waited for."""
        counts, began = self.is_warm, time.perf_counter()
        yield
        if counts:
            self.seconds += time.perf_counter() - began

    def count(self, steps: int) -> None:
        """So many steps are finished."""
        if self.is_warm:
            self.steps += steps
        self.is_warm = True

    def take(self) -> dict[str, float]:
        """The mean seconds of a step, and what follows, since the last time; {}: no steps.

        Images per second; and the share of the chips' peak rate (MFU), where that is known.
        """
        steps, seconds = self.steps, self.seconds
        self.steps, self.seconds = 0, 0.0
        if not steps or not seconds:
            return {}
        self.last = steps * self.batch_size / seconds
        speed = {SPEED[0]: seconds / steps, SPEED[1]: self.last}
        return (
            speed if self.at_peak is None else {**speed, SPEED[2]: self.at_peak * steps / seconds}
        )


def save_curves(workdir: pathlib.Path) -> None:
    """Draws the losses of `metrics.jsonl` as loss.png."""
    metrics = read_metrics(workdir / "metrics.jsonl")
    labels = {"loss": "training loss", "eval_loss": "test loss, EMA weights"}
    curves = {label: metrics[name] for name, label in labels.items() if name in metrics}
    if curves:
        with files.whole(workdir / "loss.png") as path:
            figures.plot_curves(path, curves, ylabel="loss", yscale="log")


class MetricLog:
    """`<workdir>/metrics.jsonl`, one JSON object a line, and `training.loggers` for the same.

    Each line is on disk when `write` returns, so a killed run loses at most the line it was
    writing. In a bucket, where nothing can be appended to, the lines of up to a minute are in
    memory, until `secure`. A resumed run first drops the lines after the step it resumes from, and
    moves those that are no records of metrics to `metrics_odd.txt`.

    Args:
      workdir: created if need be.
      start: the step that the run resumes from, 0 for a new run.
      loggers: what else takes the metrics, and pictures.
    """

    def __init__(self, workdir: files.Path, start: int = 0, loggers: Sequence[Logger] = ()):
        self.path = files.as_path(workdir) / METRICS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            records, odd = _records(self.path)
            earlier = [record for record in records if record["step"] <= start]
            if odd:
                files.append_text(self.path.with_name("metrics_odd.txt"), "\n".join([*odd, ""]))
            files.write_text(self.path, "".join(f"{json.dumps(record)}\n" for record in earlier))
        bucket_path = files.in_bucket(self.path)
        self._object = GrowingObject(bucket_path) if bucket_path else None
        self._loggers = loggers
        self._closed = False

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Puts what is in memory into the bucket where an error ends the run."""
        if error is not None and self._object and not self._closed:
            with contextlib.suppress(OSError):  # the error at hand says more
                self.secure()
                self.flush()

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds the values at one step. A value that is not finite is null in the file.

        Lists of numbers are for the file alone; the loggers get the rest.
        """
        values = {name: np.asarray(value, float).tolist() for name, value in scalars.items()}
        stored = {name: _finite(value) for name, value in values.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **stored}) + "\n"
        if self._object:
            self._object.append(line)
        else:
            with self.path.open("a") as file:
                file.write(line)
        single = {name: value for name, value in values.items() if not isinstance(value, list)}
        for logger in self._loggers:
            logger.write(step, single)

    def write_images(self, step: int, name: str, images: np.ndarray, **options: Any) -> None:
        """Gives `grid(images, **options)` to the loggers."""
        page = figures.grid(images, **options)
        for logger in self._loggers:
            logger.write_image(step, name, page)

    def flush(self) -> None:
        """Has the loggers write what is still in memory."""
        for logger in self._loggers:
            logger.flush()

    def secure(self) -> None:
        """Returns when every line is where a run that resumes finds it."""
        if self._object:
            self._object.flush()

    def close(self) -> None:
        """Has the loggers write out everything."""
        self.secure()
        self._closed = True
        for logger in self._loggers:
            logger.close()


def read_metrics(path: files.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`{name: (steps [n], values [n])}` of a metrics.jsonl, for `plot_curves`; null is NaN.

    Of lists the values are [n, length], the length being that of the newest. A line that is no
    record is passed over with a warning; the last one, cut off by a crash, without.

    Raises:
      FileNotFoundError: no such file.
    """
    points: dict[str, list[tuple[int, Any]]] = {}
    for record in _records(files.as_path(path))[0]:
        for name, value in record.items():
            if name not in ("step", "time"):
                points.setdefault(name, []).append((record["step"], _numbers(value)))
    for name, pairs in points.items():
        points[name] = [pair for pair in pairs if np.shape(pair[1]) == np.shape(pairs[-1][1])]
    return {
        name: (np.array([s for s, _ in pairs]), np.array([v for _, v in pairs], float))
        for name, pairs in points.items()
    }


def read_clock(path: files.Path) -> tuple[np.ndarray, np.ndarray]:
    """The steps [n] of a metrics.jsonl, and when each line was written, in seconds since 1970.

    Raises:
      FileNotFoundError: no such file.
    """
    records = [r for r in _records(files.as_path(path))[0] if "time" in r and _is_number(r["time"])]
    return np.array([r["step"] for r in records]), np.array([r["time"] for r in records], float)


def _finite(value: Any) -> Any:
    """A number, or a list of numbers, with None for those that JSON does not have."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None


def _numbers(value: Any) -> Any:
    """The inverse of `_finite`."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.nan if value is None else value


def _records(path: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The records in a file, and the lines of it that are none, of which a warning tells."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records, odd = [], []
    for number, line in enumerate(lines[:-1], start=1):  # the last one has no end: cut off or empty
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if _is_record(record):
            records.append(record)
        else:
            odd.append((number, line))
    if odd:
        number, line = odd[0]
        logging.warning(
            "%s has %d line(s) that are no records of metrics, and are passed over; the first is "
            "line %d: %s",
            *(path, len(odd), number, ascii(line[:60])),
        )
    return records, [line for _, line in odd]


def _is_record(record: Any) -> bool:
    """True for `{"step": 10, "loss": 0.5, "loss_by_time": [0.5, null]}`, whatever the names."""
    if not isinstance(record, dict):
        return False
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**63:
        return False
    values = [value for name, value in record.items() if name != "time"]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return all(item is None or _is_number(item) for item in items)


def _is_number(item: Any) -> bool:
    """True for a number that a float can hold."""
    if isinstance(item, bool) or not isinstance(item, int | float):
        return False
    return isinstance(item, float) or abs(item) < 2**1023
