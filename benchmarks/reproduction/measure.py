"""The networks of a data set, trained one for each seed, and the numbers of cells on them."""

from __future__ import annotations

import functools
import importlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import ml_collections
import numpy as np

import sampling
from benchmarks.reproduction import kept
from benchmarks.reproduction.cells import FLOW, SCALES, Cell
from benchmarks.reproduction.exact import ExactParts
from evaluation import batch_cache, features, likelihoods
from evaluation.metrics import frechet, kernel
from evaluation.metrics.moments import Moments
from evaluation.stored_results import results_in
from generation import examples
from generation.generator import Generator
from runtime import devices, experiment, files, lock
from runtime.workdir import load_weights, open_run
from training import loop

Numbers: TypeAlias = Mapping[str, Any]
Config: TypeAlias = ml_collections.ConfigDict

TRAINED, EXACT = "training", "exact"  # a network's score, or that of the data set itself
KERNEL_IMAGES = 5000  # real images, at most, of a kernel distance
PICTURE_IMAGES = 40


def load(dataset: str, sde: str) -> Config:
    """The config of a network in configs/small."""
    return importlib.import_module(f"configs.small.{dataset}_{sde}").get_config()


class Unit(NamedTuple):
    """One independent repetition: a training and its samples, or samples of the exact score.

    Its number is the seed of both; those of number 0 choose the correctors' ratios and are not
    looked at again.
    """

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}_{self.number}"


