"""The list of images of a large folder or zip file, kept on disk: millions open without a walk.

Beside the prepared data, in `index/<hash of the place>/`, lie `folders.npy`, the states of all
folders that were read (or that of the zip file), and in `<hash of these>/` the names and labels of
both splits. A folder changes its state when an entry is added, removed or renamed; what is
rewritten in place does not, which is why the pixels that are kept have stamps of their own
(`data.decoded`).
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from data import index

MANY = 20_000  # images; fewer are listed as fast as looked for
RECENT = 2.0  # seconds; folders that changed just now may change again within the same tick
_CHUNK = 4096  # items of a list that are text at once
_FORMAT = 1  # to be raised whenever the same folder would be listed otherwise


class Names:
    """Texts in one array of bytes: those of three million files take a hundred megabytes.

    Args:
      content: their UTF-8, one after the other, uint8.
      ends: where each ends in it, int64 [n].
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray):
        self.content, self.ends = np.asarray(content), np.asarray(ends)

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """These names, in their order."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        end = int(self.ends[row])  # IndexError past the end
        begin = int(self.ends[row - 1]) if row % len(self.ends) else 0
        return self.content[begin:end].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


class Listing(NamedTuple):
    """The images of a folder.

    Attributes:
      names: of each split, in its order.
      labels: of each split, int32 [n].
      words: how many images, classes and other files there are.
    """

    names: dict[str, Names]
    labels: dict[str, np.ndarray]
    words: str

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, by the names of files."""
        parts = {"words": np.frombuffer(self.words.encode("utf-8", "surrogateescape"), np.uint8)}
        for split, names in self.names.items():
            parts |= {f"{split}_content": names.content, f"{split}_ends": names.ends}
            parts[f"{split}_labels"] = self.labels[split]
        return parts


class Kept:
    """What is kept of one folder's list.

    Args:
      index_folder: where indices are.
      folder: the images' own, or a zip file of them.
      what: tells lists of one folder apart that are made in other ways.
    """

    def __init__(self, index_folder: pathlib.Path, folder: pathlib.Path, what: str = ""):
        identity = f"list {_FORMAT} {folder.resolve()}{what and chr(0)}{what}"
        place = hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]
        self.place, self.folder = index_folder / place, folder
        self.version: pathlib.Path | None = None

    def listing(self, splits: Iterable[str]) -> Listing | None:
        """The list, if it is there and no folder changed since."""
        stored = index.load(self.place / "folders.npy")
        if stored is None:
            return None
        states = stored.tobytes()
        for entry in os.fsdecode(states).split("\0")[:-1]:
            state, _, path = entry.partition(" ")
            if state != state_of(os.path.join(self.folder, path) if path else str(self.folder)):
                return None
        version = self._version(states)
        kinds = [f"{split}_{part}" for split in splits for part in ("content", "ends", "labels")]
        parts = {kind: index.load(version / f"{kind}.npy") for kind in ("words", *kinds)}
        whole = {kind: part for kind, part in parts.items() if part is not None}
        if len(whole) < len(parts):
            return None
        self.version = version
        return Listing(
            {split: Names(whole[f"{split}_content"], whole[f"{split}_ends"]) for split in splits},
            {split: np.asarray(whole[f"{split}_labels"]) for split in splits},
            whole["words"].tobytes().decode("utf-8", "surrogateescape"),
        )

    def keep(self, listing: Listing, folders: Mapping[str, str]) -> None:
        """Writes the list, and removes an older one.

        Args:
          folders: the states, before they were read, of all folders by their paths below it.
        """
        if sum(map(len, listing.names.values())) < MANY:
            return
        changed = max(int(state.split(":")[1]) for state in folders.values()) / 1e9
        if time.time() - changed < RECENT:
            return
        entries = (f"{state} {path}\0" for path, state in folders.items())
        states = os.fsencode("".join(entries))
        self.version = self._version(states)
        for kind, part in listing.arrays().items():
            index.save(self.version / f"{kind}.npy", part)
        index.save(self.place / "folders.npy", np.frombuffer(states, np.uint8))
        for path in self.place.glob("*/"):
            if path.is_dir() and path != self.version:
                shutil.rmtree(path, ignore_errors=True)

    def checksum(self, of: str, make: Callable[[], int]) -> int:
        """A checksum of the list, or that of the list on disk where one is kept.

        Args:
          of: which one of several.
        """
        if self.version is None:
            return make()
        name = hashlib.sha256(of.encode()).hexdigest()[:32]
        stored = index.load(self.version / f"checksum_{name}.npy")
        if stored is None:
            stored = np.array([make()], np.int64)
            index.save(self.version / f"checksum_{name}.npy", stored)
        return int(stored[0])

    def _version(self, states: bytes) -> pathlib.Path:
        return self.place / hashlib.sha256(states).hexdigest()[:32]


def crc_of_list(before: str, content: Callable[[range], list[Any]], count: int, after: str) -> int:
    """The CRC of a list's text, made part by part: of millions it would fill the memory.

    Args:
      before, after: text around that of the items.
      content: the items of some rows.
      count: of all rows.
    """
    checksum = zlib.crc32(before.encode())
    for begin in range(0, count, _CHUNK):
        items = content(range(begin, min(begin + _CHUNK, count)))
        text = (", " if begin else "") + str(items)[1:-1]
        checksum = zlib.crc32(text.encode(), checksum)
    return zlib.crc32(after.encode(), checksum)


def state_of(path: str) -> str:
    """What changes when a folder's entries do, or a file; its time of change is second.

    It is zeros where there is none.
    """
    try:
        status = os.stat(path)
    except OSError:
        return "0:0:0"
    return f"{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"
