"""Batches of an evaluation on disk: what was interrupted goes on with the batches that are missing.

They lie in a folder named by a hash of everything that made them, so what was made otherwise is
never taken for them. `made_by.json` there says what is behind the hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from runtime import devices, files

SOURCES = (
    *("sde_lib.py", "sampling.py", "likelihood.py", "configs/*.py", "data/*.py", "diffusion/*.py"),
    *("models/*.py", "models/ops/*.py", "models/ops/cpu/*", "runtime/*.py", "generation/*.py"),
    "evaluation/*.py",
)

Batch = dict[str, np.ndarray]
Compute = Callable[[np.ndarray], Iterator[tuple[np.ndarray, Batch]]]


class Shards:
    """The batches of one computation over numbered rows.

    Every process writes its own, each in one move: they may share a disk or not.

    Args:
      root: folder of all computations; this one has its own in it, `folder`.
      made_by: all that the results depend on, as JSON; whatever else changes leaves them as they
        are.

    Attributes:
      seconds: what computing the batches took that were given out so far, in this process or in
        those that were interrupted.
    """

    def __init__(self, root: pathlib.Path, made_by: dict[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / key
        self.made_by = made_by
        self.seconds = 0.0

    def batches(self, rows: np.ndarray, batch_size: int, compute: Compute) -> Iterator[Batch]:
        """Yields the results of all `rows` [n] in order, `batch_size` at a time.

        `compute` is called once, with the rows of all missing batches, and yields `(rows, results)`
        for `batch_size` of them at a time; what it yields is on disk before it is given out.

        Raises:
          ValueError: a batch on disk is damaged.
        """
        parts = np.split(rows, range(batch_size, len(rows), batch_size))
        found = [devices.on_all(self._holds(part)) for part in parts]
        missing = [part for part, there in zip(parts, found, strict=True) if not there]
        fresh = compute(np.concatenate(missing)) if missing else iter(())
        for part, there in zip(parts, found, strict=True):
            if not there:
                began = time.monotonic()
                _, results = next(fresh)
                self._write(part, results | {"seconds": np.asarray(time.monotonic() - began)})
            batch = self._read(part)
            self.seconds += float(batch.pop("seconds"))
            del batch["index"]
            yield batch

    def remove(self) -> None:
        """Deletes the batches, on every process once all of them have read them."""
        devices.on_all(True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _file(self, part: np.ndarray) -> pathlib.Path:
        return self.folder / f"batch_{part[0]:06d}.npz"

    def _holds(self, part: np.ndarray) -> bool:
        """Whether the batch is there with exactly these rows: the last one may have had fewer."""
        try:
            with np.load(self._file(part)) as stored:
                return np.array_equal(stored["index"], part)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return False

    def _read(self, part: np.ndarray) -> Batch:
        try:
            with np.load(self._file(part)) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{self._file(part)} is damaged; remove it, and it is computed again ({error})"
            ) from error

    def _write(self, part: np.ndarray, results: Batch) -> None:
        origin = self.folder / "made_by.json"
        if not origin.is_file():
            files.write_json(origin, self.made_by)
        partial = self.folder / f".partial.{jax.process_index()}.{os.getpid()}.npz"
        np.savez(partial, index=part, **results)  # type: ignore[arg-type]
        partial.replace(self._file(part))


class Store:
    """The shards of one evaluation, in the folder of its results.

    Args:
      folder: of the results.
      made_by: what all its computations depend on.
    """

    def __init__(self, folder: pathlib.Path, made_by: dict[str, Any]) -> None:
        self.root = folder / "shards"
        self.made_by = made_by
        self.opened: list[tuple[Shards, bool]] = []

    def open(self, kept: bool = False, **made_by: Any) -> Shards:
        """Those of a computation that depends on `made_by` too; `kept`: `close` leaves them."""
        made = Shards(self.root, self.made_by | made_by)
        self.opened.append((made, kept))
        return made

    def close(self) -> None:
        """The results are written: removes what is not to be kept."""
        for made, kept in self.opened:
            if not kept:
                made.remove()


def fingerprint(tree: Any) -> str:
    """SHA-256 of all arrays of a replicated tree, with their names, types and shapes."""
    content = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(devices.fetch(tree)):
        content.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        content.update(np.ascontiguousarray(leaf).tobytes())
    return content.hexdigest()


def code_fingerprint() -> str:
    """SHA-256 of the source that samples and likelihoods come from: another one is another."""
    home = pathlib.Path(__file__).parent.parent
    content = hashlib.sha256()
    for pattern in SOURCES:
        for file in sorted(home.glob(pattern)):
            content.update(f"{file.name}\n".encode() + file.read_bytes())
    return content.hexdigest()
