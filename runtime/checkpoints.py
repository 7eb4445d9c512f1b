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

import base64
import contextlib
import dataclasses
import io
import json
import logging as python_logging
import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

PyTree = Any


class Restored(NamedTuple):
    """What `Checkpoints.restore` found."""

    step: int
    state: PyTree  # shaped as the template; {name: array} without one
    data_state: Any
    config_json: str


def flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """`{name: array}` of a pytree, names being the path of each leaf: "opt_state/0/mu/kernel".

    Raises:
      ValueError: a leaf that is no numeric array (of typed keys, give `jax.random.key_data`), or
        two leaves with one name.
    """
    named: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        try:
            array = np.asarray(leaf)
        except TypeError as error:
            raise ValueError(f"{name} cannot be stored as a numpy array: {_line(error)}") from error
        if array.dtype.kind in "OUSMm":
            raise ValueError(f"{name} has dtype {array.dtype}, expected a number or a boolean")
        if name in named:
            raise ValueError(f"two leaves of the state are named {name}")
        named[name] = array
    return named


def unflatten(template: PyTree, named: Mapping[str, np.ndarray], prefix: str = "") -> PyTree:
    """The arrays `named` (see `flatten`) in the structure of `template`.

    Args:
      template: pytree whose leaves have `shape` and `dtype`, e.g. from `jax.eval_shape`.
      named: arrays by name; those outside `prefix` are not looked at.
      prefix: where the template lies in the stored tree, e.g. "ema_params".

    Raises:
      ValueError: arrays that are missing, left over, or of another shape or dtype, by name.
    """
    prefix = f"{prefix}/" if prefix else ""
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {
        prefix + jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in paths
    }
    problems = [f"{name} is missing" for name in wanted if name not in named]
    problems += [
        f"{name} is not expected"
        for name in named
        if name.startswith(prefix) and name not in wanted
    ]
    for name in wanted.keys() & named.keys():
        found, expected = _kind(named[name]), _kind(wanted[name])
        if found != expected:
            problems.append(f"{name} is {found}, expected {expected}")
    if problems:
        raise ValueError(_some(sorted(problems), "; "))
    return jax.tree_util.tree_unflatten(structure, [named[name] for name in wanted])


