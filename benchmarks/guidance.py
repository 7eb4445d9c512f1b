"""Guidance where its target is known: classes of a mixture of Gaussians in the plane.

    python benchmarks/guidance.py [--picture=docs/pictures/guidance.png] [--count=2048]

Prints a Markdown table of distances, 1000 times the sliced Wasserstein distance of `--count`
samples to as many exact draws; "exact draws" has what chance leaves of 0:

- to the target that a guided score names at t = 0, p(x)^(1 - w) p(x | class)^w, whose density is
  normalised on a grid, and drawn from there;
- to the data of the class, which no guidance of an exact score leads to.

All methods take the same steps; only weights, resampling and the combination of scores differ. The
network of "autoguidance" is the class's data blurred by 0.1, and the weaker one's by 0.3: networks
that have not learnt to be sharp.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from diffusion import feynman_kac, grids, guidance
from diffusion.noise import image_noise
from evaluation.metrics.sliced import sliced_wasserstein
from generation import point_figures
from runtime import files
from sde_lib import VPSDE, ScoreFn
from tests.gaussians import Mixture

Array = jax.Array
SDE = VPSDE()
STEPS = 80
INTERVAL = (0.3, 2.0)  # noise levels
HALF, CELLS = 2.5, 500  # of the grid
DRAWS = 5  # sets of exact draws, for the mean and what chance leaves


def arm(turn: float, blur: float = 0.0) -> Mixture:
    """A class: five Gaussians along an arc of the unit circle, turned by an angle."""
    s = np.linspace(0.0, 1.0, 5)
    angle = 0.4 + 2.4 * s + turn
    means = (0.7 + 0.5 * s[:, None]) * np.stack([np.cos(angle), np.sin(angle)], 1)
    stds = np.hypot(0.14 + 0.1 * s, blur)[:, None].repeat(2, 1)
    return Mixture(*(jnp.asarray(v, jnp.float32) for v in (np.full(5, 0.2), means, stds)))


def both(first: Mixture, second: Mixture) -> Mixture:
    """The two classes, as often as each other."""
    joined = (jnp.concatenate(parts) for parts in zip(first, second, strict=True))
    weights, means, stds = joined
    return Mixture(0.5 * weights, means, stds)


TURN = 1.1  # between the classes, which overlap
CLASS = arm(0.0)
DATA = both(CLASS, arm(TURN))
NETWORK, WEAK = arm(0.0, 0.1), arm(0.0, 0.3)


class Method(NamedTuple):
    """A row of the table.

    Attributes:
      name: in words.
      scale: w.
      score_fn: what is followed.
      named: experts and weights of the target; none: none is named.
      particles: of each sample.
    """

    name: str
    scale: float
    score_fn: ScoreFn
    named: tuple[tuple[Mixture, float], ...]
    particles: int = 1


def methods() -> list[Method]:
    """The rows of the table, in order."""
    free, told, network, weak = (mixture.score_fn(SDE) for mixture in (DATA, CLASS, NETWORK, WEAK))
    rows = [Method("the class's own score", 1.0, told, ((CLASS, 1.0),))]
    for w in (2.0, 4.0):
        target = (DATA, 1.0 - w), (CLASS, w)
        product = guidance.Product((free, told), (1.0 - w, w))
        inside = guidance.scale_in(SDE, w, INTERVAL, outside=1.0)
        rows += [
            Method("classifier-free", w, guidance.classifier_free(free, told, w), target),
            Method("in an interval", w, guidance.classifier_free(free, told, inside), target),
            Method("projected", w, guidance.projected(SDE, free, told, w), target),
            *(
                Method(f"Feynman-Kac, {count} particles", w, product, target, count)
                for count in (4, 32)
            ),
        ]
    rows.append(Method("network, not sharp", 1.0, network, ((NETWORK, 1.0),)))
    for w in (2.0, 4.0):
        target = (WEAK, 1.0 - w), (NETWORK, w)
        product = guidance.Product((weak, network), (1.0 - w, w))
        rows += [
            Method("autoguidance", w, guidance.autoguided(network, weak, w), target),
            Method("autoguidance, Feynman-Kac, 32", w, product, target, 32),
        ]
    cold = guidance.Product((told,), (2.0,))
    rows += [
        Method("score x 2 (temperature 1/2)", 2.0, cold.__call__, ((CLASS, 2.0),)),
        Method("temperature 1/2, Feynman-Kac, 32", 2.0, cold, ((CLASS, 2.0),), 32),
    ]
    return rows


def sample(method: Method, count: int) -> np.ndarray:
    """Samples [count, 2], each with particles of its own."""
    times = grids.time_grid(SDE, "log_snr", STEPS)

    @jax.jit
    def draw(numbers: Array) -> Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), numbers)
        noise = image_noise(keys, (2,))
        return feynman_kac.sample(SDE, method.score_fn, noise, times, method.particles).x

    parts = np.arange(count).reshape(-1, min(count, 1024))
    return np.concatenate([np.asarray(draw(jnp.asarray(numbers))) for numbers in parts])


def density(named: tuple[tuple[Mixture, float], ...]) -> np.ndarray:
    """The named density at t = 0 on the cells of [-HALF, HALF]^2, [CELLS, CELLS], of sum 1."""
    cells = jnp.asarray(point_figures.cells(HALF, CELLS), jnp.float32)
    log_q = np.zeros(len(cells))
    for mixture, weight in named:
        log_p = jax.vmap(functools.partial(log_density, mixture))(cells)
        log_q += weight * np.asarray(log_p, np.float64)
    q = np.exp(log_q - log_q.max())
    return (q / q.sum()).reshape(CELLS, CELLS)


def log_density(mixture: Mixture, x: Array) -> Array:
    """The logarithm of the data's own density at x [2], up to a constant."""
    terms = (x - mixture.means) ** 2 / mixture.stds**2 + 2.0 * jnp.log(mixture.stds)
    return jax.nn.logsumexp(jnp.log(mixture.weights) - 0.5 * terms.sum(1))


