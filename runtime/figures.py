"""Figures for people: image grids, animations, curves and tables."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from runtime import files

if TYPE_CHECKING:  # it takes a second, and is imported where something is plotted
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def save_grid(
    path: files.Path, images: np.ndarray, ncols: int | None = None, **options: Any
) -> None:
    """Writes `grid(images, ncols, **options)` as a PNG (or whatever the suffix says)."""
    path = files.with_parent(path)
    Image.fromarray(grid(images, ncols, **options)).save(path, optimize=True)


def save_gif(
    path: files.Path,
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
    path = files.with_parent(path)
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
    path: files.Path | io.BytesIO,
    curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
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
    figure = new_figure((6.4, 4.0))
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
    figure.savefig(path if isinstance(path, io.BytesIO) else files.with_parent(path))


def new_figure(inches: tuple[float, float], dpi: int = 150) -> Figure:
    """An empty figure of matplotlib, of this width and height, that no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)  # which the figure keeps
    return figure


def running_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Mean of the finite ones of the `width` points around each point; fewer at both ends."""
    y = np.asarray(y, float)
    finite = np.isfinite(y)
    ones = np.ones(width)

    def sums(values: np.ndarray) -> np.ndarray:
        start = (width - 1) // 2
        return np.convolve(values, ones)[start : start + len(values)]

    total, count = sums(np.where(finite, y, 0.0)), sums(finite.astype(float))
    mean: np.ndarray = np.divide(total, count, out=np.full(len(y), np.nan), where=count > 0.5)
    return mean


class Panel(NamedTuple):
    """One plot of `plot_panels`: single points behind a curve, each (x, y)."""

    xlabel: str
    ylabel: str
    points: tuple[npt.ArrayLike, npt.ArrayLike]
    curve: tuple[npt.ArrayLike, npt.ArrayLike]


def plot_panels(path: files.Path, panels: Sequence[Panel], title: str = "") -> None:
    """Writes plots side by side; the y of those whose values are all positive is logarithmic."""
    figure = new_figure((4.6 * len(panels), 3.6))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        values = np.concatenate([panel.points[1], panel.curve[1]])
        axes.scatter(*panel.points, s=5, color="0.7", linewidths=0)
        axes.plot(*panel.curve, color="C0", linewidth=1.6, marker="o", markersize=3.5)
        yscale = "log" if np.min(values) > 0 else "linear"
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel, yscale=yscale)
        _quiet(axes)
    figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
    figure.savefig(files.with_parent(path))


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


def _quiet(axes: Axes) -> None:
    """Draws a light grid behind, and no frame where there is no axis."""
    axes.grid(color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return str(value)


def _checked(images: np.ndarray, dims: int) -> np.ndarray:
    """The images, uint8 with `dims` axes, or `dims + 1` where there is colour."""
    if images.ndim == dims + 1 and images.shape[-1] == 1:
        images = images[..., 0]
    coloured = images.ndim == dims + 1 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (images.ndim == dims or coloured) or not images.size:
        raise ValueError(
            f"images: {images.dtype}{list(images.shape)}, expected uint8 with "
            f"{dims} axes, or {dims + 1} of which the last has 1 or 3 channels"
        )
    return images
