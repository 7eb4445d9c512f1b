"""Batches of generated samples, drawn or read from an evaluation's cache, with their pictures."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from evaluation.batch_cache import Batch, Shards
from generation.examples import Kind
from generation.generator import Generator
from runtime import devices, files

PICTURES = ("samples.png", "reverse_process.gif")


def sample_batches(
    generator: Generator,
    params: Any,
    seed: int,
    count: int,
    batch_size: int,
    shards: Shards,
    kind: Kind,
    folder: pathlib.Path,
) -> Iterator[Batch]:
    """The first `count` images of a seed; those in `shards` are not drawn again.

    Pictures of the first batch lie beside the shards, and are copied into `folder`.

    Args:
      params: the network's, replicated.
      kind: of the examples, which draws their pictures.

    Yields:
      "image" and "nfe" [batch_size, ...], as `Generator` gives them.
    """

    def compute(indices: np.ndarray) -> Iterator[tuple[np.ndarray, Batch]]:
        for numbers, batch in generator(params, indices, seed=seed):
            if numbers[0] == 0 and devices.is_primary():
                kind.save_pictures(shards.folder, "samples", batch)
            yield numbers, {field: batch[field] for field in ("image", "nfe")}

    for i, batch in enumerate(shards.batches(np.arange(count), batch_size, compute)):
        if i == 0 and devices.is_primary():
            copy_pictures(shards.folder, folder)
        yield batch


def copy_pictures(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the pictures of samples that `source` has; others in `folder` are old, and go."""
    for name in PICTURES:
        if (source / name).is_file():
            with files.whole(folder / name) as temporary:
                temporary.write_bytes((source / name).read_bytes())
        else:
            (folder / name).unlink(missing_ok=True)
