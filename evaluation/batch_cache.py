"""Batches of an evaluation on disk: what was interrupted goes on with the batches that are missing.

They lie in a folder named by a hash of everything that made them, so that batches of another
config, other weights or another program are never taken for them. `made_by.json` there says what is
behind the hash.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from models.ops import native
from runtime import arrays, devices, errors, files
from runtime.arrays import Row

HOME = pathlib.Path(__file__).resolve().parent.parent
# The modules that draw samples, compute likelihoods and tell XLA how; all that they import counts.
MAKERS = ("evaluation.sample_batches", "evaluation.likelihoods", "runtime.backend")
# Modules that draw pictures of numbers and return none.
DRAWING = ("generation.point_figures", "runtime.figures")
# The module that makes all results, of which the modules below it count, but for their report.
EVALUATION = ("evaluation.evaluate", "runtime.backend")
REPORT = "evaluation.report"
# Modules that import, by name, every file of a folder: the package of these files.
FINDERS = {"data.datasets": "data", "evaluation.metrics.metric": "evaluation.metrics"}
NATIVE = "models/ops/cpu"
PACKAGES = (
    *("jax", "jaxlib", "flax", "diffrax", "equinox", "lineax", "optimistix", "numpy"),
    "onednn-cpu-gomp",
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
      row: the results of one row, by name, as `arrays.read_shard` knows them.

    Attributes:
      seconds: the time that computing the batches took that were given out so far, in this process
        or in those that were interrupted.
    """

    def __init__(
        self, root: pathlib.Path, made_by: dict[str, Any], row: Mapping[str, Row] | None = None
    ) -> None:
        key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / key
        self.made_by = made_by
        self.row = row or {}
        self.seconds = 0.0

    def batches(self, rows: np.ndarray, batch_size: int, compute: Compute) -> Iterator[Batch]:
        """Yields the results of all `rows` [n] in order, `batch_size` at a time.

        `compute` is called once, with the rows of all missing batches, and yields `(rows, results)`
        for `batch_size` of them at a time; what it yields is on disk before it is given out.
        Damaged batches on disk are computed again.
        """
        parts = np.split(rows, range(batch_size, len(rows), batch_size))
        stored = [devices.on_all(self._holds(part)) for part in parts]
        missing = [part for part, is_stored in zip(parts, stored, strict=True) if not is_stored]
        computed = compute(np.concatenate(missing)) if missing else iter(())
        for part, is_stored in zip(parts, stored, strict=True):
            if not is_stored:
                began = time.monotonic()
                _, results = next(computed)
                self._write(part, results | {"seconds": np.asarray(time.monotonic() - began)})
            batch = self._read(part)
            self.seconds += float(batch.pop("seconds", 0.0))
            del batch["index"]
            yield batch

    def remove(self) -> None:
        """Deletes the batches, on every process once all of them have read them."""
        devices.on_all(True)
        files.remove_folder(self.folder)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _file(self, part: np.ndarray) -> pathlib.Path:
        return self.folder / f"batch_{part[0]:06d}.npz"

    def _holds(self, part: np.ndarray) -> bool:
        """True if the batch is there with exactly these rows: the last one may have had fewer."""
        if not self._file(part).exists():
            return False
        try:
            return np.array_equal(self._read(part)["index"], part)
        except (ValueError, OSError) as error:
            logging.warning("%s; it is computed again", errors.one_line(error))
            return False

    def _read(self, part: np.ndarray) -> Batch:
        batch = arrays.read_shard(self._file(part), self.row)
        if batch.get("seconds", np.zeros(())).shape:
            raise ValueError(f"{self._file(part)} is damaged (its 'seconds' are no number)")
        return batch

    def _write(self, part: np.ndarray, results: Batch) -> None:
        origin = self.folder / "made_by.json"
        if not origin.is_file():
            files.write_json(origin, self.made_by)
        with files.whole(self._file(part)) as temporary:
            np.savez(temporary, index=part, **results)  # type: ignore[arg-type]


class Store:
    """The shards of one evaluation, in the folder of its results.

    Args:
      folder: of the results.
      made_by: all that every computation of the evaluation depends on.
    """

    def __init__(self, folder: pathlib.Path, made_by: dict[str, Any]) -> None:
        self.root = folder / "shards"
        self.made_by = made_by
        self.opened: list[tuple[Shards, bool]] = []

    def open(self, row: Mapping[str, Row], kept: bool = False, **made_by: Any) -> Shards:
        """The shards of a computation that depends on `made_by` too; `close` leaves those kept.

        `row`: see `Shards`.
        """
        shards = Shards(self.root, self.made_by | made_by, row)
        self.opened.append((shards, kept))
        return shards

    def close(self) -> None:
        """Removes the shards that are not to be kept, once the results are written."""
        for shards, kept in self.opened:
            if not kept:
                shards.remove()


# --- the program ---


def program(makers: tuple[str, ...] = MAKERS) -> dict[str, Any]:
    """All of the program and the machine that samples and likelihoods depend on, as JSON.

    With `makers=EVALUATION` it is what all results depend on, their metrics included. "native" is
    True where the CPU's native functions run, False where XLA's own forms do.
    """
    platform = jax.default_backend()
    return {
        "code": code_fingerprint(HOME, makers),
        "versions": {name: _version(name) for name in PACKAGES},
        "platform": platform,
        "native": platform == "cpu" and native.available(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def code_fingerprint(home: pathlib.Path = HOME, makers: tuple[str, ...] = MAKERS) -> str:
    """SHA-256 of the names and contents of `sources`."""
    content = hashlib.sha256()
    for file in sources(home, makers):
        content.update(f"{file.relative_to(home).as_posix()}\n".encode() + file.read_bytes())
    return content.hexdigest()


def sources(home: pathlib.Path = HOME, makers: tuple[str, ...] = MAKERS) -> list[pathlib.Path]:
    """The files that can change what `makers` make: samples, likelihoods, results; sorted.

    These are the makers with every module of the project at `home` that they import, and so on,
    `DRAWING` and the report aside, and the CPU's native functions.
    """
    modules: dict[str, pathlib.Path] = {}
    pending = list(makers)
    while pending:
        module = pending.pop()
        path = home.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        shows = module in DRAWING or module.startswith(REPORT)
        if module not in modules and not shows and file.is_file():
            modules[module] = file
            pending += imported_names(file.read_bytes())
            if module in FINDERS:
                package = FINDERS[module]
                files = home.joinpath(*package.split(".")).glob("*.py")
                pending += [f"{package}.{path.stem}" for path in files]
    return sorted({*modules.values(), *(home / NATIVE).iterdir()})


@functools.cache
def imported_names(source: bytes) -> set[str]:
    """The dotted names that a module imports anywhere, with those of the packages they are in."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)}
