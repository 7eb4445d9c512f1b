"""The page of a run that trains: `--mode=watch` writes it anew whenever the run has news.

It is `watch.html` in the workdir, one file that needs no other; a browser that shows it loads it
again every few seconds, until the training has come to its last step.
"""

from __future__ import annotations

import datetime
import functools
import io
import pathlib
import time
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from evaluation.report import content, page
from runtime import errors, figures, files, stop
from runtime.workdir import CONFIG, stored_config
from training.metric_log import METRICS, read_clock, read_metrics
from training.sample_grids import STRIP, newest_grid

Series = tuple[np.ndarray, np.ndarray]  # steps [n], and a value [n] at each
Lines = tuple[dict[str, Series], Series]  # the metrics by name, and when each line was written

PAGE = "watch.html"
POLL = 2.0  # seconds between two looks at the run
REFRESH = 5  # seconds after which a browser loads the page again
RECENT = 10  # lines of metrics.jsonl that the remaining time is judged by
LONGEST_START = 1800.0  # seconds from a run's config.json to the first line of its metrics
SILENCE = 5  # so many times the usual time between two lines is worth a word, a minute at least


class Standing(NamedTuple):
    """Where a run stands.

    Attributes:
      step: that of the newest line of metrics.jsonl; 0 before there is one.
      n_iters: the step at which it ends.
      numbers: the newest value of each quantity that is shown, by its title.
      seconds_left: until the last step at the pace of the last lines; None if that is not known.
      written: when the newest line was, in seconds since 1970; None before there is one.
      silent: True if that is long ago by the run's own measure, and it is not finished; before
        there is a line, if the run's config.json is old.
    """

    step: int
    n_iters: int
    numbers: dict[str, str]
    seconds_left: float | None
    written: float | None
    silent: bool

    @property
    def is_finished(self) -> bool:
        return self.step >= self.n_iters


TITLES = {
    "loss": ("training loss", ".4g"),
    "eval_loss": ("test loss", ".4g"),
    "images_per_second": ("images per second", ".4g"),
    "mfu": ("model FLOPs utilisation", ".2f"),
}


CURVES = (("Loss", ("loss", "eval_loss"), "log"), ("Speed", ("images_per_second",), "linear"))


def watch(workdir: pathlib.Path) -> None:
    """Shows the run in a folder, in a line on the terminal and as a page, until it is finished.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir} is no folder of a run, and no run has begun there")
    look(workdir, time.time())  # raises where the run's config is damaged
    path, before, writable = workdir / PAGE, None, True
    print(f"{workdir} is watched; Ctrl-C ends that, and not the training")
    with (
        stop.listening(),
        tqdm(desc="waiting for the run to begin", bar_format="{desc}") as bar,
    ):
        while not stop.requested():
            standing, news = look(workdir, time.time()), fingerprint(workdir)
            if standing is not None and (news, standing.silent) != before:
                show(bar, standing)
                try:
                    if writable:
                        files.write_text(path, render(workdir, standing))
                        if before is None:
                            bar.write(f"{path} shows it, and renews itself in a browser")
                except OSError as error:
                    writable = False
                    bar.write(f"there will be no page: {errors.one_line(error, 200)}")
                before = news, standing.silent
            if standing is not None and standing.is_finished:
                return
            time.sleep(POLL)
    raise stop.Stopped("the run is no longer watched; whoever trains it goes on")


def look(workdir: pathlib.Path, now: float) -> Standing | None:
    """Where the run in a folder stands at the time `now`; None before it has begun.

    Raises:
      ValueError: its config.json is damaged.
    """
    try:
        n_iters = stored_config(workdir).training.n_iters
    except FileNotFoundError:
        return None
    unheard = now - (workdir / CONFIG).stat().st_mtime > LONGEST_START
    if not (workdir / METRICS).exists():
        return Standing(0, n_iters, {}, None, None, unheard)
    metrics, (steps, times) = lines_of(workdir / METRICS)
    newest = {
        title: format(metrics[name][1][-1], digits)
        for name, (title, digits) in TITLES.items()
        if name in metrics
    }
    if not len(steps):
        return Standing(0, n_iters, newest, None, None, unheard)
    step, written, pace = int(steps[-1]), float(times[-1]), pace_of(steps, times)
    left = None if pace is None else max(0, n_iters - step) * pace
    gaps = np.diff(times[-RECENT - 1 :])
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    silent = step < n_iters and now - written > max(60.0, SILENCE * usual)
    return Standing(step, n_iters, newest, left, written, silent)


def lines_of(path: pathlib.Path) -> Lines:
    """`read_metrics` and `read_clock` of a metrics.jsonl, which is read again if it has changed."""
    stat = path.stat()
    return _lines_of(path, stat.st_size, stat.st_mtime)


@functools.lru_cache(maxsize=1)
def _lines_of(path: pathlib.Path, size: int, changed: float) -> Lines:
    return read_metrics(path), read_clock(path)


def pace_of(steps: np.ndarray, times: np.ndarray) -> float | None:
    """Seconds of a step, all that happens between steps included: over the last lines in a row
    whose median time is not exceeded `SILENCE` times, as it is where a run was stopped and goes
    on; None where there are no two."""
    steps, times = steps[-RECENT - 1 :], times[-RECENT - 1 :]
    taken, seconds = np.diff(steps), np.diff(times)
    usable = taken > 0
    each = seconds[usable] / taken[usable]
    kept = each <= SILENCE * np.median(each) if len(each) else usable[:0]
    if not kept.any():
        return None
    return float(seconds[usable][kept].sum() / taken[usable][kept].sum())


def fingerprint(workdir: pathlib.Path) -> tuple[tuple[str, int, float], ...]:
    """What changes when the run has news: size and time of what the page is made from."""
    paths = [workdir / METRICS, workdir / CONFIG, workdir / STRIP, newest_grid(workdir)]
    paths += curves_of_evaluations(workdir)
    stats = [(path, path.stat()) for path in paths if path is not None and path.exists()]
    return tuple((str(path), stat.st_size, stat.st_mtime) for path, stat in stats)


def curves_of_evaluations(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The curves over steps that `eval.checkpoint=follow` draws beside the training."""
    return sorted(workdir.glob("*/by_step*.png"))


