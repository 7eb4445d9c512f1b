"""One contender in a process of its own: it loads a case, then does what it is told, and says how
long that took. `turns` starts it; both talk in lines of JSON.

    python -m benchmarks.today.worker '{"row": "step", "contender": "edm", ...}'
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple


class Job(NamedTuple):
    """What a contender is asked to load.

    Attributes:
      row: the module of `benchmarks.today` whose `load` is called.
      contender, case: keys of the row's.
      checkout: of the code that the contender runs; "" where it is a package.
      folder: for files.
      threads: of all libraries.
      quick: as little as shows that it runs.
    """

    row: str
    contender: str
    case: str
    checkout: str
    folder: str
    threads: int
    quick: bool


class Loaded(NamedTuple):
    """What a contender does.

    Attributes:
      calls: by name, a call and the number of times that it does its work.
      facts: numbers and words for the table: "parameters", "nfe", ...
    """

    calls: dict[str, tuple[Callable[[], Any], int]]
    facts: dict[str, Any]


def limit(threads: int) -> None:
    """Leaves the process this many cores: XLA, OpenMP and PyTorch count those that they find."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:threads])


def answer(order: dict[str, Any], loaded: Loaded) -> dict[str, Any]:
    """The seconds of one call, and the facts after it, with the peak of memory so far in GB."""
    call, times = loaded.calls[order["call"]]
    began, busy = time.perf_counter(), time.process_time()
    call()
    seconds, cpu = time.perf_counter() - began, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # of kB on Linux
    facts = {**loaded.facts, "peak": peak}
    return {"seconds": seconds / times, "cpu": cpu / times, "facts": facts}


def serve(job: Job, orders: Any, answers: Any) -> None:
    """Loads, makes each call once so that it compiles, says what there is; then call after call."""

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    def attempt(work: Callable[[], dict[str, Any]]) -> None:
        try:
            send(work())
        except Exception as error:
            traceback.print_exc()
            send({"error": " ".join(f"{type(error).__name__}: {error}".split())[:400]})

    loaded: list[Loaded] = []

    def load() -> dict[str, Any]:
        module = importlib.import_module(f"benchmarks.today.{job.row}")
        loaded.append(module.load(job))
        for call, _ in loaded[0].calls.values():
            call()
        return {"calls": list(loaded[0].calls), "facts": loaded[0].facts}

    attempt(load)
    for line in orders:
        attempt(functools.partial(answer, json.loads(line), loaded[0]))


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    limit(job.threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    serve(job, sys.stdin, answers)


if __name__ == "__main__":
    main()
