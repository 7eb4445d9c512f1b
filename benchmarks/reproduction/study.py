"""The study: networks of configs/small are trained and cells measured, unless that is done."""

from __future__ import annotations

import functools
import importlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from benchmarks.reproduction.cells import (
    FURTHER_SNRS,
    SCALES,
    SDES,
    Cell,
    Scale,
    few_steps,
    searches,
    table_1,
    table_2,
    trial,
)
from benchmarks.reproduction.claims import Claim, Verdict, claims, verdict
from evaluation import evaluate
from runtime import errors
from runtime.arrays import read_archive
from runtime.workdir import open_run
from training import loop

Results = Mapping[str, Any]
Config: TypeAlias = ml_collections.ConfigDict


def load(dataset: str, sde: str) -> Config:
    """The config of a network in configs/small."""
    return importlib.import_module(f"configs.small.{dataset}_{sde}").get_config()


def train(dataset: str, sde: str, workdir: pathlib.Path) -> None:
    """Trains a network, or goes on, unless it is there.

    Raises:
      Stopped: the training was asked to stop, and did.
    """
    config = load(dataset, sde)
    folder, last = workdir / f"{dataset}_{sde}", config.training.n_iters
    if last in open_run(config, folder).steps():
        return
    loop.train(config, folder)
    jax.clear_caches()


@functools.cache
def weights_of(dataset: str, sde: str, workdir: pathlib.Path) -> str:
    """SHA-256 of the weights of a network that is trained."""
    return evaluate.weights_of(load(dataset, sde), workdir / f"{dataset}_{sde}")


def measure(dataset: str, cell: Cell, workdir: pathlib.Path) -> Results:
    """The results of a cell; those that an earlier run left are not made again."""
    config = load(dataset, cell.sde)
    config.eval.enable_loss = False
    config.update_from_flattened_dict(cell.settings)
    folder = workdir / f"{dataset}_{cell.sde}"
    stored = evaluate.results_in(folder / "eval" / cell.name / "results.json")
    if (
        stored.get("made_by") == evaluate.made_by(config)
        and stored.get("weights_sha256") == weights_of(dataset, cell.sde, workdir)
        and evaluate.can_be_shown(stored, config)
    ):
        evaluate.remove_shards(config, folder / "eval" / cell.name, stored)
        return stored
    results = evaluate.evaluate(config, folder, f"eval/{cell.name}")
    jax.clear_caches()
    return results


class Study(NamedTuple):
    """The measurements on one data set.

    Attributes:
      ratios: distances by signal-to-noise ratio, for each SDE and kind of corrector.
      cells: results by SDE and name.
    """

    dataset: str
    scale: Scale
    ratios: Mapping[tuple[str, str], Mapping[float, float]]
    cells: Mapping[tuple[str, str], Results]

    def distances(self, sde: str, name: str) -> np.ndarray:
        """Fréchet distances [seeds] of a cell."""
        return np.array(self.cells[sde, name]["over_seeds"]["frechet_distance"]["values"])


def search(
    dataset: str, key: tuple[str, str], workdir: pathlib.Path, bar: tqdm
) -> Mapping[float, float]:
    """Distances by signal-to-noise ratio; the best is inside the range of ratios, if it can be."""
    scale = SCALES[dataset]
    distances: dict[float, float] = {}
    for snr in (*scale.snrs, *FURTHER_SNRS):
        if len(distances) >= len(scale.snrs):
            if best(distances) < max(distances):
                break
            bar.total += 1
        results = measure(dataset, trial(scale, *key, snr), workdir)
        distances[snr] = results["frechet_distance"]
        bar.update()
    return distances


def best(distances: Mapping[float, float]) -> float:
    """The ratio with the smallest distance."""
    return min(distances, key=distances.__getitem__)


def study(dataset: str, workdir: pathlib.Path) -> Study:
    """The study of a data set; what an earlier one left is neither trained nor measured again."""
    scale = SCALES[dataset]
    for sde in SDES:
        train(dataset, sde, workdir)
    keys, rest = searches(scale), [*table_2(), *few_steps(scale)]
    total = len(keys) * len(scale.snrs) + len(list(table_1(scale, {}))) + len(rest)
    cells = {}
    with tqdm(total=total, desc=f"{dataset}: cells", unit="cell") as bar:
        ratios = {key: search(dataset, key, workdir, bar) for key in keys}
        best_ratios = {key: best(distances) for key, distances in ratios.items()}
        for cell in [*rest, *table_1(scale, best_ratios)]:
            cells[cell.sde, cell.name] = measure(dataset, cell, workdir)
            bar.update()
    return Study(dataset, scale, ratios, cells)


def verdicts(study: Study, workdir: pathlib.Path) -> list[Verdict]:
    """The verdicts on all claims whose two cells were measured."""

    def values(claim: Claim, cell: tuple[str, str]) -> np.ndarray:
        if claim.quantity == "frechet_distance":
            return study.distances(*cell)
        folder = workdir / f"{study.dataset}_{cell[0]}" / "eval" / cell[1]
        try:
            return read_archive(folder / "bits_per_dim.npz")["bits"]
        except (ValueError, KeyError) as error:
            why = errors.one_line(error)
            raise ValueError(f"{why}; remove {folder}, and it is measured again") from error

    return [
        verdict(claim, values(claim, claim.better), values(claim, claim.worse))
        for claim in claims()
        if claim.better in study.cells and claim.worse in study.cells
    ]
