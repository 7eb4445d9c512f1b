"""Progress bars that say what the program waits for: a bar at 0 % is compiling, or else it starts.

XLA compiles a function at its first call, for seconds or minutes in which nothing moves. JAX
reports when a function was lowered, after which XLA compiles it, and when it was compiled.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import jax
from tqdm import tqdm

from runtime import stop

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILED = "/jax/core/compile/backend_compile_duration"
PATIENCE = 3.0  # seconds of silence


class Compilation:
    """The compilation that goes on in XLA now, if any: `since` is when it began, else None."""

    def __init__(self) -> None:
        self.since: float | None = None
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == LOWERED:
            self.since = time.monotonic()
        elif event == COMPILED:
            self.since = None


class Bar(tqdm):  # type: ignore[misc]
    """A progress bar that is never silent for long: it says "compiling, 12 s", "starting, 5 s".

    On a terminal the seconds are renewed each second; elsewhere, in a log, whenever they have
    doubled. A thread does it; the bar's own work is not slowed down. When the program was asked to
    stop, it says "stopping".
    """

    compilation: Compilation | None = None
    shown = 0  # bars whose line has no end yet

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if Bar.compilation is None:
            Bar.compilation = Compilation()
        self.opened = time.monotonic()
        self.note = ""
        self.closing = threading.Event()
        if not self.disable:
            Bar.shown += 1
            self.watch = threading.Thread(target=self._watch, daemon=True)
            self.watch.start()

    def state(self, now: float) -> tuple[str, float]:
        """What the bar waits for and since how many seconds; "" while it moves."""
        assert Bar.compilation is not None
        since = Bar.compilation.since
        if since is not None:
            return "compiling", now - since
        if self.n == self.initial:
            return "starting", now - self.opened
        return "", 0.0

    def close(self) -> None:
        """Ends the bar."""
        if hasattr(self, "closing") and not self.closing.is_set():
            Bar.shown -= not self.disable
            self.closing.set()
        super().close()

    def _watch(self) -> None:
        due, asked = PATIENCE, False
        while not self.closing.wait(1.0):
            what, seconds = self.state(time.monotonic())
            if stop.requested():
                if not asked or (what and seconds >= due):
                    due = 0.0 if sys.stderr.isatty() else 2.0 * max(seconds, PATIENCE)
                    self._say(f"stopping; {what}, {seconds:.0f} s" if what else "stopping")
                asked = True
            elif not what or seconds < PATIENCE:
                due = PATIENCE
                if self.note:
                    self._say("")
            elif seconds >= due:
                due = 0.0 if sys.stderr.isatty() else 2.0 * seconds
                self._say(f"{what}, {seconds:.0f} s")

    def _say(self, note: str) -> None:
        """Writes a note at the end of the bar, in the place of the one before."""
        if note or self.postfix == self.note:
            self.set_postfix_str(note)
        self.note = note
