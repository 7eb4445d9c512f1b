"""Stored configs: completed, and compared."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any


def config_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: Iterable[str] = ()
) -> list[str]:
    """Lines such as `model.nf: 64 (stored) != 32 (given)` for each value that differs.

    Args:
      old: the stored configuration, nested.
      new: the given one. Tuples equal lists, as JSON has no tuples.
      ignore: shell patterns of dotted names to leave out: "eval.*", "training.log_freq".
    """
    stored, given = _dotted(old), _dotted(new)
    absent = object()
    lines = []
    for name in sorted(stored.keys() | given.keys()):
        if any(fnmatch.fnmatch(name, pattern) for pattern in ignore):
            continue
        a, b = stored.get(name, absent), given.get(name, absent)
        if b is absent:
            lines.append(f"{name}: {a!r} (stored), nothing (given)")
        elif a is absent:
            lines.append(f"{name}: nothing (stored), {b!r} (given)")
        elif a != b:
            lines.append(f"{name}: {a!r} (stored) != {b!r} (given)")
    return lines


def _dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _dotted(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
