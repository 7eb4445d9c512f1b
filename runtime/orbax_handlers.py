"""Orbax's part in a checkpoint: arrays as one archive, and who writes the steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from runtime import hosts
from runtime.arrays import read_arrays, write_arrays
from runtime.buckets import BucketPath
from runtime.step_writers import BestSteps, BucketSteps, DiskSteps, Steps, is_finished


class ArchiveHandler(ocp.AsyncCheckpointHandler):  # type: ignore[misc]
    """Orbax handler of `{name: array}` as one uncompressed NumPy archive.

    Orbax's own handlers write through one TensorStore future per array. When the disk is full (or,
    on reading, a file is truncated) every array after the first failure prints a traceback of its
    own, thousands of lines that nobody can catch. One file has one error. It is also what NumPy
    reads anywhere.
    """

    FILE = "arrays.npz"

    async def async_save(self, directory: epath.Path, args: Archive) -> list[Any]:
        """Copies the arrays, then writes them in the background."""
        if jax.process_index() != 0:
            return []
        arrays = {name: np.array(array) for name, array in args.arrays.items()}
        return [
            ocp.future.CommitFutureAwaitingContractedSignals(
                self._write(directory / self.FILE, arrays), name="arrays"
            )
        ]

    async def _write(self, path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
        write_arrays(path, arrays)

    def save(self, directory: epath.Path, args: Archive) -> None:
        raise NotImplementedError("orbax's asynchronous checkpointer calls async_save")

    def restore(self, directory: epath.Path, args: Archive | None = None) -> dict[str, np.ndarray]:
        """All arrays of the archive, see `read_arrays`."""
        return read_arrays(directory / self.FILE)


@ocp.args.register_with_handler(ArchiveHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class Archive(ocp.args.CheckpointArgs):  # type: ignore[misc]
    """The argument that orbax hands to `ArchiveHandler`."""

    arrays: dict[str, np.ndarray]


def writer(
    directory: epath.Path, keep_latest: int, best: BestSteps, keep_every: int | None
) -> ocp.CheckpointManager | Steps:
    """What writes steps into the directory, and removes those that are not to stay: see
    `Checkpoints`."""
    policies: list[Any] = [checkpoint_managers.LatestN(keep_latest), best]
    if keep_every is not None:
        policies.append(checkpoint_managers.EveryNSteps(keep_every))
    policy = checkpoint_managers.AnyPreservationPolicy(policies)
    if isinstance(directory, BucketPath):
        return BucketSteps(directory, policy)
    if hosts.several_disks():
        directory.mkdir(parents=True, exist_ok=True)
        return DiskSteps(directory, policy)
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            create=True,
            cleanup_tmp_directories=True,
            preservation_policy=policy,
            step_name_format=FinishedSteps(),
        ),
    )


class FinishedSteps:
    """Orbax's names of steps, of which it does not see what is not a finished one."""

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path: epath.PathLike) -> Iterator[ocp.path.step.Metadata]:
        for path in epath.Path(base_path).iterdir():
            if is_finished(path):
                yield ocp.path.step.Metadata(step=int(path.name), path=path)

    def find_step(self, base_path: epath.PathLike, step: int) -> ocp.path.step.Metadata:
        path = epath.Path(base_path) / self.build_name(step)
        if not is_finished(path):
            raise ValueError(f"{path} is no finished step")
        return ocp.path.step.Metadata(step=step, path=path)
