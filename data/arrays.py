"""Images in a user's arrays: NumPy's `.npy` and `.npz` files of levels uint8."""

from __future__ import annotations

import functools
import io
import math
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from data.builder import default_folder
from data.images import first_line, shown
from data.pictures import Pictures, Request, counted, shares
from data.zip_file import ZipFile

IMAGES, LABELS = ("images", "image", "x", "arr_0"), ("labels", "label", "y", "arr_1")
_PROBES = 64  # images whose levels count for the checksum
USUAL_CLASSES = 1000  # more than these, and than images, are other numbers than labels
_HEADER = 2**16  # bytes that the header of an array may have
IN_MEMORY = 2**32  # bytes of a compressed array, which has to be unpacked as a whole


class ArrayPictures(Pictures):
    """One split of images uint8 [N, H, W, C] or [N, H, W], with labels int [N] if there are any.

    `data.data_dir` is an `.npz` file with the arrays `images` and `labels`, or `train_images`,
    `train_labels`, `test_images` and `test_labels` (`x_train`, `y_train`, ... will do); a folder
    with `.npy` files of these names; or one `.npy` file of images, `photos.npy`, with
    `photos_labels.npy` beside it. Without a split of its own a tenth (at least one) of the images
    is for testing, those whose numbers have the smallest hashes. Examples are in the arrays' order.
    Arrays are mapped into memory, unless they are compressed.

    Raises:
      ValueError: what cannot be read, other types or shapes than these, labels out of range.
      FileNotFoundError: there is no such file or folder.
    """

    name = "arrays"
    OWN = True

    def __init__(self, request: Request):
        if not request.folder:
            raise ValueError(
                "data set arrays: name the .npz or .npy file with --config.data.data_dir"
            )
        place = request.place(self.name)
        self.image_shape = request.shape(self.name, "positive", fits=True, channels=range(1, 17))
        self.source, self.place = str(place.resolve()), shown(place)
        arrays = ArrayFiles(place)
        parts = {split: arrays.part(split) for split in self.SPLITS}
        arrays.check(self.place)
        if all(parts.values()):
            sets = {split: self._checked(*part) for split, part in parts.items() if part}
            self.images, labels = sets[request.split]
            self.rows = np.arange(len(self.images))
            count = max(int(labels.max(initial=0)) for _, labels in sets.values()) + 1
            numbers = {split: len(labels) for split, (_, labels) in sets.items()}
        else:
            self.images, labels = self._checked(*arrays.part("") or arrays.missing())
            if len(self.images) < 2:
                raise ValueError(
                    f"{self.place} has {len(self.images)} image(s); a data set has two or more"
                )
            rows = shares(len(self.images))
            self.rows = rows[request.split]
            labels, count = labels[self.rows], int(labels.max(initial=0)) + 1
            numbers = {split: len(part) for split, part in rows.items()}
        total = sum(numbers.values())
        if count > max(total, USUAL_CLASSES):
            raise ValueError(
                f"{self.place} has labels up to {count - 1} for {total} images; classes are "
                "numbered from 0 on"
            )
        self.labels, self.num_classes = labels, count
        self.summary = (
            f"{self.place}: {total} images ({numbers['train']} train, {numbers['test']} test), "
            f"{counted(count, 'class', 'classes')}"
        )

    def _checked(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images [N, H, W, C] and labels int32 [N]."""
        size, _, channels = self.image_shape
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise ValueError(
                f"{self.place} has images of {images.dtype}{list(images.shape)}; they must be "
                "levels uint8 [N, H, W, C] or [N, H, W]"
            )
        images = images if images.ndim == 4 else images[..., None]
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"{self.place} has images of {list(images.shape[1:])}, but data.image_size={size} "
                f"and data.num_channels={channels}; arrays are neither cropped nor resized"
            )
        if not len(images):
            raise ValueError(f"{self.place} has no images")
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
            raise ValueError(
                f"{self.place} has labels of {labels.dtype}{list(labels.shape)}; they must be "
                f"whole numbers, one for each of {len(images)} images"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= 2**31 - 1:
            raise ValueError(f"{self.place} has labels from {low} to {high}; they begin with 0")
        return images, np.asarray(labels, np.int32)

    def record(self, row: int) -> np.ndarray:
        return np.asarray(self.images[self.rows[row]])

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images [k, H, W, C] and labels int32 [k] of `rows` [k]."""
        return np.asarray(self.images[self.rows[rows]]), self.labels[rows]

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the rows, of their labels, and of some of the images."""
        probes = np.unique(np.linspace(0, len(self.rows) - 1, _PROBES).astype(int))
        content = zlib.crc32(np.ascontiguousarray(self.take(probes)[0]).data)
        return zlib.crc32(self.labels.data, zlib.crc32(self.rows.astype(np.int64).data, content))


class ArrayFiles:
    """The arrays in an `.npz` file, in a folder of `.npy` files, or in one of them, by name."""

    def __init__(self, place: pathlib.Path):
        self.place = place
        self.openers: dict[str, Callable[[], np.ndarray]] = {}
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
        else:
            archive = ZipFile(place, default_folder() / "index")
            for row, name in enumerate(archive.names):
                if name.endswith(".npy"):
                    opener = functools.partial(npy_member, archive, row)
                    self.openers[name.removesuffix(".npy")] = opener

    def check(self, place: str) -> None:
        """Refuses arrays of which one would be passed over.

        Raises:
          ValueError: images of both splits and of none, or labels of one split alone.
        """
        has = {split: self._name(IMAGES, split) for split in ("", "train", "test")}
        labels = {split: self._name(LABELS, split) for split in has}
        named = [name for name in has.values() if name]
        if has[""] and len(named) > 1:
            raise ValueError(
                f"{place} holds {' and '.join(map(shown, named))}; it must have images, or those "
                "of both splits"
            )
        if has["train"] and has["test"] and bool(labels["train"]) != bool(labels["test"]):
            lacking = "train" if labels["test"] else "test"
            raise ValueError(
                f"{place} has {shown(labels['train'] or labels['test'])}, but no labels of "
                f"{lacking}; it must have both or neither"
            )

    def part(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Images and labels of a split ("": of all); None if there are no such images."""
        images = self._array(IMAGES, split)
        if images is None:
            return None
        labels = self._array(LABELS, split)
        return images, np.zeros(len(images), np.int32) if labels is None else labels

    def _array(self, names: Sequence[str], split: str) -> np.ndarray | None:
        name = self._name(names, split)
        return self.openers[name]() if name else None

    def _name(self, names: Sequence[str], split: str) -> str:
        """The first of these names that an array of the split has; "": none."""
        for name in names:
            for full in (f"{split}_{name}", f"{name}_{split}") if split else (name,):
                if full in self.openers:
                    return full
        return ""

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """Refuses files without images."""
        names = ", ".join(map(shown, list(self.openers)[:8])) or "no arrays"
        raise ValueError(
            f"{shown(self.place)} holds {names}; it must have images, or train_images and "
            "test_images"
        )


def npy_file(path: pathlib.Path) -> np.ndarray:
    """The array in an `.npy` file, mapped into memory.

    Raises:
      ValueError: no such file, objects in it, or another size than it declares.
    """
    with path.open("rb") as file:
        return _array(path, shown(path), file.read(_HEADER), 0, path.stat().st_size)


def npy_member(archive: ZipFile, row: int) -> np.ndarray:
    """The array in a member of an `.npz` file: mapped if it is stored as it is, else unpacked.

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
    if math.prod(shape) * dtype.itemsize != size - start:
        raise ValueError(
            f"{what} is damaged or cut off: it declares {dtype}{list(shape)}, and has "
            f"{size - start} bytes"
        )
    order: Literal["C", "F"] = "F" if fortran else "C"
    if path is None or not math.prod(shape):
        return np.frombuffer(head[start:], dtype).reshape(shape, order=order)
    return np.memmap(path, dtype, "r", at + start, shape, order=order)
