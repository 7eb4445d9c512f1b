"""Pictures of real-valued examples by their shape: corner plots of vectors, lines of series, maps
of fields."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from generation.point_figures import COLORS, INK, WARM
from runtime import figures, files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENTRIES = 6  # of a vector that a corner plot shows
CHANNELS = 3  # of a series or a field that are shown
SERIES = 24  # in one panel
FIELDS = 16  # in one picture
POINTS = 5000  # of a scatter
MAP = "RdBu_r"  # of fields


def raster(values: np.ndarray, title: str = "", limits: Sequence[Any] | None = None) -> np.ndarray:
    """Examples [n, *shape] as a picture uint8 [height, width, 3].

    Args:
      limits: see `limits_of`; None: those of these examples.
    """
    limits = limits_of(values) if limits is None else limits
    draw = {2: _series, 3: _fields}.get(values[0].ndim, _corner)
    figure: Figure = draw(values, limits)
    if title:
        figure.suptitle(title, fontsize="medium", x=0.02, ha="left")
    return rendered(figure)


def rendered(figure: Figure) -> np.ndarray:
    """A figure as pixels uint8 [height, width, 3]."""
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def limits_of(values: np.ndarray) -> list[tuple[float, float]]:
    """The interval of each channel (entry of a vector) that shows nearly all of its values."""
    channels = values.reshape(len(values), -1, values.shape[-1])
    if values.ndim not in (3, 4):
        channels = values.reshape(len(values), 1, -1)
    low, high = np.quantile(channels, [0.001, 0.999], axis=(0, 1))
    margin = 0.05 * np.maximum(high - low, 1e-6)
    return list(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def save(path: files.Path, picture: np.ndarray) -> None:
    """Writes a picture uint8 [height, width, 3] with few colours, to keep the file small."""
    page = Image.fromarray(picture)
    page = page.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    page.save(files.with_parent(path), optimize=True)


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures one below the other, on white."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate(
        [
            np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255)
            for p in pictures
        ]
    )


def corner(
    figure: Figure,
    samples: np.ndarray,
    limits: Sequence[Any],
    names: Sequence[str],
    truth: np.ndarray | None = None,
    reference: np.ndarray | None = None,
) -> None:
    """Histograms of the entries of vectors [n, D] on the diagonal, scatters of pairs below it.

    Args:
      limits, names: of the entries.
      truth: [D], marked in each panel.
      reference: [m, D], samples to compare with, drawn beneath in grey.
    """
    count = samples.shape[1]
    panels: Any = figure.subplots(count, count, squeeze=False)
    for row in range(count):
        for column in range(count):
            axes = panels[row, column]
            if column > row:
                axes.axis("off")
                continue
            axes.set_xlim(limits[column])
            if row == column:
                low, high = limits[row]
                bins = np.linspace(low, high, 41)
                hist = functools.partial(axes.hist, bins=bins, density=True)
                if reference is not None:
                    hist(reference[:, row], color="0.8")
                hist(samples[:, row], histtype="step", color=INK)
                axes.set_yticks([])
            else:
                axes.set_ylim(limits[row])
                for points, color in ((reference, "0.75"), (samples, INK)):
                    if points is not None:
                        shown = points[:POINTS, [column, row]]
                        axes.scatter(*shown.T, s=1.5, color=color, alpha=0.45, linewidths=0)
            if truth is not None:
                axes.axvline(truth[column], color=WARM, linewidth=0.9)
                if row != column:
                    axes.axhline(truth[row], color=WARM, linewidth=0.9)
            axes.tick_params(labelsize="x-small", labelleft=column == 0 < row)
            axes.tick_params(labelbottom=row == count - 1)
            if row == count - 1:
                axes.set_xlabel(names[column], fontsize="small")
            if column == 0 and row:
                axes.set_ylabel(names[row], fontsize="small")


def entry_names(shape: Sequence[int]) -> list[str]:
    """The names of the entries of an example, "3" of a vector or "2,0" of a series."""
    return [",".join(map(str, index)) for index in np.ndindex(*shape)]


def _corner(values: np.ndarray, limits: Sequence[Any]) -> Figure:
    flat = values.reshape(len(values), -1)
    count = min(ENTRIES, flat.shape[1])
    figure = figures.new_figure((1.0 + 1.2 * count, 1.0 + 1.1 * count), dpi=100)
    corner(figure, flat[:, :count], limits, entry_names(values.shape[1:])[:count])
    return figure


def _series(values: np.ndarray, limits: Sequence[Any]) -> Figure:
    count = min(CHANNELS, values.shape[-1])
    figure = figures.new_figure((7.0, 0.4 + 1.8 * count), dpi=100)
    for channel, axes in enumerate(np.ravel(figure.subplots(count, 1, squeeze=False))):
        lines = values[:SERIES, :, channel].T
        axes.plot(lines, color=INK, linewidth=0.7, alpha=0.6)
        axes.set(xlim=(0, len(lines) - 1), ylim=limits[channel])
        axes.tick_params(labelsize="x-small")
        if count > 1:
            axes.set_ylabel(f"channel {channel}", fontsize="small")
    return figure


def _fields(values: np.ndarray, limits: Sequence[Any]) -> Figure:
    channels, fields = min(CHANNELS, values.shape[-1]), values[:FIELDS]
    columns = min(8, len(fields))
    rows = -(-len(fields) // columns)
    figure = figures.new_figure((1.2 * columns, 1.2 * rows * channels), dpi=100)
    panels: Any = figure.subplots(rows * channels, columns, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for i, field in enumerate(fields):
        for channel in range(channels):
            axes = panels[channel * rows + i // columns, i % columns]
            low, high = limits[channel]
            axes.imshow(field[..., channel], cmap=MAP, vmin=low, vmax=high)
    return figure
