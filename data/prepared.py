"""Images that TensorFlow Datasets (TFDS) prepared as array_record, read without TensorFlow.

TFDS writes a data set's split to `<root>/<name>[/<config>]/<version>/<name>-<split>.array_record-
00000-of-00004` and so on; a record is a `tf.train.Example`. Beside them `features.json` says what
its features are, `dataset_info.json` how many records each file has.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

from data import index
from data.bucket import copied, is_bucket
from data.builder import default_folder, expanded
from data.images import Content, last_line, shown
from data.pictures import Pictures, Request, class_labels, counted, held_out, shares, sole
from data.tfrecords import features

INFO, FEATURES = "dataset_info.json", "features.json"
ROOT = "TFDS_DATA_DIR"
AGAIN = "prepare the set again"


class Prepared:
    """The records of one split: `records[row]` is its encoded image.

    Args:
      folder: with the files of one version.
      split: of TFDS.
      labels: whether the labels are wanted.

    Attributes:
      folder: the same; `described` is its name.
      labels: int32 [n], zero where there are none.
      num_classes: 1 where there are no labels.
      splits: the names of all.

    Raises:
      ValueError: another format than array_record, missing or damaged files, features among which
        there is not one image, labels out of range.
    """

    def __init__(self, folder: pathlib.Path, split: str, labels: bool = True):
        self.folder, self.split, self.described = folder, split, str(folder)
        info = _json(folder / INFO)
        self.name = _typed(folder / INFO, info, "name", str, "")
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise _damage(folder / INFO, "name", self.name, "the name of a data set")
        counts = split_counts(folder / INFO, info)
        self.splits = list(counts)
        if info.get("fileFormat", "tfrecord") != "array_record":
            raise ValueError(
                f"{shown(folder)} was prepared as {info.get('fileFormat', 'tfrecord')}, which has "
                "no random access; prepare it with file_format='array_record'"
            )
        if not counts.get(split):
            names = _names([name for name, lengths in counts.items() if lengths])
            raise ValueError(f"{shown(folder)} has no split {split!r}; it has {names}")
        self._image, self._label, self.num_classes = _features(folder / FEATURES)
        pattern = f"{self.name}-{split}.array_record-*-of-{len(counts[split]):05d}"
        paths = sorted(folder.glob(pattern))
        if len(paths) != len(counts[split]):
            raise ValueError(
                f"{shown(folder)} has {len(paths)} of {len(counts[split])} files {pattern}; {AGAIN}"
            )
        self._records = _records(paths)
        count = len(self._records)
        if count != sum(counts[split]):
            raise ValueError(
                f"{shown(folder)} is damaged: {count} records of {split}, not "
                f"{sum(counts[split])}; {AGAIN}"
            )
        self.labels = np.zeros(count, np.int32)
        states = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, paths)]
        self._state = zlib.crc32(repr(states).encode())
        if labels and self._label:
            place, kind = default_folder() / "index", f"labels {self._state} {self._label}"
            self.labels = index.cached(place, paths[0], kind, self._list_labels)
        else:
            self.num_classes = 1

    @classmethod
    def find(
        cls, name: str, root: str | os.PathLike[str] | None, split: str, labels: bool = True
    ) -> Prepared | None:
        """A split of the newest version of a data set below a folder, or in it; None: none there.

        Args:
          name: `<name>[/<config>][/<version>]`.
          root: a folder, or a bucket, from which it is copied; None: TFDS's own.
        """
        folder = place_of(name, root)
        return None if folder is None else cls(folder, split, labels)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> Content:
        name = f"{shown(self.folder)}: record {row} of {self.split}"
        return Content(name, self._value(row, self._image, bytes))

    def stamp(self, row: int) -> bytes:
        """The record's number, and the files' sizes and times of change."""
        return f"{self.name} {self.split} {row} {self._state}".encode()

    def checksum(self, *more: Any) -> int:
        """The CRC of the number of records, some of them, the labels, and what `more` there is."""
        content = zlib.crc32(repr((*more, self.name, self.split, len(self))).encode())
        for row in np.unique(np.linspace(0, len(self) - 1, 16).astype(int)):
            content = zlib.crc32(self[int(row)].data, content)
        return zlib.crc32(np.ascontiguousarray(self.labels).data, content)

    def _value(self, row: int, feature: str, kind: type) -> Any:
        what = f"{shown(self.folder)}: record {row} of {self.split}"
        try:
            values = features(self._records[row]).get(feature, ())
        except Exception as error:  # of array_record's C++, or no Example
            raise ValueError(f"{what} is damaged ({last_line(error)}); {AGAIN}") from error
        if len(values) != 1 or not isinstance(values[0], kind):
            raise ValueError(f"{what} has no {feature} that fits {FEATURES}; {AGAIN}")
        return values[0]

    def _list_labels(self) -> np.ndarray:
        labels = np.array([self._value(row, self._label, int) for row in range(len(self))])
        limit = f", but {FEATURES} has"
        return class_labels(labels, self.num_classes, shown(self.folder), limit)


class TfdsPictures(Pictures):
    """`tfds:<name>[/<config>][/<version>]`: anything that TFDS prepared as array_record.

    `data.data_dir` is a folder of TFDS's, or a bucket with one, which is copied; without it
    `$TFDS_DATA_DIR` or `~/tensorflow_datasets`. Testing is on the split `test`, or `validation`, or
    else on the tenth of the examples whose numbers have the smallest hashes. An example's image is
    the feature `image`, or the only one; its label `label`, or the only one. Images are fitted as
    those of `folder` are; examples are in the order in which they were prepared.

    Raises:
      ValueError: as `Prepared`, or a picture that cannot be read.
      FileNotFoundError: it is not prepared.
    """

    name = "tfds"
    DETAILED = True
    FITS = True

    def __init__(self, request: Request):
        self.image_shape = request.shape(self.name, "positive", fits=True, channels=(1, 3))
        self.fit = request.fit
        self.decode = self.fit.decoder(self.image_shape)
        folder = place_of(request.detail, request.folder)
        if folder is None:
            where = request.folder or os.environ.get(ROOT, "~/tensorflow_datasets")
            raise FileNotFoundError(
                f"data set tfds:{request.detail}: there is no {where}/{request.detail}; prepare it "
                "by tfds.builder(..., file_format='array_record').download_and_prepare()"
            )
        splits = split_counts(folder / INFO, _json(folder / INFO))
        test = held_out(splits)
        self.records = Prepared(folder, test if test and request.split == "test" else "train")
        count = len(self.records)
        self.rows = np.arange(count) if test else shares(count)[request.split]
        self.labels, self.num_classes = self.records.labels[self.rows], self.records.num_classes
        self.transform = self.fit.words(self.image_shape[0])
        self.source = f"{folder.resolve()}{self.fit}"
        copy = request.folder if request.folder and is_bucket(request.folder) else ""
        where = f"{shown(copy)}, copied to {shown(folder)}" if copy else str(folder)
        self.summary = (
            f"{where}: {len(self.rows)} images of {self.records.split}, "
            f"{counted(self.num_classes, 'class', 'classes')}"
        )

    def record(self, row: int) -> Content:
        return self.records[int(self.rows[row])]

    def stamp(self, row: int) -> bytes:
        return self.records.stamp(int(self.rows[row]))

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of some of the records, of the labels, and of how images are fitted."""
        return self.records.checksum(self.image_shape, str(self.fit), len(self.rows))


