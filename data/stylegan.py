"""CelebA-HQ and FFHQ, from the TFRecord files that StyleGAN's tools write, one for each size.

As in the official code of score_sde, the images of one file are for training and for testing: the
data sets have no other split.
"""

from __future__ import annotations

import functools
import zlib
from typing import ClassVar

import numpy as np

from data.builder import default_folder
from data.pictures import Pictures, Request
from data.tfrecords import TFRecords, stylegan_image


class StyleganPictures(Pictures):
    """The images of `<prefix>-r<log2 of the size>.tfrecords`, in the file's order.

    Raises:
      ValueError: other channels than 3, a size of which there is no file, damaged records.
      FileNotFoundError: the file is not here; says which is wanted, and from where.
    """

    COMPRESSED = False
    PREFIX: ClassVar[str]
    URL: ClassVar[str]

    def __init__(self, request: Request):
        size = request.image_size or 0
        fits = size >= 4 and not size & (size - 1)
        self.image_shape = request.shape(self.name, "a power of two, 4 or more,", fits)
        path = request.place(self.name) / f"{self.PREFIX}-r{size.bit_length() - 1:02d}.tfrecords"
        if not path.is_file():
            raise FileNotFoundError(
                f"data set {self.name}: there is no {path}; make it of the images at {self.URL} by "
                "StyleGAN's dataset_tool.py, and name its folder with --config.data.data_dir"
            )
        self.records = TFRecords(path, default_folder() / "index")
        self.labels = np.zeros(len(self.records), np.int32)
        self.summary = f"{path}: {len(self.records)} images, for training and testing alike"

    def image(self, row: int) -> np.ndarray:
        data = self.records[row]
        try:
            picture = stylegan_image(data)
        except ValueError as error:
            raise ValueError(f"{self.records.path}: record {row}: {error}") from error
        if picture.shape != self.image_shape:
            raise ValueError(
                f"{self.records.path}: record {row} has the shape {picture.shape}, not "
                f"{self.image_shape}"
            )
        return picture

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the records' places and of the first and last ones' own checksums."""
        ends = self.records[0] + self.records[len(self.records) - 1]
        return zlib.crc32(ends, zlib.crc32(np.ascontiguousarray(self.records.offsets).data))


class CelebaHq(StyleganPictures):
    """30,000 faces. T. Karras et al.: Progressive Growing of GANs, arXiv:1710.10196."""

    name = "celebahq"
    PREFIX = "celebahq"
    URL = "https://github.com/tkarras/progressive_growing_of_gans"


class Ffhq(StyleganPictures):
    """70,000 faces. T. Karras et al.: A Style-Based Generator Architecture, arXiv:1812.04948."""

    name = "ffhq"
    PREFIX = "ffhq"
    URL = "https://github.com/NVlabs/ffhq-dataset"
