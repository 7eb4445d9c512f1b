"""Indices of large files on disk: what one pass over a file found, for every later start.

An index is an array beside the prepared data, `<folder of prepared data>/index/<hash>.npy`, whose
name is a hash of the file's place, size and time of change: another file has another index. It is
mapped into memory, so that an index of millions of entries opens at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np


def cached(
    folder: pathlib.Path, path: pathlib.Path, kind: str, make: Callable[[], np.ndarray]
) -> np.ndarray:
    """The index of the file at `path`, made by `make()` unless `folder` has it already.

    Where `folder` cannot be written to, the index is made anew each time.

    Args:
      kind: of the index; the same file has another one for every kind.
    """
    status = path.stat()
    identity = f"{kind} {path.resolve()} {status.st_size} {status.st_mtime_ns}"
    name = hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]
    target = folder / f"{name}.npy"
    index = load(target)
    if index is None:
        index = make()
        save(target, index)
    return index


def load(path: pathlib.Path) -> np.ndarray | None:
    """The array in a file, mapped into memory; None: it is not there, or damaged."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return None


def save(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an array, whole or not at all; not at all where nothing can be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                np.save(file, array, allow_pickle=False)
            except OSError:
                pathlib.Path(file.name).unlink()
                raise
        os.replace(file.name, path)