def place_of(name: str, root: str | os.PathLike[str] | None) -> pathlib.Path | None:
    """The folder of a data set's newest version below `root`, None if there is none."""
    if root and is_bucket(root):
        root = copied(root, name)
    folder = expanded(root, "data.data_dir") if root else tfds_root()
    if (folder / INFO).is_file():
        return folder
    below = folder / name
    found = [path.parent for path in (*below.glob(INFO), *below.glob(f"*/{INFO}"))]
    if len({path.parent for path in found if path != below}) > 1 or not found:
        configs = sorted({path.parent.parent.name for path in below.glob(f"*/*/{INFO}")})
        if configs:
            raise ValueError(
                f"{shown(below)} has {counted(len(configs), 'config')}; name one of "
                f"{', '.join(configs[:8])} after {name}/"
            )
    return max(found, key=lambda path: _version(path.name)) if found else None


def _records(paths: list[pathlib.Path]) -> Any:
    """The records in some files; ValueError names the first file that cannot be opened."""
    from array_record.python import array_record_data_source

    try:
        records = array_record_data_source.ArrayRecordDataSource(list(map(str, paths)))
        len(records)
    except Exception as error:  # of array_record's C++, which names no file
        if len(paths) > 1:
            for path in paths:
                _records([path])
        reason = last_line(error)
        raise ValueError(
            f"{shown(paths[0])} is damaged or cut off: of its {paths[0].stat().st_size} bytes "
            f"array_record says {reason}; {AGAIN}"
        ) from error
    return records


