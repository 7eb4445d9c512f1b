"""Signals: the first one asks the program to stop where it can go on later, the second ends it.

SIGINT (Ctrl-C) and SIGTERM. Where nobody is `listening`, the first one raises `Stopped` at once. A
loop that listens finishes its step or its batch, keeps it, and raises `Stopped` by itself. The main
thread cannot run a handler while XLA compiles; the second signal is therefore read by a thread.
Where Python ignores what is raised, in destructors and callbacks, that thread sends the first one
again. Standard library only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GOES_ON = "the same command goes on from what is on disk"
STOPPED = f"stopped; {GOES_ON}, if anything is"
TWIN = 0.25  # seconds in which a signal that comes twice is one: `timeout` sends it to both
AGAIN = 0  # what asks the thread to send the first signal again


class _State:
    """The state of this process."""

    handled = False
    listeners = 0
    received: int | None = None  # the first signal
    raised = False  # it raised `Stopped` where nobody was listening
    compiling = False  # it would wait for XLA, and there is nothing to keep
    program = False  # the process is this program's alone


class Stopped(SystemExit):
    """The program was asked to stop, and stops: `str` is the one line, `code` 130 or 143."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.code = 128 + (_State.received or signal.SIGTERM)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Inside, both signals are handled as this module says; at the end they are as before.

    Inside another such context, or in another thread than the main one, it does nothing.
    """
    if _State.handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_ignored, hook, writer)
    _State.handled = True
    try:
        reclaim()
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup)
        sys.unraisablehook = hook
        os.close(writer)
        _State.handled, _State.received, _State.raised = False, None, False


def reclaim() -> None:
    """Takes the signals back from a library that has set handlers of its own."""
    if _State.handled:
        for number in SIGNALS:
            signal.signal(number, _receive)


@contextlib.contextmanager
def listening() -> Iterator[bool]:
    """Inside, the first signal only makes `requested` true; yields whether it is the outermost.

    The outermost one is who has to ask, and to stop.
    """
    _State.listeners += 1
    try:
        yield _State.listeners == 1
    finally:
        _State.listeners -= 1


@contextlib.contextmanager
def compiling(alone: bool) -> Iterator[None]:
    """Inside, if `alone`, the first signal ends the process at once, though somebody listens.

    For a first call, which waits for XLA's compiler, before there is anything to keep; `alone`
    says that no other process of this program waits for this one.
    """
    _State.compiling = alone
    try:
        yield
    finally:
        _State.compiling = False


def requested() -> bool:
    """True if this process received a signal."""
    return _State.received is not None


def interrupted() -> bool:
    """True if a signal raised `Stopped` where nobody listened: what else is raised then, by a
    library that was interrupted, comes of it."""
    return _State.raised


def without_finalizers() -> bool:
    """True if this program is the whole process, and was interrupted somewhere: Python's own end
    waits for what libraries compile, and they crash in it."""
    return _State.program and _State.raised


def check(line: str) -> None:
    """Stops with this line if a signal was received that nobody else is listening to."""
    if requested() and not _State.listeners:
        raise Stopped(line)


def pass_on() -> None:
    """Tells the other processes of Ctrl-C, by the handler of SIGTERM that `jax.distributed` has."""
    if _State.received == signal.SIGINT:
        os.kill(os.getpid(), signal.SIGTERM)


def end_at_once(number: int, frame: Any = None) -> None:
    """Ends the process with one line, whatever it does."""
    del frame
    os.write(2, b"\nstopped at once; what was finished is on disk\n")
    os._exit(128 + number)


def end_imports() -> None:
    """Lets a signal end the process at once, as long as it has only begun to import; of a process
    that is this program alone."""
    _State.program = True
    for number in SIGNALS:
        signal.signal(number, end_at_once)


def _receive(number: int, frame: Any) -> None:
    if not requested():
        _State.received = number
        if not _State.listeners:
            if _imports(frame):
                end_at_once(number)
            _State.raised = True
            raise Stopped(STOPPED)


def _imports(frame: types.FrameType | None) -> bool:
    """True if an import goes on: raised there, an exception makes extension modules crash."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _ignored(hook: Callable[[Any], object], writer: int, unraisable: Any) -> None:
    """Asks for the signal again if `Stopped` was raised where Python has to ignore it."""
    if isinstance(unraisable.exc_value, Stopped):
        os.write(writer, bytes([AGAIN]))
    else:
        hook(unraisable)


def _watch(reader: int) -> None:
    """Ends the process at the second signal of which the pipe tells, if not at the first."""
    asked = False
    while numbers := os.read(reader, 64):
        signals = [number for number in numbers if number in SIGNALS]
        if signals and (asked or _State.compiling):
            end_at_once(signals[0])
        if signals:
            asked = True
            time.sleep(TWIN)
            numbers += os.read(reader, 64) if select.select([reader], [], [], 0)[0] else b""
        if AGAIN in numbers and _State.received is not None:
            time.sleep(0.01)  # until the main thread is elsewhere
            number, _State.received, asked = _State.received, None, False
            signal.pthread_kill(threading.main_thread().ident or 0, number)
    os.close(reader)
