"""Folders in buckets (`gs://...`, `s3://...`), copied once to the disk where they are read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

from data.builder import default_folder, warn_once
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

    A copy whose files have other names or sizes than those in the bucket is made again. One that
    cannot be compared, as the bucket cannot be reached now, is read with a warning.

    Raises:
      ValueError: the library for this kind of bucket is not installed, or none is known.
      FileNotFoundError: the bucket has no such folder.
      OSError: it cannot be reached.
    """
    url = os.fspath(place).rstrip("/")
    target = default_folder() / "buckets" / hashlib.sha256(url.encode()).hexdigest()[:32]
    copy = target / name
    try:
        files, source, sizes = _listed(url, name)
    except (ValueError, OSError) as error:
        if not copy.is_dir():
            raise
        warn_once(f"{first_line(error)}; its copy in {copy} is read")
        return target
    if not copy.is_dir() or sizes != _sizes(copy):
        try:
            _fetch(files, source, list(sizes), copy)
        except Exception as error:  # each library has its own
            line = f"data.data_dir={url} cannot be copied to {copy}: {first_line(error)}"
            raise OSError(line) from error
    return target


def _listed(url: str, name: str) -> tuple[Any, str, dict[str, int]]:
    """The file system of a bucket, the folder there, and the sizes of its files by their names."""
    files, root = _filesystem(url)
    source = f"{root}/{name}"
    try:
        present = files.isdir(source)
        entries = files.find(source, detail=True) if present else {}
        sizes = {
            path.removeprefix(source).lstrip("/"): int(entry["size"])
            for path, entry in entries.items()
        }
    except Exception as error:  # each library has its own
        line = f"data.data_dir={url} cannot be reached: {first_line(error)}"
        raise OSError(line) from error
    if not present:
        raise FileNotFoundError(f"data.data_dir={url} has no folder {name}")
    return files, source, sizes


def _sizes(folder: pathlib.Path) -> dict[str, int]:
    """The sizes of the files below a folder, by their names."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _fetch(files: Any, source: str, names: list[str], copy: pathlib.Path) -> None:
    """Copies the files below `source`, whole or not at all, in place of an older copy."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = pathlib.Path(tempfile.mkdtemp(dir=copy.parent, suffix=".part"))
    try:
        for name in names:
            file = part / "new" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{source}/{name}", str(file))
        with contextlib.suppress(FileNotFoundError):  # none was there
            os.replace(copy, part / "old")
        try:
            os.replace(part / "new", copy)
        except OSError:  # another process was faster
            if not copy.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # no library, or no such protocol
        raise ValueError(
            f"data.data_dir={url}: the library for {url.partition('://')[0]}:// is not here "
            f"({first_line(error)})"
        ) from error
    return files, str(root).rstrip("/")
