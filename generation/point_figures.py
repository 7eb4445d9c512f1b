"""Pictures of points of the plane: scatters, densities, and a learned field of arrows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from runtime import figures, files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = tuple[str, Callable[["Axes"], Any]]  # title, and the function that draws what is below it

INK, WARM = "#1b3a5c", "#c8452d"
DENSITY = "Blues"
COLORS = 256  # of a file, to keep it small


def half_width(points: np.ndarray) -> float:
    """Half the side of the square around the origin that shows all but the outermost of the points
    [n, 2]."""
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
    if not blur:
        return density
    from scipy.ndimage import gaussian_filter  # takes a while, and is needed for fields only

    return np.asarray(gaussian_filter(density, blur / width, mode="constant"))


def raster(points: np.ndarray, half: float, size: int = 128) -> np.ndarray:
    """Points [n, 2] as a grey picture uint8 [size, size], dark where they are dense."""
    shades = np.sqrt(histogram(points, half, size))[::-1]
    return np.rint(255.0 * (1.0 - shades / max(shades.max(), 1e-12))).astype(np.uint8)


class Field(NamedTuple):
    """Data, score, samples and density, one for each panel of `save_field`.

    Attributes:
      data: points of the data set, [n, 2].
      noisy_density: the density of the data with the noise at which the score is shown, [G, G].
      places, score: where the arrows stand and what they show, [A, 2] each.
      score_title: title of the second panel.
      samples: points of the model, [m, 2].
      density: the density of the model, [G, G]; rows of both densities go along y, from the lowest.
      density_title: title of the fourth panel.
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


def save_scatter(path: files.Path, points: np.ndarray) -> None:
    """Writes a picture of points [n, 2]."""
    half = half_width(points)
    _save(path, _page(half, [("", lambda axes: _dots(axes, points, INK))]))


def scatters(points: Mapping[str, np.ndarray], half: float) -> np.ndarray:
    """Scatters of points [n, 2] on [-half, half]^2 by their titles, uint8 [height, width, 3]."""
    panels = [
        (title, lambda axes, points=points: _dots(axes, points, INK))
        for title, points in points.items()
    ]
    return np.asarray(_page(half, panels, columns=5, size=2.0))


def save_field(path: files.Path, field: Field) -> None:
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

    panels: list[Panel] = [
        (f"data ({len(field.data):,} points)", lambda axes: _dots(axes, field.data, INK)),
        (field.score_title, arrows),
        (f"samples ({len(field.samples):,} points)", lambda axes: _dots(axes, field.samples, WARM)),
        (field.density_title, lambda axes: _shade(axes, field.density, half)),
    ]
    _save(path, _page(half, panels))


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


def _page(half: float, panels: Sequence[Panel], columns: int = 4, size: float = 3.0) -> Image.Image:
    """Panels of [-half, half]^2 row by row, each `size` inches wide."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figsize = (size * columns, (size + 0.25) * rows)
    figure = figures.new_figure(figsize, dpi=100)
    places: Any = figure.subplots(rows, columns, squeeze=False).flat
    for axes in places[len(panels) :]:
        axes.axis("off")
    for axes, (title, draw) in zip(places, panels, strict=False):
        draw(axes)
        axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
        axes.set_title(title, fontsize="medium", loc="left")
        axes.spines[:].set_color("0.8")
    canvas: Any = figure.canvas
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _save(path: files.Path, page: Image.Image) -> None:
    page = page.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    page.save(files.with_parent(path), optimize=True)
