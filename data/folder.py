"""Images in any folder or zip file of the user's, with its sub-folders as labels."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from data.builder import default_folder, digest, warn_once
from data.images import File, shown
from data.listing import Kept, Listing, Names, crc_of_list
from data.pictures import TEST_SHARE, Pictures, Request, counted, nor
from data.trees import (
    LABELS,
    Counts,
    Tree,
    beside_splits,
    portable,
    stated_labels,
    tree,
)

_ALIKE = re.compile(  # what folders of splits are often called beside these names
    r"(train|training|test|testing|val|valid|validation|eval|evaluation|dev|holdout)"
    r"([ _-]?(set|split|data|images?|imgs?|[0-9]+))?",
    re.IGNORECASE,
)
VALIDATION = ("val", "valid", "validation")  # what a test split is called where none has that name


class ImageFolder(Pictures):
    """One split of a folder, or of a zip file, which is read as the folder in it would be.

    The splits are the sub-folders `train` and `test` (or one of `VALIDATION`), in any case, where
    both are there; else the tenth (at least one) of all images whose names have the smallest hashes
    is for testing. An image's label is the number of the sub-folder that it is in, at any depth,
    among all in order of their names; images outside of sub-folders have one of their own, the
    first; a file `dataset.json` that states labels has precedence (`trees.stated_labels`), if there
    are no splits. The middle square of an image, of `data.crop` pixels or as large as it can be, is
    resampled by `data.resize`. Examples are in the order of a hash of their names below the folder,
    which mixes labels, and is the same on every file system. Links are followed, to each folder
    once. `summary` counts what was read, and what was passed over: hidden files, and files of other
    kinds.

    Raises:
      ValueError: a folder without images for both splits, or a number out of range.
      FileNotFoundError: no such folder.
    """

    name = "folder"
    FITS = True
    OWN = True

    def __init__(self, request: Request):
        if not request.folder:
            raise ValueError("data set folder: name the folder with --config.data.data_dir")
        self.image_shape = request.shape(self.name, "positive", fits=True, channels=(1, 3))
        self.folder, self.fit = request.place(self.name), request.fit
        self.decode = self.fit.decoder(self.image_shape)
        self.source = f"{self.folder.resolve()}{self.fit}"
        self.files = tree(self.folder, self.name)
        self.split, self.kept = request.split, Kept(default_folder() / "index", self.folder)
        listing = self.kept.listing(self.SPLITS) or self._listing()
        self.num_classes = 1 + max(int(labels.max()) for labels in listing.labels.values())
        self.names, self.labels = listing.names[self.split], listing.labels[self.split]
        self._warn_of_classes(listing)
        self.transform = self.fit.words(self.image_shape[0])
        self.summary = f"data.data_dir={shown(self.folder)}: {listing.words}"
        self._warned: dict[str, str] = {}

    def _listing(self) -> Listing:
        """What is in the folder now, which is kept if it is much."""
        contents = listed(self.files, shown(self.folder))
        for name in self.SPLITS:
            if not contents.splits[name]:
                raise ValueError(
                    f"{shown(self.folder)} has no images for the split {name!r}: it holds "
                    f"{contents.counted()}; a data set has two images or more"
                )
        listing = contents.listing()
        self.kept.keep(listing, self.files.states)
        return listing

    def _warn_of_classes(self, listing: Listing) -> None:
        """Warns of classes that have images for testing alone."""
        train, test = (
            np.bincount(listing.labels[split], minlength=self.num_classes) for split in self.SPLITS
        )
        absent = (train == 0) & (test > 0)
        if absent.any():
            row = int(np.argmax(absent[listing.labels["test"]]))
            warn_once(
                f"{shown(self.folder)}: {counted(int(absent.sum()), 'class', 'classes')} of "
                f"{self.num_classes} have no image to train on, all of theirs are for testing; one "
                f"is that of {shown(listing.names['test'][row])}"
            )

    def record(self, row: int) -> File:
        return self.files.file(self.names[row])

    def stamp(self, row: int) -> bytes:
        """The file's name and size, and its time of change or checksum."""
        return self.files.stamp(self.names[row])

    def warn(self, kind: str, line: str) -> None:
        """Warns of the first file with a kind of flaw."""
        if self._warned.setdefault(kind, line) is line:
            logging.warning("%s; of others like it nothing is said", line)

    @functools.cached_property
    def checksum(self) -> int:  # type: ignore[override]
        """The CRC of the files' names and sizes, labels and the images' shape; reads no image."""

        def content(rows: range) -> list[Any]:
            names = [self.names[row] for row in rows]
            labels = self.labels[rows.start : rows.stop].tolist()
            return list(zip(map(portable, names), map(self.files.size, names), labels, strict=True))

        before, after = f"({self.image_shape}, [", f"]){self.fit}"
        return self.kept.checksum(
            f"{self.split} {self.image_shape}{self.fit}",
            lambda: crc_of_list(before, content, len(self.names), after),
        )


