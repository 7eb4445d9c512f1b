"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from runtime import buckets

Path = str | os.PathLike[str] | buckets.BucketPath


def as_path(text: Path, what: str = "path") -> pathlib.Path:
    """The path that a text means: a local one, or by a URL one in a bucket.

    That is a `buckets.BucketPath`. It says here that it is a pathlib.Path, of which it has the
    methods that a run needs.

    Args:
      what: the flag or the config's field that says it.

    Raises:
      ValueError, OSError: a URL that means neither, see `buckets.located`.
    """
    if isinstance(text, buckets.BucketPath):
        return cast(pathlib.Path, text)
    if not isinstance(text, str) or not buckets.is_url(text):
        return pathlib.Path(text)
    if text.lower().startswith("file://"):
        place = urllib.parse.urlsplit(text)
        if place.netloc not in ("", "localhost") or not place.path:
            raise ValueError(f"{what}={text}: it names another machine; file:///folder does not")
        return pathlib.Path(urllib.parse.unquote(place.path))
    return cast(pathlib.Path, buckets.located(text, what))


def in_bucket(path: object) -> buckets.BucketPath | None:
    """The path, if it is one in a bucket."""
    return path if isinstance(path, buckets.BucketPath) else None


def refuse_url(text: str | os.PathLike[str] | None, what: str, advice: str) -> None:
    """Raises ValueError if a place that has to be on this machine's disk is a URL."""
    if text is not None and buckets.is_url(str(text)):
        raise ValueError(f"{what}={text}: a path on this machine is needed; {advice}")


def sha256(path: pathlib.Path) -> str:
    """The file's SHA-256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole(path: Path) -> Iterator[pathlib.Path]:
    """A path beside `path` to write a file or a folder to, which takes the name `path` at the end.

    Its folder is made if need be. Whatever stands at `path` is replaced in one move, or where an
    error ends the block, left as it was. What a process of this machine that was killed had written
    of `path` is removed. For a file in a bucket, it is a path in a folder of its own on this disk.
    """
    if bucket_path := in_bucket(path):
        with tempfile.TemporaryDirectory(prefix="score-sde-") as folder:
            temporary = pathlib.Path(folder, bucket_path.name)
            yield temporary
            bucket_path.put(temporary)
        return
    target = with_parent(path)
    host = socket.gethostname()  # machines may share a disk, and a number
    temporary = target.with_name(f".{target.stem}.{host}.{os.getpid()}{target.suffix}")
    try:
        for left in (temporary, *_unfinished(target.parent.absolute(), host).pop(target.name, ())):
            _remove(left)
        yield temporary
        os.replace(temporary, target)
    except BaseException as error:
        if isinstance(error, OSError):
            _blame(error, target, temporary)
        with contextlib.suppress(OSError):  # on a read-only disk there is nothing to remove
            _remove(temporary)
        raise


def _blame(error: OSError, target: pathlib.Path, temporary: pathlib.Path) -> None:
    """Lets an error that arose on the way to `target` name it, in place of what stood for it.

    A full disk names no file by itself.
    """
    path = pathlib.Path(temporary if error.filename is None else str(error.filename))
    if error.errno is not None and path.is_relative_to(temporary):
        error.filename, error.filename2 = str(target), None
        error.strerror = f"it cannot be written ({error.strerror})"


def contains(folder: pathlib.Path, path: pathlib.Path) -> bool:
    """True if the path, where links lead, is in the folder or is it."""
    return path.resolve().is_relative_to(folder.resolve())


def is_running(process: int) -> bool:
    """True if there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


@functools.cache
def _unfinished(folder: pathlib.Path, host: str) -> dict[str, list[pathlib.Path]]:
    """The files in a folder that processes of this machine did not finish before they were killed,
    by the name that each should have got. They are looked for once: a folder may be large."""
    pattern = re.compile(rf"\.(.*)\.{re.escape(host)}\.(\d+)(\.[^.]*)?")
    names: dict[str, list[pathlib.Path]] = {}
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not is_running(int(match[2])):
            names.setdefault(f"{match[1]}{match[3] or ''}", []).append(path)
    return names


def _remove(path: pathlib.Path) -> None:
    """Removes a file, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Appends text in UTF-8 to a file; one in a bucket is written anew, with the text at its
    end."""
    if bucket_path := in_bucket(path):
        before = bucket_path.read_bytes() if bucket_path.is_file() else b""
        bucket_path.write_bytes(before + text.encode())
    else:
        with as_path(path).open("a", encoding="utf-8") as file:
            file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all; NumPy arrays and numbers are allowed."""
    text = json.dumps(value, indent=2, default=lambda array: np.asarray(array).tolist())
    write_text(path, f"{text}\n")


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The object in a file of JSON.

    Args:
      advice: what is to be done where the file is damaged, such as "remove it, and ...".

    Raises:
      FileNotFoundError: no such file.
      ValueError: it holds no JSON, or no object; names the file, and gives the advice.
    """
    path = as_path(path)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error}); {advice}") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"{path} is damaged: its JSON is no object, but a {kind}; {advice}")
    return value


def with_parent(path: Path) -> pathlib.Path:
    """The path, whose folder is made if need be."""
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def filled(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A local folder to write many files to: `folder` itself, or where that is in a bucket, one
    whose files are copied there together when the block ends."""
    bucket_folder = in_bucket(folder)
    if bucket_folder is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="score-sde-") as temporary:
        place = pathlib.Path(temporary)
        yield place
        bucket_folder.put_all(place, sorted(path.name for path in place.iterdir()))


def remove_folder(folder: pathlib.Path) -> None:
    """Removes a folder with all that is in it, as far as it can be."""
    if bucket_folder := in_bucket(folder):
        bucket_folder.rmtree()
    else:
        shutil.rmtree(folder, ignore_errors=True)
