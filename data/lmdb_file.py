"""LMDB environments of encoded pictures, as LSUN publishes them: `<category>_<split>_lmdb/`.

An entry's key is the 40 hexadecimal digits of a hash, its value a WebP file. Entries are in the
order of their keys.

F. Yu et al., LSUN: Construction of a Large-scale Image Dataset using Deep Learning with Humans in
the Loop, arXiv:1506.03365.
"""

from __future__ import annotations

import os
import pathlib
import weakref
from typing import ClassVar

import lmdb
import numpy as np

from data import index

MAP_SIZE = 1 << 42  # bytes of address space; the file may have no more


class _Environment:
    """An environment, opened once in a process for all who read it at a time, as LMDB wants it."""

    _all: ClassVar[weakref.WeakValueDictionary[pathlib.Path, _Environment]] = (
        weakref.WeakValueDictionary()
    )

    def __init__(self, folder: pathlib.Path):
        self.environment = lmdb.open(
            str(folder), readonly=True, lock=False, readahead=False, map_size=MAP_SIZE
        )

    @classmethod
    def of(cls, folder: pathlib.Path) -> _Environment:
        place = folder.resolve()
        opened = cls._all.get(place)
        if opened is None:
            opened = cls._all[place] = cls(place)
        return opened


class LmdbFile:
    """The values of an environment by their number in the order of the keys.

    Args:
      folder: with data.mdb in it.
      index_folder: where the list of keys is kept, see `index.cached`.

    Raises:
      FileNotFoundError: there is no data.mdb.
      ValueError: it is no LMDB, it is damaged, has no entries, or keys of different lengths.
    """

    def __init__(self, folder: str | os.PathLike[str], index_folder: pathlib.Path):
        self.folder = pathlib.Path(folder)
        data = self.folder / "data.mdb"
        if not data.is_file():
            raise FileNotFoundError(f"{self.folder} has no data.mdb; an LMDB is a folder with one")
        try:
            self._opened = _Environment.of(self.folder)
            self._environment = self._opened.environment
            self._refuse_cut(data)
            self.keys = index.cached(index_folder, data, "lmdb", self._list_keys)
        except lmdb.Error as error:
            raise ValueError(f"{data} is no LMDB, or is damaged: {error}") from error
        self._data, self._size = data, data.stat().st_size
        self._transaction = self._environment.begin(buffers=False)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> bytes:
        """Raises ValueError if the entry cannot be read."""
        if os.path.exists(self._data) and os.path.getsize(self._data) < self._size:
            raise ValueError(  # LMDB has it in memory, where to read on would end the process
                f"{self._data} was cut off while it was read: it had {self._size} bytes, and has "
                f"{os.path.getsize(self._data)}"
            )
        try:
            value = self._transaction.get(self.keys[row].tobytes())
        except lmdb.Error as error:
            raise ValueError(f"{self.folder}: entry {row} is damaged: {error}") from error
        if value is None:
            raise ValueError(f"{self.folder}: there is no entry {row} any more; remove its index")
        content: bytes = value
        return content

    def _refuse_cut(self, data: pathlib.Path) -> None:
        """Refuses a file that ends before its last page: to read on there ends the process."""
        pages = self._environment.info()["last_pgno"] + 1
        expected, size = pages * self._environment.stat()["psize"], data.stat().st_size
        if size < expected:
            raise ValueError(
                f"{data} is cut off: it has {size} bytes and should have {expected} or more; fetch "
                "it again"
            )

    def _list_keys(self) -> np.ndarray:
        """The keys in order, uint8 [n, length]."""
        content, count, lengths = bytearray(), 0, set()
        with self._environment.begin() as transaction:
            for key in transaction.cursor().iternext(keys=True, values=False):
                content += key
                count += 1
                lengths.add(len(key))
        if len(lengths) != 1:
            what = "has no entries" if not count else "has keys of different lengths"
            raise ValueError(f"{self.folder} {what}; LSUN's have 40 hexadecimal digits")
        return np.frombuffer(content, np.uint8).reshape(count, -1)
