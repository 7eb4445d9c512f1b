"""ImageNet at 32 x 32 and 64 x 64 pixels, from the published archives of either kind.

A. van den Oord et al.: Pixel Recurrent Neural Networks, arXiv:1601.06759: `train_32x32.tar` and
`valid_32x32.tar` of PNG files without labels, which the likelihoods of the literature are of, and
score_flow's. P. Chrabaszcz et al.: A Downsampled Variant of ImageNet as an Alternative to the CIFAR
datasets, arXiv:1707.08819: `train_data_batch_1.npz` to `train_data_batch_10.npz` and `val_data.npz`
with labels, which ImageNet's page has today; they were shrunk by another filter, their likelihoods
are other ones.
"""

from __future__ import annotations

import functools
import pathlib
import zlib
from typing import ClassVar

import numpy as np

from data import index
from data.arrays import npy_member
from data.builder import default_folder
from data.images import NONE, Content, shown
from data.pictures import Fit, Pictures, Request
from data.prepared import Prepared
from data.random_access import RandomAccess
from data.zip_file import ZipFile

URL = "https://image-net.org/download-images.php"
TARS = {"train": "train_{size}x{size}.tar", "test": "valid_{size}x{size}.tar"}
BATCHES = {
    "train": tuple(f"train_data_batch_{number}.npz" for number in range(1, 11)),
    "test": ("val_data.npz",),
}
COUNTS = {"train": 1_281_167, "test": 50_000}  # of the batches
BYTES = {  # of the tar files, which TFDS publishes with their SHA-256
    "train_32x32.tar": 4113018880,
    "valid_32x32.tar": 161474560,
    "train_64x64.tar": 12112588800,
    "valid_64x64.tar": 477255680,
}
CLASSES = 1000


class ImagenetPictures(Pictures):
    """The images of `train_32x32.tar` (`valid_32x32.tar` for testing), in the archive's order.

    Without it, those of the ten batches (`val_data.npz`), in the order of their numbers, or what
    TFDS prepared, `downsampled_imagenet`, as array_record. Only the batches have labels.

    Raises:
      ValueError: another size or number of channels; damaged, other or incomplete files.
      FileNotFoundError: the files are not here; says which are wanted, and from where.
    """

    SIZE: ClassVar[int]

    def __init__(self, request: Request):
        size = self.SIZE
        self.image_shape = request.shape(self.name, str(size), request.image_size == size)
        place, split = request.place(self.name, buckets=True), request.split
        root = place.parent if place.suffix in (".tar", ".npz") else place  # one of the files
        tar = root / TARS[split].format(size=size)
        batches = [root / name for name in BATCHES[split]]
        self.records: TarFile | Batches | Prepared
        if tar.is_file():
            self.records = TarFile(tar)
        elif any(path.is_file() for path in batches):
            self.records = Batches(batches, self.image_shape, COUNTS[split])
        else:
            name = f"downsampled_imagenet/{size}x{size}"
            part = {"train": "train", "test": "validation"}[split]
            prepared = Prepared.find(name, request.folder, part)
            if prepared is None:
                raise FileNotFoundError(
                    f"data set {self.name}: there is neither {tar} nor {batches[0].name} beside "
                    f"it; log in and agree to the terms at {URL}, fetch and unpack the npz "
                    f"archives of {size}x{size}, and name their folder with --config.data.data_dir"
                )
            self.records = prepared
        if not isinstance(self.records, Batches):
            self.decode = Fit(method=NONE).decoder(self.image_shape)
        self.source = f"{root.resolve()} {self.records.described}"
        self.labels, self.num_classes = self.records.labels, self.records.num_classes
        self.summary = f"{self.records.described}: {len(self.labels)} images"

    def record(self, row: int) -> Content | np.ndarray:
        return self.records[row]

    def stamp(self, row: int) -> bytes:
        return self.records.stamp(row)

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the labels, and of where the images are."""
        return self.records.checksum()


class TarFile:
    """The PNG files in a tar file, without labels, read at random.

    A member is a header of 512 bytes, of which bytes 124 to 135 are its size in octal digits and
    byte 156 is its type, and its content, filled up to 512 bytes.
    """

    num_classes = 1

    def __init__(self, path: pathlib.Path):
        self.path, self.described = path, str(path)
        status = path.stat()
        size, self._time = status.st_size, str(status.st_mtime_ns).encode()
        if path.name in BYTES and size != BYTES[path.name]:
            raise ValueError(
                f"{shown(path)} is cut off or another file: it has {size} bytes, not "
                f"{BYTES[path.name]}; fetch it again"
            )
        self._bytes = RandomAccess(path)
        self.places = index.cached(default_folder() / "index", path, "tar", self._list_places)
        self.labels = np.zeros(len(self.places), np.int32)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> Content:
        begin, size = map(int, self.places[row])
        return Content(f"{self.path}: image {row}", self._bytes[begin : begin + size])

    def stamp(self, row: int) -> bytes:
        """Where the image is, and the file's time of change."""
        return self.places[row].tobytes() + self._time

    def checksum(self) -> int:
        return zlib.crc32(np.ascontiguousarray(self.places).data)

    def _list_places(self) -> np.ndarray:
        """Begin and size of every PNG file, int64 [n, 2]."""
        places: list[tuple[int, int]] = []
        at, end = 0, len(self._bytes)
        while at + 512 <= end:
            header = self._bytes[at : at + 512]
            if header[:1] == b"\0":  # the archive's end
                break
            digits = header[124:136].strip(b" \0")
            if not digits.isdigit() or (not places and _checksum(header) is False):
                what = f"is damaged after image {len(places)}" if places else "is no tar file"
                raise ValueError(f"{shown(self.path)} {what}; fetch it again")
            size = int(digits, 8)
            if at + 512 + size > end:
                raise ValueError(f"{shown(self.path)} is cut off in image {len(places)}")
            if header[156:157] in b"0\0" and header[:100].strip(b"\0").lower().endswith(b".png"):
                places.append((at + 512, size))
            at += 512 + (size + 511) // 512 * 512
        if not places:
            raise ValueError(f"{shown(self.path)} has no PNG files")
        return np.array(places, np.int64)


