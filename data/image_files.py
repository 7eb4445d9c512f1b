"""The images in a folder or zip file in an order of their own, for sets without labels."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from data.builder import default_folder
from data.images import File, Shape
from data.listing import Kept, Listing, Names, crc_of_list
from data.trees import Tree, portable, tree
from data.zip_file import is_zip

ALL = "all"  # the one split of such a list


class ImageFiles:
    """Some of the files of a tree, in an order.

    Args:
      names: of the files, in their order.
      kept: what is kept of their list, if anything.
    """

    def __init__(self, files: Tree, names: Names, kept: Kept | None = None):
        self.files, self.names, self.kept = files, names, kept

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> File:
        return self.files.file(self.names[row])

    def stamp(self, row: int) -> bytes:
        """What changes when the file does."""
        return self.files.stamp(self.names[row])

    def checksum(self, shape: Shape) -> int:
        """The CRC of the images' shape, and of the names and sizes of all files."""

        def content(rows: range) -> list[Any]:
            names = [self.names[row] for row in rows]
            return [(portable(name), self.files.size(name)) for name in names]

        def make() -> int:
            return crc_of_list(f"({shape}, [", content, len(self), "])")

        return make() if self.kept is None else self.kept.checksum(str(shape), make)


def every_image(files: Tree) -> list[str]:
    """The names of all images."""
    return files.images("", collections.Counter())


def images_in(
    place: pathlib.Path,
    key: Callable[[str], Any],
    what: str,
    choose: Callable[[Tree], Iterable[str]] = every_image,
) -> ImageFiles | None:
    """Images in a folder or zip file, in the order of `key`; None if there are none.

    Args:
      what: which images in which order, the name that the list is kept by.
      choose: the names of those that are wanted.

    Raises:
      ValueError: it cannot be read.
    """
    if not place.is_dir() and not (is_zip(place) and place.is_file()):
        return None
    files, kept = tree(place, ""), Kept(default_folder() / "index", place, what)
    listing = kept.listing([ALL])
    if listing is None:
        names = Names.of(sorted(choose(files), key=key))
        listing = Listing({ALL: names}, {ALL: np.zeros(len(names), np.int32)}, "")
        kept.keep(listing, files.states)
    return ImageFiles(files, listing.names[ALL], kept) if len(listing.names[ALL]) else None
