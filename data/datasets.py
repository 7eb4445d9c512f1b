"""Data sets by name: images (or points) and labels, in RAM where they fit.

A data set is a class in a file of this folder, a subclass of `ImageBuilder`, or of `PointSet` for
points, that says its `name`, shape, levels and classes. `DATASETS` finds it there by itself.

Points are drawn where they are needed, and the images of a user's folder read where they are. For
other images `load` looks, in this order, for the official files in the folder the user named (or
where a distribution's package puts them), for prepared array_record data
(`<folder>/<name>/<version>`, ours or TFDS's own), and else downloads and prepares them. TensorFlow
is never needed.

Prepared data live in `data_dir`, else in `$SCORE_SDE_DATA`, else in `~/.cache/score_sde/data`; what
TFDS itself prepared as array_record in `$TFDS_DATA_DIR` or `~/tensorflow_datasets` is read as well.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import pathlib
import pkgutil
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from configs import extras
from configs.names import lookup
from data.arrays import ArrayPictures, ArrayValues
from data.bucket import refuse_bucket
from data.builder import ImageBuilder, default_folder
from data.columns import RAM_LIMIT, Column, columns, take
from data.decoded import cached
from data.images import METHODS, last_line
from data.pictures import Fit, Pictures, Request
from data.prepared import tfds_root
from data.toy import PointSet

Kind = type[ImageBuilder] | type[Pictures] | type[PointSet]
_WITHOUT_DATASETS = (
    "batches",
    "builder",
    "captions",
    "columns",
    "datasets",
    "entries",
    "images",
    "preparation",
    "standardisation",
    "transforms",
)


def discover(path: Iterable[str]) -> dict[str, Kind]:
    """The data sets that the files of this package in the folders `path` define, by name."""
    kinds: dict[str, Kind] = {}
    for file in pkgutil.iter_modules(path):
        if file.name in _WITHOUT_DATASETS:
            continue
        module = importlib.import_module(f"{__package__}.{file.name}")
        for kind in vars(module).values():
            if (
                isinstance(kind, type)
                and kind.__module__ == module.__name__
                and issubclass(kind, ImageBuilder | Pictures | PointSet)
                and hasattr(kind, "name")
            ):
                kinds[kind.name] = kind
    return dict(sorted(kinds.items()))


DATASETS = discover([str(pathlib.Path(__file__).parent)])
REAL_VALUED: dict[Kind, Kind] = {ArrayPictures: ArrayValues}  # where `data.shape` asks for that


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a labelled data set.

    Attributes:
      name, split: as given to `load`.
      images: uint8 [n, H, W, C] with values in 0..levels-1, or float32 where they have fractions of
        levels: an array, or a `Column` of records that reads from disk; either takes row numbers.
        Real-valued examples (levels == 0): float32 [n, *shape]; points of the plane [n, 1, 1, 2].
      labels: int32 [n], likewise.
      levels: number of grey levels, of which bits per dimension count log2; 0 for real numbers,
        whose likelihood is that of themselves.
      image_shape: of one example, (H, W, C) of an image.
      num_classes: labels are in 0..num_classes-1.
      summary: a line about the files of a user's folder, which the program prints; else "".
      folder: the user's folder that the images are from; "" of a published data set.
      transform: how their crop and size were made, in words; "" where they are as published.
    """

    name: str
    split: str
    images: Any
    labels: Any
    levels: int
    image_shape: tuple[int, ...]
    num_classes: int
    summary: str = ""
    folder: str = ""
    transform: str = ""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        return isinstance(self.images, np.ndarray)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (or points) [k, H, W, C] and labels int32 [k] of `rows` [k]; reads each once."""
        if isinstance(self.images, np.ndarray):
            return self.images[rows], np.asarray(self.labels[rows])
        return take(self.images.records, rows)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A text that is equal for equal examples in equal order, as far as they are read."""
        if isinstance(self.images, Column):
            content = getattr(self.images.records, "checksum", 0)
        else:
            content = zlib.crc32(np.ascontiguousarray(self.images).data)
            content = zlib.crc32(np.ascontiguousarray(self.labels).data, content)
        return f"{self.name}/{self.split}/{len(self)}/{content:08x}"

    def facts(self) -> dict[str, Any]:
        """The examples' origin, as it stands beside what was made with them."""
        return {
            "dataset": f"{self.name}/{self.split}",
            "fingerprint": self.fingerprint,
            "folder": self.folder,
            **_shape_facts(self.image_shape),
            "transform": self.transform,
        }


