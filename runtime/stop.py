"""Signals: the first one asks the program to stop where it can go on later, the second ends it.

SIGINT (Ctrl-C) and SIGTERM. Where nobody is `listening`, the first one raises `Stopped` at once. A
loop that listens finishes its step or its batch, keeps it, and raises `Stopped` by itself. The main
thread cannot run a handler while XLA compiles; the second signal is therefore read by a thread.
Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GOES_ON = "the same command goes on from what is on disk"


class _State:
    """The state of this process."""

    handled = False
    listeners = 0
    received: int | None = None  # the first signal


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
    _State.handled = True
    try:
        reclaim()
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        _State.handled, _State.received = False, None


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


def requested() -> bool:
    """True if this process received a signal."""
    return _State.received is not None


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
    """Lets a signal end the process at once, as long as it has only begun to import."""
    for number in SIGNALS:
        signal.signal(number, end_at_once)


def _receive(number: int, frame: Any) -> None:
    del frame
    if not requested():
        _State.received = number
        if not _State.listeners:
            raise Stopped(f"stopped; {GOES_ON}")


def _watch(reader: int) -> None:
    """Ends the process at the second signal of which the pipe tells."""
    count = 0
    while byte := os.read(reader, 1):
        count += byte[0] in SIGNALS
        if count == 2:
            end_at_once(byte[0])
    os.close(reader)
