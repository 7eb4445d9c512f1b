"""Pictures of points of the plane: scatters, densities, and a learned field of arrows."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter

Path = str | os.PathLike[str]

INK, WARM = "#1b3a5c", "#c8452d"
DENSITY = "Blues"
COLORS = 256  # of a file, to keep it small


def half_width(points: np.ndarray) -> float:
    """Of the square around the origin that shows all but the outermost of the points [n, 2]."""
    return 1.15 * float(np.quantile(np.abs(points).max(axis=1), 0.998))


def cells(half: float, size: int) -> np.ndarray:
    """Middles of the cells of [-half, half]^2, [size * size, 2], row by row from the lowest y."""
    middles = ((np.arange(size) + 0.5) / size * 2.0 - 1.0) * half
    return np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)


def histogram(points: np.ndarray, half: float, size: int, blur: float = 0.0) -> np.ndarray:
    """Density [size, size] of points [n, 2] on the cells of [-half, half]^2, rows along y.

    `blur` is the standard deviation of a Gaussian kernel, in the units of the points: the density
    of points to which noise of that size is added.
    """
    edges = np.linspace(-half, half, size + 1)
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=(edges, edges))
    width = 2.0 * half / size
    density = counts / (len(points) * width**2)
    return gaussian_filter(density, blur / width, mode="constant") if blur else density


def raster(points: np.ndarray, half: float, size: int = 128) -> np.ndarray:
    """Points [n, 2] as a grey picture uint8 [size, size], dark where they are dense."""
    shades = np.sqrt(histogram(points, half, size))[::-1]
    return np.rint(255.0 * (1.0 - shades / max(shades.max(), 1e-12))).astype(np.uint8)


class Field(NamedTuple):
    """What `save_field` shows, in the panels' order.

    Attributes:
      data: [n, 2].
      noisy_density: [G, G], of the data with the noise at which the score is shown.
      places, score: [A, 2] each, the arrows.
      score_title: of the second panel.
      samples: [m, 2].
      density: [G, G]; rows of both densities go along y, from the lowest.
      density_title: of the fourth panel.
      half: all panels show [-half, half]^2.
    """

    data: np.ndarray
    noisy_density: np.ndarray
    places: np.ndarray
    score: np.ndarray
    score_title: str
    samples: np.ndarray
    density: np.ndarray
    density_title: str
    half: float


def save_scatter(path: Path, points: np.ndarray) -> None:
    """Writes a picture of points [n, 2]."""
    half = half_width(points)
    _save(path, half, [("", lambda axes: _dots(axes, points, INK))])


def save_field(path: Path, field: Field) -> None:
    """Writes the four panels side by side: data, score, samples, density."""
    half = field.half

    def arrows(axes: Axes) -> None:
        _shade(axes, field.noisy_density, half, vmax=1.6)
        norms = np.linalg.norm(field.score, axis=1, keepdims=True)
        spacing = 2.0 * half / np.sqrt(len(field.places))
        length = spacing * np.sqrt(norms / max(norms.max(), 1e-12)) / np.maximum(norms, 1e-12)
        axes.quiver(
            *field.places.T,
            *(field.score * length).T,
            color=INK,
            units="xy",
            angles="xy",
            scale_units="xy",
            scale=1.0,
            width=0.011 * half,
            headwidth=4.0,
            headlength=4.5,
            headaxislength=4.0,
            pivot="mid",
        )

    _save(
        path,
        half,
        [
            (f"data ({len(field.data):,} points)", lambda axes: _dots(axes, field.data, INK)),
            (field.score_title, arrows),
            (
                f"samples ({len(field.samples):,} points)",
                lambda axes: _dots(axes, field.samples, WARM),
            ),
            (field.density_title, lambda axes: _shade(axes, field.density, half)),
        ],
    )


def _dots(axes: Axes, points: np.ndarray, color: str) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=1.6, color=color, alpha=0.45, linewidths=0)


def _shade(axes: Axes, density: np.ndarray, half: float, vmax: float = 1.0) -> None:
    axes.imshow(
        density,
        cmap=DENSITY,
        vmin=0.0,
        vmax=vmax * max(float(density.max()), 1e-12),
        extent=(-half, half, -half, half),
        origin="lower",
        interpolation="bicubic",
    )


def _save(path: Path, half: float, panels: list[tuple[str, Callable[[Axes], Any]]]) -> None:
    figure = Figure(figsize=(3.0 * len(panels), 3.25), dpi=100, layout="constrained")
    row: Any = figure.subplots(1, len(panels), squeeze=False)
    for axes, (title, draw) in zip(row[0], panels, strict=True):
        draw(axes)
        axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
        axes.set_title(title, fontsize="medium", loc="left")
        axes.spines[:].set_color("0.8")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = page.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    page.save(path, optimize=True)
