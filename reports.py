"""Numbers and pictures for people: image grids, animations, curves, logs and tables."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorboardX
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

Path = str | os.PathLike[str]

WHITE = 255


def grid(
    images: np.ndarray,
    ncols: int | None = None,
    *,
    scale: int | None = None,
    gap: int = 2,
    labels: Sequence[Any] | None = None,
    max_side: int = 1024,
) -> np.ndarray:
    """Images side by side on white, row by row.

    Args:
      images: uint8 [B, H, W] or [B, H, W, C] with C 1 (grey) or 3 (red, green, blue).
      ncols: images in a row; by default as square as possible.
      scale: pixels on the picture per pixel of an image and direction; by default as many as keep
        the picture's longer side within `max_side`.
      gap: white pixels around each image.
      labels: one text below each image.

    Returns:
      uint8 [height, width] for grey images, [height, width, 3] for coloured ones.

    Raises:
      ValueError: images of another shape or dtype, or as many labels as there are no images.
    """
    images = _checked(np.asarray(images), dims=3)
    count, height, width = images.shape[:3]
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} images")
    ncols = min(count, ncols or math.ceil(math.sqrt(count)))
    nrows = -(-count // ncols)
    text = 14 if labels is not None else 0
    if scale is None:
        room = min((max_side - gap) // ncols - gap, (max_side - gap) // nrows - gap - text)
        scale = max(1, room // max(height, width))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    row_height, column_width = height * scale + text + gap, width * scale + gap
    page = np.full(
        (gap + nrows * row_height, gap + ncols * column_width, *images.shape[3:]), WHITE, np.uint8
    )
    corners = [
        (gap + i // ncols * row_height, gap + i % ncols * column_width) for i in range(count)
    ]
    for image, (y, x) in zip(images, corners, strict=True):
        page[y : y + height * scale, x : x + width * scale] = image
    if labels is None:
        return page
    written = Image.fromarray(page)
    draw = ImageDraw.Draw(written)
    font = ImageFont.load_default(10)
    for label, (y, x) in zip(labels, corners, strict=True):
        middle = (x + width * scale / 2, y + height * scale + text / 2)
        draw.text(middle, str(label), fill=0, anchor="mm", font=font)
    return np.asarray(written)


def save_grid(path: Path, images: np.ndarray, ncols: int | None = None, **options: Any) -> None:
    """Writes `grid(images, ncols, **options)` as a PNG (or whatever the suffix says)."""
    path = _parent_made(path)
    Image.fromarray(grid(images, ncols, **options)).save(path, optimize=True)


def save_gif(
    path: Path,
    frames: np.ndarray,
    ncols: int | None = None,
    *,
    seconds: float = 4.0,
    hold: float = 2.0,
    max_side: int = 320,
    **options: Any,
) -> None:
    """Writes an endless animation of grids.

    Args:
      frames: uint8 [K, B, H, W] or [K, B, H, W, C]: K states of B images.
      ncols: images in a row.
      seconds: duration of the movement.
      hold: how long the last frame stays.
      max_side: as of `grid`. Noise does not compress: the size of the file grows with its square.
      options: more options of `grid`.

    Raises:
      ValueError: see `grid`.
    """
    path = _parent_made(path)
    frames = _checked(np.asarray(frames), dims=4)
    pages = [Image.fromarray(grid(f, ncols, max_side=max_side, **options)) for f in frames]
    if pages[0].mode == "RGB":  # GIF has 256 colours: those of the first and the last frame
        ends = Image.fromarray(np.concatenate([pages[0], pages[-1]])).quantize(256)
        pages = [page.quantize(palette=ends) for page in pages]
    delay = max(20, round(1000 * seconds / len(pages)))  # browsers slow down below 20 ms
    durations = [delay] * (len(pages) - 1) + [round(1000 * hold)]
    pages[0].save(
        path, save_all=True, append_images=pages[1:], duration=durations, loop=0, optimize=True
    )


def plot_curves(
    path: Path,
    curves: Mapping[str, tuple[Any, Any]],
    xlabel: str = "step",
    ylabel: str = "",
    *,
    title: str = "",
    xscale: str = "linear",
    yscale: str = "linear",
    smooth: int = 1,
) -> None:
    """Writes a line plot of `{name: (x, y)}`.

    Args:
      smooth: number of neighbouring points in a centred running mean; the points themselves stay
        visible behind it.
      xscale, yscale: "linear" or "log".
    """
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, (x, y)) in enumerate(curves.items()):
        x, y = np.asarray(x, float), np.asarray(y, float)
        color = f"C{i % 10}"
        if smooth > 1 and len(y) > smooth:
            axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
            y = running_mean(y, smooth)
        marker = "o" if len(y) < 20 else None
        axes.plot(x, y, color=color, label=name, linewidth=1.6, marker=marker, markersize=3.5)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    axes.set_title(title, fontsize="medium", loc="left")
    _quiet(axes)
    if len(curves) > 1:
        axes.legend(frameon=False)
    FigureCanvasAgg(figure).print_figure(_parent_made(path))


def running_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Mean of the finite ones of the `width` points around each point; fewer at both ends."""
    y = np.asarray(y, float)
    known = np.isfinite(y)
    ones = np.ones(width)

    def sums(values: np.ndarray) -> np.ndarray:
        start = (width - 1) // 2
        return np.convolve(values, ones)[start : start + len(values)]

    total, count = sums(np.where(known, y, 0.0)), sums(known.astype(float))
    return np.divide(total, count, out=np.full(len(y), np.nan), where=count > 0.5)


