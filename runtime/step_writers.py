"""Checkpoints written by what stands in for orbax's manager: in a bucket, and on disks of hosts.

Orbax finishes a step by renaming its folder, which in most buckets is a copy, object by object.
Here a step is finished by its last object, the checksums of all others, and is unmade by removing
that one first. The objects are the files of a step on a disk: a copy of one is the other.

Where hosts have disks of their own, each of these gets all steps. Orbax's processes wait for each
other by names that they have in common, and cannot write by themselves; a folder there takes its
name last, as orbax's does.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from runtime import devices, files, hosts
from runtime.arrays import write_arrays
from runtime.buckets import BucketPath

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

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


@dataclasses.dataclass
class BestSteps:
    """Orbax preservation policy: the `n` steps of lowest metric, of equal ones the newer."""

    n: int
    metrics: dict[int, float] = dataclasses.field(default_factory=dict)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        measured = [info.step for info in checkpoints if info.step in self.metrics]
        best = sorted(measured, key=lambda step: (self.metrics[step], -step))[: self.n]
        return [info.step in best for info in checkpoints]


def silence() -> None:
    """Drops orbax's own log lines: each failure is a traceback there, and an exception here."""
    logger = logging.getLogger("absl")
    if _not_from_orbax not in logger.filters:
        logger.addFilter(_not_from_orbax)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname.replace("\\", "/")


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
