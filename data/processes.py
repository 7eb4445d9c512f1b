"""Processes that decode images, so that as many are decoded at a time as there are processors.

Decoders written in C release the interpreter's lock, but what Pillow does in Python around them
holds it: threads alone decode small images no faster than one of them does. A server, a process of
its own, imports `data.images` and no more, and forks the workers; each shares a pair of sockets
with this process, and ends when that is closed, however this process ends. A record goes there as a
file's name or bytes, its pixels come back in memory that both have.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import mmap
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from data import images

Decode = Callable[..., np.ndarray]  # of a record, with `warn` as `images.read_image` has it
FEW = 512  # images that this process decodes before it starts others
CHUNK = 16  # records that a worker gets at a time, at most
ROOM = 2**24  # bytes of memory that a worker shares; larger answers go through its socket

_ENDED = "a process that decodes images has ended (out of memory?); the others do its work"
_SERVER = """
import sys, types
package = types.ModuleType("data")  # without what data/__init__.py imports: workers stay small
package.__path__ = [{folder!r}]
sys.modules["data"] = package
sys.path.insert(0, {root!r})
from data import processes
processes.serve({files!r}, {rooms!r})
"""


class Answer(NamedTuple):
    """What decoding some records gave, beside the images before the first that failed.

    Attributes:
      flaws: what there was to warn of: kinds, and lines.
      error: why that one failed, or None.
    """

    flaws: list[tuple[str, str]]
    error: Exception | None


def answer(decode: Decode, records: Sequence[Any], keep: Callable[[np.ndarray], Any]) -> Answer:
    """Decodes records one after the other, up to the first that fails.

    Args:
      keep: gets each image.
    """
    flaws: list[tuple[str, str]] = []

    def warn(kind: str, line: str) -> None:
        flaws.append((kind, line))

    try:
        for record in records:
            keep(decode(record, warn=warn))
    except (ValueError, OSError, MemoryError) as error:
        return Answer(flaws, error)
    return Answer(flaws, None)


def answer_here(decode: Decode, records: Sequence[Any], into: np.ndarray) -> Answer:
    """As `answer`; the first rows of `into` [k, H, W, C] become the images."""
    rows = iter(into)
    return answer(decode, records, lambda image: np.copyto(next(rows), image))


class Workers:
    """Processes that decode; when one ends, this process does its work.

    Args:
      count: of the processes.
    """

    def __init__(self, count: int):
        pairs = [socket.socketpair() for _ in range(count)]
        theirs = [their.fileno() for _, their in pairs]
        rooms = [_shared_file() for _ in pairs]
        here = pathlib.Path(__file__).resolve().parent
        places = {"folder": str(here), "root": str(here.parent)}
        code = _SERVER.format(**places, files=theirs, rooms=rooms)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL, pass_fds=[*theirs, *rooms],
            process_group=0,  # Ctrl-C is not for it
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        for _, their in pairs:
            their.close()
        self._idle: queue.SimpleQueue[tuple[Connection, mmap.mmap] | None] = queue.SimpleQueue()
        for (mine, _), room in zip(pairs, rooms, strict=True):
            self._idle.put((Connection(mine.detach()), mmap.mmap(room, ROOM)))
            os.close(room)
        atexit.register(self.close)

    def close(self) -> None:
        """Ends the processes, of which none may be at work."""
        while not self._idle.empty():
            worker = self._idle.get()
            if worker is not None:
                worker[0].close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)

    def answer(self, decode: Decode, records: Sequence[Any], into: np.ndarray) -> Answer:
        """As `answer_here`, in one of the processes; waits until one is idle."""
        worker = self._idle.get()  # None: in place of a process that has ended
        try:
            if worker is not None:
                worker[0].send((decode, records))
                return _receive(*worker, into)
        except (EOFError, OSError):
            worker = None
            logging.log_first_n(logging.WARNING, _ENDED, 1)
        finally:
            self._idle.put(worker)
        return answer_here(decode, records, into)


@functools.cache
def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


@functools.cache
def _threads() -> futures.ThreadPoolExecutor:
    return futures.ThreadPoolExecutor(processors(), "decode")


class _Pool:
    """The workers of this process, started once they are worth it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoded = 0
        self._tried = False
        self._workers: Workers | None = None

    def workers(self, count: int) -> Workers | None:
        """Those that `count` further images may use; None: there are none yet."""
        with self._lock:
            self._decoded += count
            if self._decoded > FEW and not self._tried and processors() > 1:
                self._tried = True
                try:
                    self._workers = Workers(processors())
                except OSError as error:
                    logging.warning("no processes decode images, threads do: %s", error)
            return self._workers


