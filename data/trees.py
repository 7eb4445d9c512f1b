"""Files of images by name: below a folder, or in a zip file of one, which is read alike."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from data import index
from data.builder import default_folder, digest
from data.images import SUFFIXES, Content, File, first_line, opened, shown
from data.listing import state_of
from data.zip_file import ZipFile, is_zip

HIDDEN, LINKED = "hidden", "linked folders read already"  # beside the endings of other files
HIDDEN_FOLDERS, OUTSIDE = "hidden folders", "names that lead out of the zip file"
BESIDE = "images beside the splits"
Counts = collections.Counter[str]
BROKEN = "broken links"
_HIDDEN_FOLDER = re.compile(r"(?:[^./][^/]*/)*\.[^/]*(?=/)")
LABELS = "dataset.json"  # of the zip files that StyleGAN's and EDM's tools write


class Tree(Protocol):
    """Files by their names, relative and with slashes.

    Attributes:
      states: what changes when the list of files does, by paths below the place (`data.listing`).
    """

    states: dict[str, str]

    def folders(self) -> list[str]:
        """The names of the folders at the top, hidden ones left out."""

    def images(self, below: str, passed_over: Counts) -> list[str]:
        """The names, relative to the folder `below` ("": the top), of all images in it.

        Args:
          passed_over: to which other files are added.
        """

    def file(self, name: str) -> File:
        """A file, to be read; ValueError if it is damaged."""

    def stamp(self, name: str) -> bytes:
        """What changes when the file does, as far as that is known without reading it."""

    def size(self, name: str) -> int:
        """The bytes in a file."""

    def top(self) -> list[str]:
        """The names of the files at the top."""

    def __contains__(self, name: str) -> bool:
        """Whether there is a file at the top of this name."""


def tree(place: pathlib.Path, what: str) -> Tree:
    """The files in a folder or in a zip file.

    Args:
      what: which data set asks for it.

    Raises:
      ValueError: what is there cannot be read.
      FileNotFoundError: nothing is.
    """
    if is_zip(place):
        if not place.is_file():
            raise FileNotFoundError(f"data set {what}: there is no {shown(place)}")
        return ZipTree(place)
    if place.exists() and not place.is_dir():
        raise ValueError(f"data set {what}: {shown(place)} is neither a folder nor a zip file")
    if not place.is_dir():
        raise FileNotFoundError(f"data set {what}: there is no folder {shown(place)}")
    return FolderTree(place)


class FolderTree:
    """The files below a folder.

    Attributes:
      states: of the folders that were read, before they were, by their paths below it.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.states = {name: state_of(str(folder / name)) for name in ("", LABELS)}

    def folders(self) -> list[str]:
        names = sorted(entry.name for entry in _entries(self.folder) if os.path.isdir(entry.path))
        return [name for name in names if not name.startswith(".")]

    def images(self, below: str, passed_over: Counts) -> list[str]:
        states: dict[str, str] = {}
        names = names_of(self.folder / below if below else self.folder, passed_over, states)
        earlier = {"/".join(filter(None, (below, p))): state for p, state in states.items()}
        self.states = earlier | self.states
        return names

    def file(self, name: str) -> pathlib.Path:
        return self.folder / name

    def stamp(self, name: str) -> bytes:
        status = os.stat(self.folder / name)
        return os.fsencode(f"{name} {status.st_size} {status.st_mtime_ns}")

    def size(self, name: str) -> int:
        return (self.folder / name).stat().st_size

    def top(self) -> list[str]:
        return [entry.name for entry in _entries(self.folder) if not os.path.isdir(entry.path)]

    def __contains__(self, name: str) -> bool:
        return (self.folder / name).is_file()


class ZipTree:
    """The files in a zip file, under the names that they have when it is unpacked.

    A folder that holds everything is left out of the names where it is called as the zip file is:
    `photos.zip` with `photos/cats/1.png` is read as the folder `photos`.

    Attributes:
      states: that of the file.
    """

    def __init__(self, path: pathlib.Path):
        indices, self._top = default_folder() / "index", f"{portable(path.stem)}/"
        self.states = {"": state_of(str(path))}
        self.archive = ZipFile(path, indices)
        below = index.cached(indices, path, f"zip below {self._top}", self._is_below)
        self._below = bool(below)
        self._table = index.cached(indices, path, f"zip table {self._top}", self._sorted)

    def _is_below(self) -> np.ndarray:
        """Whether the one folder that holds everything has the name of the file."""
        names = map(_normal, self.archive.names)
        kept = [portable(name).startswith(self._top) for name in names if not _hidden(name)]
        return np.array(bool(kept) and all(kept))

    def _sorted(self) -> np.ndarray:
        """The names' hashes in their order, and the row of each, uint64 [2, n]."""
        hashes = np.array([_hash(name) for name in self._names()], np.uint64)
        order = np.argsort(hashes, kind="stable")
        return np.stack([hashes[order], order.astype(np.uint64)])

    def _name(self, row: int) -> str:
        name = _normal(self.archive.names[row])
        return portable(name).removeprefix(self._top) if self._below else name

    def _names(self) -> Iterator[str]:
        return map(self._name, range(len(self.archive)))

    def _row(self, name: str) -> int:
        """The last member of this name; KeyError: none has it."""
        key = np.uint64(_hash(name))
        first, last = (
            int(np.searchsorted(self._table[0], key, side)) for side in ("left", "right")
        )
        for place in reversed(range(first, last)):
            row = int(self._table[1, place])
            if self._name(row) == name:
                return row
        raise KeyError(name)

    def folders(self) -> list[str]:
        firsts = {name.partition("/")[0] for name in self._names() if "/" in name}
        return sorted(name for name in firsts if not name.startswith("."))

    def images(self, below: str, passed_over: Counts) -> list[str]:
        names = []
        prefix, hidden = f"{below}/" if below else "", set()
        for full in dict.fromkeys(self._names()):
            name = full.removeprefix(prefix)
            if full.startswith(prefix):
                kind = _kind(name)
                if kind == HIDDEN_FOLDERS:
                    hidden.add(_HIDDEN_FOLDER.match(name)[0])  # type: ignore[index]
                elif kind:
                    passed_over[kind] += 1
                else:
                    names.append(name)
        if hidden:
            passed_over[HIDDEN_FOLDERS] += len(hidden)
        return names

    def file(self, name: str) -> Content:
        row = self._row(name)
        return Content(f"{self.archive.path}: {name}", self.archive.read(row))

    def stamp(self, name: str) -> bytes:
        return self.archive.stamp(self._row(name))

    def size(self, name: str) -> int:
        return self.archive.size(self._row(name))

    def top(self) -> list[str]:
        return [name for name in dict.fromkeys(self._names()) if "/" not in name]

    def __contains__(self, name: str) -> bool:
        try:
            return self._row(name) >= 0
        except KeyError:
            return False