def _checksum(header: bytes) -> bool:
    """Whether the checksum of a tar header, in octal digits at byte 148, fits."""
    digits = header[148:156].strip(b" \0")
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    return digits.isdigit() and total == int(digits, 8)


class Batches:
    """Files of arrays: `data` uint8 [n, 3 S S], red, green and blue planes, `labels` from 1 on."""

    num_classes = CLASSES

    def __init__(self, paths: list[pathlib.Path], shape: tuple[int, ...], count: int):
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{shown(paths[0].parent)} lacks {', '.join(missing)}")
        self.planes = (shape[2], *shape[:2])
        self.described = f"{paths[0]}" + (f" and {len(paths) - 1} others" if paths[1:] else "")
        parts = [self._arrays(path) for path in paths]
        self.parts = [images for images, _ in parts]
        self.ends = np.cumsum([len(images) for images in self.parts])
        self.labels = np.concatenate([labels for _, labels in parts])
        if len(self.labels) != count:
            raise ValueError(
                f"{shown(paths[0].parent)} has {len(self.labels)} images in {len(paths)} file(s), "
                f"not {count}; a file is another one, fetch it again"
            )

    def _arrays(self, path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
        """The images and the labels, from 0 on, of a file."""
        archive = ZipFile(path, default_folder() / "index")
        rows = {name: row for row, name in enumerate(archive.names)}
        if not {"data.npy", "labels.npy"} <= set(rows):
            raise ValueError(f"{shown(path)} has no arrays data and labels; fetch it again")
        images, labels = (npy_member(archive, rows[f"{name}.npy"]) for name in ("data", "labels"))
        width = int(np.prod(self.planes))
        if images.dtype != np.uint8 or images.shape != (len(images), width):
            raise ValueError(
                f"{shown(path)} has images of {images.dtype}{list(images.shape)}, not "
                f"uint8[n, {width}]"
            )
        low, high = labels.min(initial=1), labels.max(initial=1)
        if labels.shape != (len(images),) or low < 1 or high > CLASSES:
            raise ValueError(
                f"{shown(path)} has {labels.size} labels from {low} to {high} for {len(images)} "
                f"images; they should be from 1 to {CLASSES}"
            )
        return images, labels.astype(np.int32) - 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> np.ndarray:
        part = int(np.searchsorted(self.ends, row, "right"))
        images = self.parts[part]
        planes = images[row - self.ends[part] + len(images)]
        return np.ascontiguousarray(planes.reshape(self.planes).transpose(1, 2, 0))

    def stamp(self, row: int) -> bytes:
        """The row: nothing is decoded."""
        return str(row).encode()

    def checksum(self) -> int:
        ends = self[0].tobytes() + self[len(self) - 1].tobytes()
        return zlib.crc32(ends, zlib.crc32(self.labels.data))


class Imagenet32(ImagenetPictures):
    """1.28 million photographs of 32x32 pixels, and 50,000 for testing."""

    name = "imagenet32"
    SIZE = 32


class Imagenet64(ImagenetPictures):
    """1.28 million photographs of 64x64 pixels, and 50,000 for testing."""

    name = "imagenet64"
    SIZE = 64