def show(bar: tqdm, standing: Standing) -> None:
    """The line on the terminal."""
    bar.total, bar.n = standing.n_iters, standing.step
    words = [f"{title} {number}" for title, number in standing.numbers.items()]
    if standing.seconds_left is not None and not standing.is_finished:
        words.append(f"{duration(standing.seconds_left)} left")
    if standing.silent:
        since = "at all" if standing.written is None else f"since {clock(standing.written)}"
        words.append(f"no news {since}")
    bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
    bar.set_description_str("training", refresh=False)
    bar.set_postfix_str(", ".join(words), refresh=False)
    bar.refresh()


def render(workdir: pathlib.Path, standing: Standing) -> str:
    """The text of the page."""
    grid = newest_grid(workdir)
    pictures = [
        grid and content.picture(grid, f"Samples of step {int(grid.stem[len('step_') :]):,}"),
        content.picture(workdir / STRIP, "Samples in the course of training"),
        *(content.picture(path, title(path), plot=True) for path in curves_of_evaluations(workdir)),
    ]
    return (
        page.environment()
        .get_template("live.html.jinja")
        .render(
            name=str(workdir),
            standing=standing,
            left=None if standing.seconds_left is None else duration(standing.seconds_left),
            written=None if standing.written is None else clock(standing.written),
            refresh=REFRESH,
            pictures=[picture for picture in pictures if picture],
            curves=curves(workdir),
        )
    )


def title(path: pathlib.Path) -> str:
    """What a curve of an evaluation shows: by_step_bits_per_dim.png, bits per dim over steps."""
    quantity = path.stem.removeprefix("by_step").strip("_").replace("_", " ")
    return f"{path.parent.name}: {quantity or 'distance of samples'} over steps"


def curves(workdir: pathlib.Path) -> list[page.Picture]:
    """The losses and the speed so far, as pictures that are in no file."""
    if not (workdir / METRICS).exists():
        return []
    metrics, _ = lines_of(workdir / METRICS)
    pictures = []
    for heading, names, scale in CURVES:
        lines = {TITLES[name][0]: metrics[name] for name in names if name in metrics}
        if lines and max(len(steps) for steps, _ in lines.values()) > 1:
            buffer, ylabel = io.BytesIO(), next(iter(lines)) if len(lines) == 1 else ""
            figures.plot_curves(buffer, lines, ylabel=ylabel, yscale=scale)
            pictures.append(page.Picture(heading, "image/png", buffer.getvalue(), plot=True))
    return pictures


def duration(seconds: float) -> str:
    """A time in its two largest units: 2 d 3 h, 5 min 10 s, 12 s."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    for i, (unit, size) in enumerate(units[:-1]):
        if whole >= size:
            smaller, part = units[i + 1]
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def clock(seconds: float) -> str:
    """The time of day of this machine, with the date if that is another day's."""
    when, now = datetime.datetime.fromtimestamp(seconds), datetime.datetime.now()
    return when.strftime("%H:%M:%S" if when.date() == now.date() else "%Y-%m-%d %H:%M")
