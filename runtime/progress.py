"""Progress bars, and a word while XLA compiles."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from tqdm import tqdm

PATIENCE = 10.0  # seconds of compilation without a word, where there is no terminal

Function = TypeVar("Function", bound=Callable[..., Any])


def progress(total: int, description: str, unit: str, initial: int = 0) -> tqdm:
    """A progress bar with rate and remaining time, on the primary host, if it has a description."""
    hidden = not description or jax.process_index() != 0
    return tqdm(
        total=total, initial=initial, desc=description, unit=unit, disable=hidden, smoothing=0.1
    )


@contextlib.contextmanager
def compiling(bar: tqdm, description: str, first: bool = True) -> Iterator[None]:
    """Inside, in the `first` call of a compiled function, the bar counts the seconds.

    Where the bar is not on a terminal it is one line, after `PATIENCE` seconds.
    """
    if not first or bar.disable:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_count, args=(bar, description, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def announced(function: Function, bar: tqdm, description: str) -> Function:
    """The same function, whose first call says that it compiles."""
    calls = iter([True])

    def call(*args: Any) -> Any:
        with compiling(bar, description, next(calls, False)):
            return function(*args)

    return call  # type: ignore[return-value]


def _count(bar: tqdm, description: str, over: threading.Event) -> None:
    start, on_terminal = time.monotonic(), sys.stderr.isatty()
    while not over.wait(1.0 if on_terminal else PATIENCE):
        if not on_terminal:
            bar.write(f"{description}: compiling, {PATIENCE:.0f} s so far", file=sys.stderr)
            return
        bar.set_postfix_str(f"compiling, {time.monotonic() - start:.0f} s")
    if on_terminal:
        bar.set_postfix_str("", refresh=False)
