"""Checkpoints in a bucket, written by what stands in for orbax's manager.

Orbax finishes a step by renaming its folder, which in most buckets is a copy, object by object.
Here a step is finished by its last object, the checksums of all others, and is unmade by removing
that one first. The objects are the files of a step on a disk: a copy of one is the other.
"""

from __future__ import annotations

import json
import threading
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from runtime import devices, files
from runtime.arrays import write_arrays
from runtime.buckets import BucketPath

ARRAYS = "arrays.npz"
JSON = "metadata"  # as orbax names it
LAST = f"checksums/{JSON}"


class Step(NamedTuple):
    """A step as orbax's policies know it."""

    step: int


class BucketSteps:
    """Writes steps in the background, as much of orbax's `CheckpointManager` as is needed.

    Args:
      directory: of the steps.
      policy: orbax's, on which steps stay.
    """

    def __init__(self, directory: BucketPath, policy: Any) -> None:
        self.directory, self._policy = directory, policy
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, args: ocp.args.Composite, force: bool = True) -> None:
        """Copies the arrays, then writes the step in the background; process 0 alone does."""
        del force
        devices.on_all(True)  # each has seen which steps are there
        if jax.process_index() != 0:
            return
        arrays = {name: np.array(array) for name, array in args["state"].arrays.items()}
        items = {name: args[name].item for name in ("data", "config", "checksums")}
        self._thread = threading.Thread(target=self._write, args=(step, arrays, items))
        self._thread.start()

    def wait_until_finished(self) -> None:
        """Blocks until the step is in the bucket, on every process.

        Raises:
          OSError: it is not.
        """
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if not devices.on_all(error is None):
            raise error or OSError("process 0 could not write it")

    def close(self) -> None:
        """Nothing is left open."""

    def _write(self, step: int, arrays: dict[str, np.ndarray], items: dict[str, Any]) -> None:
        """Puts the objects of a step, and removes the steps that are not to stay."""
        folder = self.directory / str(step)
        try:
            _remove(folder)  # the rest of one that was not finished
            with files.whole(folder / "state" / ARRAYS) as temporary:
                write_arrays(temporary, arrays)
            for name in ("data", "config", "checksums"):
                (folder / name / JSON).write_bytes(json.dumps(items[name]).encode())
            self._retire()
        except BaseException as error:
            self._error = error

    def _retire(self) -> None:
        paths = [path for path in self.directory.iterdir() if path.name.isdecimal()]
        steps = sorted(int(path.name) for path in paths if (path / LAST).exists())
        kept = self._policy.should_preserve([Step(step) for step in steps], context=None)
        for step, stays in zip(steps, kept, strict=True):
            if not stays:
                _remove(self.directory / str(step))


def _remove(folder: BucketPath) -> None:
    """Removes a step: with its first object it is one no longer."""
    (folder / LAST).unlink(missing_ok=True)
    folder.rmtree()