def load(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    num_channels: int | None = None,
    ram_limit: int = RAM_LIMIT,
    cache: bool = False,
    fit: Fit = Fit(),
    shape: tuple[int, ...] = (),
) -> Dataset:
    """The data set `name`, split "train" or "test"; what follows a colon in it is the set's own.

    Args:
      name: a key of `DATASETS`, in any case.
      split: "train" or "test".
      data_dir: a folder with the official files, or one with prepared data; the folder of "folder".
      image_size, num_channels: what the caller expects; only images of "folder" are made to fit.
      ram_limit: bytes of images up to which the set is kept in RAM.
      cache: keep images that had to be decoded on disk, see `data.decoded`.
      fit: how images are cropped and resized, where a user may say so.
      shape: of real-valued examples, `data.shape`; (): images, or points of the plane.

    Raises:
      ValueError: unknown name or split, another image size, damaged files, or a `fit` for a set
        that has its own.
      FileNotFoundError: the files are not here and cannot be downloaded.
    """
    words: dict[str, str] = {}
    builder, detail = _kind(name, shape)
    if fit != Fit() and not getattr(builder, "FITS", False):
        raise ValueError(
            f"data set {name} has its own crop and size; data.crop={fit.crop} and data.resize="
            f"{fit.method!r} are for {', '.join(fitting())}"
        )
    if fit.crop < 0:
        raise ValueError(f"data.crop={fit.crop} must be a number of pixels, or 0")
    lookup(METHODS, fit.method, "data.resize")
    lookup(dict.fromkeys(builder.SPLITS), split, f"split of {name}")
    if issubclass(builder, Pictures):
        files = builder(Request(data_dir, split, image_size, num_channels, fit, detail, shape))
        if not len(files):
            raise ValueError(f"data set {name} has no images for the split {split!r}")
        records = cached(files, split, default_folder()) if cache else files
        images, _ = columns(records, files.image_shape, ram_limit)
        labels, num_classes = files.labels, files.num_classes
        of_one: tuple[int, ...] = files.image_shape
        words = {"summary": files.summary, "transform": files.transform}
        words["folder"] = str(data_dir) if is_users_own(name) else ""
    else:
        check_shape(name, image_size, num_channels, shape)
        of_one, num_classes = builder.IMAGE_SHAPE, builder.NUM_CLASSES
        if issubclass(builder, PointSet):
            images, labels = builder.draw(split)
        else:
            images, labels = _open(builder, split, data_dir, ram_limit)
    return Dataset(
        name.lower(), split, images, labels, builder.LEVELS, of_one, num_classes, **words
    )


def check_shape(
    name: str,
    image_size: int | None,
    num_channels: int | None,
    values: tuple[int, ...] = (),
) -> None:
    """Refuses examples of another shape than a data set's own, where it has one; opens no file.

    Raises:
      ValueError: an unknown name, another size, or other channels; None is any.
    """
    builder, _ = _kind(name, values)
    if issubclass(builder, Pictures):
        return
    shape = builder.IMAGE_SHAPE
    if values or _has_own_shape(builder):
        if values != shape:
            raise ValueError(f"{name} has examples of data.shape={shape}, not {values}")
        return
    if image_size is not None and (image_size, image_size) != shape[:2]:
        raise ValueError(f"{name} has images of {shape[0]}x{shape[1]} pixels, not {image_size}")
    if num_channels is not None and num_channels != shape[2]:
        raise ValueError(f"{name} has {shape[2]} channel(s), not {num_channels}")


def from_config(config: Any, split: str) -> Dataset:
    """`load` with config.data's dataset, data_dir ("": the usual place), size and channels."""
    options = config.data
    return load(
        options.dataset,
        split,
        options.data_dir or None,
        options.image_size,
        options.num_channels,
        cache=options.cache,
        fit=Fit(options.crop, options.resize),
        shape=tuple(options.shape),
    )


def _shape_facts(shape: tuple[int, ...]) -> dict[str, Any]:
    """The shape of an example: of an image its size and channels, else the shape itself."""
    if len(shape) == 3 and shape[0] == shape[1]:
        return {"image_size": shape[0], "channels": shape[-1]}
    return {"shape": list(shape)}


def _has_own_shape(kind: Kind) -> bool:
    """True for drawn sets whose examples are no points of the plane: `data.shape` names theirs."""
    return issubclass(kind, PointSet) and kind.IMAGE_SHAPE != PointSet.IMAGE_SHAPE


def _kind(name: str, shape: tuple[int, ...] = ()) -> tuple[Kind, str]:
    """The data set of a name, of real numbers if there is a `shape`, and what follows its colon."""
    first, _, detail = name.partition(":")
    kind = lookup(DATASETS, first.lower(), "data.dataset")
    detailed = getattr(kind, "DETAILED", False)
    if (":" in name) != detailed or bool(detail) != detailed:
        raise ValueError(
            f"data.dataset={name!r}: {first} is followed by "
            + ("a colon and the name of one of its sets" if detailed else "nothing")
        )
    if shape and kind in REAL_VALUED:
        return REAL_VALUED[kind], detail
    if shape and not _has_own_shape(kind):
        own = [other for other, entry in DATASETS.items() if _has_own_shape(entry)]
        raise ValueError(
            f"data.shape={shape} is the shape of real-valued examples, and {first} has none; it "
            f"must be (); those of {', '.join(['arrays', *own])} may"
        )
    return kind, detail


