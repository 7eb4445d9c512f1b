"""Members of zip files, read at random by many threads at once and never unpacked to disk.

Zip files come from strangers: a member is read as far as its entry in the archive's directory
declares, that has to be within the file and within what deflate can reach, and the checksum has to
fit. APPNOTE.TXT, PKWARE: a local header of 30 bytes, name and extra field, then the data.
"""

from __future__ import annotations

import functools
import os
import pathlib
import stat
import struct
import zipfile
import zlib

import numpy as np
import tqdm

from data import index
from data.images import shown
from data.listing import Names
from data.random_access import RandomAccess

_LOCAL = struct.Struct("<4s22xHH")
_ENTRY = np.dtype(
    [("at", "<u8"), ("packed", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("method", "<u2"),
     ("encrypted", "?")]
)  # fmt: skip
DEFLATED = 1032  # bytes that a byte of deflated data can stand for, at most
LARGEST = 2**30  # bytes of a member that is read at once
_CHUNK = 2**24  # bytes that are compared with a checksum at once


def is_zip(path: pathlib.Path) -> bool:
    """Whether the name of a file says that it is a zip file."""
    return path.suffix.lower() == ".zip" and not path.is_dir()


class ZipFile:
    """The regular files in a zip file, by their number in its directory.

    Args:
      path: of the zip file.
      index_folder: where its directory is kept, see `index.cached`.

    Attributes:
      names: of the members, with slashes.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no zip file, is damaged or cut off, or has two members of one name.
    """

    def __init__(self, path: str | os.PathLike[str], index_folder: pathlib.Path):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {shown(self.path)}")
        self._index_folder = index_folder
        self._infos: list[zipfile.ZipInfo] | None = None
        self._entries = index.cached(index_folder, self.path, "zip", self._list_entries)
        names = functools.cache(lambda: Names.of(member.filename for member in self._list()))
        ends = index.cached(index_folder, self.path, "zip name ends", lambda: names().ends)
        content = index.cached(index_folder, self.path, "zip name bytes", lambda: names().content)
        self.names = Names(content, ends)
        self._infos = None
        if len(self.names) != len(self._entries):
            raise ValueError(f"{shown(self.path)}: its index is damaged; remove {index_folder}")
        self._bytes = RandomAccess(self.path)

    def __len__(self) -> int:
        return len(self._entries)

    def size(self, row: int) -> int:
        """How many bytes member `row` declares."""
        return int(self._entries["size"][row])

    def stamp(self, row: int) -> bytes:
        """The member's name, size and checksum."""
        entry = self._entries[row]
        return f"{self.names[row]} {entry['size']} {entry['crc']}".encode(
            "utf-8", "surrogateescape"
        )

    def stored_at(self, row: int) -> int | None:
        """Where the bytes of a member that is not compressed begin; None if it is."""
        return self._span(row)[0] if self._entries["method"][row] == zipfile.ZIP_STORED else None

    def read(self, row: int, largest: int = LARGEST) -> bytes:
        """The bytes of a member, of `largest` at most.

        Raises:
          ValueError: it is damaged, cut off, encrypted, compressed by another method than deflate,
            or larger than such a file can be; names the archive and the member.
        """
        entry, (first, end) = self._entries[row], self._span(row)
        size = int(entry["size"])
        if size > largest:
            self._refuse(row, f"declares {size} bytes, which are not read at once")
        if entry["method"] == zipfile.ZIP_STORED:
            content = self._bytes[first:end]
        else:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                content = inflater.decompress(self._bytes[first:end], size + 1)
            except zlib.error as error:
                self._refuse(row, f"is damaged ({error})")
        if len(content) != size:
            self._refuse(row, f"is damaged: it has another size than the {size} bytes declared")
        if zlib.crc32(content) != entry["crc"]:
            self._refuse(row, "is damaged: it does not match its checksum")
        return content

    def verify(self, row: int) -> None:
        """Compares a member that is not compressed with its checksum, once: the index remembers it.

        Raises:
          ValueError: it is damaged; names the archive and the member.
        """

        def compared() -> np.ndarray:
            first, end = self._span(row)
            checksum = 0
            places = range(first, end, _CHUNK)
            for place in tqdm.tqdm(places, "comparing checksums", leave=False, delay=5.0):
                checksum = zlib.crc32(self._bytes[place : min(place + _CHUNK, end)], checksum)
            if checksum != self._entries["crc"][row]:
                self._refuse(row, "is damaged: it does not match its checksum")
            return np.zeros(0, np.uint8)

        index.cached(self._index_folder, self.path, f"zip checksum {row}", compared)

    def _span(self, row: int) -> tuple[int, int]:
        """Where the stored bytes of a member begin and end."""
        entry = self._entries[row]
        at, packed, size = (int(entry[field]) for field in ("at", "packed", "size"))
        if entry["encrypted"]:
            self._refuse(row, "is encrypted; pack it again without a password")
        if entry["method"] not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            self._refuse(
                row, f"is compressed by the method {entry['method']}; pack it again, by deflate (8)"
            )
        reach = DEFLATED if entry["method"] == zipfile.ZIP_DEFLATED else 1
        if size > reach * packed + 64 * (reach > 1):
            self._refuse(row, f"declares {size} bytes, which {packed} cannot hold")
        if at + _LOCAL.size > len(self._bytes):
            self._refuse(row, "is cut off; pack or fetch the archive again")
        signature, name, extra = _LOCAL.unpack(self._bytes[at : at + _LOCAL.size])
        first = at + _LOCAL.size + name + extra
        if signature != b"PK\3\4":
            self._refuse(
                row, "is not where the archive's directory says; pack or fetch the archive again"
            )
        if first + packed > len(self._bytes):
            self._refuse(row, "is cut off; pack or fetch the archive again")
        return first, first + packed

    def _refuse(self, row: int, what: str) -> None:
        raise ValueError(f"{shown(self.path)}: {shown(self.names[row])} {what}")

    def _list(self) -> list[zipfile.ZipInfo]:
        if self._infos is None:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    members = archive.infolist()
            except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
                raise ValueError(
                    f"{shown(self.path)} is no zip file, or is damaged or cut off ({error}); pack "
                    "or fetch it again"
                ) from error
            links = {stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK}
            self._infos = [
                member
                for member in members
                if not member.is_dir() and stat.S_IFMT(member.external_attr >> 16) not in links
            ]
            names = {member.filename for member in self._infos}
            if len(names) < len(self._infos):
                raise ValueError(f"{shown(self.path)} has two members of one name; pack it again")
        return self._infos

    def _list_entries(self) -> np.ndarray:
        return np.array(
            [
                (m.header_offset, m.compress_size, m.file_size, m.CRC, m.compress_type,
                 bool(m.flag_bits & 1))
                for m in self._list()
            ],
            _ENTRY,
        )  # fmt: skip