class Bench:
    """The measurements on one data set in `<workdir>/<dataset>/<sde>/<unit>`.

    Args:
      dataset: a key of `SCALES`.
      workdir: of the whole study.

    Raises:
      FileNotFoundError: the data set is not here.
    """

    def __init__(self, dataset: str, workdir: pathlib.Path) -> None:
        self.dataset, self.workdir = dataset, workdir
        self.scale = SCALES[dataset]

    def config(self, cell: Cell, unit: Unit) -> Config:
        """The config of a cell's network and sampler; the unit's number is every seed."""
        config = load(self.dataset, cell.sde)
        config.update_from_flattened_dict(cell.settings)
        config.seed = config.eval.seed = config.sampling.seed = unit.number
        return config

    def folder(self, sde: str, unit: Unit) -> pathlib.Path:
        """Where a network, and what was measured of it, is."""
        return self.workdir / self.dataset / sde / str(unit)

    def numbers(self, cell: Cell, unit: Unit) -> Numbers:
        """The numbers of a cell, of here or of `kept`; empty unless they are of these settings."""
        folder, made_by = self.folder(cell.sde, unit), self.made_by(cell, unit)
        stored = results_in(folder / f"{cell.name}.json")
        if stored.get("made_by") == made_by:
            return stored
        return kept.numbers(folder.relative_to(self.workdir).as_posix(), cell.name, made_by)

    def made_by(self, cell: Cell, unit: Unit) -> Numbers:
        """All settings that the numbers depend on."""
        config = self.config(cell, unit).to_dict()
        sections = {name: config[name] for name in ("seed", "data", "model", "sampling")}
        if unit.kind == TRAINED:
            sections |= {name: config[name] for name in ("training", "optim")}
        sections |= {"images": cell.images, "score": unit.kind}
        made_by: Numbers = json.loads(json.dumps(sections))
        return made_by

    def measure(self, cell: Cell, units: Sequence[Unit]) -> None:
        """Measures a cell of every unit that lacks it; all have one program.

        Raises:
          Stopped: the program was asked to stop.
          BlockingIOError: another process works on the same network.
        """
        missing = [unit for unit in units if not self.numbers(cell, unit)]
        if not missing:
            return
        exact = missing[0].kind == EXACT
        parts = self.parts(cell)
        sampler = self.sampler(cell, ExactParts.of(parts) if exact else parts)
        kind = examples.kind_of(parts.pixels)
        for unit in missing:
            folder = self.folder(cell.sde, unit)
            with lock.held(folder, "benchmarks.reproduction"):
                params = self.params(cell, unit)
                images, nfe = sampler(params, unit.number)
                numbers = self.judge(images) | {"nfe": nfe}
                if cell.name == FLOW and unit.kind == TRAINED:
                    numbers["bits_per_dim"] = self.bits_per_dim(cell, unit, params)
                kind.save_pictures(folder, cell.name, {"image": images[:PICTURE_IMAGES]})
                numbers |= {
                    "made_by": self.made_by(cell, unit),
                    "program": batch_cache.program(batch_cache.EVALUATION),
                }
                files.write_json(folder / f"{cell.name}.json", numbers)
        jax.clear_caches()

    def train(self, sde: str, unit: Unit) -> None:
        """Trains a network, or goes on, unless it is there."""
        config = self.config(Cell(sde, "", {}, 0), unit)
        folder = self.folder(sde, unit)
        if config.training.n_iters not in open_run(config, folder).steps():
            with lock.held(folder, "benchmarks.reproduction"):
                loop.train(config, folder)
            jax.clear_caches()

    def params(self, cell: Cell, unit: Unit) -> Any:
        """The weights of a network on every device, or the examples of the exact score."""
        parts = self.parts(cell)
        if unit.kind == EXACT:
            images, _ = self.data[0].take(np.arange(self.scale.examples))
            return devices.replicate(parts.pixels.to_model(images))
        config = self.config(cell, unit)
        folder = self.folder(cell.sde, unit)
        trained = load_weights(config, parts.module, parts.image_shape, folder)
        return devices.replicate(trained.params)

    def sampler(self, cell: Cell, parts: experiment.Parts) -> Any:
        """From weights and a seed to the images and the mean NFE, by the score of `parts`."""
        config = self.config(cell, Unit(TRAINED, 0))
        generator = Generator(parts, sampling.from_config(config, devices.AXIS), config.sampling)

        def draw(params: Any, seed: int) -> tuple[np.ndarray, float]:
            indices = np.arange(cell.images)
            batches = [batch for _, batch in generator(params, indices, "", seed)]
            images, nfe = (
                np.concatenate([batch[name] for batch in batches]) for name in ("image", "nfe")
            )
            return images, float(nfe.mean())

        return draw

    def parts(self, cell: Cell) -> experiment.Parts:
        """The experiment of a cell."""
        return experiment.build(self.config(cell, Unit(TRAINED, 0)))

    def bits_per_dim(self, cell: Cell, unit: Unit, params: Any) -> float:
        """The mean over the test images that the config asks for."""
        config, parts, test = self.config(cell, unit), self.parts(cell), self.data[1]
        count = min(config.eval.bpd_num_images or len(test), len(test))
        batch_size = devices.fitting_batch(min(config.eval.batch_size, count))
        function = likelihoods.likelihood_of_images(config, parts)
        run = devices.ImageMap(function, batch_size, "eval.batch_size")
        numbers = np.arange(count)
        arrays = devices.Rows(test.images, numbers), np.zeros(count, np.int64)
        batches = [batch for _, batch in run(params, numbers, arrays)]
        if not all(batch["ok"].all() for batch in batches):
            raise ValueError(f"the likelihood of {cell.sde} was given up at {unit}")
        return float(np.concatenate([batch["bits"] for batch in batches]).mean())

    def judge(self, images: np.ndarray) -> dict[str, Any]:
        """Distances of images [n, ...] from all training images, by the classifier's features.

        "distance" is the Fréchet distance without the bias of n, "distance_of_n" that with it,
        "kernel_distance" the unbiased squared maximum mean discrepancy.
        """
        generated = self.extractor.features(images)
        return {
            "distance": frechet.jackknife_distance(generated, self.real),
            "distance_of_n": frechet.frechet_distance(Moments.of(generated), self.real),
            "kernel_distance": kernel.squared_mmd(generated, self.real_features[:KERNEL_IMAGES]),
        }

    @functools.cached_property
    def data(self) -> tuple[Any, Any]:
        """Training and test images."""
        parts = experiment.build(load(self.dataset, "vp"))
        return parts.dataset("train"), parts.dataset("test")

    @functools.cached_property
    def extractor(self) -> features.FeatureExtractor:
        """The classifier of the data set's own classes."""
        return features.of_dataset(*self.data, None)

    @functools.cached_property
    def real_features(self) -> np.ndarray:
        """Of all training images, [m, d]."""
        train = self.data[0]
        return np.concatenate(list(self._real_parts(train)))

    def _real_parts(self, train: Any) -> Iterator[np.ndarray]:
        for rows in np.array_split(np.arange(len(train)), -(-len(train) // 5000)):
            yield self.extractor.features(train.take(rows)[0])

    @functools.cached_property
    def real(self) -> Moments:
        """The moments of `real_features`."""
        return Moments.of(self.real_features)