_pool = _Pool()


def decoded(
    decode: Decode | None,
    record: Callable[[int], Any],
    rows: Sequence[int],
    into: np.ndarray,
    warn: images.Warn = images.warn_always,
) -> None:
    """Decodes the images of `rows`, in their order.

    Args:
      decode: makes an image of a record, and can be pickled; None: records are images.
      record: the record of a row, which threads of this process ask for.
      into: [k, H, W, C] in the order of its axes, which become the images.
      warn: is told of flaws, by the threads that ask.

    Raises:
      ValueError, OSError, MemoryError: of `record`, or of `decode` for the first row that fails.
    """
    if decode is None:
        for place, image in enumerate(_threads().map(record, rows)):
            into[place] = image
        return
    workers = _pool.workers(len(rows))
    ask = workers.answer if workers is not None else answer_here
    size = max(1, min(CHUNK, len(rows) // (2 * processors())))

    def part(first: int) -> None:
        some = slice(first, first + size)
        result = ask(decode, [record(row) for row in rows[some]], into[some])
        for flaw in result.flaws:
            warn(*flaw)
        if result.error is not None:
            raise result.error

    for _ in _threads().map(part, range(0, len(rows), size)):
        pass


def _shared_file() -> int:
    """A file of `ROOM` bytes in memory, without a name."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("decoded images")
    else:  # not Linux
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, ROOM)
    return file


def _send(
    connection: Connection, room: mmap.mmap, pixels: Sequence[np.ndarray], result: Answer
) -> None:
    """Sends an answer, and the images, of one shape and each in the order of its axes."""
    fits = sum(image.nbytes for image in pixels) <= ROOM
    if fits and pixels:
        shape = (len(pixels), *pixels[0].shape)
        for place, image in zip(_array(room, shape, pixels[0].dtype), pixels, strict=True):
            np.copyto(place, image)
    connection.send((len(pixels), fits, result))
    for image in () if fits else pixels:
        connection.send_bytes(np.ascontiguousarray(image).data.cast("B"))


def _receive(connection: Connection, room: mmap.mmap, into: np.ndarray) -> Answer:
    """An answer, and the images before it."""
    count, fits, result = connection.recv()
    images = into[:count]
    if fits and count:
        np.copyto(images, _array(room, images.shape, images.dtype))
    for image in () if fits else images:
        connection.recv_bytes_into(image.data.cast("B"))
    return result


def _array(room: mmap.mmap, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """The array at the beginning of shared memory."""
    return np.frombuffer(room, dtype, int(np.prod(shape))).reshape(shape)


# In the server and its workers.


def serve(files: Sequence[int], rooms: Sequence[int]) -> None:
    """Forks a worker for each of these sockets and shared files; ends when all have ended."""
    for number in (signal.SIGINT, signal.SIGTERM):  # which a job's scheduler sends to all alike
        signal.signal(number, signal.SIG_IGN)
    with tempfile.TemporaryFile() as shared:
        for file, room in zip(files, rooms, strict=True):
            if not os.fork():
                for other in files:
                    if other != file:
                        os.close(other)
                images.one_large = OneProcess(shared.fileno())
                _work(Connection(file), mmap.mmap(room, ROOM))
                os._exit(0)
    for file in files:
        os.close(file)
    for _ in files:
        os.wait()


def _work(connection: Connection, room: mmap.mmap) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            decode, records = connection.recv()
            pixels: list[np.ndarray] = []
            result = answer(decode, records, pixels.append)
            _send(connection, room, pixels, result)


class OneProcess(contextlib.AbstractContextManager[None]):
    """Lets one process at a time in; one that ends has left it."""

    def __init__(self, file: int):
        self.file = file

    def __enter__(self) -> None:
        fcntl.lockf(self.file, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        fcntl.lockf(self.file, fcntl.LOCK_UN)
