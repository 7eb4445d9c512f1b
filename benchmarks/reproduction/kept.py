"""The numbers that come with the project: those behind the page, from which its study goes on.

A study takes hours, and its numbers are a few bytes each. `numbers.json` has them by data set, SDE,
unit and cell: what is there is not measured again, nor are networks trained for it alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypeAlias

from evaluation.stored_results import results_in
from runtime import files

KEPT = pathlib.Path(__file__).parent / "numbers.json"
QUANTITIES = ("distance", "distance_of_n", "kernel_distance", "nfe", "bits_per_dim")

Numbers: TypeAlias = Mapping[str, Any]


def digest(made_by: Numbers) -> str:
    """The first digits of a hash of all settings."""
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]


_read = functools.cache(results_in)


def numbers(folder: str, cell: str, made_by: Numbers) -> Numbers:
    """The numbers of a cell in `dataset/sde/unit`; empty unless they are of these settings."""
    found = _read(KEPT).get(folder, {}).get(cell, {})
    return found if found.get("made_by") == digest(made_by) else {}


def keep(workdir: pathlib.Path) -> None:
    """Adds all numbers below the folder of a study to those that come with the project."""
    content = {folder: dict(cells) for folder, cells in _read(KEPT).items()}
    for path in sorted(workdir.glob("*/*/*/*.json")):
        stored = results_in(path)
        if "made_by" in stored:
            folder = path.parent.relative_to(workdir).as_posix()
            content.setdefault(folder, {})[path.stem] = {"made_by": digest(stored["made_by"])} | {
                name: stored[name] for name in QUANTITIES if name in stored
            }
    files.write_json(KEPT, content)
    _read.cache_clear()
