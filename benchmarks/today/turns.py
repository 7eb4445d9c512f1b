"""Contenders that take turns, each a process of its own; commands whose CPU time is measured."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from benchmarks.today.worker import Job

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
REST = 0.5  # seconds before a turn, in which another's idle threads fall asleep


class Launch(NamedTuple):
    """How a contender's process is started.

    Attributes:
      python: an interpreter.
      variables: of its environment, beside those of this process.
      log: what it prints goes there.
    """

    python: str
    variables: Mapping[str, str]
    log: pathlib.Path

    def environment(self, threads: int) -> dict[str, str]:
        """The variables of a process that has this many threads."""
        count = str(threads)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), count)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, **limits, "PYTHONPATH": path, **self.variables}


class Worker:
    """A contender that has loaded its case.

    Raises:
      ValueError: it could not; the message has one line, and the log the rest.
    """

    def __init__(self, name: str, job: Job, launch: Launch) -> None:
        self.name, self.log = name, launch.log
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        with launch.log.open("ab") as log:
            self.process = subprocess.Popen(
                [launch.python, "-m", "benchmarks.today.worker", json.dumps(job._asdict())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=launch.environment(job.threads),
                cwd=ROOT,
                text=True,
            )
        self.orders: IO[str] = self.process.stdin  # type: ignore[assignment]
        self.answers: IO[str] = self.process.stdout  # type: ignore[assignment]
        try:
            answer = self.read()
        except BaseException:
            self.close()
            raise
        self.calls: list[str] = answer["calls"]
        self.facts: dict[str, Any] = answer["facts"]

    def read(self) -> dict[str, Any]:
        """The next answer."""
        line = self.answers.readline()
        answer = json.loads(line) if line else {"error": "the process has ended"}
        if "error" in answer:
            raise ValueError(f"{self.name}: {answer['error']} ({self.log} has the rest)")
        return answer

    def time(self, call: str) -> dict[str, Any]:
        """One call: "seconds" and "cpu", of its work done once."""
        self.orders.write(json.dumps({"call": call}) + "\n")
        self.orders.flush()
        answer = self.read()
        self.facts = answer["facts"]
        return answer

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.orders.close()
        self.answers.close()


Measured = dict[str, Any]  # of a contender: "seconds" and "cpu" by call, a list each, and "facts"


def take_turns(workers: Sequence[Worker], rounds: int, title: str) -> dict[str, Measured]:
    """Every call of every worker once a round, in the same order, after a rest."""
    measured: dict[str, Measured] = {
        worker.name: {kind: {call: [] for call in worker.calls} for kind in ("seconds", "cpu")}
        for worker in workers
    }
    for _ in tqdm(range(rounds), desc=title, leave=False):
        for worker in workers:
            time.sleep(REST)
            for call in worker.calls:
                answer = worker.time(call)
                for kind in ("seconds", "cpu"):
                    measured[worker.name][kind][call].append(answer[kind])
    for worker in workers:
        measured[worker.name]["facts"] = worker.facts
    return measured


class Spent(NamedTuple):
    """What a command took, with all processes that it started and awaited, in seconds."""

    cpu: float
    wall: float


def run(command: Sequence[str], launch: Launch, threads: int, sign: str = "") -> Spent:
    """Runs a command of the interpreter to its end.

    Args:
      command: what stands behind the interpreter.
      sign: a command that measures its CPU time prints it behind this, and that is what counts.

    Raises:
      ValueError: it failed; the message names the log.
    """
    launch.log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with launch.log.open("wb") as log:
        process = subprocess.Popen(
            [launch.python, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=launch.environment(threads),
            cwd=ROOT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    if process.returncode:
        raise ValueError(f"{' '.join(command[:3])} failed ({launch.log} says why)")
    if not sign:
        return Spent(usage.ru_utime + usage.ru_stime, wall)
    for line in launch.log.read_text(errors="replace").replace("\r", "\n").splitlines():
        if line.startswith(sign):
            return Spent(float(line.removeprefix(sign)), wall)
    raise ValueError(f"{' '.join(command[:3])} never printed {sign!r} ({launch.log})")
