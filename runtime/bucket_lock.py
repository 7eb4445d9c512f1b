"""One writer of a folder in a bucket at a time, where no kernel and no disk has a lock.

The lock is an object that only one can put where there is none. Its holder puts it again every
`BEAT` seconds, so it changes as long as the holder lives. Who comes second watches it: for one that
has not changed for `DEAD` seconds, or whose process on this machine is gone, it takes the holder's
place, by no clock but its own. A holder that was away for so long finds that, and ends its program.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from absl import logging

from runtime import files
from runtime.buckets import BucketError, BucketPath

BEAT = 10.0  # seconds between two signs of life
DEAD = 60.0  # seconds without one
LOOK = 2.0  # seconds between two looks at somebody else's lock, and before the last at one's own


class Taken(Exception):
    """Somebody else holds the lock: `args` is the content of its object."""


@contextlib.contextmanager
def held(path: BucketPath, holder: dict[str, Any]) -> Iterator[None]:
    """Inside, the object `path` is this program's.

    Args:
      holder: what it says of the program, with "host" and "process".

    Raises:
      Taken: another program has it.
      BucketError: the bucket cannot be written to.
    """
    token = uuid.uuid4().hex
    _acquire(path, holder, token)
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, holder, token, over), daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        with contextlib.suppress(OSError):  # whoever comes next finds that it is dead
            if _token(_content(path)) == token:
                path.unlink(missing_ok=True)


def _acquire(path: BucketPath, holder: dict[str, Any], token: str) -> None:
    """Puts the object, where there is none or a dead one."""
    mine = _text(holder, token, 0)
    while True:
        content = _content(path)
        if content is None:
            with contextlib.suppress(FileExistsError):  # somebody was faster
                path.write_bytes(mine, new=True)
                return
            continue
        if not _is_dead(path, content, holder):
            raise Taken(content)
        if _content(path) == content:
            path.write_bytes(mine)
            time.sleep(LOOK)  # another one may have found it dead, too: the last to put it has it
            content = _content(path)
            if _token(content) == token:
                return
            if content is not None:
                raise Taken(content)


def _is_dead(path: BucketPath, content: bytes, holder: dict[str, Any]) -> bool:
    """Waits until the object has changed, or has not for long; False if it is somebody's."""
    facts = _facts(content)
    process = facts.get("process")
    here = facts.get("host") == holder["host"]
    if here and isinstance(process, int) and not files.is_running(process):
        return True
    logging.warning("%s is there: it is watched, for at most %.0f s", path, DEAD)
    began = time.monotonic()
    while time.monotonic() - began < DEAD:
        time.sleep(LOOK)
        if _content(path) != content:
            return False
    return True


def _beat(path: BucketPath, holder: dict[str, Any], token: str, over: threading.Event) -> None:
    """Changes the object now and then, until it is `over` or another's."""
    beats = 0
    while not over.wait(BEAT):
        beats += 1
        with contextlib.suppress(BucketError):  # the next one may succeed
            content = _content(path)
            if content is not None and _token(content) != token:
                logging.warning(
                    "%s is %s's by now, as this program was not heard of for a minute: it ends",
                    *(path, named(content)),
                )
                os.kill(os.getpid(), signal.SIGTERM)
                return
            path.write_bytes(_text(holder, token, beats))


def named(content: bytes) -> str:
    """The program that an object says, in words."""
    facts = _facts(content)
    try:
        return (
            f"{facts['what']} (process {facts['process']} on {facts['host']}, "
            f"since {facts['since']})"
        )
    except KeyError:
        return "another program"


def _text(holder: dict[str, Any], token: str, beats: int) -> bytes:
    return json.dumps({**holder, "token": token, "beats": beats}).encode()


def _content(path: BucketPath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _facts(content: bytes | None) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        facts = json.loads(content or b"{}")
        if isinstance(facts, dict):
            return facts
    return {}


def _token(content: bytes | None) -> Any:
    return _facts(content).get("token")
