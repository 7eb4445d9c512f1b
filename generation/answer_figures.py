"""Pictures of answers to measurements of real-valued examples, beside what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from generation import value_figures
from generation.point_figures import INK, WARM
from runtime import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = 4  # that are shown
LINES = 24  # of variants of a series
COLUMNS = 4  # of variants of a field


def answers(originals: np.ndarray, measured: np.ndarray, variants: np.ndarray) -> np.ndarray:
    """A picture uint8 [height, width, 3] of the first inputs.

    Args:
      originals: [n, *shape].
      measured: the same, NaN where unknown.
      variants: [n, V, *shape].

    Of vectors it is a corner plot of the unknown entries for each input, with the original marked;
    of series lines; of fields the measurement, variants, their mean, and the original.
    """
    count = min(INPUTS, len(originals))
    arrays = originals[:count], measured[:count], variants[:count]
    if originals.ndim == 3:
        return value_figures.rendered(_series(*arrays))
    if originals.ndim == 4:
        return value_figures.rendered(_fields(*arrays))
    flat = [x.reshape(*x.shape[:lead], -1) for x, lead in zip(arrays, (1, 1, 2), strict=True)]
    return value_figures.stacked([_vector(*rows) for rows in zip(*flat, strict=True)])


def _vector(original: np.ndarray, measured: np.ndarray, variants: np.ndarray) -> np.ndarray:
    hidden = np.flatnonzero(np.isnan(measured))
    shown = (hidden if len(hidden) else np.arange(len(original)))[: value_figures.ENTRIES]
    samples, truth = variants[:, shown], original[shown]
    limits = value_figures.limits_of(np.concatenate([samples, truth[None]]))
    figure = figures.new_figure((1.0 + 1.2 * len(shown), 1.0 + 1.1 * len(shown)), dpi=100)
    names = [str(entry) for entry in shown]
    value_figures.corner(figure, samples, limits, names, truth)
    return value_figures.rendered(figure)


def _series(originals: np.ndarray, measured: np.ndarray, variants: np.ndarray) -> Figure:
    channels = min(value_figures.CHANNELS, originals.shape[-1])
    figure = figures.new_figure((7.0, 0.3 + 1.5 * len(originals) * channels), dpi=100)
    panels: Any = figure.subplots(len(originals) * channels, 1, squeeze=False)[:, 0]
    for axes, (i, channel) in zip(panels, np.ndindex(len(originals), channels), strict=True):
        times = np.arange(originals.shape[1])
        axes.plot(times, variants[i, :LINES, :, channel].T, color=INK, linewidth=0.5, alpha=0.35)
        axes.plot(times, originals[i, :, channel], color=WARM, linewidth=1.0, linestyle="--")
        axes.plot(times, measured[i, :, channel], ".", color="black", markersize=2.5)
        axes.set_xlim(0, times[-1])
        axes.tick_params(labelsize="x-small")
    return figure


def _fields(originals: np.ndarray, measured: np.ndarray, variants: np.ndarray) -> Figure:
    drawn = [variants[:, i] for i in range(min(COLUMNS, variants.shape[1]))]
    columns = {"measured": measured}
    columns |= {f"draw {i + 1}": fields for i, fields in enumerate(drawn)}
    columns |= {"mean of draws": variants.mean(1), "original": originals}
    figure = figures.new_figure((1.25 * len(columns), 1.35 * len(originals)), dpi=100)
    panels: Any = figure.subplots(len(originals), len(columns), squeeze=False)
    low, high = value_figures.limits_of(originals)[0]
    for row, column in np.ndindex(len(originals), len(columns)):
        axes, name = panels[row, column], list(columns)[column]
        axes.imshow(columns[name][row, ..., 0], cmap=value_figures.MAP, vmin=low, vmax=high)
        axes.axis("off")
        if row == 0:
            axes.set_title(name, fontsize="small")
    return figure
