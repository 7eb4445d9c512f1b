"""LSUN bedrooms and churches, from the official LMDB environments, or from files of images.

F. Yu et al., LSUN: Construction of a Large-scale Image Dataset using Deep Learning with Humans in
the Loop, arXiv:1506.03365.
"""

from __future__ import annotations

import functools
import pathlib
import zlib
from typing import ClassVar

import numpy as np

from data import crops
from data.builder import default_folder
from data.folder import listed
from data.image_files import ImageFiles, images_in
from data.images import Content, File, shown
from data.lmdb_file import LmdbFile
from data.pictures import Pictures, Request
from data.trees import portable

FOLDERS = {"train": "train", "test": "val"}
URL = "http://dl.yf.io/lsun/scenes"
UNROUNDED = 128  # pixels: images of this size the official code makes without rounding to levels


class LsunPictures(Pictures):
    """The images of `<category>_train_lmdb`, or of `<category>_val_lmdb` for testing.

    `data.data_dir` is the folder that they are in, or one of the two. Without them, those of
    `<category>_train.zip` or of the folder `<category>_train`, or those of `data.data_dir` itself,
    a zip file or folder, with the splits of the data set `folder`. They are in the order of the
    files' names without their folders and endings: LSUN's own export names them by the keys of the
    LMDB.

    As in the official code of score_sde the middle square of a picture becomes `image_size` pixels
    wide by bicubic resampling, whose levels are cut off, not rounded. Of 128 pixels are images
    whose shorter side became as long by bilinear resampling, float32, with fractions of levels.

    Raises:
      ValueError: another number of channels than 3, or what is no LMDB.
      FileNotFoundError: the images are not here; says what is wanted, and from where.
    """

    CATEGORY: ClassVar[str]

    def __init__(self, request: Request):
        self.image_shape = request.shape(self.name, "positive", fits=True)
        size, rounded = self.image_shape[0], request.image_size != UNROUNDED
        self.DTYPE = np.uint8 if rounded else np.float32
        self.decode = functools.partial(crops.lsun, size=size, rounded=rounded)
        root = self._root(request.place(self.name))
        file = f"{self.CATEGORY}_{FOLDERS[request.split]}_lmdb"
        self.entries: LmdbFile | ImageFiles
        if (root / file).is_dir():
            place = root / file
            self.entries = LmdbFile(place, default_folder() / "index")
        else:
            place = root / file.removesuffix("_lmdb")
            archive = root / f"{place.name}.zip"
            place = next((path for path in (archive, place) if path.exists()), root)
            split = request.split
            files = (
                images_in(place, _key, "lsun")
                if place != root
                else images_in(
                    root, _key, f"lsun {split}", lambda t: listed(t, shown(root)).splits[split]
                )
            )
            if not files:
                raise FileNotFoundError(
                    f"data set {self.name}: there is no {root / file}; fetch and unpack {file}.zip "
                    f"from {URL}, and name its folder with --config.data.data_dir"
                )
            self.entries = files
        self.source = str(place.resolve())
        self.labels = np.zeros(len(self.entries), np.int32)
        how = "bicubic" if rounded else "bilinear"
        self.transform = f"middle square, antialiased {how} to {size}"
        self.summary = f"{place}: {len(self.entries)} images"

    def _root(self, place: pathlib.Path) -> pathlib.Path:
        """The folder that the environments are in, where one of them is named, or a file in it.

        Raises:
          ValueError: an environment that is called otherwise.
        """
        folder = place.parent if place.name in ("data.mdb", "lock.mdb") else place
        if not (folder / "data.mdb").is_file():
            return place
        names = [f"{self.CATEGORY}_{split}_lmdb" for split in FOLDERS.values()]
        if folder.resolve().name not in names:
            raise ValueError(
                f"data.data_dir={shown(place)} is an LMDB that is none of data set {self.name}: "
                f"those are called {' and '.join(names)}; name the folder that they are in"
            )
        return folder.resolve().parent

    def record(self, row: int) -> File:
        if isinstance(self.entries, ImageFiles):
            return self.entries[row]
        return Content(f"{self.entries.folder}: entry {row}", self.entries[row])

    def stamp(self, row: int) -> bytes:
        """The entry's key, a hash of the picture, or the file's stamp."""
        if isinstance(self.entries, ImageFiles):
            return self.entries.stamp(row)
        key: bytes = self.entries.keys[row].tobytes()
        return key

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the keys, which are hashes themselves, and of the images' size."""
        if isinstance(self.entries, ImageFiles):
            return self.entries.checksum(self.image_shape)
        return zlib.crc32(np.ascontiguousarray(self.entries.keys).data, self.image_shape[0])


def _key(name: str) -> tuple[str, str]:
    path = pathlib.PurePosixPath(portable(name))
    return path.stem, str(path)


class LsunBedroom(LsunPictures):
    """3,033,042 bedrooms, and 300 for testing."""

    name = "lsun_bedroom"
    CATEGORY = "bedroom"


class LsunChurch(LsunPictures):
    """126,227 churches from outside, and 300 for testing."""

    name = "lsun_church"
    CATEGORY = "church_outdoor"
