"""`--mode=sample`: samples of a trained network into a folder."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import ml_collections
import numpy as np

import sampling
from configs.stored import config_differences
from generation import examples
from generation.generator import Generator
from runtime import devices, experiment, files
from runtime.workdir import restore


def sample(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Draws images 0 .. sampling.num_samples - 1 into `<workdir>/samples`.

    Each batch becomes one `shard_<first index>.npz` ("image" as the data set stores it, "index",
    "nfe") and one PNG file per image; images that are there already are not drawn again, so an
    interrupted run goes on. The first ones make `grid.png` (points: `scatter.png`, and no files of
    their own), and with sampling.num_frames `reverse_process.gif`.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a config that cannot be served; samples that are not finite; a folder of samples
        that were made in another way.
    """
    parts = experiment.build(config)
    sampler = sampling.from_config(config, devices.AXIS)
    generator = Generator(parts, sampler, config.sampling)
    trained = restore(config, parts, workdir)
    folder = workdir / "samples"
    origin = {"step": trained.step, "sampling": config.sampling.to_dict()}
    claim(folder, origin | ({"ema": config.eval.ema} if config.eval.ema else {}))
    numbers = missing(folder, config.sampling.num_samples)
    kind = examples.kind_of(parts.pixels)
    for indices, batch in generator(trained.params, numbers):
        if devices.is_primary():
            save_batch(folder, indices, batch, kind)
    if devices.is_primary():
        print(f"{config.sampling.num_samples} samples are in {folder} ({len(numbers)} new)")


def claim(folder: pathlib.Path, origin: dict[str, Any]) -> None:
    """Writes into `folder` the origin of its samples: the step, the weights, the sampler.

    Raises:
      ValueError: it holds samples of another origin.
    """
    free = ["sampling.num_samples", "sampling.batch_size", "sampling.num_frames"]
    path = folder / "made_by.json"
    if path.exists() and any(folder.glob("shard_*.npz")):
        differences = config_differences(json.loads(path.read_text()), origin, free)
        if differences:
            raise ValueError(
                f"{folder} holds samples made otherwise: {'; '.join(differences)}; move it away"
            )
    if devices.is_primary():
        files.write_json(path, origin)


def missing(folder: pathlib.Path, count: int) -> np.ndarray:
    """The numbers below `count` of samples that no shard in `folder` holds, int32."""
    stored = {int(i) for shard in folder.glob("shard_*.npz") for i in np.load(shard)["index"]}
    return np.array([i for i in range(count) if i not in stored], np.int32)


def save_batch(
    folder: pathlib.Path, indices: np.ndarray, batch: examples.Batch, kind: examples.Kind
) -> None:
    """Writes one batch as pictures, and last as a shard: with it the batch counts as done."""
    if indices[0] == 0:
        kind.save_pictures(folder, kind.overview, batch)
    kind.save_each(folder, indices, batch["image"])
    with files.whole(folder / f"shard_{indices[0]:06d}.npz") as path:
        np.savez(path, image=batch["image"], index=indices, nfe=batch["nfe"])
