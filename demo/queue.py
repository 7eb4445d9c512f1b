"""The queue of jobs: one is done at a time, a few wait, and the last ones are remembered."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from runtime import endings, stop

MOST_WAITING = 8
MOST_KEPT = 16  # jobs that are over
WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
OVER = (DONE, FAILED, CANCELLED)

Work = TypeVar("Work")
Tell = Callable[[Any], None]  # of a part of the result


def reason(error: Exception) -> str:
    """Why a job failed, in the line that a program would end with."""
    return endings.ending(error).line.removeprefix("error: ")


class Cancelled(Exception):
    """A job that runs was to stop, and stops where it can."""


class Full(Exception):
    """As many jobs wait as may."""


@dataclasses.dataclass
class Job(Generic[Work]):
    """A job.

    Attributes:
      number: its name.
      work: what is to be done.
      state: one of the five above.
      result: of what was done.
      line: why it failed.
      began: when it began, by `time.monotonic`.
      parts: of the result, which were there before the whole was.
      unwanted: True if it was cancelled while it ran.
    """

    number: str
    work: Work
    state: str = WAITING
    result: Any = None
    line: str = ""
    began: float = 0.0
    parts: list[Any] = dataclasses.field(default_factory=list)
    unwanted: bool = False

    def tell(self, part: Any) -> None:
        """Adds a part of the result.

        Raises:
          Cancelled: nobody wants the rest.
        """
        self.parts.append(part)
        if self.unwanted:
            raise Cancelled


class Queue(Generic[Work]):
    """Jobs that one thread does, one after the other.

    Args:
      do: from the work of a job, and whom to tell of parts, to its result; what it raises is the
        job's failure.
    """

    def __init__(self, do: Callable[[Work, Tell], Any]) -> None:
        self.do = do
        self.jobs: OrderedDict[str, Job[Work]] = OrderedDict()
        self.changed = threading.Condition()
        self.count = 0
        self.closed = False
        self.thread = threading.Thread(target=self._serve, daemon=True, name="jobs")
        self.thread.start()

    def add(self, work: Work) -> Job[Work]:
        """A job that waits.

        Raises:
          Full: too many wait already.
        """
        with self.changed:
            if len(self._waiting()) >= MOST_WAITING:
                raise Full(f"{MOST_WAITING} jobs wait already; try again when one is done")
            self.count += 1
            job = Job(str(self.count), work)
            self.jobs[job.number] = job
            over = [n for n, other in self.jobs.items() if other.state in OVER]
            for number in over[: max(len(over) - MOST_KEPT, 0)]:
                del self.jobs[number]
            self.changed.notify_all()
            return job

    def get(self, number: str) -> Job[Work] | None:
        """The job of a number, if it is remembered."""
        with self.changed:
            return self.jobs.get(number)

    def cancel(self, number: str) -> bool:
        """Takes a waiting job out, and stops a running one where it can; True if there was one."""
        with self.changed:
            job = self.jobs.get(number)
            if job is None or job.state in OVER:
                return False
            if job.state == WAITING:
                job.state = CANCELLED
            job.unwanted = True
            self.changed.notify_all()
            return True

    def position(self, job: Job[Work]) -> int:
        """The jobs that are done before this one; 0 of one that runs or is over."""
        with self.changed:
            if job.state != WAITING:
                return 0
            running = any(other.state == RUNNING for other in self.jobs.values())
            return self._waiting().index(job) + running

    def close(self, patience: float) -> bool:
        """Does no further job; True if the one that runs was done in so many seconds."""
        with self.changed:
            self.closed = True
            for job in self._waiting():
                job.state = CANCELLED
            self.changed.notify_all()
        self.thread.join(patience)
        return not self.thread.is_alive()

    def _waiting(self) -> list[Job[Work]]:
        return [job for job in self.jobs.values() if job.state == WAITING]

    def _next(self) -> Job[Work] | None:
        with self.changed:
            while not self.closed:
                for job in self._waiting():
                    job.state, job.began = RUNNING, time.monotonic()
                    return job
                self.changed.wait()
        return None

    def _serve(self) -> None:
        while job := self._next():
            try:
                result, state, line = self.do(job.work, job.tell), DONE, ""
                if job.unwanted:
                    result, state = None, CANCELLED
            except Cancelled:
                result, state, line = None, CANCELLED, ""
            except stop.Stopped:
                result, state, line = None, FAILED, "the demo ends"
            except Exception as error:  # whatever it is, the next job can be done
                result, state, line = None, FAILED, reason(error)
            with self.changed:
                job.result, job.line, job.state = result, line, state
                self.changed.notify_all()
