"""CelebA-HQ and FFHQ: TFRecord files of StyleGAN's tools, one for each size, or images as they are.

As in the official code of score_sde, the images of one file are for training and for testing: the
data sets have no other split. None is resized.
"""

from __future__ import annotations

import functools
import zlib
from typing import ClassVar

import numpy as np

from data.builder import default_folder
from data.image_files import ImageFiles, images_in
from data.images import NONE, File
from data.pictures import Fit, Pictures, Request
from data.tfrecords import TFRecords, stylegan_image
from data.trees import portable


class StyleganPictures(Pictures):
    """The images of `<prefix>-r<log2 of the size>.tfrecords`, in the file's order.

    `data.data_dir` is its folder, or the file itself. Without such a file, those of
    `<prefix>-<size>x<size>.zip`, as EDM's tool names it, or of `data.data_dir` itself, a zip file
    or a folder, in the order of their names, by which the tools number them. Labels, of
    `dataset.json` or folders, are ignored.

    Raises:
      ValueError: other channels than 3, a size of which there is no file, damaged records.
      FileNotFoundError: the file is not here; says which is wanted, and from where.
    """

    PREFIX: ClassVar[str]
    URL: ClassVar[str]

    def __init__(self, request: Request):
        size = request.image_size or 0
        fits = size >= 4 and not size & (size - 1)
        self.image_shape = request.shape(self.name, "a power of two, 4 or more,", fits)
        root = request.place(self.name)
        name = f"{self.PREFIX}-r{size.bit_length() - 1:02d}.tfrecords"
        path = root if root.suffix == ".tfrecords" else root / name
        archive = root / f"{self.PREFIX}-{size}x{size}.zip"
        self.records: TFRecords | ImageFiles
        if path.is_file():
            self.records = TFRecords(path, default_folder() / "index")
        else:
            place = archive if archive.is_file() else root
            files = images_in(place, portable, "stylegan")
            if not files:
                raise FileNotFoundError(
                    f"data set {self.name}: there is no {path}; make it of the images at "
                    f"{self.URL} by StyleGAN's dataset_tool.py, or {archive.name} by EDM's, and "
                    "name its folder with --config.data.data_dir"
                )
            self.records, path = files, place
        if isinstance(self.records, ImageFiles):
            self.decode = Fit(method=NONE).decoder(self.image_shape)
        self.source = str(path.resolve())
        self.labels = np.zeros(len(self.records), np.int32)
        self.summary = f"{path}: {len(self.records)} images, for training and testing alike"

    def record(self, row: int) -> File | np.ndarray:
        if isinstance(self.records, ImageFiles):
            return self.records[row]
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

    def stamp(self, row: int) -> bytes:
        """The file's, as `trees.Tree.stamp` has it; records are not decoded."""
        assert isinstance(self.records, ImageFiles)
        return self.records.stamp(row)

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the records' places and of the first and last ones, or of names and sizes."""
        if isinstance(self.records, ImageFiles):
            return self.records.checksum(self.image_shape)
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
