"""Records that are read at random, as columns of examples and of labels, in RAM if they fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import tqdm

RAM_LIMIT = 4 << 30  # bytes of images that are kept in RAM; larger sets are read record by record
_CHUNK = 512  # records decoded at a time while a set is read into RAM


class Column:
    """One feature of a random-access source of records: `column[i]`, `column[[i, j]]`, slices."""

    def __init__(self, records: Any, feature: str):
        self.records = records
        self.feature = feature

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            rows = range(*rows.indices(len(self)))
        numbers = np.arange(len(self))[rows] if isinstance(rows, np.ndarray) else np.asarray(rows)
        images, labels = take(self.records, np.atleast_1d(numbers))
        values = images if self.feature == "image" else labels
        return values if numbers.ndim else values[0]


def take(records: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images [k, H, W, C] and labels int32 [k] of a random-access source of records.

    They are read together where the source allows it.
    """
    if hasattr(records, "take"):
        images, labels = records.take(rows)
        return images, labels
    numbers = [int(row) for row in rows]
    together = getattr(records, "__getitems__", lambda numbers: [records[row] for row in numbers])
    items = together(numbers)
    images = np.stack([item["image"] for item in items])
    return images, np.asarray([item["label"] for item in items], np.int32)


def columns(records: Any, shape: tuple[int, ...], ram_limit: int) -> tuple[Any, Any]:
    """Images [n, *shape] and labels [n] of random-access records, in RAM if they fit."""
    kind = np.dtype(getattr(records, "DTYPE", np.uint8))
    if len(records) * int(np.prod(shape)) * kind.itemsize > ram_limit:
        return Column(records, "image"), Column(records, "label")
    images = np.empty((len(records), *shape), kind)
    labels = np.empty(len(records), np.int32)
    with tqdm.tqdm(
        total=len(records), desc="reading images", leave=False, delay=5.0, unit="img"
    ) as bar:
        for start in range(0, len(records), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(records)))
            images[rows], labels[rows] = take(records, rows)
            bar.update(len(rows))
    return images, labels
