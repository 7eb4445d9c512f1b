"""Batches of generated samples, drawn or read from an evaluation's cache, with their pictures."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

from evaluation.batch_cache import Batch, Shards
from generation import examples
from generation.generator import Generator
from runtime import devices, files

PICTURES = ("samples.png", "reverse_process.gif")


def sample_batches(
    config: ml_collections.ConfigDict,
    generator: Generator,
    params: Any,
    seed: int,
    folder: pathlib.Path,
    shards: Shards,
) -> Iterator[Batch]:
    """`eval.num_samples` images, as `Generator` gives them; those in `shards` are not drawn again.

    Pictures of the first batch lie beside the shards, and are copied into `folder`.
    """
    kind = examples.from_config(config)

    def compute(indices: np.ndarray) -> Iterator[tuple[np.ndarray, Batch]]:
        for numbers, batch in generator(params, indices, seed=seed):
            if numbers[0] == 0 and devices.is_primary():
                kind.save_pictures(shards.folder, "samples", batch)
            yield numbers, {field: batch[field] for field in ("image", "nfe")}

    rows = np.arange(config.eval.num_samples)
    for i, batch in enumerate(shards.batches(rows, config.sampling.batch_size, compute)):
        if i == 0 and devices.is_primary():
            copy_pictures(shards.folder, folder)
        yield batch


def copy_pictures(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the pictures of samples that `source` has; others in `folder` are old, and go."""
    for name in PICTURES:
        if (source / name).is_file():
            with files.whole(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
        else:
            (folder / name).unlink(missing_ok=True)
