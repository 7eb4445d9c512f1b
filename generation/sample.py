"""`--mode=sample`: samples of a trained network into a folder."""

from __future__ import annotations

import json
import pathlib

import ml_collections
import numpy as np

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
    generator = Generator(config, parts)
    trained = restore(config, parts, workdir)
    folder = workdir / "samples"
    made_by = {"step": trained.step, "sampling": config.sampling.to_dict()}
    if config.eval.ema:
        made_by["ema"] = config.eval.ema
    free = ["sampling.num_samples", "sampling.batch_size", "sampling.num_frames"]
    stored = folder / "made_by.json"
    if stored.exists():
        differences = config_differences(json.loads(stored.read_text()), made_by, free)
        if differences:
            raise ValueError(
                f"{folder} holds samples made otherwise: {'; '.join(differences)}; move it away"
            )
    done = {int(i) for shard in folder.glob("shard_*.npz") for i in np.load(shard)["index"]}
    missing = np.array([i for i in range(config.sampling.num_samples) if i not in done], np.int32)
    if devices.is_primary():
        files.write_json(stored, made_by)
    kind = examples.from_config(config)
    for indices, drawn in generator(trained.params, missing):
        if devices.is_primary():
            save_batch(folder, indices, drawn, kind)
    if devices.is_primary():
        print(f"{config.sampling.num_samples} samples are in {folder} ({len(missing)} new)")


def save_batch(
    folder: pathlib.Path, indices: np.ndarray, drawn: dict[str, np.ndarray], kind: examples.Kind
) -> None:
    """One batch as pictures, then as a shard, which is written last and in one move."""
    if indices[0] == 0:
        kind.save_pictures(folder, kind.overview, drawn)
    kind.save_each(folder, indices, drawn["image"])
    partial = folder / "partial.npz"
    np.savez(partial, image=drawn["image"], index=indices, nfe=drawn["nfe"])
    partial.replace(folder / f"shard_{indices[0]:06d}.npz")