def beside_splits(names: Iterable[str]) -> Counts:
    """How many files of these names, which are in no split, there are, by ending or reason."""
    return collections.Counter(_kind(name) or BESIDE for name in names)


def stated_labels(files: Tree) -> dict[str, str] | None:
    """The labels in `dataset.json`, by the images' names; None without such a file.

    StyleGAN's and EDM's tools write {"labels": [["00000/img00000000.png", 6], ...]}, or null for
    images without labels: these have one in common. A file of another tool, without "labels", is
    none.

    Raises:
      ValueError: no JSON; labels that are no whole numbers, or are negative; two of one image.
    """
    if LABELS not in files:
        return None
    file = files.file(LABELS)
    try:
        with opened(file) as stream:
            content = json.load(stream)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{shown(file)}, which would state labels, is no JSON ({first_line(error)}); write it "
            "again, or remove it: sub-folders are labels then"
        ) from error
    if not isinstance(content, dict) or "labels" not in content:
        return None
    labels: dict[str, str] = collections.defaultdict(str)
    pairs = content["labels"] or []
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise ValueError(f"{shown(file)}: 'labels' is no list of pairs [name, label]")
    for name, label in pairs:
        if type(label) is not int or not 0 <= label < 2**31:
            raise ValueError(
                f"{shown(file)}: the label of {shown(str(name))} is {str(label)[:40]}; labels are "
                "whole numbers from 0 to 2147483647"
            )
        text = f"{label:010}"
        if labels.setdefault(portable(str(name)), text) != text:
            raise ValueError(f"{shown(file)} has two labels for {shown(str(name))}")
    return labels


def _normal(name: str) -> str:
    """The name of a zip file's member without empty parts, and those that lead up and down."""
    return os.path.normpath(name).replace(os.sep, "/")


def _hash(name: str) -> int:
    return int.from_bytes(digest(name)[:8], "little")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _kind(name: str) -> str:
    """What a file that is no image counts as among those passed over; "" for an image's name."""
    if name.partition("/")[0] == "..":
        return OUTSIDE
    if _hidden(name):
        return HIDDEN_FOLDERS if _HIDDEN_FOLDER.match(name) else HIDDEN
    suffix = os.path.splitext(name)[1].lower()
    return "" if suffix in SUFFIXES else suffix or "without ending"


def _entries(folder: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return iter(list(entries))
    except OSError as error:
        raise ValueError(f"{shown(folder)} cannot be read: {error.strerror}") from error


def names_of(folder: pathlib.Path, passed_over: Counts, states: dict[str, str]) -> list[str]:
    """The image files below `folder`, relative to it, with slashes.

    Links to folders are followed once everything else is read, in order of their names, unless they
    lead to a folder that was read already, or to one that `folder` itself is in.

    Args:
      passed_over: to which other files are added.
      states: to which those of the folders are, before they are read, and of broken links.
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
        states[parent] = state_of(path)
        for entry in _entries(path):
            name = f"{parent}/{entry.name}" if parent else entry.name
            link = entry.is_symlink()
            is_folder = os.path.isdir(entry.path) if link else entry.is_dir()
            if is_folder:
                if entry.name.startswith("."):
                    passed_over[HIDDEN_FOLDERS] += 1
                else:
                    (links if link else folders).append(name)
            elif entry.name.startswith("."):
                passed_over[HIDDEN] += 1
            elif not (os.path.isfile(entry.path) if link else entry.is_file()):
                passed_over[BROKEN if link else "pipes and the like"] += 1
                if link:
                    states[name] = state_of(entry.path)  # of nothing, until it is there
            elif (suffix := os.path.splitext(entry.name)[1].lower()) in SUFFIXES:
                names.append(name)
            else:
                passed_over[suffix or "without ending"] += 1
    return names


def portable(name: str) -> str:
    """A file's name whichever way its file system composes letters (Unicode's form NFC)."""
    return unicodedata.normalize("NFC", name)