def fitting() -> list[str]:
    """The names of the data sets whose images are cropped and resized as a user says."""
    return [name for name, kind in DATASETS.items() if getattr(kind, "FITS", False)]


def grey_levels(name: str, shape: Iterable[int] = ()) -> int:
    """Grey levels of the data set `name`, 0 for points; 256 where it is not among `DATASETS`.

    With a `shape`, `data.shape`, its examples are real numbers, which have none.
    """
    if tuple(shape):
        return 0
    return DATASETS.get(name.lower().partition(":")[0], ImageBuilder).LEVELS


def is_users_own(name: str) -> bool:
    """True for the data sets of a user's files, whose names do not say what is in them."""
    return getattr(DATASETS.get(name.lower()), "OWN", False)


def class_names(name: str, data_dir: str = "") -> tuple[str, ...]:
    """The names of the classes of the data set `name`, in their order.

    Raises:
      ValueError: the classes have no names.
      FileNotFoundError: they are in a file of the set, which is neither in `data_dir` nor in its
        usual place.
    """
    builder = DATASETS.get(name.lower())
    names: tuple[str, ...] = ()
    if builder is not None and issubclass(builder, ImageBuilder):
        names = builder.names(data_dir)
    elif builder is not None:
        names = getattr(builder, "NAMES", ())
    if not names:
        named = (other for other, kind in DATASETS.items() if getattr(kind, "NAMES", ()))
        raise ValueError(
            f"the classes of data.dataset={name!r} have no names to make captions of; those of "
            f"{', '.join(named)} do"
        )
    return names


def check_points(config: Any) -> None:
    """Refuses options of config.data that only images can have, where the data are points.

    Raises:
      ValueError: flips or dequantisation of points.
    """
    section = config.data
    for field in ("random_flip", "uniform_dequantization"):
        if section[field] and not grey_levels(section.dataset, section.shape):
            raise ValueError(
                f"config.data.{field} is True, but {section.dataset} has points, not images of "
                "grey levels; it must be False"
            )
    if not section.shape and (section.mean or section.std):
        raise ValueError(
            f"config.data.mean is {section.mean!r} and config.data.std {section.std!r}, which "
            "standardise real-valued examples, and data.shape is (); both must be ()"
        )


def _open(
    builder: type[ImageBuilder], split: str, data_dir: str | os.PathLike[str] | None, ram_limit: int
) -> tuple[Any, Any]:
    if data_dir:
        refuse_bucket(data_dir, builder.name)
    root = builder.root(data_dir) if data_dir else default_folder()
    packaged = [] if data_dir else [pathlib.Path(folder) for folder in builder.FOLDERS]
    for folder in (root, root / builder.name, *packaged):
        files = builder.find(folder)
        if files:
            if folder not in packaged:  # whose makers checked it, and packed it anew
                builder.verify(files)
            return builder.read(files, split)

    roots = [root]
    if not data_dir:
        roots.append(tfds_root())
    if not builder.CHECKSUMS and extras.missing("tensorflow_datasets"):
        return builder.read(builder.located(root / builder.name), split)  # anew in each run
    prepared = _prepared(builder, split, roots) or _prepare(builder, split, root)
    try:
        return columns(prepared.as_data_source(split=split), builder.IMAGE_SHAPE, ram_limit)
    except Exception as error:  # TFDS, array_record and Pillow each have their own
        reason = last_line(error)
        raise ValueError(f"{prepared.data_dir} is damaged, remove that folder: {reason}") from error


def _prepared(builder: type[ImageBuilder], split: str, roots: Sequence[pathlib.Path]) -> Any:
    """TFDS's builder for prepared array_record data under the first root that has some, or None."""
    theirs = builder.TFDS_NAME or builder.name
    versions = [(theirs, version) for version in builder.TFDS_VERSIONS]
    for root in roots:
        for name, version in [(builder.name, builder.VERSION), *versions]:
            folder = root / name / version
            if any(folder.glob(f"{name}-{split}.array_record*")):
                builder.require_tfds()
                from data import preparation

                try:
                    return preparation.open_folder(folder)
                except Exception as error:
                    reason = last_line(error)
                    raise ValueError(f"{folder} is damaged, remove it: {reason}") from error
    return None


def _prepare(builder: type[ImageBuilder], split: str, root: pathlib.Path) -> Any:
    """Downloads the files if need be and writes array_record data under `root`; their builder."""
    builder.require_tfds()
    from data import preparation

    try:
        return preparation.prepare(builder, root)
    except FileNotFoundError:
        raise
    except OSError:
        # Another process was faster: its data are complete, since TFDS renames a finished folder.
        prepared = _prepared(builder, split, [root])
        if prepared is None:
            raise
        return prepared
