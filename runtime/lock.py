"""One writer of a folder at a time."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from runtime import bucket_lock, devices, files, hosts
from runtime.buckets import BucketError, BucketPath

NAME = ".lock"
BEAT = 10.0  # seconds between signs of life, where the file system has no locks
DEAD = 60.0  # seconds without one
SAYING = 5.0  # seconds in which a process that has the lock says so in the file
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def held(folder: pathlib.Path, what: str, needed: bool = True) -> Iterator[None]:
    """Inside, no other program that asks for `folder` may write to it.

    The lock is the kernel's, on the file `.lock`, which says who holds it; it ends with the
    process, however that ends, and network disks share it. Where a file system has no locks, the
    age of the file tells a living holder from a dead one, and in a bucket `bucket_lock`. The folder
    is made if need be, and removed again if it is empty. Of several processes of one program the
    primary has the lock, and on disks that are not its own one of those there, see `hosts`.

    Args:
      what: the program that asks, in words.
      needed: False if the program may find that there is nothing to write: then a folder that
        cannot be written to needs no lock.

    Raises:
      BlockingIOError: another program holds it; says which, where and since when.
      OSError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        job = hosts.job()
        with hosts.together():
            if devices.is_primary():
                stack.enter_context(_lock(folder, what, needed, job))
        if files.in_bucket(folder):
            stack.enter_context(hosts.disks(devices.is_primary(), shared=True))
        elif jax.process_count() > 1:
            stack.enter_context(_on_other_disks(folder, what, needed, job))
        yield


@contextlib.contextmanager
def _on_other_disks(folder: pathlib.Path, what: str, needed: bool, job: str) -> Iterator[None]:
    """Inside, one process has the lock on every disk but the primary's, which is locked already;
    and `hosts` knows who."""
    with contextlib.ExitStack() as stack:
        locks, beside = devices.is_primary(), False
        with hosts.together():
            if not devices.is_primary():
                try:
                    locks = stack.enter_context(_lock(folder, what, needed, job))
                except Fellow:
                    beside = True
        several = devices.on_any(locks and not devices.is_primary())
        one = devices.on_all(beside or devices.is_primary())
        shared = False if several else True if one else None
        if several and devices.is_primary():
            print(
                f"{folder} is on several disks: each keeps the run, and results are on this one "
                f"alone ({socket.gethostname()})",
                flush=True,
            )
        with hosts.disks(locks, shared):
            yield


@contextlib.contextmanager
def _lock(folder: pathlib.Path, what: str, needed: bool, job: str) -> Iterator[bool]:
    """`held` on this process; False if the folder needs no lock.

    Raises:
      Fellow: another process of the same `job` holds it.
    """
    bucket_folder = files.in_bucket(folder)
    with contextlib.ExitStack() as stack:
        is_locked = True
        try:
            stack.enter_context(
                _locked_in_bucket(bucket_folder, what, needed)
                if bucket_folder
                else _locked(folder, what, job)
            )
        except BlockingIOError:
            raise
        except OSError as error:
            if needed or error.errno not in UNWRITABLE or not folder.is_dir():
                raise
            is_locked = False
        yield is_locked


class Fellow(Exception):
    """Another process of this program holds the lock."""


def inside(
    workdir: pathlib.Path | None, name: str | None, what: str, needed: bool = True
) -> contextlib.AbstractContextManager[None]:
    """`held` for the folder `name` of `workdir`; no lock without them, or for one elsewhere, which
    is for others to refuse."""
    if workdir is None or name is None:
        return contextlib.nullcontext()
    folder = workdir / name
    if not files.contains(workdir, folder):
        return contextlib.nullcontext()
    return held(folder, what, needed)


@contextlib.contextmanager
def _locked(folder: pathlib.Path, what: str, job: str) -> Iterator[None]:
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / NAME
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, heart = _acquired(path, job)
        except BlockingIOError:
            raise
        except (FileExistsError, NotADirectoryError) as error:
            file = next(path for path in (folder, *folder.parents) if path.exists())
            raise NotADirectoryError(f"{file} is a file; a folder is needed") from error
        except OSError as error:
            reason = f"{what} cannot write {NAME} there ({error.strerror})"
            raise OSError(error.errno, reason, str(folder)) from error
        try:
            os.truncate(descriptor, 0)
            os.write(descriptor, json.dumps({**_holder(what), "job": job}).encode())
            with contextlib.suppress(OSError):
                os.fsync(descriptor)  # on a network disk, others read it now
            with heart:
                yield
        finally:
            path.unlink(missing_ok=True)  # before the lock ends: see `_acquired`
            os.close(descriptor)
    finally:
        for parent in new:
            with contextlib.suppress(OSError):  # there is something in it
                parent.rmdir()


@contextlib.contextmanager
def _locked_in_bucket(folder: BucketPath, what: str, needed: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(bucket_lock.held(folder / NAME, _holder(what)))
        except bucket_lock.Taken as taken:
            raise BlockingIOError(_in_use(folder, bucket_lock.named(*taken.args))) from None
        except BucketError:
            if needed or not folder.is_dir():
                raise
        yield


def _holder(what: str) -> dict[str, Any]:
    """What the file says of this program."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "what": what,
    }


def _acquired(path: pathlib.Path, job: str) -> tuple[int, contextlib.AbstractContextManager[None]]:
    """The descriptor of the locked file, and what keeps the lock alive."""
    while True:
        if _is_of(path, job):
            raise Fellow
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            age = time.time() - os.fstat(descriptor).st_mtime
            is_new = os.fstat(descriptor).st_size == 0
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                heart: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    _require_stranger(path, job)
                    raise BlockingIOError(_refusal(path)) from None
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                    raise
                if not is_new and age < DEAD:
                    _require_stranger(path, job)
                    raise BlockingIOError(_refusal(path)) from None
                heart = _beating(path)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, heart
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just removed it: the next one is another file


@contextlib.contextmanager
def _beating(path: pathlib.Path) -> Iterator[None]:
    """Inside, the file's time stamp is renewed."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):  # the next one may succeed
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_of(path: pathlib.Path, job: str) -> bool:
    """True if a process of this job says that it holds the lock, on this disk."""
    with contextlib.suppress(OSError):
        return job.encode() in path.read_bytes()
    return False


def _require_stranger(path: pathlib.Path, job: str) -> None:
    """Raises `Fellow` if who holds the lock is of this job, and perhaps about to say so."""
    deadline = time.monotonic() + SAYING * (jax.process_count() > 1)
    while not _is_of(path, job):
        if time.monotonic() >= deadline:
            return
        time.sleep(0.05)
    raise Fellow


def _refusal(path: pathlib.Path) -> str:
    """The line for whoever comes second."""
    content = b""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
    return _in_use(path.parent, bucket_lock.named(content))


def _in_use(folder: object, holder: str) -> str:
    return f"{folder} is in use by {holder}; wait for it, stop it, or use another --workdir"
