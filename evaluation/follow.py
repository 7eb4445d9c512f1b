"""The checkpoints of a run that trains, or is about to, as they come (`eval.checkpoint=follow`)."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from runtime import devices, hosts
from runtime.checkpoints import Checkpoints
from runtime.workdir import stored_config

Section = Any  # of a config
POLL = 5.0  # seconds between two looks at the checkpoints


class Run(NamedTuple):
    """A run as it is on disk.

    Attributes:
      steps: of its checkpoints that are to be evaluated.
      last: of its checkpoints, evaluated or not; -1: there is none.
      n_iters: the step at which it ends.
    """

    steps: list[int]
    last: int
    n_iters: int

    @property
    def is_finished(self) -> bool:
        return self.last >= self.n_iters


def look(
    options: Section, training: Section, workdir: pathlib.Path, checkpoints: Checkpoints
) -> Run:
    """The run in a folder, with those of its checkpoints that stay there: of steps `begin_ckpt` to
    `end_ckpt` times `training.snapshot_freq`, and of the last step of the training.

    How long and how often is what the training itself says, in its config.json, which a run that
    goes on may change. All processes call it, and see what the primary one sees.
    """
    present = checkpoints.steps_anywhere()
    return Run(*hosts.by_primary(functools.partial(_choice, options, training, workdir, present)))


def _choice(
    options: Section, training: Section, workdir: pathlib.Path, present: list[int]
) -> tuple[list[int], int, int]:
    """The fields of `Run`, from the steps that are there."""
    with contextlib.suppress(FileNotFoundError):  # it has not begun
        training = stored_config(workdir).training
    first, end = options.begin_ckpt, options.end_ckpt
    steps = [
        step
        for step in present
        if step == training.n_iters
        or (step % training.snapshot_freq == 0 and first <= step // training.snapshot_freq <= end)
    ]
    return steps, max(present, default=-1), training.n_iters


def arrivals(
    options: Section, training: Section, workdir: pathlib.Path, checkpoints: Checkpoints
) -> Iterator[list[int]]:
    """The steps of the checkpoints of `look`, each once: those that are there, then, when these are
    dealt with, those that have come meanwhile, and so on.

    It ends when the training has come to its last step, or after `eval.follow_minutes` without a
    new checkpoint, of whatever step, while it waits; a line says which. The same on all processes.

    Raises:
      FileNotFoundError: it ends, and there was none.
    """
    given: set[int] = set()
    while True:
        run, waited = _wait_for_more(options, training, workdir, checkpoints, given)
        steps = [step for step in run.steps if step not in given]
        if steps:
            given.update(steps)
            yield steps
            continue
        if not given:
            multiples = f"{options.begin_ckpt} to {options.end_ckpt}"
            raise FileNotFoundError(
                f"{workdir} has no checkpoint to evaluate{waited}: eval.checkpoint=follow takes "
                f"those of the last step, {run.n_iters}, and of {multiples} (eval.begin_ckpt to "
                f"end_ckpt) times training.snapshot_freq; the newest is that of step {run.last}"
            )
        reached = f"training has reached its last step, {run.n_iters}"
        unfinished = f"no new checkpoint{waited}, at step {run.last} of {run.n_iters}"
        _say(reached if run.is_finished else f"{unfinished}; the same command goes on")
        return


def _wait_for_more(
    options: Section,
    training: Section,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    given: set[int],
) -> tuple[Run, str]:
    """The run when it has a step that was not given yet, or no more is to be waited for; then with
    words for how long there was no news."""
    patience = 60.0 * options.follow_minutes
    newest, since, said = -2, time.monotonic(), False
    while True:
        run = look(options, training, workdir, checkpoints)
        if run.is_finished or set(run.steps) - given:
            return run, ""
        if run.last != newest:
            newest, since = run.last, time.monotonic()
        if devices.of_primary(time.monotonic() - since >= patience):
            return run, f" for {options.follow_minutes:g} minutes"
        if not said:
            where = f"at step {run.last} of {run.n_iters}" if run.last >= 0 else "not begun"
            _say(f"waiting for checkpoints in {workdir} ({where}); Ctrl-C ends it")
            said = True
        time.sleep(POLL)


def _say(line: str) -> None:
    if devices.is_primary():
        print(line, flush=True)
