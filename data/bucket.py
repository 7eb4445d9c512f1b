"""Folders in buckets (`gs://...`, `s3://...`), copied once to the disk where they are read."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

import fsspec
from absl import logging

from data.builder import default_folder
from data.images import first_line


def is_bucket(place: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL."""
    return "://" in os.fspath(place)


def local(place: str | os.PathLike[str], name: str) -> None:
    """Refuses a bucket for a data set that is read where it is.

    Raises:
      ValueError: it is one.
    """
    if is_bucket(place):
        raise ValueError(
            f"data.data_dir={os.fspath(place)}: data set {name} is read from a disk of this "
            "machine; copy it there, or prepare it by TFDS: tfds:<name> is read from buckets"
        )


def copied(place: str | os.PathLike[str], name: str) -> pathlib.Path:
    """The folder of prepared data with a copy of `<place>/<name>`, made unless it is there.

    It is made anew where files in the bucket have other sizes now.

    Raises:
      ValueError: the library for this kind of bucket is not installed, or none is known.
      FileNotFoundError: the bucket has no such folder.
      OSError: it cannot be reached.
    """
    url = os.fspath(place).rstrip("/")
    target = default_folder() / "buckets" / hashlib.sha256(url.encode()).hexdigest()[:32]
    copy = target / name
    files, root = _filesystem(url)
    source = f"{root}/{name}"
    absence: OSError | None = None
    try:
        there = _sizes(files, source)
        if not there:
            absence = FileNotFoundError(f"data.data_dir={url} has no folder {name}")
    except Exception as error:  # each library has its own
        absence = OSError(f"data.data_dir={url} cannot be reached: {first_line(error)}")
    if absence and copy.is_dir():
        logging.warning("%s; its copy in %s is read", absence, copy)
        return target
    if absence:
        raise absence
    if copy.is_dir():
        here = {
            path.relative_to(copy).as_posix(): path.stat().st_size
            for path in copy.rglob("*")
            if path.is_file()
        }
        if here == there:
            return target
        logging.warning("%s/%s has changed, and is copied anew to %s", url, name, copy)
        shutil.rmtree(copy)
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    part = pathlib.Path(tempfile.mkdtemp(dir=target, suffix=".part"))
    try:
        for path in there:
            file = part / path
            file.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{source}/{path}", str(file))
        try:
            os.replace(part, target / name)
        except OSError:  # another process was faster
            if not (target / name).is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _sizes(files: Any, source: str) -> dict[str, int]:
    """The bytes of all files below a folder of a bucket, by their names relative to it."""
    if not files.isdir(source):
        return {}
    found = files.find(source, detail=True)
    return {path.removeprefix(source).lstrip("/"): int(e["size"]) for path, e in found.items()}


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # no library, or no such protocol
        raise ValueError(
            f"data.data_dir={url}: the library for {url.partition('://')[0]}:// is not here "
            f"({first_line(error)})"
        ) from error
    return files, str(root).rstrip("/")
