"""The base of data sets of images that are read where they are, record by record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent import futures
from typing import Any, ClassVar

import numpy as np

Shape = tuple[int, int, int]


class Pictures:
    """One split of a data set: random-access records {"image", "label"}, read when asked for.

    A subclass is made from (folder, split, image_size, num_channels), as the config has them, and
    has a record's image in `image`.

    Attributes:
      image_shape: of every image, after the data set's own crop and change of size.
      labels: int32 [n], in 0..num_classes-1.
      summary: what was read, in one line.
      checksum: equal for equal examples in equal order, as far as that is known without reading
        all of them.
    """

    name: ClassVar[str]
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")
    LEVELS: ClassVar[int] = 256

    image_shape: Shape
    num_classes: int = 1
    labels: np.ndarray
    summary: str = ""
    checksum: int = 0

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        split: str,
        image_size: int | None,
        num_channels: int | None,
    ):
        raise NotImplementedError

    def image(self, row: int) -> np.ndarray:
        """The image uint8 [H, W, C] of a record.

        Raises:
          ValueError: it cannot be read; names the file, and the record in it.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.image(row), "label": self.labels[row]}

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the GIL
            return list(pool.map(self.__getitem__, rows))