class Panel(NamedTuple):
    """One plot of `plot_panels`: single points behind a curve, each (x, y)."""

    xlabel: str
    ylabel: str
    points: tuple[Any, Any]
    curve: tuple[Any, Any]


def plot_panels(path: Path, panels: Sequence[Panel], title: str = "") -> None:
    """Writes plots side by side; the y of those whose values are all positive is logarithmic."""
    figure = Figure(figsize=(4.6 * len(panels), 3.6), dpi=150, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        values = np.concatenate([panel.points[1], panel.curve[1]])
        axes.scatter(*panel.points, s=5, color="0.7", linewidths=0)
        axes.plot(*panel.curve, color="C0", linewidth=1.6, marker="o", markersize=3.5)
        yscale = "log" if np.min(values) > 0 else "linear"
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel, yscale=yscale)
        _quiet(axes)
    figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
    FigureCanvasAgg(figure).print_figure(_parent_made(path))


class MetricLog:
    """`<workdir>/metrics.jsonl`, one JSON object a line, and TensorBoard events of the same.

    Each line is on disk when `write` returns, so a killed run loses at most the line it was
    writing. A resumed run first drops the lines after the step it resumes from.

    Args:
      workdir: created if need be.
      start: the step that the run resumes from, 0 for a new run.
    """

    def __init__(self, workdir: Path, start: int = 0):
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = [record for record in _records(self.path) if record["step"] <= start]
            _replace(self.path, "".join(f"{json.dumps(record)}\n" for record in kept))
        self._events = tensorboardX.SummaryWriter(
            str(self.path.parent / "tensorboard"),
            purge_step=start + 1,
            flush_secs=10,
            filename_suffix=f".{start}",  # names have whole seconds only
        )

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds the values at one step. A value that is not finite is null in the file.

        Lists of numbers are for the file alone.
        """
        values = {name: np.asarray(value, float).tolist() for name, value in scalars.items()}
        stored = {name: _finite(value) for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **stored}) + "\n")
        for name, value in values.items():
            if not isinstance(value, list):
                self._events.add_scalar(name, value, step)

    def write_images(self, step: int, name: str, images: np.ndarray, **options: Any) -> None:
        """Adds `grid(images, **options)` to the TensorBoard events."""
        page = grid(images, **options)
        layout = "HWC" if page.ndim == 3 else "HW"
        self._events.add_image(name, page, step, dataformats=layout)

    def close(self) -> None:
        """Writes out the events of the last ten seconds."""
        self._events.close()


def read_metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`{name: (steps [n], values [n])}` of a metrics.jsonl, for `plot_curves`; null is NaN.

    Of lists the values are [n, length].

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that is no record; the last one, cut off by a crash, is left out instead.
    """
    found: dict[str, list[tuple[int, Any]]] = {}
    for record in _records(pathlib.Path(path)):
        for name, value in record.items():
            if name not in ("step", "time"):
                found.setdefault(name, []).append((record["step"], _numbers(value)))
    return {
        name: (np.array([s for s, _ in pairs]), np.array([v for _, v in pairs], float))
        for name, pairs in found.items()
    }


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] | None = None) -> str:
    """Rows as text: columns aligned, numbers (4 significant digits) to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        all(isinstance(value, int | float | np.number) for value in column)
        for column in zip(*rows, strict=True)
    ]
    if header is not None:
        cells.insert(0, list(header))
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    if header is not None:
        cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all; NumPy arrays and numbers are allowed."""
    text = json.dumps(value, indent=2, default=lambda array: np.asarray(array).tolist())
    _replace(_parent_made(path), f"{text}\n")


def _quiet(axes: Any) -> None:
    """A light grid behind, and no frame where there is no axis."""
    axes.grid(color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return str(value)


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


def _checked(images: np.ndarray, dims: int) -> np.ndarray:
    """uint8 images with `dims` axes, or `dims + 1` where there is colour."""
    if images.ndim == dims + 1 and images.shape[-1] == 1:
        images = images[..., 0]
    coloured = images.ndim == dims + 1 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (images.ndim == dims or coloured) or not images.size:
        raise ValueError(
            f"images: {images.dtype}{list(images.shape)}, expected uint8 with "
            f"{dims} axes, or {dims + 1} of which the last has 1 or 3 channels"
        )
    return images


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
    lines = path.read_text().split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # the last one has no end: cut off or empty
        try:
            record = json.loads(line)
            record["step"] += 0
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: no record of metrics: {line[:60]}") from error
        records.append(record)
    return records


def _replace(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _parent_made(path: Path) -> pathlib.Path:
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
