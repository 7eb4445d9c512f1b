"""The base of data sets of images that are read where they are, record by record."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from concurrent import futures
from typing import Any, ClassVar, NamedTuple

import numpy as np

from data.builder import default_folder

Shape = tuple[int, int, int]


class Request(NamedTuple):
    """What a config asks of a data set: `data_dir`, a split, `image_size` and `num_channels`."""

    folder: str | os.PathLike[str] | None
    split: str
    image_size: int | None
    num_channels: int | None

    def place(self, name: str) -> pathlib.Path:
        """The folder of the files: the one asked for, else that of data set `name`'s own."""
        return pathlib.Path(self.folder).expanduser() if self.folder else default_folder() / name

    def shape(self, name: str, sizes: str, fits: bool, channels: Sequence[int] = (3,)) -> Shape:
        """The shape of the images.

        Args:
          sizes: what `image_size` must be, in words; `fits` is True if it is.
          channels: the numbers that there can be.

        Raises:
          ValueError: another size, or another number of channels.
        """
        size, count = self.image_size, self.num_channels
        if not size or not fits or count is None or count not in channels:
            numbers = " or ".join(map(str, channels))
            raise ValueError(
                f"data set {name}: data.image_size must be {sizes} and data.num_channels "
                f"{numbers}, not {size} and {count}"
            )
        return size, size, count


class Pictures:
    """One split of a data set: random-access records {"image", "label"}, read when asked for.

    A subclass is made from a `Request`, and has a record's image in `image`.

    Attributes:
      DTYPE: of the images.
      COMPRESSED: False where a record holds the pixels themselves, which nothing need decode.
      source: the absolute path of the files.
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
    DTYPE: ClassVar[type[np.generic]] = np.uint8
    COMPRESSED: ClassVar[bool] = True

    image_shape: Shape
    source: str
    num_classes: int = 1
    labels: np.ndarray
    summary: str = ""
    transform: str = ""
    checksum: int = 0

    def __init__(self, request: Request):
        raise NotImplementedError

    def image(self, row: int) -> np.ndarray:
        """The image uint8 [H, W, C] of a record.

        Raises:
          ValueError: it cannot be read; names the file, and the record in it.
        """
        raise NotImplementedError

    def stamp(self, row: int) -> bytes:
        """What changes when the file of a record does, as far as that is known without reading it.

        Decoded pixels that are kept (`data.decoded`) are those of this stamp.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.image(row), "label": self.labels[row]}

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the GIL
            return list(pool.map(self.__getitem__, rows))