def exact_draws(named: tuple[tuple[Mixture, float], ...], count: int) -> list[np.ndarray]:
    """Sets of draws [count, 2] of the named density: cells by their mass, places in them."""
    rng = np.random.RandomState(0)
    mass, cells = density(named).reshape(-1), point_figures.cells(HALF, CELLS)
    size = 2.0 * HALF / CELLS
    return [
        cells[rng.choice(len(mass), count, p=mass)] + size * (rng.rand(count, 2) - 0.5)
        for _ in range(DRAWS)
    ]


def distance(points: np.ndarray, sets: list[np.ndarray]) -> float:
    """1000 times the sliced Wasserstein distance of points to exact draws, its mean over sets."""
    return 1e3 * float(np.mean([sliced_wasserstein(points, other) for other in sets]))


def table(count: int) -> list[tuple[Method, np.ndarray, list[str]]]:
    """Each method with its samples, and its row."""
    to_class, entries = exact_draws(((CLASS, 1.0),), count), []
    for method in methods():
        points = sample(method, count)
        sets = exact_draws(method.named, count)
        row = [
            *(method.name, f"{method.scale:g}", f"{method.particles * (STEPS + 1):,}"),
            *(f"{distance(points, each):.0f}" for each in (sets, to_class)),
            f"{distance(sets[0], sets[1:]):.0f}",
        ]
        entries.append((method, points, row))
        print(f"| {' | '.join(row)} |", flush=True)
    return entries


PANELS: tuple[tuple[str, float], ...] = (
    ("the class's own score", 1.0),
    ("classifier-free", 4.0),
    ("projected", 4.0),
    ("Feynman-Kac, 32 particles", 4.0),
    ("network, not sharp", 1.0),
    ("autoguidance", 2.0),
    ("score x 2 (temperature 1/2)", 2.0),
    ("temperature 1/2, Feynman-Kac, 32", 2.0),
)


def draw(path: pathlib.Path, entries: list[tuple[Method, np.ndarray, list[str]]]) -> None:
    """Panels of samples over the densities that they are meant to be of."""
    figure = Figure(figsize=(11.6, 5.4), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    chosen = {(method.name, method.scale): (method, points) for method, points, _ in entries}
    grid = figure.subplots(2, 4)
    for axes, panel in zip(grid.flat, PANELS, strict=True):
        method, points = chosen[panel]
        shade = np.sqrt(density(method.named))[::2, ::2]
        box = (-HALF, HALF, -HALF, HALF)
        axes.imshow(
            shade, cmap="Blues", extent=box, origin="lower", vmax=1.5 * shade.max(), vmin=0.0
        )
        axes.scatter(*points[:600].T, s=4.0, color=point_figures.WARM, linewidths=0)
        axes.set(xlim=(-1.9, 1.6), ylim=(-0.7, 1.8), xticks=[], yticks=[])
        axes.set_title(f"{method.name}, w = {method.scale:g}", fontsize="small", loc="left")
        axes.spines[:].set_color("0.8")
    canvas.draw()
    page = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    page = page.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    with files.whole(path) as whole:
        page.save(files.with_parent(whole), optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--picture", type=pathlib.Path, help="where to draw the samples")
    parser.add_argument("--count", type=int, default=2048, help="samples, a multiple of 1024")
    args = parser.parse_args()
    print("| method | w | evaluations | to its target | to the class | exact draws |")
    print("|---|---|---|---|---|---|")
    entries = table(args.count)
    if args.picture:
        draw(args.picture, entries)


if __name__ == "__main__":
    main()
