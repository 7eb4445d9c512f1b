"""CelebA: aligned and cropped faces of celebrities, from the official archive.

Z. Liu et al.: Deep Learning Face Attributes in the Wild, arXiv:1411.7766.
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from data import crops
from data.image_files import ImageFiles, every_image
from data.images import File, shown
from data.listing import Names
from data.pictures import Pictures, Request, nor
from data.prepared import Prepared
from data.trees import portable, tree
from data.zip_file import is_zip

FOLDER, PARTITION = "img_align_celeba", "list_eval_partition.txt"
PARTS = {"train": 0, "test": 1}  # the official code tests on those for validation; 2: test
URL = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


class Celeba(Pictures):
    """162,770 faces, and 19,867 (those for validation) for testing.

    The files are `img_align_celeba.zip`, or the folder in it, and `list_eval_partition.txt` beside
    it; or what TFDS prepared, `celeb_a`, as array_record. As in the official code of score_sde the
    middle 140 x 140 pixels become `image_size` pixels wide by antialiased bilinear resampling, and
    are not rounded to levels: float32.

    Raises:
      ValueError: another number of channels than 3; a partition that misses images, or names
        others; a picture of another size.
      FileNotFoundError: the files are not here; says which are wanted, and from where.
    """

    name = "celeba"
    DTYPE = np.float32

    def __init__(self, request: Request):
        self.image_shape = request.shape(self.name, "positive", fits=True)
        self.decode = functools.partial(crops.celeba, size=self.image_shape[0])
        root = request.place(self.name, buckets=True)
        folder = root.parent if is_zip(root) or root.name in (FOLDER, PARTITION) else root
        place = next(
            (path for path in (folder / f"{FOLDER}.zip", folder / FOLDER) if path.exists()), None
        )
        self.records: ImageFiles | Prepared
        if place is not None:
            self.records = _of_split(place, folder / PARTITION, PARTS[request.split])
        else:
            split = {"train": "train", "test": "validation"}[request.split]
            prepared = Prepared.find("celeb_a", request.folder, split, labels=False)
            if prepared is None:
                raise FileNotFoundError(
                    f"data set {self.name}: there is no {folder / FOLDER}.zip; fetch it and "
                    f"{PARTITION} from {URL}, whose terms are to be agreed to, and name their "
                    "folder with --config.data.data_dir"
                )
            self.records, place = prepared, prepared.folder
        self.source = str(place.resolve())
        self.labels = np.zeros(len(self.records), np.int32)
        self.transform = f"middle 140x140, antialiased bilinear to {request.image_size}"
        self.summary = f"{place}: {len(self.records)} images"

    def record(self, row: int) -> File:
        return self.records[row]

    def stamp(self, row: int) -> bytes:
        return self.records.stamp(row)

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the files' names and sizes, or of the records' number."""
        return self.records.checksum(self.image_shape)


def _of_split(place: pathlib.Path, partition: pathlib.Path, part: int) -> ImageFiles:
    """The images of a part, in the order of their names.

    Raises:
      FileNotFoundError: there is no partition.
      ValueError: it does not name the images that there are.
    """
    if not partition.is_file():
        raise FileNotFoundError(
            f"data set celeba: {shown(place)} is here, but {shown(partition)} is not; fetch it "
            f"from {URL}"
        )
    parts = partition_of(partition)
    files = tree(place, "celeba")
    names = {pathlib.PurePosixPath(portable(name)).name: name for name in every_image(files)}
    for these, others, lacks in ((names, parts, "names no"), (parts, names, "names an absent")):
        missing = sorted(set(these) - set(others))
        if missing:
            raise ValueError(
                f"{shown(partition)} {lacks} {shown(missing[0])} of {shown(place)}"
                f"{nor(len(missing) - 1)} ({len(names)} images, {len(parts)} names); one of the "
                "two is damaged, fetch it again"
            )
    wanted = (names[name] for name in parts if parts[name] == part)
    return ImageFiles(files, Names.of(sorted(wanted, key=portable)))


def partition_of(path: pathlib.Path) -> dict[str, int]:
    """The part of every image, by its name: lines "000001.jpg 0".

    Raises:
      ValueError: other lines than these, or an image in two parts; names the line.
    """
    parts: dict[str, int] = {}
    for number, line in enumerate(path.read_text("utf-8-sig", "replace").rstrip().splitlines(), 1):
        name, _, part = line.strip().partition(" ")
        if part.strip() not in ("0", "1", "2"):
            raise ValueError(
                f"{shown(path)}: line {number} is {line[:60]!r}; it should be a file's name and 0, "
                "1 or 2"
            )
        if parts.setdefault(name, int(part)) != int(part):
            raise ValueError(
                f"{shown(path)}: line {number} says that {shown(name)} is in part {part.strip()}, "
                f"and an earlier one in {parts[name]}; fetch it again"
            )
    return parts
