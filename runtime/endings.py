"""How the program ends: from an exception to one line and an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import absl.logging

from runtime import cluster, memory, stop
from runtime.errors import Refused, one_line

ROOT = pathlib.Path(__file__).resolve().parent.parent
BROKEN_PIPE = 141

# What to lower when memory is short, by mode.
LOWER = {
    "train": "training.batch_size, or raise training.accumulation, or set model.remat=True",
    "eval": "eval.batch_size and sampling.batch_size",
    "reproduce": "eval.batch_size and sampling.batch_size",
    "sample": "sampling.batch_size",
    "control": "control.batch_size",
}

# Errors at a user's doing: of the project, of the operating system, of a package that is not there.
USERS = (ValueError, FloatingPointError, OSError, ImportError)

# Packages whose own exceptions, whatever their types, are about what a user gave them.
OTHERS = ("jax", "jaxlib", "orbax", "grain", "PIL", "tensorflow_datasets", "zipfile", "zlib")

MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|bad_alloc|cannot allocate memory|unable to allocate", re.I
)


class _Warnings(logging.Formatter):
    """`warning: <line>`, and nothing of date, process and file."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}"


WARNINGS = _Warnings()


class Ending(NamedTuple):
    """The line that the program ends with, and its exit code."""

    line: str
    code: int


@contextlib.contextmanager
def in_one_line(flags: Any = None) -> Iterator[None]:
    """Inside, whatever stops the program ends it with one line and an exit code.

    `flags` are absl's, of which `traceback` shows the error instead, and `mode` says what to do.
    """
    absl.logging.set_verbosity(absl.logging.WARNING)
    absl.logging.get_absl_handler().setFormatter(WARNINGS)
    with stop.handled():
        try:
            yield
            sys.stdout.flush()
            cluster.leave(0)
        except BrokenPipeError:
            close_pipe()
            cluster.leave(BROKEN_PIPE, "nobody reads its output any more")
            sys.exit(BROKEN_PIPE)
        except SystemExit as error:
            if isinstance(error, stop.Stopped):
                _leave(error, None)
            _flush()
            cluster.leave(0 if error.code in (None, 0) else 1, "exit")
            raise
        except (Exception, KeyboardInterrupt) as error:
            parsed = flags is not None and flags.is_parsed()
            if parsed and flags.traceback:
                if cluster.joined():
                    traceback.print_exc()
                    cluster.leave(1, one_line(error))
                raise
            interrupted = stop.interrupted()  # and a library made another exception of it
            stopped = stop.Stopped(stop.STOPPED) if interrupted else error
            _leave(stopped, flags.mode if parsed else None)


def _leave(error: BaseException, mode: str | None) -> NoReturn:
    cluster.settle(error)
    line, code = ending(error, mode)
    together = isinstance(error, stop.Stopped) and not stop.interrupted()
    print(line, file=sys.stderr)
    _flush()
    cluster.leave(0 if together else code, line)
    if stop.without_finalizers():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _flush() -> None:
    """Writes out standard output, whose reader may be gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        close_pipe()
        sys.exit(BROKEN_PIPE)


def ending(error: BaseException, mode: str | None = None) -> Ending:
    """The end of a program of this mode that `error` came out of.

    A command line that cannot be understood ends with 2, a signal with 130 or 143, all else with 1.
    """
    if isinstance(error, Refused):
        return Ending(f"error: {one_line(error)}", 2)
    if isinstance(error, stop.Stopped):
        return Ending(one_line(error), int(error.code or 0))
    if isinstance(error, KeyboardInterrupt):
        return Ending(stop.STOPPED, 130)
    if is_memory(error):
        return Ending(f"error: {memory_line(error, mode)}", 1)
    if isinstance(error, USERS):
        return Ending(f"error: {_user_line(error)}", 1)
    if type(error).__module__.partition(".")[0] in OTHERS:
        name = f"{type(error).__module__.partition('.')[0]}'s {type(error).__name__}"
        return Ending(f"error: {place(error)}: {name}: {one_line(error, limit=400)}", 1)
    return Ending(
        f"error: this is a fault of the program: {type(error).__name__} in {place(error)}: "
        f"{one_line(error, limit=200)} (--traceback shows more)",
        1,
    )


def is_memory(error: BaseException) -> bool:
    """True if there was too little memory: NumPy's, XLA's or the system's way to say so."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == 12
    library = type(error).__module__.partition(".")[0] in ("jax", "jaxlib", "builtins")
    kind = type(error).__name__ in ("RuntimeError", "XlaRuntimeError", "JaxRuntimeError")
    return library and kind and MEMORY.search(str(error)) is not None


def memory_line(error: BaseException, mode: str | None) -> str:
    """What was asked for, how much there is, and what to lower."""
    if isinstance(error, memory.Lack):
        return one_line(error)
    asked = re.search(r"([\d.]+ ?(?:bytes|[KMGTPE]i?B))", str(error))
    sizes = f"{asked[1]} were asked for, " if asked else ""
    lower = LOWER.get(mode or "", "the batch size")
    return f"out of memory: {sizes}{available()}; lower {lower}"


def available() -> str:
    """How much memory there is, in words: the device's own, or else the machine's."""
    jax = sys.modules.get("jax")
    stats = jax.local_devices()[0].memory_stats() if jax else None
    if stats and "bytes_limit" in stats:
        return f"the device has {stats['bytes_limit'] / 2**30:.1f} GiB"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / memory.GIB
    free = memory.free()
    if free is None:
        return f"the machine has {total:.1f} GiB"
    return f"{free / memory.GIB:.1f} of the machine's {total:.1f} GiB are free"


def place(error: BaseException) -> str:
    """File and line of the project's own code that the error came out of."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if _is_ours(f.filename)] or frames
    if not ours:
        return "no file"
    path = pathlib.Path(ours[-1].filename)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return f"{name}:{ours[-1].lineno}"


def close_pipe() -> None:
    """Lets nobody write to a standard output whose reader is gone, as after `| head`."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            os.dup2(nowhere, stream.fileno())


def _is_ours(filename: str) -> bool:
    path = pathlib.Path(filename)
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts


def _user_line(error: BaseException) -> str:
    """The error's message, with a place where it has none by itself."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        return f"{one_line(error)} (in {place(error)})"
    return one_line(error)
