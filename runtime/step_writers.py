"""Checkpoints written by what stands in for orbax's manager: in a bucket, and on disks of hosts.

Orbax finishes a step by renaming its folder, which in most buckets is a copy, object by object.
Here a step is finished by its last object, the checksums of all others, and is unmade by removing
that one first. The objects are the files of a step on a disk: a copy of one is the other.

Where hosts have disks of their own, each of these gets all steps. Orbax's processes wait for each
other by names that they have in common, and cannot write by themselves; a folder there takes its
name last, as orbax's does.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import threading
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from runtime import devices, files, hosts
from runtime.arrays import write_arrays
from runtime.buckets import BucketPath

ITEMS = ("state", "data", "config", "checksums")  # of a step, a folder each
ARRAYS = "arrays.npz"
JSON = "metadata"  # as orbax names it
LAST = f"checksums/{JSON}"
UNFINISHED = ".orbax-checkpoint-tmp"  # ends the name of a folder that is no step, or no longer


def is_finished(path: epath.Path) -> bool:
    """True for the folder of a finished step, whole or damaged; on a disk it is named last, in a
    bucket its checksums are put last."""
    number = path.name.isascii() and path.name.isdecimal() and path.name == str(int(path.name))
    if number and isinstance(path, BucketPath):
        return (path / LAST).exists()
    return number and path.is_dir() and any((path / item).exists() for item in ITEMS)


class Step(NamedTuple):
    """A step as orbax's policies know it."""

    step: int


class Steps:
    """Writes steps in the background, as much of orbax's `CheckpointManager` as is needed.

    Args:
      directory: of the steps.
      policy: orbax's, on which steps stay.
    """

    def __init__(self, directory: epath.Path, policy: Any) -> None:
        self.directory, self._policy = directory, policy
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, args: ocp.args.Composite, force: bool = True) -> None:
        """Copies the arrays, then writes the step in the background; see `hosts.is_writer`."""
        del force
        devices.on_all(True)  # each has seen which steps are there
        if not hosts.is_writer():
            return
        arrays = {name: np.array(array) for name, array in args["state"].arrays.items()}
        items = {name: args[name].item for name in ("data", "config", "checksums")}
        self._thread = threading.Thread(target=self._write, args=(step, arrays, items))
        self._thread.start()

    def wait_until_finished(self) -> None:
        """Blocks until this process has written the step, if it does.

        Raises:
          Exception: it could not.
        """
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Nothing is left open."""

    def _write(self, step: int, arrays: dict[str, np.ndarray], items: dict[str, Any]) -> None:
        """Writes a step, and removes the steps that are not to stay."""
        try:
            self._put(step, arrays, items)
            self._retire()
        except BaseException as error:
            self._error = error

    def _retire(self) -> None:
        steps = self._finished()
        kept = self._policy.should_preserve([Step(step) for step in steps], context=None)
        for step, stays in zip(steps, kept, strict=True):
            if not stays:
                self._remove(step)

    def _finished(self) -> list[int]:
        """The steps that are there, ascending."""
        return sorted(int(path.name) for path in self.directory.iterdir() if is_finished(path))

    def _put(self, step: int, arrays: dict[str, np.ndarray], items: dict[str, Any]) -> None:
        raise NotImplementedError

    def _remove(self, step: int) -> None:
        raise NotImplementedError


class BucketSteps(Steps):
    """`Steps` in a bucket."""

    directory: BucketPath

    def wait_until_finished(self) -> None:
        """Blocks until the step is in the bucket, on every process.

        Raises:
          ValueError, OSError: it is not.
        """
        with hosts.together():
            super().wait_until_finished()

    def _put(self, step: int, arrays: dict[str, np.ndarray], items: dict[str, Any]) -> None:
        self._remove(step)  # the rest of one that was not finished
        folder = self.directory / str(step)
        with files.whole(folder / "state" / ARRAYS) as temporary:
            write_arrays(temporary, arrays)
        for name in ("data", "config", "checksums"):
            (folder / name / JSON).write_bytes(json.dumps(items[name]).encode())

    def _remove(self, step: int) -> None:
        """Removes a step: with its first object it is one no longer."""
        folder = self.directory / str(step)
        (folder / LAST).unlink(missing_ok=True)
        folder.rmtree()


class DiskSteps(Steps):
    """`Steps` on the disks of several hosts."""

    def _put(self, step: int, arrays: dict[str, np.ndarray], items: dict[str, Any]) -> None:
        directory = pathlib.Path(self.directory)
        for path in directory.glob(f"*{UNFINISHED}"):
            shutil.rmtree(path)
        folder = directory / f"{step}{UNFINISHED}"
        try:
            (folder / "state").mkdir(parents=True)
            write_arrays(folder / "state" / ARRAYS, arrays)
            for name in ("data", "config", "checksums"):
                (folder / name).mkdir()
                with (folder / name / JSON).open("w") as file:
                    json.dump(items[name], file)
                    file.flush()
                    os.fsync(file.fileno())
            self._remove(step)
            folder.rename(directory / str(step))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _remove(self, step: int) -> None:
        """Removes a step under another name: what is left if that is interrupted is none."""
        directory = pathlib.Path(self.directory)
        if (directory / str(step)).exists():
            aside = directory / f"{step}.removed{UNFINISHED}"
            (directory / str(step)).rename(aside)
            shutil.rmtree(aside)
