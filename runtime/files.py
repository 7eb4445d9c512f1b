"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np

Path = str | os.PathLike[str]


@contextlib.contextmanager
def whole(path: Path) -> Iterator[pathlib.Path]:
    """A path beside `path` to write a file or a folder to, which takes the name `path` at the end.

    Its folder is made if need be. Whatever stands at `path` is replaced in one move, or where an
    error ends the block, left as it was.
    """
    target = with_parent(path)
    writer = f"{socket.gethostname()}.{os.getpid()}"  # machines may share a disk, and a number
    temporary = target.with_name(f".{target.stem}.{writer}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(target)  # a full disk names no file by itself
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all; NumPy arrays and numbers are allowed."""
    text = json.dumps(value, indent=2, default=lambda array: np.asarray(array).tolist())
    write_text(path, f"{text}\n")


def with_parent(path: Path) -> pathlib.Path:
    """The path, whose folder is made if need be."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
