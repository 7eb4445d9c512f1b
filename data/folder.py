"""Images in any folder of the user's, with its sub-folders as labels."""

from __future__ import annotations

import functools
import os
import pathlib
import unicodedata
import zlib
from collections.abc import Sequence
from concurrent import futures
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.builder import digest

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
TEST_SHARE = 0.1


class ImageFolder:
    """One split of a folder: random-access records {"image", "label"}, read when asked for.

    The splits are the sub-folders `train` and `test`, where both are there; else the tenth (at
    least one) of all images whose names have the smallest hashes is for testing. An image's label
    is the number of the sub-folder that it is in, at any depth, among all in order of their names;
    images outside of sub-folders have one of their own, the first. Examples are in the order of a
    hash of their names below the folder, which mixes labels, and is the same on every file system.
    Hidden files, links to folders and files of other kinds are passed over.

    Args:
      folder: where the images are.
      split: "train" or "test".
      image_size, num_channels: size of the images after `fitted`.

    Raises:
      ValueError: no folder or none with images for both splits, or a number out of range.
    """

    name: ClassVar[str] = "folder"
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")
    LEVELS: ClassVar[int] = 256

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        split: str,
        image_size: int | None,
        num_channels: int | None,
    ):
        if not folder:
            raise ValueError("data set folder: name the folder with --config.data.data_dir")
        if not image_size or num_channels not in (1, 3):
            raise ValueError(
                "data set folder: data.image_size must be positive and data.num_channels 1 or 3, "
                f"not {image_size} and {num_channels}"
            )
        self.folder = pathlib.Path(folder).expanduser()
        self.image_shape = (image_size, image_size, num_channels)
        splits = listed(self.folder)
        for name in self.SPLITS:
            if not splits[name]:
                raise ValueError(f"{self.folder} has no images for the split {name!r}")
        labels = {name: label for names in splits.values() for name, label in names.items()}
        classes = sorted(set(labels.values()))
        self.num_classes = len(classes)
        self.names = sorted(splits[split], key=lambda name: digest(portable(name)))
        self.labels = np.array([classes.index(labels[name]) for name in self.names], np.int32)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image = read_image(self.folder / self.names[row], self.image_shape)
        return {"image": image, "label": self.labels[row]}

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the GIL
            return list(pool.map(self.__getitem__, rows))

    @functools.cached_property
    def checksum(self) -> int:
        """The CRC of the files' names and sizes, labels and the images' shape; reads no image."""
        sizes = [(self.folder / name).stat().st_size for name in self.names]
        content = list(zip(map(portable, self.names), sizes, self.labels.tolist(), strict=True))
        return zlib.crc32(repr((self.image_shape, content)).encode())


def listed(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """The images of each split: their names below `folder`, with the names of their labels.

    Raises:
      ValueError: no such folder, or one of `train` and `test` without the other.
    """
    if not folder.is_dir():
        raise ValueError(f"data set folder: there is no folder {folder}")
    split_folders = [name for name in ImageFolder.SPLITS if (folder / name).is_dir()]
    if len(split_folders) == 1:
        raise ValueError(
            f"{folder} has a sub-folder {split_folders[0]}, but must have train and test, or none"
        )
    if split_folders:
        return {
            split: {f"{split}/{name}": label_of(name) for name in names_of(folder / split)}
            for split in split_folders
        }
    names = sorted(names_of(folder), key=lambda name: digest(portable(name)))
    count = max(1, int(TEST_SHARE * len(names)))
    shares = {"train": names[count:], "test": names[:count]}
    return {split: {name: label_of(name) for name in share} for split, share in shares.items()}


def names_of(folder: pathlib.Path) -> list[str]:
    """The image files below `folder`, relative to it, with slashes."""
    paths = [path.relative_to(folder) for path in folder.rglob("*")]
    return [
        path.as_posix()
        for path in paths
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
        and (folder / path).is_file()
    ]


def label_of(name: str) -> str:
    """The first folder of a relative name, as it sorts everywhere; "" if there is none."""
    first, slash, _ = portable(name).partition("/")
    return first if slash else ""


def portable(name: str) -> str:
    """A file's name whichever way its file system composes letters (Unicode's form NFC)."""
    return unicodedata.normalize("NFC", name)


def read_image(path: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The image in a file, `fitted` to `shape` and turned upright as its EXIF data say.

    Raises:
      ValueError: a file that cannot be read; names it and says why.
    """
    try:
        with Image.open(path) as opened:
            opened.draft(None, (2 * shape[0], 2 * shape[1]))  # large JPEG files decode reduced
            return fitted(ImageOps.exif_transpose(opened), shape)
    except UnidentifiedImageError:
        raise ValueError(f"{path} cannot be read: it is no image of a known kind") from None
    except Exception as error:  # Pillow's decoders each have their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read: {reason}") from error


def fitted(picture: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [S, S, C]: the shorter side is resampled (Lanczos) to S, the longer one cut to S.

    What is transparent becomes white. C = 3: red, green, blue; C = 1: their luma (ITU-R BT.601).

    Raises:
      ValueError: pixels of 32 bits, whose range nothing tells.
    """
    size, _, channels = shape
    if picture.mode.startswith("I;16"):
        grey = np.rint(np.asarray(picture).astype(np.float64) / 257.0)
        picture = Image.fromarray(grey.astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode!r} have no known range; use 8 or 16 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(shape)
