"""The base of data sets of images that are read where they are, record by record."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from data import processes
from data.bucket import refuse_bucket
from data.builder import default_folder, digest, expanded
from data.images import NONE, read_image, warn_always

Shape = tuple[int, ...]
TEST_SHARE = 0.1


class Fit(NamedTuple):
    """How an image becomes `image_size` pixels high and wide, see `images.fitted`.

    As text it is empty where that is the usual way.

    Attributes:
      crop: the side of the middle square, in pixels; 0: as large as it can be.
      method: of resampling.
    """

    crop: int = 0
    method: str = "lanczos"

    def words(self, size: int) -> str:
        """What is done, beside what was made with the images."""
        if not self.crop and self.method == "lanczos":
            return f"shorter side to {size} by Lanczos, longer one cut"
        middle = f"{self.crop}x{self.crop}" if self.crop else "square"
        return f"middle {middle}" + ("" if self.method == NONE else f" to {size} by {self.method}")

    def decoder(self, shape: Shape) -> processes.Decode:
        """What reads a file and fits the image in it to `shape`."""
        return functools.partial(read_image, shape=shape, crop=self.crop, method=self.method)

    def __str__(self) -> str:
        return "" if self == Fit() else f" crop {self.crop}, {self.method}"


class Request(NamedTuple):
    """What a config asks of a data set: `data_dir`, a split, `image_size` and `num_channels`.

    Attributes:
      fit: for the data sets of which a user chooses it, `FITS`.
      detail: what follows the name of the data set and a colon.
      values: `data.shape`, the shape of real-valued examples; (): images are asked for.
    """

    folder: str | os.PathLike[str] | None
    split: str
    image_size: int | None
    num_channels: int | None
    fit: Fit = Fit()
    detail: str = ""
    values: tuple[int, ...] = ()

    def place(self, name: str, buckets: bool = False) -> pathlib.Path:
        """The folder of the files: the one asked for, else that of data set `name`'s own.

        Args:
          buckets: whether the set's files may be in a bucket, where no such folder is.

        Raises:
          ValueError: a bucket, or nobody's home directory.
        """
        if not self.folder:
            return default_folder() / name
        if not buckets:
            refuse_bucket(self.folder, name)
        return expanded(self.folder, "data.data_dir")

    def shape(self, name: str, sizes: str, fits: bool, channels: Sequence[int] = (3,)) -> Shape:
        """The shape of the images.

        Args:
          sizes: what `image_size` must be, in words; `fits` is True if it is.
          channels: the numbers that there can be.

        Raises:
          ValueError: another size, or another number of channels.
        """
        size, count = self.image_size, self.num_channels
        if not size or size < 1 or not fits or count is None or count not in channels:
            numbers = " or ".join(map(str, channels))
            raise ValueError(
                f"data set {name}: data.image_size must be {sizes} and data.num_channels "
                f"{numbers}, not {size} and {count}"
            )
        return size, size, count


class Pictures:
    """One split of a data set: random-access records {"image", "label"}, read when asked for.

    A subclass is made from a `Request`; an image is what `decode` makes of its `record`.

    Attributes:
      DTYPE: of the images: uint8, or float32 where the official ones were not rounded to levels.
      DETAILED: True where the name is followed by a colon and the name of one of many sets.
      FITS: True where a user says how images are cropped and resized.
      OWN: True for a user's own files, where the name does not say what is in them.
      source: the absolute path of the files, and the `Fit` if it is unusual.
      decode: makes an image of a record, see `processes.Decode`; None where records are images.
      image_shape: of every image, after the data set's own crop and change of size.
      labels: int32 [n], in 0..num_classes-1.
      summary: what was read, in one line.
      transform: how their crop and size were made, in words; "" where they are as published.
      checksum: equal for equal examples in equal order, as far as that is known without reading
        all of them.
    """

    name: ClassVar[str]
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")
    LEVELS: ClassVar[int] = 256
    DTYPE: type[np.generic] = np.uint8
    FITS: ClassVar[bool] = False
    OWN: ClassVar[bool] = False
    DETAILED: ClassVar[bool] = False

    decode: processes.Decode | None = None
    image_shape: tuple[int, ...]
    source: str
    num_classes: int = 1
    labels: np.ndarray
    summary: str = ""
    transform: str = ""
    checksum: int = 0

    def __init__(self, request: Request):
        raise NotImplementedError

    def record(self, row: int) -> Any:
        """What the image of a row is made of: a file, its bytes, or the image.

        Raises:
          ValueError: it cannot be read; names the file, and the record in it.
        """
        raise NotImplementedError

    def image(self, row: int) -> np.ndarray:
        """The image [H, W, C] of a row, in levels, of the type `DTYPE`.

        Raises:
          ValueError: it cannot be read; names the file, and the record in it.
        """
        record = self.record(row)
        image: np.ndarray = self.decode(record, warn=self.warn) if self.decode else record
        return image

    def warn(self, kind: str, line: str) -> None:
        """Tells of a flaw in a file."""
        warn_always(kind, line)

    def stamp(self, row: int) -> bytes:
        """What changes when the file of a record does, as far as that is known without reading it.

        Decoded pixels that are kept (`data.decoded`) are those of this stamp.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.image(row), "label": self.labels[row]}

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images [k, H, W, C] and labels int32 [k] of `rows` [k]."""
        images = np.empty((len(rows), *self.image_shape), self.DTYPE)
        processes.decoded(self.decode, self.record, [int(row) for row in rows], images, self.warn)
        return images, np.asarray(self.labels[rows], np.int32)


def counted(count: int, one: str, many: str = "") -> str:
    """`1 class`, `2 classes`; `many` is the plural if an s does not make it."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def nor(others: int, of: str = "") -> str:
    """`, nor for 2 others`: how many more there are that are lacking, if there are any."""
    words = f", nor {of} ".replace("  ", " ")
    return words + counted(others, "other") if others else ""


def sole(names: Sequence[str], usual: str) -> str:
    """The usual name if it is one of these, or the only one there is; "": neither."""
    return usual if usual in names else names[0] if len(names) == 1 else ""


def held_out(splits: Collection[str]) -> str:
    """The one of somebody else's splits that testing is on; "": none is set apart for that."""
    return next((split for split in ("test", "validation") if split in splits), "")


def class_labels(values: np.ndarray, num_classes: int, owner: str, limit: str) -> np.ndarray:
    """Labels int32 [n], which are in 0..num_classes-1.

    Args:
      owner, limit: who has them, and who says how many classes there are, in words.

    Raises:
      ValueError: they are not.
    """
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or high >= num_classes:
        raise ValueError(f"{owner} has labels from {low} to {high}{limit} {num_classes} classes")
    return values.astype(np.int32)


def shares(count: int) -> dict[str, np.ndarray]:
    """The rows for training and those for testing, in order, of a set without splits.

    The tenth (at least one) whose numbers have the smallest hashes is for testing.
    """
    by_hash = np.array(sorted(range(count), key=lambda row: digest(str(row))), np.int64)
    tests = max(1, int(TEST_SHARE * count))
    return {"train": np.sort(by_hash[tests:]), "test": np.sort(by_hash[:tests])}
