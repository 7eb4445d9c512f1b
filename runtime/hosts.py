"""Hosts that may not share a disk: they agree, and one gets from another what it lacks.

A run's folder may be one for all processes, on a shared disk or in a bucket, or there may be
several, each on a disk of its own. Of processes that share a disk one writes to it. All of this
goes by JAX's collectives: every process calls every function.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from runtime import cluster, devices, errors, files
from runtime.arrays import checksum

Arrays = dict[str, np.ndarray]
CHUNK = 1 << 24  # bytes that are sent in one piece


class _Disks:
    """What this process knows of the disks, once it has locked its folder; see `disks`."""

    writes: bool | None = None
    shared: bool | None = None


@contextlib.contextmanager
def disks(writes: bool, shared: bool | None) -> Iterator[None]:
    """Inside, `writes` tells whether this process writes to its disk, and `shared` whether that is
    the disk of all; None: nobody knows."""
    before = _Disks.writes, _Disks.shared
    _Disks.writes, _Disks.shared = writes, shared
    try:
        yield
    finally:
        _Disks.writes, _Disks.shared = before


def is_writer() -> bool:
    """True on the process that keeps the run on its disk: the primary one, and one of those on
    every other disk."""
    return devices.is_primary() if _Disks.writes is None else _Disks.writes


def several_disks() -> bool:
    """True if processes are known to have disks of their own."""
    return _Disks.shared is False


def maybe_several_disks() -> bool:
    """True unless all processes are known to share a disk, as a single one does."""
    return jax.process_count() > 1 and not _Disks.shared


def job() -> str:
    """A name that no other program has, the same on all processes."""
    return text_of(0, uuid.uuid4().hex)


def name(index: int, host: str) -> str:
    """`process 1 of 3 (host1)`."""
    return f"process {index} of {jax.process_count()} ({host})"


def texts(text: str) -> list[str]:
    """The texts of all processes."""
    if jax.process_count() == 1:
        return [text]
    cluster.await_others()
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(content.size, np.int32))
    room = _power_of_two(int(sizes.max()))  # few programs
    rows = multihost_utils.process_allgather(np.pad(content, (0, room - content.size)))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def text_of(source: int, text: str) -> str:
    """The text of the process `source`, on all."""
    if jax.process_count() == 1:
        return text
    cluster.await_others()
    content = np.frombuffer(text.encode(), np.uint8)
    is_source = jax.process_index() == source
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size), is_source))
    room = np.zeros(_power_of_two(size), np.uint8)
    if is_source:
        room[:size] = content
    whole: np.ndarray = np.asarray(multihost_utils.broadcast_one_to_all(room, is_source))
    return whole[:size].tobytes().decode()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, a process does something for itself, and asks nothing of others; if that is an error
    on one of them it is raised on all, in one line that says whose it is.

    Raises:
      ValueError, OSError: what was raised on this process, or another one's.
    """
    error: ValueError | OSError | None = None
    try:
        yield
    except (ValueError, OSError) as caught:
        error = caught
    if jax.process_count() > 1:
        said = [json.loads(each) for each in texts(json.dumps(_said(error)))]
        failed = [index for index, each in enumerate(said) if each["line"]]
        if failed and len({each["line"] for each in said}) > 1:
            first = said[failed[0]]
            line = f"{name(failed[0], first['host'])}: {first['line']}"
            raise (OSError if first["os"] else ValueError)(line) from error
    if error is not None:
        raise error


def _said(error: Exception | None) -> dict[str, Any]:
    return {
        "line": "" if error is None else errors.one_line(error),
        "os": isinstance(error, OSError),
        "host": socket.gethostname(),
    }


def by_primary(function: Callable[[], Any]) -> Any:
    """What the function returns on the primary process, of JSON, on all; its error likewise."""
    value = None
    with together():
        if devices.is_primary():
            value = function()
    return json.loads(text_of(0, json.dumps(value)))


def bring(path: pathlib.Path) -> None:
    """Has every disk that lacks a file, where another has it, get a copy; a small file."""
    if not several_disks():
        return
    content = np.frombuffer(path.read_bytes(), np.uint8) if path.is_file() else None
    shared = from_any(None if content is None else {path.name: content})
    if shared is not None and content is None and is_writer():
        with files.whole(path) as temporary:
            temporary.write_bytes(shared[0][path.name].tobytes())


def from_any(arrays: Arrays | None, more: Any = None) -> tuple[Arrays, Any] | None:
    """Arrays by name that some processes have, and `more`, of JSON; None if nobody has any.

    Whoever has them keeps its own; the others get those of the first one that does.

    Raises:
      ValueError: on the way an array became another.
    """
    if jax.process_count() == 1:
        return None if arrays is None else (arrays, more)
    cluster.await_others()
    having = multihost_utils.process_allgather(np.asarray(arrays is not None))
    if not having.any():
        return None
    if not having.all():
        source = int(np.argmax(having))
        theirs, words = _sent(source, arrays, more)
        if arrays is None:
            return theirs, words
    assert arrays is not None
    return arrays, more


def _sent(source: int, arrays: Arrays | None, more: Any) -> tuple[Arrays, Any]:
    """The arrays of a process, and `more`, on all."""
    is_source = jax.process_index() == source
    own = {k: np.asarray(v, order="C") for k, v in (arrays or {}).items()} if is_source else {}
    marks = {name: checksum(array) for name, array in own.items()}
    marks, more = json.loads(text_of(source, json.dumps([marks, more])))
    if not is_source:
        own = {k: np.empty(m["shape"], jnp.dtype(m["dtype"])) for k, m in marks.items()}
    _stream(own, is_source)
    for array_name, mark in marks.items():
        if not is_source and checksum(own[array_name]) != mark:
            raise ValueError(f"array {array_name} was damaged on its way from another process")
    return own, more


def _stream(arrays: Mapping[str, np.ndarray], is_source: bool) -> None:
    """Fills the arrays of all processes with those of one, `CHUNK` bytes at a time."""
    views = [array.reshape(-1).view(np.uint8) for array in arrays.values()]
    starts = np.cumsum([0, *(view.size for view in views)])
    total = int(starts[-1])
    size = min(CHUNK, _power_of_two(total))
    for begin in range(0, total, size):
        chunk = np.zeros(size, np.uint8)
        if is_source:
            for part, piece in _pieces(views, starts, begin, size):
                chunk[part] = piece
        chunk = np.asarray(multihost_utils.broadcast_one_to_all(chunk, is_source))
        if not is_source:
            for part, piece in _pieces(views, starts, begin, size):
                piece[:] = chunk[part]


def _pieces(
    views: list[np.ndarray], starts: np.ndarray, begin: int, size: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """The pieces of arrays of bytes, laid end to end, that are in a chunk, and where in it."""
    first = int(np.searchsorted(starts, begin, side="right")) - 1
    for view, start in zip(views[first:], starts[first:].tolist(), strict=False):
        if start >= begin + size:
            return
        low, high = max(begin - start, 0), min(begin + size - start, view.size)
        yield slice(start + low - begin, start + high - begin), view[low:high]


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()
