"""Training state on disk: asynchronous, checksummed, with a way back when a file is damaged.

A checkpoint of one step is a directory `<directory>/<step>` of four orbax items:

    state      every array of the state under its name ("params/Conv_0/kernel"): one .npz
    data       the state of the data iterator (JSON)
    config     the configuration of the run (JSON)
    checksums  CRC-32, dtype and shape of every array, CRC-32 of the two items above, the metric

Arrays are numpy and unreplicated, so a checkpoint restores on any number of devices or processes.
Orbax writes in the background, commits a step by renaming its directory (a step under its final
name is whole) and retires old ones. What it does not do is to notice bytes that change later on.
"""

from __future__ import annotations

import contextlib
import json
import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from runtime import errors, files, orbax_handlers
from runtime.arrays import PyTree, checksum, flatten, unflatten
from runtime.bucket_steps import BucketSteps
from runtime.buckets import BucketError


class Restored(NamedTuple):
    """One step, as `Checkpoints.restore` reads it."""

    step: int
    state: PyTree  # shaped as the template; {name: array} without one
    data_state: Any
    config_json: str


class Checkpoints:
    """The checkpoints of one run.

    Nothing on disk changes before the first `save`, so a reader may share the directory with a
    running training. Under `jax.distributed` every process calls every method with equal
    arguments; process 0 writes, all read.

    Args:
      directory: created by the first save.
      keep_latest: the newest steps to keep. With fewer than two there is nothing to fall back to
        when the newest is damaged.
      keep_best: the steps with the lowest metrics to keep, besides.
      keep_every: also keep the steps divisible by this number.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        keep_every: int | None = None,
    ):
        if keep_latest < 1 or keep_best < 0 or (keep_every is not None and keep_every < 1):
            raise ValueError(
                f"keep_latest={keep_latest}, keep_best={keep_best}, keep_every={keep_every}: "
                "expected at least 1, 0 and 1 (or None)"
            )
        self.directory = epath.Path(files.as_path(directory)).resolve()
        self._best = orbax_handlers.BestSteps(keep_best)
        policies: list[Any] = [checkpoint_managers.LatestN(keep_latest), self._best]
        if keep_every is not None:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        self._policy = checkpoint_managers.AnyPreservationPolicy(policies)
        self._manager: ocp.CheckpointManager | BucketSteps | None = None
        self._pending: int | None = None
        self._damaged: set[int] = set()
        self._warned = False  # of what is not a step
        orbax_handlers.silence()

    def steps(self) -> list[int]:
        """The finished steps on disk, ascending, damaged ones among them.

        What is not one is passed over, with one warning if its name could be a step's; without, if
        it is the rest of an older step, whose removal was interrupted.
        """
        if not self.directory.is_dir():
            return []
        numbers, others = [], []
        for path in self.directory.iterdir():
            if orbax_handlers.is_finished(path):
                numbers.append(int(path.name))
            elif path.name.isdecimal() and path.exists():
                others.append(path)
        newest = max(numbers, default=-1)
        strays = [
            p.name
            for p in others
            if not (p.is_dir() and p.name == str(int(p.name)) and int(p.name) < newest)
        ]
        if strays and not self._warned:
            self._warned = True
            logging.warning(
                "%s: passed over, as they are not finished checkpoints: %s",
                self.directory,
                errors.abridged(sorted(strays), ", "),
            )
        return sorted(numbers)

    def save(
        self,
        step: int,
        state: PyTree,
        data_state: Any = None,
        config_json: str = "{}",
        metric: float | None = None,
    ) -> bool:
        """Starts to write one step and returns; the arrays are copied before it returns.

        Steps that `restore` found damaged are deleted first, so that a run which fell back can
        save them again.

        Args:
          step: must be above every (undamaged) step on disk.
          state: pytree of numpy arrays.
          data_state: anything that JSON can hold, or bytes.
          config_json: the configuration, a JSON object.
          metric: the lower the better; None or NaN: never among the best.

        Returns:
          True if the step is being written; False, and nothing done, if it or a later one is there.

        Raises:
          ValueError: see `flatten`.
          OSError: the previous save failed (see `wait`), or this one could not start.
        """
        arrays = flatten(state)
        items = {"data": orbax_handlers.to_json(data_state), "config": json.loads(config_json)}
        self.wait()
        if step <= max(set(self.steps()) - self._damaged, default=-1):
            return False
        body: dict[str, Any] = {
            "leaves": {name: checksum(array) for name, array in arrays.items()},
            **{name: _crc_json(item) for name, item in items.items()},
            "step": step,
            "metric": None if metric is None or math.isnan(metric) else float(metric),
        }
        self._pending = step
        try:
            self._make_room(step)
            self._writer().save(
                step,
                force=True,
                args=ocp.args.Composite(
                    state=orbax_handlers.Archive(arrays),
                    checksums=ocp.args.JsonSave({"body": body, "crc32": _crc_json(body)}),
                    **{name: ocp.args.JsonSave({"value": item}) for name, item in items.items()},
                ),
            )
        except Exception as error:
            raise self._failure(error) from error
        if body["metric"] is not None:
            self._best.metrics[step] = body["metric"]
        return True

    def _make_room(self, step: int) -> None:
        """Moves aside what has the name of a step and is not one."""
        path = self.directory / str(step)
        if files.in_bucket(path):  # there it is the rest of a step, which is put again
            return
        if jax.process_index() == 0 and path.exists() and not orbax_handlers.is_finished(path):
            aside = self.directory / f"{step}.not-a-checkpoint"
            logging.warning("%s is not a checkpoint; it is moved to %s", path, aside)
            path.rename(aside)

    def wait(self) -> None:
        """Blocks until the last save is on disk.

        Raises:
          OSError: it could not be written (disk full, ...). Earlier steps are untouched.
        """
        if self._manager is None or self._pending is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        self._pending = None

    def restore(self, template: PyTree = None, step: int | str | None = None) -> Restored:
        """Reads one step and verifies every byte of it.

        Args:
          template: pytree of the structure to return, whose leaves have `shape` and `dtype`
            (`jax.eval_shape`); None returns `{name: array}`, parts of which `unflatten` can shape.
          step: a number, "latest" (or None) or "best". Of the last two, a damaged step is passed
            over with a warning for the next older or next best.

        Raises:
          FileNotFoundError: there is no checkpoint, or not the one asked for.
          ValueError: the one asked for, or every one, is damaged; or the state does not fit the
            template.
        """
        self.wait()
        candidates = self._candidates("latest" if step is None else step)
        damages = []
        for candidate, alternative in zip(candidates, [*candidates[1:], None], strict=True):
            try:
                contents = self._read(candidate)
            except (MemoryError, PermissionError, BucketError):
                raise
            except Exception as error:
                path = self.directory / str(candidate)
                if candidate not in self.steps():  # a running training has just retired it
                    return self.restore(template, step)
                damages.append(f"checkpoint {path} is damaged: {_reason(error)}")
                self._damaged.add(candidate)
                if alternative is not None:
                    logging.warning("%s; falling back to step %d", damages[-1], alternative)
            else:
                return self._fitted(contents, template)
        if len(candidates) > 1:
            damages.insert(0, f"every checkpoint in {self.directory} is damaged")
        raise ValueError("; ".join([*damages[:2], self._way_out(candidates)]))

    def _way_out(self, damaged: list[int]) -> str:
        """What to do where `damaged`, all steps that were asked for, are."""
        if others := [str(step) for step in self.steps() if step not in damaged]:
            return f"eval.checkpoint may name another: {errors.abridged(others, ', ')}"
        anew = f"move {self.directory} away, and --mode=train begins anew"
        return f"the run has no other weights: put a copy of them there, or {anew}"

    def metrics(self) -> dict[int, float]:
        """The metric of every step that was saved with one."""
        metrics = {}
        for step in self.steps():
            try:
                metric = self._checksums(step)["metric"]
            except Exception as error:
                path = self.directory / str(step)
                logging.warning("checkpoint %s is damaged: %s", path, _reason(error))
                continue
            if metric is not None:
                metrics[step] = metric
        return metrics

    def config(self) -> dict[str, Any]:
        """The config that the newest undamaged step was saved with, empty if there is none."""
        for step in reversed(self.steps()):
            try:
                return dict(self._item(step, "config", self._checksums(step)))
            except Exception:  # of which `restore` tells
                continue
        return {}

    def _candidates(self, choice: int | str) -> list[int]:
        """The steps that `restore` tries one after the other, for its argument `step`."""
        if isinstance(choice, str) and choice.isdecimal():
            choice = int(choice)
        if isinstance(choice, str) and choice not in ("latest", "best"):
            raise ValueError(
                f"eval.checkpoint={choice!r}: valid values are a step's number, 'latest', 'best'"
            )
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self.directory}")
        if choice == "latest":
            return steps[::-1]
        if choice == "best":
            metrics = self.metrics()
            if not metrics:
                raise FileNotFoundError(f"no checkpoint in {self.directory} has a metric")
            return sorted(metrics, key=lambda step: (metrics[step], -step))
        assert isinstance(choice, int)
        if choice not in steps:
            raise FileNotFoundError(
                f"there is no checkpoint of step {choice} in {self.directory}; "
                f"there are {errors.abridged([str(step) for step in steps], ', ')}"
            )
        return [choice]

    def _fitted(self, contents: Restored, template: PyTree) -> Restored:
        """The contents of a step in the structure of the template, if there is one."""
        if jax.process_count() > 1:
            multihost_utils.assert_equal(
                np.asarray(contents.step), "processes restored other steps"
            )
        if template is None:
            return contents
        try:
            return contents._replace(state=unflatten(template, contents.state))
        except ValueError as error:
            path = self.directory / str(contents.step)
            raise ValueError(f"checkpoint {path} does not fit: {error}") from error

    def _writer(self) -> ocp.CheckpointManager | BucketSteps:
        if self._damaged and self._manager is not None:
            self._manager.close()
            self._manager = None
        if self._manager is None:
            if jax.process_index() == 0:
                for step in self._damaged & set(self.steps()):
                    logging.warning("deleting damaged checkpoint %s", self.directory / str(step))
                    (self.directory / str(step)).rmtree()
            self._damaged.clear()
            multihost_utils.sync_global_devices("damaged checkpoints deleted")
            self._best.metrics = self.metrics()
            self._manager = orbax_handlers.writer(self.directory, self._policy)
        return self._manager

    def _failure(self, error: Exception) -> OSError:
        """Forgets the pending step and its files; the error to raise instead of orbax's."""
        step, self._pending, self._manager = self._pending, None, None
        assert step is not None
        self._best.metrics.pop(step, None)
        if jax.process_index() == 0:
            for path in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                with contextlib.suppress(OSError):  # it may still be written to
                    path.rmtree()
        good = sorted(set(self.steps()) - self._damaged)
        last = f"the last good step is {good[-1]}" if good else "there is no earlier step"
        return OSError(
            f"checkpoint of step {step} could not be written to {self.directory} "
            f"({getattr(error, 'strerror', None) or _reason(error)}); {last}"
        )

    def _checksums(self, step: int) -> dict[str, Any]:
        checksums = self._json(step, "checksums")
        if checksums["crc32"] != _crc_json(checksums["body"]):
            raise ValueError("checksums do not match their own checksum")
        body: dict[str, Any] = checksums["body"]
        return body

    def _json(self, step: int, item: str) -> Any:
        path = self.directory / str(step) / item
        if not path.is_dir():
            raise ValueError(f"{item} is missing")
        try:
            return ocp.JsonCheckpointHandler().restore(path)
        except ValueError as error:
            raise ValueError(f"{item} cannot be read: {_reason(error)}") from error

    def _item(self, step: int, name: str, checksums: dict[str, Any]) -> Any:
        value = self._json(step, name)["value"]
        if _crc_json(value) != checksums[name]:
            raise ValueError(f"{name} does not match its checksum")
        return value

    def _read(self, step: int) -> Restored:
        """One step, its state as `{name: array}`. Any exception means that it is damaged."""
        checksums = self._checksums(step)
        items = {name: self._item(step, name, checksums) for name in ("data", "config")}
        data_state = orbax_handlers.from_json(items["data"])
        stated = data_state.get("step") if isinstance(data_state, dict) else None
        stated = checksums.get("step", stated)  # of earlier versions, that of the data
        if stated not in (None, step):
            raise ValueError(f"it is that of step {stated}; give the folder that name")
        arrays = dict(self._verified_arrays(step, checksums["leaves"]))
        return Restored(step, arrays, data_state, json.dumps(items["config"]))

    def _verified_arrays(
        self, step: int, fingerprints: dict[str, Any]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays of one step by name, each with the fingerprint that it was saved with."""
        handler = orbax_handlers.ArchiveHandler()
        try:
            arrays = handler.restore(self.directory / str(step) / "state")
        except (MemoryError, PermissionError, BucketError):
            raise
        except Exception as error:
            raise ValueError(f"{handler.FILE} cannot be read: {_reason(error)}") from error
        for name, fingerprint in fingerprints.items():
            if name not in arrays:
                raise ValueError(f"array {name} is missing")
            array = arrays[name]
            if array.dtype.kind == "V":  # bfloat16, to NumPy
                array = array.view(jnp.dtype(fingerprint["dtype"]))
            if checksum(array) != fingerprint:
                raise ValueError(f"array {name} does not match its checksum")
            yield name, array


def _reason(error: BaseException) -> str:
    return errors.one_line(error, limit=200)


def _crc_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
