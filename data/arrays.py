"""A user's arrays, NumPy's `.npy` and `.npz` files: images of levels uint8, or real numbers."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np

from data.builder import default_folder, warn_once
from data.images import first_line, shown
from data.pictures import Pictures, Request, counted, shares
from data.zip_file import ZipFile

TEXTS = (".csv", ".tsv", ".txt")
IMAGES, LABELS = ("images", "image", "x", "arr_0"), ("labels", "label", "y", "arr_1")
_PROBES = 64  # examples that count for the checksum
_ROWS = 4096  # examples that are looked at a time
_HEADER = 2**16  # bytes that the header of an array may have
IN_MEMORY = 2**32  # bytes of a compressed array, which has to be unpacked as a whole


NAME = "arrays"


class _Arrays(Pictures):
    """One split of examples in arrays, with labels int [N] if there are any.

    `data.data_dir` is an `.npz` file with the arrays `images` and `labels`, or `train_images`,
    `train_labels`, `test_images` and `test_labels` (`x_train`, `y_train`, ... will do); a folder
    with `.npy` files of these names; or one `.npy` file of examples, `photos.npy`, with
    `photos_labels.npy` beside it. Without a split of its own a tenth (at least one) of the examples
    is for testing, those whose numbers have the smallest hashes. Examples are in the arrays' order.
    Arrays are mapped into memory, unless they are compressed.

    Attributes:
      EXAMPLE: what one example is called.

    Raises:
      ValueError: what cannot be read, other types or shapes than these, labels out of range or of
        one split alone, and two arrays that could be the same.
      FileNotFoundError: there is no such file or folder.
    """

    OWN = True
    EXAMPLE: ClassVar[str]

    def __init__(self, request: Request):
        if not request.folder:
            raise ValueError(
                "data set arrays: name the .npz or .npy file with --config.data.data_dir"
            )
        place = request.place(NAME)
        self.image_shape = self._shape(request)
        self.source, self.place = str(place.resolve()), shown(place)
        arrays = ArrayFiles(place)
        if all(arrays.parts().values()):
            sets = {split: self._checked(*arrays.part(split)) for split in self.SPLITS}
            self.images, labels = sets[request.split]
            self.rows = np.arange(len(self.images))
            classes = np.unique(np.concatenate([np.unique(labels) for _, labels in sets.values()]))
            numbers = {split: len(labels) for split, (_, labels) in sets.items()}
        else:
            self.images, labels = self._checked(*arrays.part(""))
            if len(self.images) < 2:
                raise ValueError(
                    f"{self.place} has {len(self.images)} {self.EXAMPLE}(s); a data set has two or "
                    "more"
                )
            rows = shares(len(self.images))
            self.rows = rows[request.split]
            classes, labels = np.unique(labels), labels[self.rows]
            numbers = {split: len(part) for split, part in rows.items()}
        self.labels, self.num_classes = labels, int(classes[-1]) + 1
        self.summary = (
            f"{self.place}: {sum(numbers.values())} {self.EXAMPLE}s ({numbers['train']} train, "
            f"{numbers['test']} test), {counted(self.num_classes, 'class', 'classes')}"
            f"{arrays.passed_over()}"
        )
        if len(classes) < self.num_classes:
            absent = np.flatnonzero(~np.isin(np.arange(min(self.num_classes, 2**16)), classes))
            warn_once(
                f"{self.place}: labels are from 0 to {classes[-1]}, {self.num_classes} classes, of "
                f"which {self.num_classes - len(classes)} have no {self.EXAMPLE}, the first is "
                f"{absent[0]}; number them without gaps if these are not meant"
            )
        self._whole = _size_of_file(self.images)

    def _shape(self, request: Request) -> tuple[int, ...]:
        """The shape that every example must have."""
        raise NotImplementedError

    def _examples(self, array: np.ndarray) -> np.ndarray:
        """The examples [N, ...] of an array.

        Raises:
          ValueError: their type, their shape or their values are not as asked for.
        """
        raise NotImplementedError

    def _checked(self, array: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Examples [N, ...] and labels int32 [N]."""
        examples = self._examples(array)
        if not len(examples):
            raise ValueError(f"{self.place} has no {self.EXAMPLE}s")
        if labels.dtype.kind not in "iu" or labels.shape != (len(examples),):
            raise ValueError(
                f"{self.place} has labels of {labels.dtype}{list(labels.shape)}; they must be "
                f"whole numbers, one for each of {len(examples)} {self.EXAMPLE}s"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= 2**31 - 1:
            raise ValueError(
                f"{self.place} has labels from {low} to {high}; they must be from 0 to {2**31 - 2}"
            )
        return examples, np.asarray(labels, np.int32)

    def record(self, row: int) -> np.ndarray:
        self._require_whole()
        return np.asarray(self.images[self.rows[row]], self.DTYPE)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._require_whole()
        return np.asarray(self.images[self.rows[rows]], self.DTYPE), self.labels[rows]

    def _require_whole(self) -> None:
        """Refuses a mapped file that was cut meanwhile: to read on there would end the process."""
        now = _size_of_file(self.images)
        if now[0] == self._whole[0] and now[1] < self._whole[1]:
            raise ValueError(
                f"{self.place} was cut off while it was read: it had {self._whole[1]} bytes, and "
                f"has {now[1]}; write it under another name, and rename it then"
            )

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the rows, of their labels, and of some of the examples."""
        probes = np.unique(np.linspace(0, len(self.rows) - 1, _PROBES).astype(int))
        content = zlib.crc32(np.ascontiguousarray(self.take(probes)[0]).data)
        return zlib.crc32(self.labels.data, zlib.crc32(self.rows.astype(np.int64).data, content))


class ArrayPictures(_Arrays):
    """Images uint8 [N, H, W, C] or [N, H, W] in a user's arrays, see `_Arrays`."""

    name = NAME
    EXAMPLE = "image"

    def _shape(self, request: Request) -> tuple[int, ...]:
        return request.shape(NAME, "positive", fits=True, channels=range(1, 17))

    def _examples(self, array: np.ndarray) -> np.ndarray:
        size, _, channels = self.image_shape
        if array.dtype != np.uint8 or array.ndim not in (3, 4):
            raise ValueError(
                f"{self.place} has images of {array.dtype}{list(array.shape)}; they must be "
                "levels uint8 [N, H, W, C] or [N, H, W]; data.shape makes real numbers of them"
            )
        array = array if array.ndim == 4 else array[..., None]
        if array.shape[1:] != self.image_shape:
            first = array.shape[1:] == (channels, size, size)
            raise ValueError(
                f"{self.place} has images of {list(array.shape[1:])}, but data.image_size={size} "
                f"and data.num_channels={channels}; "
                + (
                    "channels come last: save images.transpose(0, 2, 3, 1)"
                    if first
                    else "arrays are neither cropped nor resized"
                )
            )
        return array


class ArrayValues(_Arrays):
    """Real numbers [N, *data.shape] in a user's arrays: vectors, tables, series, fields.

    They are floats or whole numbers of any width, and are read as float32; a last axis of length 1
    may be missing.

    Raises:
      ValueError: other types, another shape, or numbers that are not finite; says in which rows.
    """

    DTYPE = np.float32
    LEVELS = 0
    EXAMPLE = "example"

    def _shape(self, request: Request) -> tuple[int, ...]:
        return request.values

    def _examples(self, array: np.ndarray) -> np.ndarray:
        shape = self.image_shape
        if array.dtype.kind not in "fiu":
            raise ValueError(
                f"{self.place} has examples of {array.dtype}{list(array.shape)}; they must be real "
                "numbers"
            )
        if (*array.shape[1:], 1) == shape:
            array = array[..., None]
        if array.shape[1:] != shape:
            raise ValueError(
                f"{self.place} has examples of {list(array.shape[1:])}, but data.shape={shape}"
            )
        strange = [
            start + row
            for start in range(0, len(array), _ROWS)
            for row in np.flatnonzero(~_finite(array[start : start + _ROWS]))
        ]
        if strange:
            rows = ", ".join(map(str, strange[:8])) + ", ..." * (len(strange) > 8)
            raise ValueError(
                f"{self.place} has {counted(len(strange), 'example')} with numbers that are not "
                f"finite, or too large for float32: rows {rows}, counted from 0; leave them out"
            )
        return array


def _finite(array: np.ndarray) -> np.ndarray:
    """True [N] where all numbers of a row are finite in float32."""
    with np.errstate(over="ignore"):
        values = np.asarray(array, np.float32)
    return np.all(np.isfinite(values).reshape(len(values), -1), axis=1)


class ArrayFiles:
    """The arrays in an `.npz` file, in a folder of `.npy` files, or in one of them, by name."""

    def __init__(self, place: pathlib.Path):
        self.place = place
        self.openers: dict[str, Callable[[], np.ndarray]] = {}
        self.read: set[str] = set()
        if place.is_dir():
            for path in sorted(place.glob("*.npy")):
                self.openers[path.stem] = functools.partial(npy_file, path)
        elif not place.is_file():
            raise FileNotFoundError(f"data set arrays: there is no {shown(place)}")
        elif place.suffix.lower() == ".npy":
            self.openers["images"] = functools.partial(npy_file, place)
            labels = place.with_name(f"{place.stem}_labels.npy")
            if labels.is_file():
                self.openers["labels"] = functools.partial(npy_file, labels)
        elif place.suffix.lower() in TEXTS:
            raise ValueError(
                f"data set arrays: {shown(place)} is a text; numpy.save('table.npy', numpy.loadtxt("
                f"{place.name!r}, delimiter=',', skiprows=1)) makes an array of a table with a head"
            )
        else:
            archive = ZipFile(place, default_folder() / "index")
            for row, name in enumerate(archive.names):
                if name.endswith(".npy"):
                    opener = functools.partial(npy_member, archive, row)
                    self.openers[name.removesuffix(".npy")] = opener

    def parts(self) -> dict[str, str]:
        """The names of the images of both splits; "": they have none of their own.

        Raises:
          ValueError: no images, or which ones they are is not clear; labels of one split alone.
        """
        images = {split: self._name(IMAGES, split) for split in ("train", "test")}
        labels = {split: self._name(LABELS, split) for split in images}
        both, whole = all(images.values()), self._name(IMAGES, "")
        if any(images.values()) if whole else not both:
            names = ", ".join(map(shown, list(self.openers)[:8])) or "no arrays"
            raise ValueError(
                f"{shown(self.place)} holds {names}; it must have {'either ' * bool(whole)}images, "
                f"or train_images and test_images; in place of images also {', '.join(IMAGES[1:])}"
            )
        if both and any(labels.values()) != all(labels.values()):
            name, lacking = max(labels.values()), min(labels, key=lambda split: labels[split])
            raise ValueError(
                f"{shown(self.place)} has {name} and no labels of the split {lacking}; add them, "
                "or leave the labels out"
            )
        return images

    def part(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a split ("": of all)."""
        names = [self._name(kind, split) for kind in (IMAGES, LABELS)]
        self.read.update(names)
        images = self.openers[names[0]]()
        if not images.ndim:
            raise ValueError(
                f"{shown(self.place)}: {names[0]} is one number; it must be examples [N, ...]"
            )
        return images, self.openers[names[1]]() if names[1] else np.zeros(len(images), np.int32)

    def _name(self, names: Sequence[str], split: str) -> str:
        """The one that is there of the names that an array can have; "": none."""
        forms = ["{split}_{name}", "{name}_{split}"] if split else ["{name}"]
        full = [form.format(split=split, name=name) for name in names for form in forms]
        present = [name for name in full if name in self.openers]
        if len(present) > 1:
            raise ValueError(
                f"{shown(self.place)} has {' and '.join(present)}, which could be the same; leave "
                "one of them out"
            )
        return present[0] if present else ""

    def passed_over(self) -> str:
        """`, 1 array passed over (ids)`: those that were not read, if there are any."""
        names = sorted(self.openers.keys() - self.read)
        more = ", ..." if len(names) > 8 else ""
        listed = f"{', '.join(map(shown, names[:8]))}{more}"
        return f", {counted(len(names), 'array')} passed over ({listed})" if names else ""


def npy_file(path: pathlib.Path) -> np.ndarray:
    """The array in an `.npy` file, mapped into memory.

    Raises:
      ValueError: no such file, objects in it, or another size than it declares.
    """
    with path.open("rb") as file:
        return _array(path, shown(path), file.read(_HEADER), 0, path.stat().st_size)


def npy_member(archive: ZipFile, row: int) -> np.ndarray:
    """The array in a member of an `.npz` file: mapped if it is stored as it is, else unpacked.

    A checksum is compared of either.

    Raises:
      ValueError: a damaged member, objects in it, or another size than it declares.
    """
    what = f"{shown(archive.path)}: {shown(archive.names[row])}"
    at, size = archive.stored_at(row), archive.size(row)
    if at is None:
        return _array(None, what, archive.read(row, IN_MEMORY), 0, size)
    with archive.path.open("rb") as file:
        file.seek(at)
        array = _array(archive.path, what, file.read(min(_HEADER, size)), at, size)
    archive.verify(row)
    return array


def _size_of_file(array: np.ndarray) -> tuple[int, int]:
    """Number and bytes of the file that an array is mapped from; zeros: of none, or removed."""
    with contextlib.suppress(OSError):
        if isinstance(array, np.memmap) and array.filename is not None:
            status = os.stat(array.filename)
            return status.st_ino, status.st_size
    return 0, 0


def _array(path: pathlib.Path | None, what: str, head: bytes, at: int, size: int) -> np.ndarray:
    """The array of `size` bytes with its header, that begin with `head`, at `at` in a file.

    Args:
      path: None where `head` are all the bytes.
    """
    try:
        file = io.BytesIO(head)
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0}
        reader = readers.get(version, np.lib.format.read_array_header_2_0)
        shape, fortran, dtype = reader(file)
    except Exception as error:  # of NumPy's parser and of Python's
        reason = first_line(error)
        raise ValueError(f"{what} is no array in NumPy's format ({reason})") from error
    start = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{what} holds Python objects, which are not read; save numbers")
    declared = math.prod(shape) * dtype.itemsize
    if declared != size - start:
        raise ValueError(
            f"{what} is damaged or {'cut off' if declared > size - start else 'too long'}: it "
            f"declares {dtype}{list(shape)}, {declared} bytes, and has {size - start}"
        )
    order: Literal["C", "F"] = "F" if fortran else "C"
    if path is None or not math.prod(shape):
        return np.frombuffer(head[start:], dtype).reshape(shape, order=order)
    return np.memmap(path, dtype, "r", at + start, shape, order=order)
