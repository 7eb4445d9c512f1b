"""Images in any folder of the user's, with its sub-folders as labels."""

from __future__ import annotations

import collections
import functools
import os
import pathlib
import unicodedata
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from data.builder import digest
from data.images import SUFFIXES, read_image, shown
from data.pictures import Pictures, Request

TEST_SHARE = 0.1
VALIDATION = ("val", "valid", "validation")  # what a test split is called where none has that name
HIDDEN, LINKED = "hidden", "linked folders read already"  # beside the endings of other files


class ImageFolder(Pictures):
    """One split of a folder.

    The splits are the sub-folders `train` and `test` (or one of `VALIDATION`), in any case, where
    both are there; else the tenth (at least one) of all images whose names have the smallest hashes
    is for testing. An image's label is the number of the sub-folder that it is in, at any depth,
    among all in order of their names; images outside of sub-folders have one of their own, the
    first. Examples are in the order of a hash of their names below the folder, which mixes labels,
    and is the same on every file system. Links are followed, to each folder once. `summary` counts
    what was read, and what was passed over: hidden files, and files of other kinds.

    Raises:
      ValueError: a folder without images for both splits, or a number out of range.
      FileNotFoundError: no such folder.
    """

    name = "folder"

    def __init__(self, request: Request):
        if not request.folder:
            raise ValueError("data set folder: name the folder with --config.data.data_dir")
        self.image_shape = request.shape(self.name, "positive", fits=True, channels=(1, 3))
        self.folder = request.place(self.name)
        self.source = str(self.folder.resolve())
        contents = listed(self.folder)
        labels = dict(item for names in contents.splits.values() for item in names.items())
        for name in self.SPLITS:
            if not contents.splits[name]:
                raise ValueError(
                    f"{shown(self.folder)} has no images for the split {name!r}: it holds "
                    f"{contents.counted(labels)}; a data set has two images or more"
                )
        classes = sorted(set(labels.values()))
        self.num_classes = len(classes)
        self.names = sorted(contents.splits[request.split], key=lambda name: digest(portable(name)))
        self.labels = np.array([classes.index(labels[name]) for name in self.names], np.int32)
        self.transform = f"shorter side to {request.image_size} by Lanczos, longer one cut"
        self.summary = f"data.data_dir={shown(self.folder)}: {contents.counted(labels)}"
        self._warned: dict[str, str] = {}

    def image(self, row: int) -> np.ndarray:
        return read_image(self.folder / self.names[row], self.image_shape, self._warn)

    def stamp(self, row: int) -> bytes:
        """The file's name, size and time of change."""
        status = os.stat(self.folder / self.names[row])
        return os.fsencode(f"{self.names[row]} {status.st_size} {status.st_mtime_ns}")

    def _warn(self, kind: str, line: str) -> None:
        """Warns of the first file with a kind of flaw."""
        if self._warned.setdefault(kind, line) is line:
            logging.warning("%s; of others like it nothing is said", line)

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the files' names and sizes, labels and the images' shape; reads no image."""
        sizes = [(self.folder / name).stat().st_size for name in self.names]
        content = list(zip(map(portable, self.names), sizes, self.labels.tolist(), strict=True))
        return zlib.crc32(repr((self.image_shape, content)).encode())


class Contents(NamedTuple):
    """The images of a folder, and what else is in it.

    Attributes:
      splits: by split, the images' names below the folder, with the names of their labels.
      passed_over: how many files were, by ending or reason.
      notes: what else a user should know, a clause each.
    """

    splits: dict[str, dict[str, str]]
    passed_over: collections.Counter[str]
    notes: tuple[str, ...] = ()

    def counted(self, labels: dict[str, str]) -> str:
        """How many images, classes and other files there are, in one line."""
        images = ", ".join(f"{len(names)} {split}" for split, names in self.splits.items())
        kinds = ", ".join(f"{shown(kind)} {n}" for kind, n in self.passed_over.most_common(12))
        more = ", ..." if len(self.passed_over) > 12 else ""
        parts = [
            f"{_number(len(labels), 'image')} ({images})",
            _number(len(set(labels.values())), "class", "classes"),
            _number(self.passed_over.total(), "file")
            + " passed over"
            + (f" ({kinds}{more})" if kinds else ""),
            *self.notes,
        ]
        return ", ".join(parts)


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def listed(folder: pathlib.Path) -> Contents:
    """What a folder holds.

    Raises:
      ValueError: a folder that cannot be read, or one of `train` and `test` without the other.
      FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"data set folder: there is no folder {shown(folder)}")
    passed_over: collections.Counter[str] = collections.Counter()
    folders, notes = split_folders(folder)
    if folders:
        splits = {
            split: {f"{sub}/{name}": label_of(name) for name in names_of(folder / sub, passed_over)}
            for split, sub in folders.items()
        }
        return Contents(splits, passed_over, notes)
    names = sorted(names_of(folder, passed_over), key=lambda name: digest(portable(name)))
    count = max(1, int(TEST_SHARE * len(names)))
    shares = {"train": names[count:], "test": names[:count]}
    splits = {split: {name: label_of(name) for name in share} for split, share in shares.items()}
    return Contents(splits, passed_over)


