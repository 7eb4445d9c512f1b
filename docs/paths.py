"""The picture of docs/flow.md: paths of the probability flow of runs on points of the plane.

python -m docs.paths RUN [RUN ...] PICTURE, for example with the runs of flow.md:
python -m docs.paths runs/two_moons_rectified runs/two_moons_coupled docs/pictures/flow_paths.png
"""

from __future__ import annotations

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import sampling
from diffusion.noise import image_noise
from runtime import devices, experiment
from runtime.workdir import load_weights, stored_config

PATHS = 120
FRAMES = 60


def paths(run: pathlib.Path) -> np.ndarray:
    """States [FRAMES, PATHS, 2] on the way from noise to data, of the run's own weights."""
    config = stored_config(run)
    parts = experiment.build(config)
    trained = load_weights(config, parts.module, parts.image_shape, run)
    keys = devices.image_keys(jax.random.key(0), jnp.arange(PATHS))

    @jax.jit
    def draw() -> jax.Array:
        noise = image_noise(keys, parts.image_shape)
        score_fn = parts.score(trained.params)
        samples = sampling.ode_sampler(
            parts.sde, score_fn, noise, rtol=1e-4, atol=1e-4, num_frames=FRAMES
        )
        assert samples.trajectory is not None
        return samples.trajectory

    return np.asarray(draw()).reshape(FRAMES, PATHS, 2)


def picture(runs: list[pathlib.Path], path: pathlib.Path) -> None:
    """A panel for each run, with its name: noise in grey, paths as lines, data in red."""
    figure = Figure(figsize=(3.2 * len(runs), 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(runs), sharex=True, sharey=True, squeeze=False)[0]
    for axes, run in zip(panels, runs, strict=True):
        states = paths(run)
        axes.plot(*np.moveaxis(states, 2, 0), color="#1f4e79", linewidth=0.5, alpha=0.5)
        axes.plot(*states[0].T, ".", color="#999999", markersize=3)
        axes.plot(*states[-1].T, ".", color="#c0392b", markersize=3)
        axes.set_title(run.name.replace("_", " "), fontsize="medium", loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    *folders, target = map(pathlib.Path, sys.argv[1:])
    if not folders:
        sys.exit("usage: python -m docs.paths RUN [RUN ...] PICTURE")
    picture(folders, target)
