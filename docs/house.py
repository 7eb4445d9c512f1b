"""The picture of the house, from the floors that tests/test_layers.py holds.

python -m docs.house        # writes docs/pictures/house.png
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from tests.test_layers import FLOORS

PICTURE = pathlib.Path(__file__).parent / "pictures" / "house.png"

# What lives in each room. Names with a dot are files, the others folders.
ROOMS = {
    "configs": "every field with its default, rule and words; every shipped config",
    "sde_lib": "the SDEs",
    "data": "data sets, batches, transforms",
    "diffusion": "mathematics that they share: times, noise, correctors, few steps, ...",
    "models": "networks, from weights to a score",
    "sampling": "predictors, samplers",
    "likelihood": "bits per dimension",
    "runtime": "a run's folder, checkpoints, devices",
    "losses": "objectives",
    "controllable": "guidance, in-filling",
    "generation": "--mode=sample: samples by number, as images or points of the plane",
    "training": "--mode=train: the loop, one step, the objective, optimisers, logs",
    "interop": "--mode=import, export: weights of the official code, diffusers, transformers",
    "evaluation": "--mode=eval, stats: samples, likelihoods, metrics, report",
    "control": "--mode=control: tasks, measurements, methods, guides",
    "planning": "--mode=plan: what fits on chips that are not here, and what bounds it",
    "demo": "--mode=demo: a page in the browser, its orders, and the queue of jobs",
    "main": "flags, one table of modes",
    "benchmarks": "speed, and the small reproduction",
}
FILES = {"main", "sde_lib", "losses", "sampling", "likelihood", "controllable"}
ROUTES = {
    "one image through training": (
        "#c8553d",
        ("data", "training", "losses", "diffusion", "models", "runtime", "sde_lib"),
    ),
    "one key through sampling": (
        "#2a6f97",
        ("generation", "runtime", "diffusion", "sampling", "sde_lib", "models", "data"),
    ),
    "one number into the report": (
        "#588157",
        ("evaluation", "generation", "runtime", "data", "models", "likelihood"),
    ),
}
WIDTH, HEIGHT, GAP = 13.0, 1.0, 0.12


def order(rooms: set[str]) -> list[str]:
    """The rooms of a floor from left to right, as `ROOMS` lists them."""
    return sorted(rooms, key=list(ROOMS).index)


def floors_as_text() -> str:
    """The floors from the ground up, a line each; the picture carries it, for a test to read."""
    return "\n".join(" ".join(order(rooms)) for rooms in FLOORS)


def widths(rooms: Sequence[str]) -> list[float]:
    """Widths of the rooms of a floor, by the length of what is written in them."""
    lengths = [max(len(ROOMS[name]), 18) for name in rooms]
    room = WIDTH - GAP * (len(rooms) + 1)
    return [room * length / sum(lengths) for length in lengths]


def draw_room(axes: Axes, name: str, x: float, y: float, width: float) -> None:
    """A box with the room's name, what lives there, and a dot for each route that leads through."""
    is_file = name in FILES
    box = FancyBboxPatch(
        (x, y + GAP / 2),
        width,
        HEIGHT - GAP,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor="#fdf0d5" if is_file else "#ffffff",
        edgecolor="#b08968" if is_file else "#8d99ae",
        linewidth=1.0,
    )
    axes.add_patch(box)
    title = f"{name}.py" if is_file else f"{name}/"
    middle = y + HEIGHT / 2
    axes.text(x + 0.14, middle + 0.17, title, fontsize=10.5, weight="bold", va="center")
    axes.text(x + 0.14, middle - 0.19, ROOMS[name], fontsize=8.5, color="#444444", va="center")
    colours = [colour for colour, rooms in ROUTES.values() if name in rooms]
    for i, colour in enumerate(reversed(colours)):
        axes.plot(x + width - 0.2 - 0.26 * i, middle + 0.2, "o", color=colour, markersize=6.5)


def draw(path: pathlib.Path = PICTURE) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(9.6, 8.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for floor, rooms in enumerate(FLOORS):
        names, x = order(rooms), GAP
        for name, width in zip(names, widths(names), strict=True):
            draw_room(axes, name, x, floor * HEIGHT, width)
            x += width + GAP
        axes.text(-0.25, (floor + 0.5) * HEIGHT, str(floor), color="#8d99ae", va="center")
    top = len(FLOORS) * HEIGHT
    roof = [(-0.1, top + 0.08), (WIDTH / 2, top + 1.1), (WIDTH + 0.1, top + 0.08)]
    axes.add_patch(Polygon(roof, closed=True, facecolor="#edf2f4", edgecolor="#8d99ae"))
    axes.text(WIDTH / 2, top + 0.42, "imports go down, never up", ha="center", fontsize=9)
    axes.annotate(
        "",
        (WIDTH + 0.35, 0.2),
        (WIDTH + 0.35, top - 0.2),
        arrowprops={"arrowstyle": "->", "color": "#8d99ae"},
    )
    for i, (route, (colour, _)) in enumerate(ROUTES.items()):
        x = GAP + i * WIDTH / len(ROUTES)
        axes.plot(x + 0.1, -0.4, "o", color=colour, markersize=6.5)
        axes.text(x + 0.35, -0.4, route, fontsize=9, va="center")
    axes.set(xlim=(-0.6, WIDTH + 0.6), ylim=(-0.7, top + 1.2))
    axes.set_axis_off()
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(path, metadata={"Description": floors_as_text()})


if __name__ == "__main__":
    draw()