def write_arrays(path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an uncompressed NumPy archive; it is on the disk itself when this returns."""
    with epath.Path(path).open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        file.flush()
        with contextlib.suppress(io.UnsupportedOperation):  # a bucket has no descriptor
            os.fsync(file.fileno())


def read_arrays(path: epath.PathLike, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of an archive whose names begin with `prefix`; each is verified (CRC-32)."""
    arrays = {}
    with epath.Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            if member.startswith(prefix):
                data = io.BytesIO(archive.read(member))  # verified before it is parsed
                array = np.lib.format.read_array(data, allow_pickle=False)
                arrays[member.removesuffix(".npy")] = array
    return arrays


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
        self.directory = epath.Path(directory).resolve()
        self._best = _Best(keep_best)
        policies: list[Any] = [checkpoint_managers.LatestN(keep_latest), self._best]
        if keep_every is not None:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        self._policy = checkpoint_managers.AnyPreservationPolicy(policies)
        self._manager: ocp.CheckpointManager | None = None
        self._pending: int | None = None
        self._damaged: set[int] = set()
        _silence_orbax()

    def steps(self) -> list[int]:
        """The steps on disk, ascending; whether they are undamaged is not known."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

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
          Whether it is being written: False, and nothing done, if this or a later step is there.

        Raises:
          ValueError: see `flatten`.
          OSError: the previous save failed (see `wait`), or this one could not start.
        """
        arrays = flatten(state)
        items = {"data": _encode(data_state), "config": json.loads(config_json)}
        self.wait()
        if step <= max(set(self.steps()) - self._damaged, default=-1):
            return False
        body: dict[str, Any] = {
            "leaves": {name: _describe(array) for name, array in arrays.items()},
            **{name: _crc_json(item) for name, item in items.items()},
            "metric": None if metric is None or math.isnan(metric) else float(metric),
        }
        self._pending = step
        try:
            self._writer().save(
                step,
                force=True,
                args=ocp.args.Composite(
                    state=_Arrays(arrays),
                    checksums=ocp.args.JsonSave({"body": body, "crc32": _crc_json(body)}),
                    **{name: ocp.args.JsonSave({"value": item}) for name, item in items.items()},
                ),
            )
        except Exception as error:
            raise self._failure(error) from error
        if body["metric"] is not None:
            self._best.metrics[step] = body["metric"]
        return True

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
        chosen = "latest" if step is None else step
        if isinstance(chosen, str) and chosen.isdecimal():
            chosen = int(chosen)
        if isinstance(chosen, str) and chosen not in ("latest", "best"):
            raise ValueError(f"checkpoint step {chosen!r}: expected a number, 'latest' or 'best'")
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self.directory}")
        if isinstance(chosen, int):
            if chosen not in steps:
                raise FileNotFoundError(
                    f"there is no checkpoint of step {chosen} in {self.directory}; "
                    f"there are {_some([str(s) for s in steps], ', ')}"
                )
            order = [chosen]
        elif chosen == "best":
            metrics = self.metrics()
            order = sorted(metrics, key=lambda s: (metrics[s], -s))
            if not order:
                raise FileNotFoundError(f"no checkpoint in {self.directory} has a metric")
        else:
            order = steps[::-1]
        damages = []
        for candidate, *others in (order[i:] for i in range(len(order))):
            try:
                named, data_state, config = self._read(candidate)
            except (MemoryError, PermissionError):
                raise
            except Exception as error:
                path = self.directory / str(candidate)
                if not path.is_dir():  # a running training has just retired it
                    return self.restore(template, step)
                damages.append(f"checkpoint {path} is damaged: {_line(error)}")
                self._damaged.add(candidate)
                if others:
                    logging.warning("%s; falling back to step %d", damages[-1], others[0])
                continue
            if jax.process_count() > 1:
                multihost_utils.assert_equal(
                    np.asarray(candidate), "processes restored other steps"
                )
            if template is not None:
                try:
                    named = unflatten(template, named)
                except ValueError as error:
                    path = self.directory / str(candidate)
                    raise ValueError(f"checkpoint {path} does not fit: {error}") from error
            return Restored(candidate, named, data_state, config)
        if len(order) > 1:
            damages.insert(0, f"every checkpoint in {self.directory} is damaged")
        raise ValueError("; ".join(damages[:2]))

    def metrics(self) -> dict[int, float]:
        """The metric of every step that was saved with one."""
        found = {}
        for step in self.steps():
            try:
                metric = self._checksums(step)["metric"]
            except Exception as error:
                path = self.directory / str(step)
                logging.warning("checkpoint %s is damaged: %s", path, _line(error))
                continue
            if metric is not None:
                found[step] = metric
        return found

    def _writer(self) -> ocp.CheckpointManager:
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
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    create=True,
                    cleanup_tmp_directories=True,
                    preservation_policy=self._policy,
                ),
            )
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
            f"({getattr(error, 'strerror', None) or _line(error)}); {last}"
        )

    def _checksums(self, step: int) -> dict[str, Any]:
        checksums = self._json(step, "checksums")
        if checksums["crc32"] != _crc_json(checksums["body"]):
            raise ValueError("checksums do not match their own checksum")
        return checksums["body"]

    def _json(self, step: int, item: str) -> Any:
        path = self.directory / str(step) / item
        if not path.is_dir():
            raise ValueError(f"{item} is missing")
        try:
            return ocp.JsonCheckpointHandler().restore(path)
        except ValueError as error:
            raise ValueError(f"{item} cannot be read: {_line(error)}") from error

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], Any, str]:
        """Arrays, data state and config of one step. Any exception means that it is damaged."""
        checksums = self._checksums(step)
        items = {}
        for name in ("data", "config"):
            items[name] = self._json(step, name)["value"]
            if _crc_json(items[name]) != checksums[name]:
                raise ValueError(f"{name} does not match its checksum")
        try:
            stored = _ArraysHandler().restore(self.directory / str(step) / "state")
        except (MemoryError, PermissionError):
            raise
        except Exception as error:
            raise ValueError(f"{_ArraysHandler.FILE} cannot be read: {_line(error)}") from error
        named = {}
        for name, expected in checksums["leaves"].items():
            if name not in stored:
                raise ValueError(f"array {name} is missing")
            array = stored[name]
            if array.dtype.kind == "V":  # bfloat16, to NumPy
                array = array.view(jnp.dtype(expected["dtype"]))
            if _describe(array) != expected:
                raise ValueError(f"array {name} does not match its checksum")
            named[name] = array
        return named, _decode(items["data"]), json.dumps(items["config"])


