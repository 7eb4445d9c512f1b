r"""Where a network's errors harm its flow: the exact score above or below a noise level.

    python -m benchmarks.reproduction.switch [--workdir=runs/small] [--dataset=fashion] [--sde=ve]

draws the flow's samples of the network that chose the correctors' ratios (it is trained if it is
not there), with the exact score of the training images in its place at all noise levels above s,
or at all below s. The distance and the share of noisy images are those of the whole network's
samples as long as the levels that do the harm are the network's. One more row is the network's with
a hundredth of the solver's tolerance.
"""

from __future__ import annotations

from runtime import stop

if __name__ == "__main__":
    stop.end_imports()  # of all else

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from runtime import backend

backend.prepare()  # before JAX is imported

import jax
import jax.numpy as jnp
import numpy as np

import sde_lib
from benchmarks.reproduction.cells import FLOW, SCALES, SDES, Cell, planned
from benchmarks.reproduction.exact import remade, score
from benchmarks.reproduction.measure import EXACT, TRAINED, Bench, Unit
from benchmarks.reproduction.tables import markdown
from generation import examples
from runtime import endings, experiment, files

ABOVE = (10.0, 3.0, 1.0, 0.3)  # noise levels s, in units of the images' range
NOISY = 0.99  # an image is noisy if its noise is more than that of this share of the real ones


@dataclasses.dataclass(frozen=True)
class Switched(experiment.Parts):
    """An experiment with two scores, whose "parameters" are the network's and the examples.

    Attributes:
      level: s, a noise level: sigma / alpha.
      exact_above: the exact score is that above s, and not that below.
    """

    level: float = 0.0
    exact_above: bool = True

    def score(
        self, params: Any, classes: jax.Array | None = None, given: jax.Array | None = None
    ) -> sde_lib.ScoreFn:
        weights, images = params
        network = super().score(weights, classes, given)

        def switched(x: jax.Array, t: jax.Array) -> jax.Array:
            above = self.sde.sigma(t) / self.sde.alpha(t) > self.level
            by_exact = (above == self.exact_above).reshape(-1, *[1] * (x.ndim - 1))
            return jnp.where(by_exact, score(self.sde, images, x, t), network(x, t))

        return switched


def noise(images: np.ndarray) -> np.ndarray:
    """The standard deviation of the noise of images [n, H, W, C] in [0, 1], for each of them.

    That is the median of |d| / (2 * 0.6745) of the second differences d over blocks of 2 x 2
    pixels, whose variance is four times that of white noise (Donoho and Johnstone 1994).
    """
    corners = images[:, 1:, 1:] + images[:, :-1, :-1]
    d = corners - images[:, 1:, :-1] - images[:, :-1, 1:]
    medians: np.ndarray = np.median(np.abs(d).reshape(len(d), -1), 1) / (2 * 0.6745)
    return medians


def cases(cell: Cell, parts: experiment.Parts) -> Iterator[tuple[str, Cell, Any]]:
    """The name, the cell and the scores of every row."""
    exact = remade(Switched, parts)
    everything = dataclasses.replace(exact, exact_above=False)  # the network's
    yield "network", cell, everything
    for level in ABOVE:
        yield f"exact above {level:g}", cell, dataclasses.replace(exact, level=level)
    for level in reversed(ABOVE):
        yield f"exact below {level:g}", cell, dataclasses.replace(everything, level=level)
    yield "exact", cell, exact
    finer = {name: value / 100 for name, value in cell.settings.items() if name.endswith("tol")}
    yield "network, tolerance / 100", cell._replace(settings={**cell.settings, **finer}), everything


def run() -> None:
    """Draws all rows; writes a table and the pictures into `switch` beside the network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/small")
    parser.add_argument("--dataset", default="fashion", choices=SCALES)
    parser.add_argument("--sde", default="ve", choices=SDES)
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(args.workdir.absolute() / ".cache"))
    bench, unit = Bench(args.dataset, args.workdir), Unit(TRAINED, 0)
    flow = next(c for c in planned(bench.scale, {}) if (c.sde, c.name) == (args.sde, FLOW))
    bench.train(args.sde, unit)
    both = bench.params(flow, unit), bench.params(flow, Unit(EXACT, 0))
    parts, folder = bench.parts(flow), bench.folder(args.sde, unit) / "switch"
    real = bench.data[0].take(np.arange(bench.scale.examples))[0]
    limit = np.quantile(noise(real / (parts.levels - 1)), NOISY)
    rows = []
    for name, cell, scores in cases(flow, parts):
        images, nfe = bench.sampler(cell, scores)(both, unit.number)
        distance = bench.judge(images)["distance"]
        share = float((noise(images / (parts.levels - 1)) > limit).mean())
        rows.append([name, f"{distance:.2f}", f"{100 * share:.0f} %", f"{nfe:.0f}"])
        print(" | ".join(rows[-1]), flush=True)
        examples.kind_of(parts.pixels).save_pictures(
            folder, name.replace(" ", "_").replace("/", "by"), {"image": images[:40]}
        )
        jax.clear_caches()
    text = markdown(["score", "distance", "noisy images", "NFE"], rows)
    files.write_text(folder / "switch.md", text)
    print(f"{folder} has the table and pictures")


if __name__ == "__main__":
    with endings.in_one_line():
        run()
