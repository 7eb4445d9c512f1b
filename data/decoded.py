"""Decoded images kept on disk: a set that is read a second time is decoded no more.

Beside the prepared data, in `decoded/<hash>/`, lie the images of one split as one file of pixels,
mapped into memory, and a checksum (CRC-32C) for each. An image is decoded and written when it is
first asked for; what is written counts only if its checksum fits, so that a process that dies, two
that write at once, or a power cut leave nothing wrong. A checksum covers what the image was decoded
from, too (`Pictures.stamp`): a picture that was changed is decoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
from typing import Any

import google_crc32c
import numpy as np
import PIL
from absl import logging

from data.pictures import Pictures

SMALLEST = 2**26  # bytes of a split's pixels; smaller ones are decoded faster than looked for
RESERVE = 2**30  # bytes of disk that are left free
_FORMAT = 1  # to be raised whenever the same file would be decoded to other levels


class Decoded:
    """Records of `pictures`, decoded once for all processes and runs.

    Two processes may use it at once.

    Args:
      pictures: what is decoded.
      folder: which is there, of this source, split, shape and decoder alone.
    """

    def __init__(self, pictures: Pictures, folder: pathlib.Path):
        self.pictures = pictures
        shape = (len(pictures), *pictures.image_shape)
        self._bytes = image_bytes(pictures)
        pixels = self._file(folder / "pixels", self._bytes * len(pictures))
        checksums = self._file(folder / "checksums", 4 * len(pictures))
        self._pixels, self._checksums = pixels, checksums
        self._images = np.memmap(folder / "pixels", pictures.DTYPE, "r", shape=shape)
        self._stored = np.memmap(folder / "checksums", np.uint32, "r", shape=len(pictures))
        self._valid = np.zeros(len(pictures), bool)
        self._full = False

    @staticmethod
    def _file(path: pathlib.Path, size: int) -> int:
        """An open file of at least `size` bytes, of which none takes room before it is written."""
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if os.fstat(file).st_size < size:
            os.ftruncate(file, size)
        return file

    def __del__(self) -> None:
        for file in (getattr(self, "_pixels", None), getattr(self, "_checksums", None)):
            if file is not None:
                os.close(file)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> dict[str, Any]:
        images, labels = self.take(np.array([row]))
        return {"image": images[0], "label": labels[0]}

    @property
    def checksum(self) -> int:
        return self.pictures.checksum

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images [k, H, W, C] and labels int32 [k] of `rows` [k]."""
        unsure = np.unique(rows[~self._valid[rows]])
        held = np.array([self._holds(int(row)) for row in unsure], bool)
        self._valid[unsure[held]] = True
        missing = unsure[~held]
        labels = np.asarray(self.pictures.labels[rows], np.int32)
        if not len(missing):
            return self._images[rows], labels
        fresh, _ = self.pictures.take(missing)
        for row, image in zip(missing.tolist(), fresh, strict=True):
            self._keep(row, image)
        if np.array_equal(rows, missing):
            return fresh, labels
        images = self._images[rows]
        places = np.flatnonzero(np.isin(rows, missing))  # what may not have been written
        images[places] = fresh[np.searchsorted(missing, rows[places])]
        return images, labels

    def _holds(self, row: int) -> bool:
        return int(self._stored[row]) == self._checksum(row, self._images[row])

    def _checksum(self, row: int, image: np.ndarray) -> int:
        stamp = google_crc32c.value(self.pictures.stamp(row))
        return int(google_crc32c.extend(stamp, image.tobytes())) or 1

    def _keep(self, row: int, image: np.ndarray) -> None:
        """Writes an image, unless the disk is full: then nothing more is written."""
        if self._full:
            return
        try:
            _write(self._pixels, image.tobytes(), row * self._bytes)
            checksum = np.uint32(self._checksum(row, image)).tobytes()
            _write(self._checksums, checksum, 4 * row)
        except OSError as error:
            self._full = True
            logging.warning(
                "decoded images are kept no more (%s); the set is read all the same", error.strerror
            )
        else:
            self._valid[row] = True


def image_bytes(pictures: Pictures) -> int:
    """The bytes of an image's pixels."""
    return int(np.prod(pictures.image_shape)) * np.dtype(pictures.DTYPE).itemsize


def _write(file: int, content: bytes, offset: int) -> None:
    """Writes all of `content`; a full disk is an OSError (in a map, the end of the process)."""
    while content:
        count = os.pwrite(file, content, offset)
        content, offset = content[count:], offset + count


def cached(pictures: Pictures, split: str, folder: pathlib.Path) -> Pictures | Decoded:
    """The records of `pictures`, decoded once where that saves work and the disk has room.

    Args:
      folder: of prepared data.
    """
    size = len(pictures) * image_bytes(pictures)
    if pictures.decode is None or size < SMALLEST:
        return pictures
    identity = (
        _FORMAT, PIL.__version__, pictures.name, pictures.source, split, pictures.image_shape,
    )  # fmt: skip
    place = folder / "decoded" / hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    try:
        place.mkdir(parents=True, exist_ok=True)
        used = sum(512 * file.stat().st_blocks for file in place.iterdir())
        free = shutil.disk_usage(place).free
        if free + used < size + RESERVE:
            logging.warning(
                "%s: decoded images are not kept, they would take %.1f GB in %s, which has %.1f GB "
                "free; every epoch decodes them anew", pictures.name, size / 1e9, place, free / 1e9,
            )  # fmt: skip
            with contextlib.suppress(OSError):
                place.rmdir()
            return pictures
        return Decoded(pictures, place)
    except OSError as error:
        logging.warning(
            "%s: decoded images are not kept in %s: %s", pictures.name, place, error.strerror
        )
        return pictures
