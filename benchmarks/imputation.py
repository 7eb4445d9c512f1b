"""What a run fills in, beside what is best: the exact conditional of a series, or interpolation.

    python -m benchmarks.imputation --config=series/oscillating_unet1d --workdir=runs/series
    python -m benchmarks.imputation --config=fields/burgers_unet --workdir=runs/burgers

It draws what --mode=control draws with that config. Of the Gaussian process a second row has as
many draws of the exact conditional, and below it stand the distance between the two means and the
ratio of the deviations; of fields it is cubic interpolation of the averages, which has one answer.
Numbers are in standard deviations of the data, see `control.results.closeness`.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

import data
from configs import load
from control import results
from control.run import control
from data.fields import OscillatingSeries
from runtime import experiment, figures, files
from runtime.workdir import settled

Rows = dict[str, dict[str, float]]


def compare(config: Any, workdir: pathlib.Path) -> Rows:
    """The rows of the table.

    Raises:
      ValueError: examples for which nothing better is known.
    """
    task: Any = data.DATASETS.get(config.data.dataset)
    config = settled(config, workdir)
    pixels = experiment.build(config).pixels
    control(config, workdir)
    with np.load(workdir / "control" / config.control.task / "results.npz") as stored:
        drawn, y = stored["x"], stored["y"]
        mask = stored["mask"] if "mask" in stored.files else None
    dataset = data.from_config(config, config.control.split)
    originals = dataset.take(np.arange(config.control.num_images))[0]
    truth = pixels.to_model(originals)
    drawn = drawn.reshape(len(truth), -1, *truth.shape[1:])
    if task is OscillatingSeries and mask is not None:
        return of_series(pixels, originals, truth, drawn, mask[0, :, 0] > 0)
    if config.control.task == "super_resolution" and truth.ndim == 4:
        return of_fields(truth, drawn, y)
    raise ValueError(f"data.dataset={config.data.dataset!r} has no exact conditional")


def of_series(
    pixels: experiment.Pixels,
    originals: np.ndarray,
    truth: np.ndarray,
    drawn: np.ndarray,
    known: np.ndarray,
) -> Rows:
    """The draws and those of the exact conditional, and how far their moments are apart."""
    mean, covariance = OscillatingSeries.conditional(originals[..., 0].astype(np.float64), known)
    z = np.random.default_rng(0).normal(size=(*drawn.shape[:2], len(covariance)))
    exact = np.repeat(originals[:, None], drawn.shape[1], axis=1)
    exact[:, :, ~known, 0] = mean[:, None] + z @ np.linalg.cholesky(covariance).T
    exact = pixels.to_model(exact)
    unknown = np.broadcast_to(~known[:, None], truth.shape)
    gap = drawn[:, :, ~known, 0]
    best = np.array(pixels.to_model(np.where(known[:, None], originals, 0.0)))
    best[:, ~known] = pixels.to_model(mean[..., None])
    std = np.sqrt(np.diag(covariance)) / pixels.standard.std[0] if pixels.standard else 1.0
    return {
        "drawn": results.closeness(drawn, truth, unknown),
        "exact conditional": results.closeness(exact, truth, unknown),
        "difference": {
            "mean_rmse": float(np.sqrt(np.mean((gap.mean(1) - best[:, ~known, 0]) ** 2))),
            "std_ratio": float(np.mean(gap.std(1, ddof=1)) / np.mean(std)),
        },
    }


def of_fields(truth: np.ndarray, drawn: np.ndarray, y: np.ndarray) -> Rows:
    """The draws, and cubic interpolation of the averages."""
    from scipy.ndimage import zoom

    factor = truth.shape[1] // y.shape[1]
    scales = (1, factor, factor, 1)
    smooth = zoom(y, scales, order=3, mode="nearest", grid_mode=True)
    everywhere = np.ones(truth.shape, bool)
    return {
        "drawn": results.closeness(drawn, truth, everywhere),
        "cubic interpolation": results.closeness(smooth[:, None], truth, everywhere),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="series/oscillating_unet1d, ...")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    options = parser.parse_args()
    rows = compare(load(options.config), options.workdir)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [[title, *(row.get(name, "") for name in names)] for title, row in rows.items()]
    print(figures.table(cells, ["", *names]))
    files.write_json(options.workdir / "imputation.json", rows)


if __name__ == "__main__":
    main()
