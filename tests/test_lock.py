"""One writer of a folder: the second is told who the first is, and a dead one is nobody."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from runtime import errors, lock

ROOT = pathlib.Path(__file__).resolve().parent.parent

HOLDER = """
import pathlib, sys, time
from runtime import lock
with lock.held(pathlib.Path(sys.argv[1]), "--mode=train"):
    print("ready", flush=True)
    time.sleep(60)
"""


def acquire(folder: pathlib.Path) -> None:
    with lock.held(folder, "--mode=eval"):
        assert (folder / ".lock").exists()


def test_a_lock_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    acquire(tmp_path / "run" / "samples")
    assert not any(tmp_path.iterdir())
    with lock.held(tmp_path / "run", "--mode=train"):
        (tmp_path / "run" / "config.json").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_the_second_writer_is_told_of_the_first_and_follows_its_death(
    tmp_path: pathlib.Path,
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BlockingIOError) as refused:
            acquire(tmp_path)
        assert re.fullmatch(
            rf"{re.escape(str(tmp_path))} is in use by --mode=train \(process {holder.pid} on "
            rf"{re.escape(socket.gethostname())}, since 2\S+\); .*another --workdir",
            str(refused.value),
        )
        acquire(tmp_path / "eval")  # beside a running training
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / ".lock").exists()
    acquire(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_without_locks_of_the_file_system_its_age_tells(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with lock.held(tmp_path, "--mode=train"):
        os.utime(tmp_path / ".lock", (0, 0))
        while (tmp_path / ".lock").stat().st_mtime == 0:
            pass
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
            acquire(tmp_path)
    acquire(tmp_path)
    (tmp_path / ".lock").write_text("of a process that was killed")
    with pytest.raises(BlockingIOError, match="another program"):
        acquire(tmp_path)
    os.utime(tmp_path / ".lock", (0, 0))
    acquire(tmp_path)


def test_a_process_of_the_same_program_is_told_from_a_stranger(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SAYING", 0.2)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    path = tmp_path / ".lock"
    with lock._locked(tmp_path, "--mode=train", "a job"):
        content = path.read_bytes()
        with pytest.raises(lock.Fellow), lock._lock(tmp_path, "--mode=train", True, "a job"):
            pass
        path.write_bytes(b"")  # it is about to say so

        def say() -> None:
            time.sleep(0.1)
            path.write_bytes(content)

        thread = threading.Thread(target=say)
        thread.start()
        with pytest.raises(lock.Fellow), lock._lock(tmp_path, "--mode=train", True, "a job"):
            pass
        thread.join()
        with (
            pytest.raises(BlockingIOError, match=f"process {os.getpid()}"),
            lock._lock(tmp_path, "--mode=train", True, "another job"),
        ):
            pass
    assert not path.exists()


def test_a_folder_elsewhere_is_not_touched(tmp_path: pathlib.Path) -> None:
    with lock.inside(tmp_path / "run", "../other", "--mode=eval"):
        assert not any(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "samples"):
        with (
            pytest.raises(NotADirectoryError, match="file is a file; a folder is needed"),
            lock.held(folder, "a test"),
        ):
            pass


def test_a_folder_that_nobody_can_write_to_needs_no_lock_where_there_may_be_nothing_to_write(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: pathlib.Path, *_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", read_only)
    with lock.inside(tmp_path, ".", "--mode=sample", needed=False):
        assert not any(tmp_path.iterdir())
    with pytest.raises(OSError, match="Read-only") as refused:
        acquire(tmp_path)
    line = f"{tmp_path}: --mode=eval cannot write .lock there (Read-only file system)"
    assert errors.one_line(refused.value) == line