class Contents(NamedTuple):
    """The images of a folder, and what else is in it.

    Attributes:
      splits: by split, the images' names below the folder, `in_order`, with the names of their
        labels.
      passed_over: how many files were, by ending or reason.
      notes: what else a user should know, a clause each.
    """

    splits: dict[str, dict[str, str]]
    passed_over: Counts
    notes: tuple[str, ...] = ()

    def listing(self) -> Listing:
        """The images in their order, with the numbers of their labels."""
        classes = sorted({label for names in self.splits.values() for label in names.values()})
        numbers = {label: number for number, label in enumerate(classes)}
        listing = Listing({}, {}, self.counted())
        for split, labels in self.splits.items():
            listing.names[split] = Names.of(labels)
            values = [numbers[label] for label in labels.values()]
            listing.labels[split] = np.array(values, np.int32)
        return listing

    def counted(self) -> str:
        """How many images, classes and other files there are, in one line."""
        labels = {label for names in self.splits.values() for label in names.values()}
        images = ", ".join(f"{len(names)} {split}" for split, names in self.splits.items())
        by_number = sorted(self.passed_over.items(), key=lambda item: (-item[1], item[0]))
        kinds = ", ".join(f"{shown(kind)} {n}" for kind, n in by_number[:12])
        more = ", ..." if len(self.passed_over) > 12 else ""
        parts = [
            f"{counted(sum(map(len, self.splits.values())), 'image')} ({images})",
            counted(len(labels), "class", "classes"),
            counted(self.passed_over.total(), "file")
            + " passed over"
            + (f" ({kinds}{more})" if kinds else ""),
            *self.notes,
        ]
        return ", ".join(parts)


def listed(files: Tree, place: str) -> Contents:
    """What a folder or zip file holds.

    Args:
      place: how messages name it.

    Raises:
      ValueError: one that cannot be read, one of `train` and `test` without the other, or images
        of which `dataset.json` has no label.
    """
    passed_over: Counts = collections.Counter()
    folders, notes = split_folders(files.folders(), place)
    if folders:
        splits = {
            split: {
                name: label_of(name.removeprefix(f"{sub}/"))
                for name in in_order(f"{sub}/{name}" for name in files.images(sub, passed_over))
            }
            for split, sub in folders.items()
        }
        passed_over.update(beside_splits(files.top()))
        return Contents(splits, passed_over, notes)
    names = in_order(files.images("", passed_over))
    count = max(1, int(TEST_SHARE * len(names)))
    shares = {"train": names[count:], "test": names[:count]}
    stated = stated_labels(files)
    if stated:
        lacking = [name for name in names if portable(name) not in stated]
        if lacking:
            more = nor(len(lacking) - 1, "for")
            raise ValueError(f"{place}: {LABELS} has no label for {shown(lacking[0])}{more}")
    labels = {
        name: label_of(name) if stated is None else stated.get(portable(name), "") for name in names
    }
    splits = {split: {name: labels[name] for name in share} for split, share in shares.items()}
    notes = () if stated is None else (f"labels of {LABELS}",)
    return Contents(splits, passed_over, (*notes, *unused_splits(names)))


def split_folders(names: Sequence[str], place: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The folders of the splits among `names`, none or both, and notes about them.

    Raises:
      ValueError: a split without the other, or with two sub-folders.
    """
    spellings = {
        split: [name for name in names if name.lower() in known]
        for split, known in (("train", ("train",)), ("test", ("test",)), ("val", VALIDATION))
    }
    train, test, validation = spellings.values()
    if not train and not test:
        return {}, ()
    tests = test or (validation if train else [])
    if len(train) != 1 or len(tests) != 1:
        present = [*train, *test, *validation]
        others = [name for name in names if name not in present]
        raise ValueError(
            f"{place} has {_sub_folders(present)}, but must have train and test (or val), "
            "one of each, or neither: then a tenth of the images is for testing"
            + (f"; beside it are {', '.join(map(shown, others[:8]))}" if others else "")
        )
    notes = [] if test else [f"{tests[0]}/ is the split test"]
    others = [name for name in names if name not in (train[0], tests[0])]
    if others:
        notes.append(f"{_sub_folders(others)} beside the splits passed over")
    return {"train": train[0], "test": tests[0]}, tuple(notes)


def unused_splits(names: Sequence[str]) -> tuple[str, ...]:
    """A note about folders that look like splits and are none, of images by their names.

    They are called otherwise, or are not at the top.
    """
    below: dict[str, set[str]] = {}
    for name in names:
        first, _, rest = name.partition("/")
        if rest:
            below.setdefault(first, set()).add(rest.partition("/")[0] if "/" in rest else "")
    inside = [
        top for top, folders in below.items()
        if "train" in (lower := {name.lower() for name in folders})
        and not lower.isdisjoint(("test", *VALIDATION))
    ]  # fmt: skip
    if inside:
        top = shown(min(inside))
        return (
            f"train/ and test/ inside {top}/ split nothing: name {top}/ itself as data.data_dir "
            f"(a zip file of it: call that {top}.zip)",
        )
    alike = sorted(name for name in below if _ALIKE.fullmatch(name))
    if alike:
        return (
            f"{_sub_folders(alike)} read as labels: to split by such folders call them train and "
            "test",
        )
    return ()


def _sub_folders(names: Sequence[str]) -> str:
    shortened = [*map(shown, names[:8]), *(["..."] if len(names) > 8 else [])]
    return f"{'a sub-folder' if len(names) == 1 else 'sub-folders'} {', '.join(shortened)}"


def in_order(names: Iterable[str]) -> list[str]:
    """Names of images in the order of their hashes."""
    return sorted(names, key=lambda name: digest(portable(name)))


def label_of(name: str) -> str:
    """The first folder of a relative name, as it sorts everywhere; "" if there is none."""
    first, slash, _ = portable(name).partition("/")
    return first if slash else ""
