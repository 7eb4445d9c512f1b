"""Small files in the official format of every data set that the official configs name.

`WRITERS` has one function for each data set: from a folder and the size of the images it writes the
files as their publishers lay them out, with pictures that a generator of random numbers draws. What
is fixed by publication, the numbers of images and the checksums of CIFAR-10, `small_cifar10` lets
be otherwise.
"""

from __future__ import annotations

import io
import pathlib
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence

import lmdb
import numpy as np
import pytest
from PIL import Image

from data import tfrecords
from data.cifar10 import ARCHIVE, MEMBERS, Cifar10

COUNT = 20  # training images of a set; of CIFAR-10's test images there are as many
TEST_COUNT = 6


def pictures(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """Pictures uint8 [count, height, width, 3]: a colour each, with noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 216, (count, 1, 1, 3))
    noise = rng.integers(-40, 40, (count, height, width, 3))
    return (colours + noise).astype(np.uint8)


# --- CIFAR-10: an archive of records, a label and three planes each ---


def write_cifar10(folder: pathlib.Path, size: int) -> None:
    """`cifar-10-binary.tar.gz` with five batches of training images and one of test images."""
    assert size == 32
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for split, seed, share in (("train", 0, COUNT // 5), ("test", 1, TEST_COUNT)):
            for i, name in enumerate(MEMBERS[split]):
                planes = pictures(share, 32, 32, 10 * seed + i).transpose(0, 3, 1, 2)
                labels = (np.arange(share, dtype=np.uint8) + i) % 10
                content = np.concatenate([labels[:, None], planes.reshape(share, -1)], 1).tobytes()
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def small_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the archive be another than the published one, and of fewer images."""
    monkeypatch.setattr(Cifar10, "COUNTS", {"train": COUNT, "test": TEST_COUNT})
    monkeypatch.setattr(Cifar10, "verify", classmethod(lambda cls, files: None))


# --- CelebA-HQ and FFHQ: TFRecords ---


def write_records(path: pathlib.Path, *records: bytes) -> pathlib.Path:
    """A TFRecord file: each record with its length, and masked CRC-32Cs of both."""
    with path.open("wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + struct.pack("<I", tfrecords.masked_crc(length)))
            file.write(data + struct.pack("<I", tfrecords.masked_crc(data)))
    return path


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that has a length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def stylegan_record(image: np.ndarray) -> bytes:
    """A tf.train.Example of a picture [H, W, C], as StyleGAN's dataset_tool.py writes it."""
    planes = image.transpose(2, 0, 1)
    shape = _field(3, _field(1, b"".join(map(_varint, planes.shape))))  # an Int64List
    data = _field(1, _field(1, planes.tobytes()))  # a BytesList
    entries = [_field(1, _field(1, b"shape") + _field(2, shape))]
    entries.append(_field(1, _field(1, b"data") + _field(2, data)))
    return _field(1, b"".join(entries))


def stylegan_writer(prefix: str) -> Callable[[pathlib.Path, int], None]:
    def write(folder: pathlib.Path, size: int) -> None:
        path = folder / f"{prefix}-r{size.bit_length() - 1:02d}.tfrecords"
        write_records(path, *map(stylegan_record, pictures(COUNT, size, size, 2)))

    return write


# --- LSUN: LMDBs of WebP ---


def webp(image: np.ndarray) -> bytes:
    """A picture as WebP, without loss."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=True)
    return file.getvalue()


def write_lmdb(folder: pathlib.Path, entries: dict[bytes, bytes]) -> pathlib.Path:
    """An LMDB environment with these entries."""
    with (
        lmdb.open(str(folder), map_size=1 << 22) as environment,
        environment.begin(write=True) as writer,
    ):
        for key, value in entries.items():
            writer.put(key, value)
    return folder


def lsun_writer(category: str) -> Callable[[pathlib.Path, int], None]:
    def write(folder: pathlib.Path, size: int) -> None:
        for split, count, seed in (("train", COUNT, 3), ("val", TEST_COUNT, 4)):
            images = pictures(count, size + 5, size + 9, seed)
            entries = {b"%040x" % (977 * i): webp(image) for i, image in enumerate(images)}
            write_lmdb(folder / f"{category}_{split}_lmdb", entries)

    return write


# --- CelebA: a zip file of JPEG, and the partition ---


def write_celeba(folder: pathlib.Path, size: int) -> None:
    """`img_align_celeba.zip` and `list_eval_partition.txt`; the pictures are of one size always."""
    del size
    count, lines = COUNT + TEST_COUNT, []
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i, image in enumerate(pictures(count, 218, 178, 5)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG")
            archive.writestr(f"img_align_celeba/{i + 1:06}.jpg", file.getvalue())
            lines.append(f"{i + 1:06}.jpg {int(i >= COUNT)}\n")
    (folder / "list_eval_partition.txt").write_text("".join(lines))


WRITERS: dict[str, Callable[[pathlib.Path, int], None]] = {
    "celeba": write_celeba,
    "cifar10": write_cifar10,
    "celebahq": stylegan_writer("celebahq"),
    "ffhq": stylegan_writer("ffhq"),
    "lsun_bedroom": lsun_writer("bedroom"),
    "lsun_church": lsun_writer("church_outdoor"),
}
# Data sets of official configs that have no writer yet: the walk says so of each of their configs.
MISSING: Sequence[str] = ()
