"""Finds golden files: the ones kept in `tests/golden` and those under `$GOLDEN_DIR`.

Both have the sub-folders networks/, math/, checkpoints/, diffusers/ and metrics/. A file in
`$GOLDEN_DIR` takes the place of one with the same name in `tests/golden`.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import configs

ROOTS = [pathlib.Path(__file__).parent / "golden"]
if os.environ.get("GOLDEN_DIR"):
    ROOTS.append(pathlib.Path(os.environ["GOLDEN_DIR"]))


def files(folder: str, pattern: str = "*.npz") -> list[pathlib.Path]:
    """Golden files `folder/pattern`, by name, in a stable order."""
    found = {path.name: path for root in ROOTS for path in sorted((root / folder).glob(pattern))}
    return [found[name] for name in sorted(found)]


def network_file(stem: str) -> pathlib.Path:
    """The networks/ file whose name is `stem`; math/ files name their weights this way."""
    for path in files("networks"):
        if path.stem == stem:
            return path
    raise FileNotFoundError(f"networks/{stem}.npz is in none of {[str(r) for r in ROOTS]}")


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
