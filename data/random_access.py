"""A file's bytes at random, for many threads at once.

They are read, not mapped into memory: where a mapped file is cut off meanwhile, the system ends the
process.
"""

from __future__ import annotations

import os
import pathlib

from data.images import shown


class RandomAccess:
    """The bytes of a file as it was when it was opened: `file[10:20]`, `len(file)`.

    Raises:
      OSError: it cannot be read.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._file = path.open("rb", buffering=0)  # closed with this object
        self._size = os.fstat(self._file.fileno()).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> bytes:
        """Raises ValueError if the file became shorter."""
        first, end, _ = span.indices(self._size)
        parts = []
        while first < end:
            content = os.pread(self._file.fileno(), end - first, first)
            if not content:
                raise ValueError(
                    f"{shown(self.path)} was cut off while it was read: it had {self._size} bytes, "
                    f"and has {os.fstat(self._file.fileno()).st_size}"
                )
            parts.append(content)
            first += len(content)
        return parts[0] if len(parts) == 1 else b"".join(parts)
