"""Trains the networks of configs/small and measures the cells, as far as that is not done yet."""

from __future__ import annotations

import importlib
import json
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
from runtime.workdir import open_run
from training import loop

Results = Mapping[str, Any]
Config: TypeAlias = ml_collections.ConfigDict


def load(dataset: str, sde: str) -> Config:
    return importlib.import_module(f"configs.small.{dataset}_{sde}").get_config()


def trained(dataset: str, sde: str, workdir: pathlib.Path) -> None:
    """Trains a network, or goes on, unless it is there.

    Raises:
      SystemExit: the training was asked to stop (SIGTERM), and did.
    """
    config = load(dataset, sde)
    folder, last = workdir / f"{dataset}_{sde}", config.training.n_iters
    if last in open_run(config, folder).steps():
        return
    loop.train(config, folder)
    jax.clear_caches()
    saved = open_run(config, folder).steps()
    if last not in saved:
        raise SystemExit(f"stopped at step {max(saved)} of {last}; the same command goes on there")


def measured(dataset: str, cell: Cell, workdir: pathlib.Path) -> Results:
    """The results of a cell; those that an earlier run left are not made again."""
    config = load(dataset, cell.sde)
    config.eval.enable_loss = False
    config.update_from_flattened_dict(cell.settings)
    folder = workdir / f"{dataset}_{cell.sde}"
    stored = folder / "eval" / cell.name / "results.json"
    if stored.is_file():
        found = json.loads(stored.read_text())
        if found["made_by"] == evaluate.made_by(config):
            return found
    found = evaluate.evaluate(config, folder, f"eval/{cell.name}")
    jax.clear_caches()
    return found


class Study(NamedTuple):
    """All that was measured on one data set."""

    dataset: str
    scale: Scale
    searched: Mapping[tuple[str, str], Mapping[float, float]]
    cells: Mapping[tuple[str, str], Results]

    def distances(self, sde: str, name: str) -> np.ndarray:
        """Fréchet distances [seeds] of a cell."""
        return np.array(self.cells[sde, name]["over_seeds"]["frechet_distance"]["values"])


def searched(
    dataset: str, key: tuple[str, str], workdir: pathlib.Path, bar: tqdm
) -> Mapping[float, float]:
    """Distances by signal-to-noise ratio, the best of them inside the range, if it can be."""
    scale = SCALES[dataset]
    found: dict[float, float] = {}
    for snr in (*scale.snrs, *FURTHER_SNRS):
        if len(found) >= len(scale.snrs):
            if best(found) < max(found):
                break
            bar.total += 1
        results = measured(dataset, trial(scale, *key, snr), workdir)
        found[snr] = results["frechet_distance"]
        bar.update()
    return found


def best(found: Mapping[float, float]) -> float:
    """The ratio with the smallest distance."""
    return min(found, key=found.__getitem__)


def study(dataset: str, workdir: pathlib.Path) -> Study:
    """Trains and measures what is not yet there."""
    scale = SCALES[dataset]
    for sde in SDES:
        trained(dataset, sde, workdir)
    keys, rest = searches(scale), [*table_2(), *few_steps(scale)]
    total = len(keys) * len(scale.snrs) + len(list(table_1(scale, {}))) + len(rest)
    cells = {}
    with tqdm(total=total, desc=f"{dataset}: cells", unit="cell") as bar:
        tried = {key: searched(dataset, key, workdir, bar) for key in keys}
        ratios = {key: best(found) for key, found in tried.items()}
        for cell in [*rest, *table_1(scale, ratios)]:
            cells[cell.sde, cell.name] = measured(dataset, cell, workdir)
            bar.update()
    return Study(dataset, scale, tried, cells)


def verdicts(found: Study, workdir: pathlib.Path) -> list[Verdict]:
    """Of every claim whose two cells were measured."""

    def values(claim: Claim, cell: tuple[str, str]) -> np.ndarray:
        if claim.quantity == "frechet_distance":
            return found.distances(*cell)
        folder = workdir / f"{found.dataset}_{cell[0]}" / "eval" / cell[1]
        return np.load(folder / "bits_per_dim.npz")["bits"]

    return [
        verdict(claim, values(claim, claim.better), values(claim, claim.worse))
        for claim in claims()
        if claim.better in found.cells and claim.worse in found.cells
    ]
