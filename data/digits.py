"""The digits that come with scikit-learn."""

from __future__ import annotations

import functools
import importlib.util
import pathlib

import numpy as np

from configs import extras
from data.builder import Files, ImageBuilder

NUM_TEST = 297
FILE = "digits.csv.gz"  # a row for each image: its 64 grey levels, then its class


def _package_folders() -> tuple[str, ...]:
    """Where scikit-learn keeps its data, if it is installed: it is not imported for them."""
    spec = None if extras.missing("sklearn") else importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        return ()
    return (str(pathlib.Path(spec.origin).parent / "datasets" / "data"),)


class Digits(ImageBuilder):
    """1,797 handwritten digits of 8x8 pixels and 17 grey levels: 1,500 to train, 297 to test.

    E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998 (its test set).
    """

    IMAGE_SHAPE = (8, 8, 1)
    LEVELS = 17
    FOLDERS = _package_folders()
    NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    @classmethod
    def find(cls, folder: pathlib.Path) -> Files | None:
        return {FILE: folder / FILE} if (folder / FILE).is_file() else None

    @classmethod
    def located(cls, folder: pathlib.Path) -> Files:
        extras.require(f"data set {cls.name}", "data", cls.or_folder(FILE), sklearn="scikit-learn")
        return {FILE: pathlib.Path(*cls.FOLDERS, FILE)}

    @classmethod
    def read(cls, files: Files, split: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = _digits(files[FILE])
        train, test = stratified_split(labels, NUM_TEST)
        rows = {"train": train, "test": test}[split]
        return images[rows], labels[rows]


@functools.cache
def _digits(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    rows = np.loadtxt(path, delimiter=",", dtype=np.int32)
    images = rows[:, :-1].astype(np.uint8).reshape(-1, *Digits.IMAGE_SHAPE)
    return images, rows[:, -1]


def stratified_split(labels: np.ndarray, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of a fixed shuffled split in which every class keeps its share.

    The shuffled rows are sorted by class (stably), and `num_test` of them, evenly spaced, are the
    test rows: each class gives its share to within one example. Both parts come back in shuffled
    order. The shuffle sorts raw Philox output, which NumPy keeps fixed across versions.
    """
    n = len(labels)
    shuffled = np.argsort(np.random.Philox(key=0).random_raw(n), kind="stable")
    by_class = np.argsort(labels[shuffled], kind="stable")
    is_test = np.zeros(n, bool)
    is_test[by_class[(np.arange(num_test) * n + n // 2) // num_test]] = True
    return shuffled[~is_test], shuffled[is_test]