def _names(splits: Collection[str]) -> str:
    return ", ".join(map(shown, splits)) or "none"


def tfds_root() -> pathlib.Path:
    """The folder where TFDS keeps what it prepared."""
    return expanded(os.environ.get(ROOT, "~/tensorflow_datasets"), ROOT)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in text.split("."))


def split_counts(path: pathlib.Path, info: dict[str, Any]) -> dict[str, list[int]]:
    """The numbers of records of each file, by split.

    Args:
      path: of the description `info`.

    Raises:
      ValueError: other types than TFDS writes.
    """
    counts = {}
    for split in _typed(path, info, "splits", list, []):
        if not isinstance(split, dict):
            raise _damage(path, "splits", split, "a description of each split")
        name = _typed(path, split, "name", str, "")
        lengths = _typed(path, split, "shardLengths", list, [])
        if name:
            counts[name] = [_count(path, "shardLengths", length) for length in lengths]
    return counts


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = last_line(error)
        raise ValueError(f"{shown(path)} cannot be read ({reason}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{shown(path)} is no description of a data set; {AGAIN}")
    return content


def _typed(path: pathlib.Path, content: dict[str, Any], name: str, kind: type, usual: Any) -> Any:
    """A field of a description, which is `usual` where it is absent."""
    value = content.get(name, usual)
    if not isinstance(value, kind):
        words = {"list": "a list", "dict": "an object", "str": "a text"}
        raise _damage(path, name, value, words[kind.__name__])
    return value


def _count(path: pathlib.Path, name: str, value: Any) -> int:
    """A number that is not negative; protocol buffers write those of 64 bits as texts."""
    if not re.fullmatch("[0-9]{1,18}", str(value), re.ASCII) or not isinstance(value, int | str):
        raise _damage(path, name, value, "a whole number, 0 or more")
    return int(value)


def _damage(path: pathlib.Path, name: str, value: Any, valid: str) -> ValueError:
    text = ascii(value)
    text = text if len(text) <= 60 else f"{text[:60]}..."
    return ValueError(f"{shown(path)} is damaged: its {name} is {text}, not {valid}; {AGAIN}")


def _features(path: pathlib.Path) -> tuple[str, str, int]:
    """The names of the one image and of the one label ("": none), and the number of classes."""
    features_dict = _typed(path, _json(path), "featuresDict", dict, {})
    entries = _typed(path, features_dict, "features", dict, {})
    kinds = {}
    for name in entries:
        entry = _typed(path, entries, name, dict, {})
        kinds[name] = _typed(path, entry, "pythonClassName", str, "")
    images = [name for name, kind in kinds.items() if kind.endswith(".Image")]
    labels = [name for name, kind in kinds.items() if kind.endswith(".ClassLabel")]
    image = sole(images, "image")
    if not image:
        names = ", ".join(f"{name} ({kind.rpartition('.')[2]})" for name, kind in kinds.items())
        raise ValueError(f"{shown(path)} has not one image among {names or 'no features'}")
    label = sole(labels, "label")
    classes = _typed(path, entries[label], "classLabel", dict, {}) if label else {}
    return image, label, _count(path, "numClasses", classes.get("numClasses", 1))
