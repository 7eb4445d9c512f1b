"""`--mode=sample`: samples of a trained network into a folder."""

from __future__ import annotations

import fnmatch
import pathlib
from typing import Any

import ml_collections
import numpy as np
from absl import logging

import sampling
from configs.stored import config_differences
from generation import examples
from generation.generator import Generator
from runtime import devices, errors, experiment, files, hosts
from runtime.arrays import NUMBER, read_shard
from runtime.workdir import restore, settled

ORIGIN = "made_by.json"
SHARDS = "shard_*.npz"
ADVICE = "move the folder away, and they are drawn anew"


def sample(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Draws images 0 .. sampling.num_samples - 1 into `<workdir>/samples`.

    Each batch becomes one `shard_<first index>.npz` ("image" as the data set stores it, "index",
    "nfe", and "label" where classes were drawn) and one PNG file per image; images that are there
    already are not drawn again, so an interrupted run goes on. The first ones make `grid.png`
    (points: `scatter.png`, and no files of their own), and with sampling.num_frames
    `reverse_process.gif`.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a config that cannot be served; samples that are not finite; a folder of samples
        of other weights, or that were made in another way.
    """
    config = settled(config, workdir)
    parts = experiment.build(config)
    sampler = sampling.from_config(config, devices.AXIS)
    generator = Generator(parts, sampler, config.sampling, config.sampling.num_samples)
    trained = restore(config, parts, workdir)
    folder = workdir / "samples"
    kind = examples.kind_of(parts.pixels)
    origin = {"step": trained.step, "weights_sha256": trained.sha256}
    origin |= {"sampling": config.sampling.to_dict(), "config": experiment.settings(config)}
    origin |= {"ema": config.eval.ema} if config.eval.ema else {}
    origin |= {"guide": {"sha256": generator.guide.sha256}} if generator.guide else {}

    def left() -> list[int]:
        refuse_others(folder, origin)
        return missing(folder, config.sampling.num_samples, kind, parts.image_shape).tolist()

    numbers = np.array(hosts.by_primary(left), np.int32)  # others may not see what is there
    for i, (indices, batch) in enumerate(generator(trained.params, numbers)):
        if devices.is_primary():
            if i == 0:
                files.write_json(folder / ORIGIN, origin)
            save_batch(folder, indices, batch, kind)
    if devices.is_primary():
        print(f"{config.sampling.num_samples} samples are in {folder} ({len(numbers)} new)")


def refuse_others(folder: pathlib.Path, origin: dict[str, Any]) -> None:
    """Refuses a folder of samples of another origin: step, weights, sampler.

    A record without samples says nothing: they were never finished.

    Raises:
      ValueError: it holds samples of another origin, or of one that nobody knows.
    """
    path = folder / ORIGIN
    if not any(folder.glob(SHARDS)):
        return
    if not path.exists():
        raise ValueError(
            f"{folder} holds samples whose origin nobody knows, as {ORIGIN} is missing; {ADVICE}"
        )
    stored = files.read_json(path, f"what its samples are of, nobody knows: {ADVICE}")
    sha256, step = stored.get("weights_sha256"), stored.get("step")
    if sha256 is None:
        raise ValueError(
            f"{folder} holds samples of an earlier version (step {step}), which did not write down "
            f"the hash of their weights, and these may be others by now; {ADVICE}"
        )
    if sha256 != origin["weights_sha256"]:
        raise ValueError(
            f"{folder} holds samples of other weights: SHA-256 {str(sha256)[:12]}, step {step}; "
            f"those of now have {origin['weights_sha256'][:12]}, step {origin['step']}; {ADVICE}"
        )
    free = ["sampling.num_samples", "sampling.batch_size", "sampling.num_frames"]
    free += [f"config.{name}" for name in experiment.SOURCE]
    differences = config_differences(stored, origin, free)
    if differences:
        raise ValueError(
            f"{folder} holds samples made otherwise: {errors.abridged(differences, '; ', 4)}; "
            f"{ADVICE}"
        )


def missing(
    folder: pathlib.Path, count: int, kind: examples.Kind, shape: tuple[int, ...]
) -> np.ndarray:
    """The numbers below `count` of samples [*shape] that no shard in `folder` holds, int32.

    A shard that is damaged is removed, so that its samples are drawn again.
    """
    row = {"image": kind.row(shape), "nfe": NUMBER}
    stored: set[int] = set()
    names = sorted(path.name for path in folder.glob("[!.]*.npz"))
    others = [name for name in names if not fnmatch.fnmatchcase(name, SHARDS)]
    if others:
        logging.warning(
            "%s: %s passed over; samples are in files named %s, and others are drawn again",
            *(folder, errors.abridged(others, ", "), SHARDS),
        )
    for path in sorted(folder.glob(SHARDS)):
        try:
            stored |= {int(i) for i in read_shard(path, row)["index"]}
        except ValueError as error:
            logging.warning("%s; its samples are drawn again", errors.one_line(error))
            path.unlink(missing_ok=True)
    return np.array([i for i in range(count) if i not in stored], np.int32)


def save_batch(
    folder: pathlib.Path, indices: np.ndarray, batch: examples.Batch, kind: examples.Kind
) -> None:
    """Writes one batch as pictures, and last as a shard: with it the batch counts as done."""
    if indices[0] == 0:
        kind.save_pictures(folder, kind.overview, batch)
    kind.save_each(folder, indices, batch["image"])
    with files.whole(folder / f"shard_{indices[0]:06d}.npz") as path:
        arrays: dict[str, Any] = {"image": batch["image"], "index": indices, "nfe": batch["nfe"]}
        arrays |= {"label": batch["label"]} if "label" in batch else {}
        np.savez(path, **arrays)