class _ArraysHandler(ocp.AsyncCheckpointHandler):
    """Orbax handler of `{name: array}` as one uncompressed NumPy archive.

    Orbax's own handlers write through one TensorStore future per array. When the disk is full (or,
    on reading, a file is truncated) every array after the first failure prints a traceback of its
    own, thousands of lines that nobody can catch. One file has one error. It is also what NumPy
    reads anywhere.
    """

    FILE = "arrays.npz"

    async def async_save(self, directory: epath.Path, args: _Arrays) -> list[Any]:
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

    def save(self, directory: epath.Path, args: _Arrays) -> None:
        raise NotImplementedError("orbax's asynchronous checkpointer calls async_save")

    def restore(self, directory: epath.Path, args: _Arrays | None = None) -> dict[str, np.ndarray]:
        """All arrays; of dtypes unknown to NumPy as plain bytes (kind "V")."""
        return read_arrays(directory / self.FILE)


@ocp.args.register_with_handler(_ArraysHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _Arrays(ocp.args.CheckpointArgs):
    """What orbax hands to `_ArraysHandler`."""

    arrays: dict[str, np.ndarray]


@dataclasses.dataclass
class _Best:
    """Orbax preservation policy: the `n` steps of lowest metric, of equal ones the newer."""

    n: int
    metrics: dict[int, float] = dataclasses.field(default_factory=dict)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        known = [info.step for info in checkpoints if info.step in self.metrics]
        best = sorted(known, key=lambda step: (self.metrics[step], -step))[: self.n]
        return [info.step in best for info in checkpoints]


def _kind(leaf: Any) -> str:
    """Such as "float32[3, 4]", with the dtype that the leaf has on a device."""
    return f"{jax.dtypes.canonicalize_dtype(jnp.dtype(leaf.dtype))}{list(leaf.shape)}"


def _describe(array: np.ndarray) -> dict[str, Any]:
    crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return {
        "crc32": crc,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
    }


def _crc_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _encode(data_state: Any) -> Any:
    if isinstance(data_state, bytes):
        return {"base64": base64.b64encode(data_state).decode()}
    return {"json": json.loads(json.dumps(data_state))}


def _decode(item: dict[str, Any]) -> Any:
    return base64.b64decode(item["base64"]) if "base64" in item else item["json"]


def _line(error: BaseException, limit: int = 200) -> str:
    """The message of an exception on one line of bounded length."""
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError | OSError) or not text:
        text = f"{type(error).__name__} {text}".rstrip()
    return text if len(text) <= limit else f"{text[:limit]}..."


def _some(items: Sequence[str], separator: str, limit: int = 8) -> str:
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


def _silence_orbax() -> None:
    """Drops orbax's own log lines: each failure is a traceback there, and an exception here."""
    logger = python_logging.getLogger("absl")
    if _not_from_orbax not in logger.filters:
        logger.addFilter(_not_from_orbax)


def _not_from_orbax(record: python_logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname.replace("\\", "/")
