"""LSUN bedrooms and churches, from the official LMDB environments.

F. Yu et al., LSUN: Construction of a Large-scale Image Dataset using Deep Learning with Humans in
the Loop, arXiv:1506.03365.
"""

from __future__ import annotations

import functools
import io
import zlib
from typing import ClassVar

import numpy as np
from PIL import Image

from data import resize
from data.builder import default_folder
from data.lmdb_file import LmdbFile
from data.pictures import Pictures, Request

FOLDERS = {"train": "train", "test": "val"}
URL = "http://dl.yf.io/lsun/scenes"


class LsunPictures(Pictures):
    """The images of `<category>_train_lmdb`, or of `<category>_val_lmdb` for testing.

    As in the official code of score_sde the middle square of a picture becomes `image_size` pixels
    wide by bicubic resampling, whose levels are cut off, not rounded.

    Raises:
      ValueError: another number of channels than 3, what is no LMDB, or 128 pixels, which the
        official code makes in another way, without levels.
      FileNotFoundError: the LMDB is not here; says which is wanted, and from where.
    """

    CATEGORY: ClassVar[str]

    def __init__(self, request: Request):
        self.image_shape = request.shape(self.name, "positive", fits=True)
        if request.image_size == 128:
            raise ValueError(
                f"data set {self.name}: the official images of data.image_size=128 are not rounded "
                "to levels, which no data set here can hold; other sizes are served"
            )
        root = request.place(self.name)
        file = f"{self.CATEGORY}_{FOLDERS[request.split]}_lmdb"
        if not (root / file).is_dir():
            raise FileNotFoundError(
                f"data set {self.name}: there is no {root / file}; fetch and unpack {file}.zip "
                f"from {URL}, and name its folder with --config.data.data_dir"
            )
        self.entries = LmdbFile(root / file, default_folder() / "index")
        self.source = str((root / file).resolve())
        self.labels = np.zeros(len(self.entries), np.int32)
        self.transform = f"middle square, antialiased bicubic to {request.image_size}"
        self.summary = f"{root / file}: {len(self.entries)} images"

    def image(self, row: int) -> np.ndarray:
        content = self.entries[row]
        try:
            with Image.open(io.BytesIO(content), formats=("WEBP", "JPEG", "PNG")) as opened:
                picture = np.asarray(opened.convert("RGB"))
        except Exception as error:  # Pillow's decoders each have their own
            raise ValueError(
                f"{self.entries.folder}: entry {row} is no picture that can be read ({error})"
            ) from error
        return square(picture, self.image_shape[0])

    def stamp(self, row: int) -> bytes:
        """The entry's key, a hash of the picture."""
        key: bytes = self.entries.keys[row].tobytes()
        return key

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the keys, which are hashes themselves, and of the images' size."""
        return zlib.crc32(np.ascontiguousarray(self.entries.keys).data, self.image_shape[0])


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a picture uint8 [H, W, C], as uint8 [size, size, C]."""
    side = min(picture.shape[:2])
    middle = resize.centre_crop(picture, side, side)
    if side == size:
        return np.ascontiguousarray(middle)
    return resize.truncated(resize.resize(middle, size, size, "bicubic"))


class LsunBedroom(LsunPictures):
    """3,033,042 bedrooms, and 300 for testing."""

    name = "lsun_bedroom"
    CATEGORY = "bedroom"


class LsunChurch(LsunPictures):
    """126,227 churches from outside, and 300 for testing."""

    name = "lsun_church"
    CATEGORY = "church_outdoor"
