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
import socket
from typing import TYPE_CHECKING, Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from runtime import devices, errors, files, hosts, step_writers, stored_step
from runtime.arrays import PyTree, checksum, flatten, unflatten
from runtime.buckets import BucketError
from runtime.disks import Disk, merged
from runtime.step_writers import Steps, is_finished
from runtime.stored_step import Restored, crc_of_json, reason

if TYPE_CHECKING:  # orbax takes a second, and is imported where a step is read or written
    import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of one run.

    Nothing on disk changes before the first `save`, so a reader may share the directory with a
    running training. Under `jax.distributed` every process calls every method with equal
    arguments; process 0 writes, all read. Where they have disks of their own one of each disk
    writes, and what one lacks it gets from another (see `hosts`): `steps`, `metrics` and `config`
    are of this disk, `everywhere` and `restore` of all.

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
        self._best = step_writers.BestSteps(keep_best)
        self._keep_latest, self._keep_every = keep_latest, keep_every
        self._manager: ocp.CheckpointManager | Steps | None = None
        self._pending: int | None = None
        self._damaged: set[int] = set()
        self._warned = False  # of what is not a step
        step_writers.silence()

    def steps(self) -> list[int]:
        """The finished steps on disk, ascending, damaged ones among them.

        What is not one is passed over, with one warning if its name could be a step's; without, if
        it is the rest of an older step, whose removal was interrupted.
        """
        if not self.directory.is_dir():
            return []
        numbers, others = [], []
        for path in self.directory.iterdir():
            if is_finished(path):
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
        import orbax.checkpoint as ocp

        from runtime import orbax_handlers

        arrays = flatten(state)
        items = {"data": stored_step.to_json(data_state), "config": json.loads(config_json)}
        self.wait()
        newer = step > max(set(self.steps()) - self._damaged, default=-1)
        if not (devices.on_any(newer) if hosts.several_disks() else newer):
            return False
        body: dict[str, Any] = {
            "leaves": {name: checksum(array) for name, array in arrays.items()},
            **{name: crc_of_json(item) for name, item in items.items()},
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
                    checksums=ocp.args.JsonSave({"body": body, "crc32": crc_of_json(body)}),
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
        if hosts.is_writer() and path.exists() and not is_finished(path):
            aside = self.directory / f"{step}.not-a-checkpoint"
            logging.warning("%s is not a checkpoint; it is moved to %s", path, aside)
            path.rename(aside)

    def wait(self) -> None:
        """Blocks until the last save is on disk.

        Raises:
          OSError: it could not be written (disk full, ...). Earlier steps are untouched.
        """
        if self._manager is None or self._pending is None:
            return  # on all processes
        with hosts.together() if hosts.several_disks() else contextlib.nullcontext():
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
            contents, damage = self._of_any(candidate)
            if contents is not None:
                return self._fitted(contents, template)
            if not damage:  # a running training has just retired it
                return self.restore(template, step)
            damages.append(damage)
            if alternative is not None:
                logging.warning("%s; falling back to step %d", damage, alternative)
        if len(candidates) > 1:
            damages.insert(0, f"every checkpoint in {self.directory} is damaged")
        raise ValueError("; ".join([*damages[:2], self._way_out(candidates)]))

    def _of_any(self, step: int) -> tuple[Restored | None, str]:
        """One step, of this disk or another process's, or else how it is damaged; nothing where it
        is nowhere any more."""
        path, contents, damage = self.directory / str(step), None, ""
        alone = jax.process_count() == 1
        if alone or step in self.steps():
            try:
                contents = self._read(step)
            except (MemoryError, PermissionError, BucketError):
                raise
            except Exception as error:
                if step in self.steps():
                    damage = f"checkpoint {path} is damaged: {reason(error)}"
                    self._damaged.add(step)
        if alone:
            return contents, damage
        arrays, more = (None, None) if contents is None else (contents.state, _more(contents))
        shared = hosts.from_any(arrays, more)
        if shared is None:
            damages = [each for each in hosts.texts(damage) if each]
            return None, damage or (damages[0] if damages else "")
        if damage:
            logging.warning("%s; another process has it", damage)
        arrays, more = shared
        data_state = stored_step.from_json(more["data"])
        return Restored(step, arrays, data_state, more["config"]), ""

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
                path = self.directory / str(step)
                metric = stored_step.checksums(path)["metric"]
            except Exception as error:
                logging.warning("checkpoint %s is damaged: %s", path, reason(error))
                continue
            if metric is not None:
                metrics[step] = metric
        return metrics

    def steps_anywhere(self) -> list[int]:
        """The finished steps on the disks of all processes, ascending.

        Raises:
          ValueError: they are not of one run; the same on all processes.
        """
        everywhere = self._everywhere()
        return self.steps() if everywhere is None else sorted(everywhere)

    def _everywhere(self) -> dict[int, float | None] | None:
        """The metrics by step of what is on the disks of all processes, see `disks.merged`; None
        where they share one."""
        if not hosts.maybe_several_disks() or files.in_bucket(self.directory):
            return None
        steps: dict[int, list[Any] | None] = dict.fromkeys(self.steps())
        for step in steps:
            with contextlib.suppress(Exception):  # damaged, of which `restore` tells
                body = stored_step.checksums(self.directory / str(step))
                steps[step] = [crc_of_json(body["leaves"]), body["metric"]]
        words = {"host": socket.gethostname(), "folder": str(self.directory), "steps": steps}
        return merged([Disk.of(json.loads(text)) for text in hosts.texts(json.dumps(words))])

    def config(self) -> dict[str, Any]:
        """The config that the newest undamaged step was saved with, empty if there is none."""
        for step in reversed(self.steps()):
            try:
                path = self.directory / str(step)
                return dict(stored_step.item(path, "config", stored_step.checksums(path)))
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
        everywhere = self._everywhere()
        steps = self.steps() if everywhere is None else sorted(everywhere)
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self.directory}")
        if choice == "latest":
            return steps[::-1]
        if choice == "best":
            metrics = self.metrics() if everywhere is None else _not_none(everywhere)
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
        if template is None:
            return contents
        try:
            return contents._replace(state=unflatten(template, contents.state))
        except ValueError as error:
            path = self.directory / str(contents.step)
            raise ValueError(f"checkpoint {path} does not fit: {error}") from error

    def _writer(self) -> ocp.CheckpointManager | Steps:
        from runtime import orbax_handlers

        if self._damaged and self._manager is not None:
            self._manager.close()
            self._manager = None
        if self._manager is None:
            if hosts.is_writer():
                for step in self._damaged & set(self.steps()):
                    logging.warning("deleting damaged checkpoint %s", self.directory / str(step))
                    (self.directory / str(step)).rmtree()
            self._damaged.clear()
            if not hosts.several_disks():
                multihost_utils.sync_global_devices("damaged checkpoints deleted")
            self._best.metrics = self.metrics()
            keep = self._keep_latest, self._best, self._keep_every
            self._manager = orbax_handlers.writer(self.directory, *keep)
        return self._manager

    def _failure(self, error: Exception) -> OSError:
        """Forgets the pending step and its files; the error to raise instead of orbax's."""
        step, self._pending, self._manager = self._pending, None, None
        assert step is not None
        self._best.metrics.pop(step, None)
        if hosts.is_writer():
            for path in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                with contextlib.suppress(OSError):  # it may still be written to
                    path.rmtree()
        good = sorted(set(self.steps()) - self._damaged)
        last = f"the last good step is {good[-1]}" if good else "there is no earlier step"
        return OSError(
            f"checkpoint of step {step} could not be written to {self.directory} "
            f"({getattr(error, 'strerror', None) or reason(error)}); {last}"
        )

    def _read(self, step: int) -> Restored:
        """One step, its state as `{name: array}`. Any exception means that it is damaged."""
        return stored_step.read(self.directory / str(step))


def _more(contents: Restored) -> dict[str, Any]:
    """What a step has beside its arrays, as JSON."""
    return {"data": stored_step.to_json(contents.data_state), "config": contents.config_json}


def _not_none(metrics: dict[int, float | None]) -> dict[int, float]:
    return {step: metric for step, metric in metrics.items() if metric is not None}