def split_folders(folder: pathlib.Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The sub-folders of the splits, none or both, and notes about them.

    Raises:
      ValueError: a split without the other, or with two sub-folders.
    """
    names = sorted(entry.name for entry in _entries(folder) if os.path.isdir(entry.path))
    names = [name for name in names if not name.startswith(".")]
    spellings = {
        split: [name for name in names if name.lower() in known]
        for split, known in (("train", ("train",)), ("test", ("test",)), ("val", VALIDATION))
    }
    train, test, validation = spellings.values()
    if not train and not test:
        return {}, ()
    tests = test or (validation if train else [])
    if len(train) != 1 or len(tests) != 1:
        present = [*train, *test, *validation]
        others = [name for name in names if name not in present]
        raise ValueError(
            f"{shown(folder)} has {_sub_folders(present)}, but must have train and test (or val), "
            "one of each, or neither: then a tenth of the images is for testing"
            + (f"; beside it are {', '.join(map(shown, others[:8]))}" if others else "")
        )
    notes = [] if test else [f"{tests[0]}/ is the split test"]
    others = [name for name in names if name not in (train[0], tests[0])]
    if others:
        notes.append(f"{_sub_folders(others)} beside the splits passed over")
    return {"train": train[0], "test": tests[0]}, tuple(notes)


def _sub_folders(names: Sequence[str]) -> str:
    shortened = [*map(shown, names[:8]), *(["..."] if len(names) > 8 else [])]
    return f"{'a sub-folder' if len(names) == 1 else 'sub-folders'} {', '.join(shortened)}"


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ValueError(f"{shown(folder)} cannot be read: {error.strerror}") from error


def names_of(folder: pathlib.Path, passed_over: collections.Counter[str]) -> list[str]:
    """The image files below `folder`, relative to it, with slashes.

    Links to folders are followed once everything else is read, in order of their names, unless they
    lead to a folder that was read already, or to one that `folder` itself is in.

    Args:
      passed_over: to which other files are added.
    """
    names: list[str] = []
    root = os.path.realpath(folder)
    seen = {root, *map(str, pathlib.Path(root).parents)}
    folders, links = [""], list[str]()
    while folders or links:
        if folders:
            parent = folders.pop()
        else:
            links.sort(key=portable, reverse=True)
            parent = links.pop()
        path = os.path.join(folder, parent)
        if parent:
            place = os.path.realpath(path)
            if place in seen:
                passed_over[LINKED] += 1
                continue
            seen.add(place)
        for entry in _entries(path):
            name = f"{parent}/{entry.name}" if parent else entry.name
            link = entry.is_symlink()
            is_folder = os.path.isdir(entry.path) if link else entry.is_dir()
            if is_folder:
                if not entry.name.startswith("."):
                    (links if link else folders).append(name)
            elif entry.name.startswith("."):
                passed_over[HIDDEN] += 1
            elif not (os.path.isfile(entry.path) if link else entry.is_file()):
                passed_over["broken links" if link else "pipes and the like"] += 1
            elif (suffix := os.path.splitext(entry.name)[1].lower()) in SUFFIXES:
                names.append(name)
            else:
                passed_over[suffix or "without ending"] += 1
    return names


def label_of(name: str) -> str:
    """The first folder of a relative name, as it sorts everywhere; "" if there is none."""
    first, slash, _ = portable(name).partition("/")
    return first if slash else ""


def portable(name: str) -> str:
    """A file's name whichever way its file system composes letters (Unicode's form NFC)."""
    return unicodedata.normalize("NFC", name)
