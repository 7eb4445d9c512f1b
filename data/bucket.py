"""Folders in buckets (`gs://...`, `s3://...`), copied once to the disk where they are read."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

import fsspec

from data.builder import default_folder
from data.images import first_line, shown


def is_bucket(place: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL."""
    return "://" in os.fspath(place)


def refuse_bucket(place: str | os.PathLike[str], name: str) -> None:
    """Raises ValueError if a folder of the data set `name` is one in a bucket."""
    if is_bucket(place):
        raise ValueError(
            f"data.data_dir={shown(place)}: data set {name} is not read from a bucket, only what "
            "TFDS prepared is (data.dataset=tfds:<name>); copy it to this machine and name the "
            "folder there"
        )


def copied(place: str | os.PathLike[str], name: str) -> pathlib.Path:
    """The folder of prepared data with a copy of `<place>/<name>`, made unless it is there.

    Raises:
      ValueError: the library for this kind of bucket is not installed, or none is known.
      FileNotFoundError: the bucket has no such folder.
      OSError: it cannot be reached.
    """
    url = os.fspath(place).rstrip("/")
    target = default_folder() / "buckets" / hashlib.sha256(url.encode()).hexdigest()[:32]
    if (target / name).is_dir():
        return target
    files, root = _filesystem(url)
    source = f"{root}/{name}"
    try:
        present = files.isdir(source)
    except Exception as error:  # each library has its own
        line = f"data.data_dir={url} cannot be reached: {first_line(error)}"
        raise OSError(line) from error
    if not present:
        raise FileNotFoundError(f"data.data_dir={url} has no folder {name}")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    part = pathlib.Path(tempfile.mkdtemp(dir=target, suffix=".part"))
    try:
        for path in files.find(source):
            file = part / path.removeprefix(source).lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(file))
        try:
            os.replace(part, target / name)
        except OSError:  # another process was faster
            if not (target / name).is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # no library, or no such protocol
        raise ValueError(
            f"data.data_dir={url}: the library for {url.partition('://')[0]}:// is not here "
            f"({first_line(error)})"
        ) from error
    return files, str(root).rstrip("/")
