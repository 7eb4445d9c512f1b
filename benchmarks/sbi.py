"""Posteriors of simulators: those that a run draws against the true ones, by C2ST.

    python -m benchmarks.sbi --config=sbi/two_moons --workdir=runs/two_moons

For each of the first observations of the test split, `control.num_images`, it draws
`control.num_variants` parameters by the task inpaint, as --mode=control does, and as many from the
true posterior (`data/simulators.py`). A classifier is trained to tell them apart: 0.5 is best. So
does a second set from the true posterior: what a perfect run would get. Results go to
`<workdir>/sbi.json`, and the first posteriors to `<workdir>/sbi.png`.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

import data
from configs import load
from control.run import control
from data.simulators import Simulator
from evaluation.metrics.two_sample import c2st
from generation import value_figures
from runtime import figures, files

PICTURES = 2  # observations in the picture


def compare(
    config: Any, workdir: pathlib.Path, seed: int = 0
) -> tuple[list[dict[str, float]], np.ndarray]:
    """A row of numbers for each observation, and the picture of the first ones.

    Raises:
      ValueError: the data set is no simulator, or the run cannot draw its parameters.
    """
    task: Any = data.DATASETS[config.data.dataset]
    if not issubclass(task, Simulator):
        raise ValueError(f"data.dataset={config.data.dataset!r} is no simulator with a posterior")
    control(config, workdir)
    with np.load(workdir / "control" / "inpaint" / "results.npz") as stored:
        drawn = stored["image"].reshape(config.control.num_images, -1, *task.IMAGE_SHAPE)
    examples, _ = data.from_config(config, config.control.split).take(np.arange(len(drawn)))
    rows, pictures = [], []
    for number, (example, samples) in enumerate(zip(examples, drawn, strict=True)):
        theta, x = np.split(example.astype(np.float64), [task.DIM_THETA])
        exact, again = (
            task.posterior(x, len(samples), np.random.default_rng([seed, number, turn]))
            for turn in range(2)
        )
        ours = samples[:, : task.DIM_THETA]
        rows.append(
            {
                "observation": number,
                "c2st": c2st(exact, ours, seed),
                "c2st_exact": c2st(exact, again, seed),
            }
        )
        if number < PICTURES:
            pictures.append(_picture(ours, exact, theta))
    return rows, np.concatenate(pictures, 1)


def _picture(ours: np.ndarray, exact: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Our draws in ink over those of the true posterior in grey; the true parameters in red."""
    shown = min(len(theta), value_figures.ENTRIES)
    names = [f"theta {i + 1}" for i in range(shown)]
    limits = value_figures.limits_of(exact)
    figure = figures.new_figure((1.0 + 1.1 * shown, 0.8 + 1.0 * shown), dpi=90)
    value_figures.corner(figure, ours[:, :shown], limits, names, theta, exact)
    return value_figures.rendered(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="sbi/two_moons, sbi/slcp, ...")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--observations", type=int, default=0, help="0: those of the config")
    options = parser.parse_args()
    config = load(options.config)
    config.control.num_images = options.observations or config.control.num_images
    rows, picture = compare(config, options.workdir)
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("c2st", "c2st_exact")}
    table = [[row["observation"], row["c2st"], row["c2st_exact"]] for row in rows]
    print(figures.table([*table, ["mean", *means.values()]], ["observation", "C2ST", "exact"]))
    value_figures.save(options.workdir / "sbi.png", picture)
    files.write_json(options.workdir / "sbi.json", {"rows": rows, **means})


if __name__ == "__main__":
    main()
