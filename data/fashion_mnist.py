"""Fashion-MNIST, from its four IDX files."""

from __future__ import annotations

import gzip
import math
import pathlib
import zlib

import numpy as np

from data.builder import Files, ImageBuilder


class FashionMnist(ImageBuilder):
    """60,000 + 10,000 grey pictures of clothes, 28x28 pixels, 10 classes.

    H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, arXiv:1708.07747.
    """

    TFDS_VERSIONS = ("3.0.1",)
    IMAGE_SHAPE = (28, 28, 1)
    NAMES = (
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )
    URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    CHECKSUMS = {  # noqa: RUF012
        "train-images-idx3-ubyte.gz": (
            26421880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        "train-labels-idx1-ubyte.gz": (
            29515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        "t10k-images-idx3-ubyte.gz": (
            4422102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            5148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    }
    COUNTS = {"train": 60_000, "test": 10_000}  # noqa: RUF012
    FOLDERS = ("/usr/share/datasets/fashion-mnist",)  # Debian: dataset-fashion-mnist

    @classmethod
    def find(cls, folder: pathlib.Path) -> Files | None:
        """The official files, as `ImageBuilder.find`, or uncompressed, without their `.gz`."""
        names = {name: [folder / name, folder / name.removesuffix(".gz")] for name in cls.CHECKSUMS}
        files = {
            name: next(path for path in paths if path.is_file())
            for name, paths in names.items()
            if any(path.is_file() for path in paths)
        }
        if files and len(files) < len(names):
            missing = ", ".join(name for name in names if name not in files)
            raise FileNotFoundError(f"{cls.name}: {folder} lacks {missing}")
        return files or None

    @classmethod
    def read(cls, files: Files, split: str) -> tuple[np.ndarray, np.ndarray]:
        prefix = {"train": "train", "test": "t10k"}[split]
        image_file = files[f"{prefix}-images-idx3-ubyte.gz"]
        label_file = files[f"{prefix}-labels-idx1-ubyte.gz"]
        count = cls.COUNTS[split]
        limit = 2 * count * math.prod(cls.IMAGE_SHAPE) + 1024  # bytes; what is too long has room
        images, labels = read_idx(image_file, 3, limit), read_idx(label_file, 1, limit)
        if images.shape[1:] != cls.IMAGE_SHAPE[:2]:
            raise ValueError(f"{image_file}: {images.shape[1:]} pixels, not {cls.IMAGE_SHAPE[:2]}")
        if len(images) != len(labels):
            raise ValueError(f"{image_file}: {len(images)} images, but {len(labels)} labels")
        if len(images) != count:
            raise ValueError(f"{image_file}: damaged, {len(images)} images, not {count}")
        if labels.max(initial=0) >= cls.NUM_CLASSES:
            raise ValueError(
                f"{label_file}: a label is {labels.max()}, above {cls.NUM_CLASSES - 1}"
            )
        return images[..., None], labels.astype(np.int32)


def read_idx(path: pathlib.Path, ndim: int, limit: int = 1 << 30) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped or not, of `limit` bytes at most.

    An IDX file is: two zero bytes, 8 (unsigned byte), the number of dimensions, each dimension as
    big-endian int32, the values in row-major order (http://yann.lecun.com/exdb/mnist).

    Raises:
      ValueError: not an IDX file of `ndim` dimensions, or damaged, or too large.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            raw = gzip.GzipFile(fileobj=file).read(limit + 1) if packed else file.read(limit + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from error
    if len(raw) > limit:
        raise ValueError(f"{path}: damaged or another file, it holds more than {limit} bytes")
    start = 4 + 4 * ndim
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, ndim]):
        raise ValueError(f"{path}: not an IDX file of unsigned bytes with {ndim} dimension(s)")
    shape = tuple(np.frombuffer(raw, ">i4", ndim, offset=4).tolist())
    if min(shape) < 1 or len(raw) - start != math.prod(shape):
        raise ValueError(f"{path}: damaged, {len(raw) - start} values where {shape} are announced")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
