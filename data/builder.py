"""The base of data sets of images: what their makers published, and how it is read.

TFDS's own builders of these sets read their files through TensorFlow. Those here parse the
official files with NumPy, and `preparation` writes array_record files of what they read, which are
read at random without TensorFlow.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from absl import logging

from configs import extras
from data.images import shown

Files = Mapping[str, pathlib.Path]


class ImageBuilder:
    """A labelled image data set: constants, the source of its files, and their parser.

    Its `name`, in configs and on disk, is the class's in snake case.

    Examples keep the order of the official files, so that example number i is the same image
    whether it is read from those files or from prepared array_record data.
    """

    name: ClassVar[str]
    VERSION: ClassVar[str] = "1.0.0"  # of what is prepared
    TFDS_NAME: ClassVar[str] = ""  # of TFDS's own builder, if it is another
    TFDS_VERSIONS: ClassVar[tuple[str, ...]] = ()  # versions of TFDS's own builder that can be read
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")

    IMAGE_SHAPE: ClassVar[tuple[int, int, int]]
    LEVELS: ClassVar[int] = 256
    NUM_CLASSES: ClassVar[int] = 10
    NAMES: ClassVar[tuple[str, ...]] = ()  # of the classes, in words; (): they have none
    URL: ClassVar[str] = ""
    CHECKSUMS: ClassVar[dict[str, tuple[int, str]]] = {}  # file name: (bytes, SHA-256)
    COUNTS: ClassVar[dict[str, int]] = {}  # examples of each split, where files can lack some
    FOLDERS: ClassVar[tuple[str, ...]] = ()  # where a distribution's package puts the files

    @classmethod
    def find(cls, folder: pathlib.Path) -> Files | None:
        """The official files in `folder`, or None if none of them is there.

        Raises:
          FileNotFoundError: some of the files are there and others are not.
        """
        files = {name: folder / name for name in cls.CHECKSUMS if (folder / name).is_file()}
        if files and len(files) < len(cls.CHECKSUMS):
            missing = ", ".join(sorted(set(cls.CHECKSUMS) - set(files)))
            raise FileNotFoundError(f"{cls.name}: {folder} lacks {missing}")
        return files or None

    @classmethod
    def root(cls, data_dir: str | os.PathLike[str]) -> pathlib.Path:
        """The folder that a user names, or the one of a file that is named instead.

        Raises:
          ValueError: a file that is none of the set's.
        """
        place = expanded(data_dir, "data.data_dir")
        if not place.is_file():
            return place
        files = cls.find(place.parent) or {}
        if place not in files.values():
            raise ValueError(
                f"data.data_dir={shown(place)} is a file, and none of those of {cls.name}; name "
                "the folder of its files"
            )
        return place.parent

    @classmethod
    def verify(cls, files: Files) -> None:
        """Refuses official files that are not what their makers published, before one is read.

        What was unpacked from them has no checksum: `read` compares the numbers of examples.

        Raises:
          ValueError: a file of another size or SHA-256; names it.
        """
        for name, path in files.items():
            if name not in cls.CHECKSUMS or path.name != name:
                continue
            size, sha256 = cls.CHECKSUMS[name]
            if path.stat().st_size != size:
                raise ValueError(
                    f"{shown(path)}: damaged or another file, it has {path.stat().st_size} bytes; "
                    f"{cls.name}'s has {size}"
                )
            with path.open("rb") as file:
                stored = hashlib.file_digest(file, "sha256").hexdigest()
            if stored != sha256:
                raise ValueError(
                    f"{shown(path)}: damaged or another file, its SHA-256 is {stored}; "
                    f"{cls.name}'s is {sha256}"
                )

    @classmethod
    def read(cls, files: Files, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, H, W, C] with values in 0..LEVELS-1, and labels int32 [n], of one split.

        Raises:
          ValueError: a damaged file, in one line.
        """
        raise NotImplementedError

    @classmethod
    def located(cls, folder: pathlib.Path) -> Files:
        """The files of a set that is not downloaded, from `folder` or from where a package put
        them; none, of a set that needs none.

        Raises:
          FileNotFoundError: one of them is in neither place; says what to do.
        """
        del folder
        return {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def names(cls, data_dir: str) -> tuple[str, ...]:
        """The names of the classes, in words: `NAMES`, unless a file of the set has them.

        Raises:
          FileNotFoundError: there is no such file in `data_dir`, nor in its usual place.
        """
        del data_dir
        return cls.NAMES

    @classmethod
    def require_tfds(cls) -> None:
        """Refuses to prepare, or to read what is prepared, where TFDS is not installed."""
        otherwise = cls.or_folder(*cls.CHECKSUMS) if cls.CHECKSUMS else ""
        tfds = {"tensorflow_datasets": "tensorflow-datasets"}
        extras.require(f"data set {cls.name}", "data", otherwise, **tfds)

    @staticmethod
    def or_folder(*files: str) -> str:
        """The end of an error's line: a user who has the files may say where."""
        return f", or name the folder that holds {', '.join(files)} with --config.data.data_dir"

    @classmethod
    def unavailable(cls, error: Exception, folder: pathlib.Path) -> str:
        """An error's one line, with the files to fetch and the folder to put them in."""
        return (
            f"{cls.name} is not on this machine and could not be downloaded "
            f"({type(error).__name__}): fetch {', '.join(cls.CHECKSUMS)} from {cls.URL} into "
            f"{folder}{cls.or_folder('them')}"
        )


def default_folder() -> pathlib.Path:
    """The folder of prepared data and trained classifiers, unless the user names another.

    Raises:
      ValueError: that is a URL, or in nobody's home directory.
    """
    named = os.environ.get("SCORE_SDE_DATA")
    if named and "://" in named:
        raise ValueError(f"SCORE_SDE_DATA={shown(named)}: a folder on this machine is needed")
    return expanded(named or "~/.cache/score_sde/data", "SCORE_SDE_DATA")


def expanded(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """A path of the user's with a home directory for its `~`.

    Args:
      what: the config's field or the variable that says it.

    Raises:
      ValueError: nobody knows that home directory.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        user = shown(pathlib.Path(path).parts[0])
        raise ValueError(
            f"{what}={shown(path)}: nobody knows the home directory {user}; name the whole path"
        ) from error


@functools.cache
def warn_once(line: str) -> None:
    """Warns, if this was not said before."""
    logging.warning("%s", line)


def digest(text: str) -> bytes:
    """SHA-256 of a name's bytes: it orders and splits examples alike on every machine."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def reach(url: str, timeout: float = 10.0) -> None:
    """Raises OSError at once where `url`'s host cannot be reached: TFDS would retry for minutes.

    With a proxy in the environment the host need not be reachable directly, and nothing is tried.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.hostname and parts.scheme not in urllib.request.getproxies():
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), timeout).close()
