"""CIFAR-10, from its official binary archive."""

from __future__ import annotations

import pathlib
import tarfile
import zlib

import numpy as np

from data.builder import Files, ImageBuilder
from data.images import shown

ARCHIVE = "cifar-10-binary.tar.gz"
MEMBERS = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}


class Cifar10(ImageBuilder):
    """50,000 + 10,000 colour pictures of 32x32 pixels, 10 classes.

    A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    TFDS_VERSIONS = ("3.0.2",)
    IMAGE_SHAPE = (32, 32, 3)
    NAMES = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    COUNTS = {"train": 50_000, "test": 10_000}  # noqa: RUF012
    URL = "https://www.cs.toronto.edu/~kriz/"
    CHECKSUMS = {  # noqa: RUF012
        ARCHIVE: (170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd")
    }

    @classmethod
    def find(cls, folder: pathlib.Path) -> Files | None:
        """The archive, or the six batches that were unpacked from it."""
        if (folder / ARCHIVE).is_file():
            return {ARCHIVE: folder / ARCHIVE}
        names = [name for split in cls.SPLITS for name in MEMBERS[split]]
        for place in (folder, folder / "cifar-10-batches-bin"):
            missing = [name for name in names if not (place / name).is_file()]
            if not missing:
                return {name: place / name for name in names}
            if len(missing) < len(names):
                raise FileNotFoundError(f"{cls.name}: {place} lacks {', '.join(missing)}")
        return None

    @classmethod
    def read(cls, files: Files, split: str) -> tuple[np.ndarray, np.ndarray]:
        """A record is one byte of label, then the red, green and blue planes, row by row."""
        members = MEMBERS[split]
        record = 1 + int(np.prod(cls.IMAGE_SHAPE))
        size = cls.COUNTS[split] // len(members) * record
        if ARCHIVE in files:
            raw = _unpack(files[ARCHIVE], members, size)
        else:
            raw = {}
            for name in members:
                stored = files[name].stat().st_size
                if stored != size:
                    raise ValueError(f"{shown(files[name])}: damaged, {stored} bytes, not {size}")
                raw[name] = files[name].read_bytes()
        records = np.frombuffer(b"".join(raw.values()), np.uint8).reshape(-1, record)
        labels = records[:, 0].astype(np.int32)
        if labels.max() >= cls.NUM_CLASSES:
            raise ValueError(
                f"{members[0]}: a label is {labels.max()}, above {cls.NUM_CLASSES - 1}"
            )
        planes = records[:, 1:].reshape(-1, 3, 32, 32)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _unpack(archive: pathlib.Path, members: tuple[str, ...], size: int) -> dict[str, bytes]:
    """The named members of the archive, by base name, in the order of `members`.

    A member is a file of `size` bytes: links are not followed, and nothing larger is read.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = pathlib.PurePosixPath(member.name).name
                if name not in members:
                    continue
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is None or member.size != size or name in contents:
                    what = f"{member.size} bytes" if stream else "a link or no file at all"
                    raise ValueError(
                        f"{shown(archive)}: damaged or another archive, {name} is {what}, "
                        f"not one file of {size} bytes"
                    )
                contents[name] = stream.read()
    except (tarfile.TarError, EOFError, KeyError, OSError, zlib.error) as error:
        raise ValueError(f"{shown(archive)}: damaged archive ({error})") from error
    missing = [name for name in members if name not in contents]
    if missing:
        raise ValueError(
            f"{shown(archive)}: damaged or another archive, it lacks {', '.join(missing)}"
        )
    return {name: contents[name] for name in members}
