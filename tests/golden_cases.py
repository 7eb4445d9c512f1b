"""Finds golden files: the ones kept in `tests/golden` and those under `$GOLDEN_DIR`.

Both have the sub-folders networks/, math/, checkpoints/, data/, diffusers/ and metrics/. A file in
`$GOLDEN_DIR` takes the place of one with the same name in `tests/golden`; under any other name it
is one more case. Tests ask for a kind of file, by what it is about or what it holds, never for
one exact name.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

import configs

ROOTS = [pathlib.Path(__file__).parent / "golden"]
if os.environ.get("GOLDEN_DIR"):
    ROOTS.append(pathlib.Path(os.environ["GOLDEN_DIR"]))


def files(folder: str, pattern: str = "*.npz") -> list[pathlib.Path]:
    """Golden files `folder/pattern`, by name, in a stable order."""
    by_name = {path.name: path for root in ROOTS for path in (root / folder).glob(pattern)}
    return [by_name[name] for name in sorted(by_name)]


def about(folder: str, subject: str) -> list[pathlib.Path]:
    """The npz files of `folder` that have `subject` in their names."""
    return files(folder, f"*{subject}*.npz")


def networks(weights: str) -> list[pathlib.Path]:
    """The networks/ files with arrays `weights/...`: "sd" of PyTorch's networks, "jp" of JAX's."""
    return [
        path
        for path in files("networks")
        if any(name.startswith(f"{weights}/") for name in np.load(path).files)
    ]


def network_file(stem: str) -> pathlib.Path:
    """The networks/ file whose name is `stem`; math/ files name their weights this way."""
    for path in files("networks"):
        if path.stem == stem:
            return path
    raise FileNotFoundError(f"networks/{stem}.npz is in none of {[str(r) for r in ROOTS]}")


class Checkpoint(NamedTuple):
    """One official training state: its files, of either format, and the file of its outputs."""

    stem: str
    files: tuple[pathlib.Path, ...]
    expected: pathlib.Path

    @property
    def pth(self) -> pathlib.Path | None:
        """The PyTorch file, None where there is only the other format."""
        return next((path for path in self.files if path.suffix == ".pth"), None)


def checkpoints() -> list[Checkpoint]:
    """Every state in checkpoints/ with outputs `<stem>_expected.npz`; its files are `<stem>.pth`
    and `<stem>_checkpoint_<n>`, of the whole stem."""
    states = []
    for expected in files("checkpoints", "*_expected.npz"):
        stem = expected.name.removesuffix("_expected.npz")
        name = re.compile(rf"{re.escape(stem)}(\.pth|_?checkpoint_\d+)")
        paths = [path for path in files("checkpoints", "*") if name.fullmatch(path.name)]
        states.append(Checkpoint(stem, tuple(paths), expected))
    return states


def folders(pattern: str, content: str) -> list[pathlib.Path]:
    """Golden folders `pattern` that hold a file `content`, by name, in a stable order."""
    by_name = {
        path.parent.relative_to(root).as_posix(): path.parent
        for root in ROOTS
        for path in root.glob(f"{pattern}/{content}")
    }
    return [by_name[name] for name in sorted(by_name)]


def table(stem: str) -> dict[str, Any]:
    """The entries of all JSON files `<stem>*.json` or `<stem>*.json.gz`."""
    entries: dict[str, Any] = {}
    for path in files(".", f"{stem}*.json*"):
        data = path.read_bytes()
        content = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        for name, entry in content.items():
            assert entries.setdefault(name, entry) == entry, f"{path} contradicts {name}"
    return entries


@functools.lru_cache(maxsize=8)
def load(path: pathlib.Path) -> dict[str, Any]:
    """Arrays of one npz file, with every `*_json` entry decoded."""
    with np.load(path) as stored:
        return {
            name: json.loads(str(stored[name])) if name.endswith("_json") else stored[name]
            for name in stored.files
        }


def nhwc(x: np.ndarray) -> np.ndarray:
    """[..., C, H, W] (the layout of the files) to [..., H, W, C]."""
    return np.moveaxis(x, -3, -1)


def nchw(x: np.ndarray) -> np.ndarray:
    """[..., H, W, C] to [..., C, H, W]."""
    return np.moveaxis(x, -1, -3)


def config(official: Mapping[str, Any]) -> ConfigDict:
    """The config of a golden file, its `config_json`, completed with the schema's defaults.

    It is locked, and its lists are tuples.
    """
    return configs.from_stored(official)
