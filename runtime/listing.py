"""`--mode=list`: all that has a name, a line each, as it is documented where it is made."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from configs.names import sentence

Places = Sequence[str] | Mapping[str, str]


def show(tables: Mapping[str, Places], topic: str | None = None) -> None:
    """Prints the entries of all tables, or of one `topic`.

    Args:
      tables: by topic the places of its tables, "package.module:NAME", or of a function that gives
        one, or of what is listed itself, by its name; they are imported here.
    """
    for name in [topic] if topic else tables:
        entries = lines(tables[name])
        width = max(map(len, entries))
        print(f"{name.replace('_', ' ')} ({len(entries)})")
        for entry, words in entries.items():
            print(f"  {entry:{width}}  {words}")
        if not topic:
            print()


def lines(places: Places) -> dict[str, str]:
    """One sentence for each entry of some tables, or for what is at each place, by its name."""
    entries: dict[str, Any] = {}
    if isinstance(places, Mapping):
        entries = {name: _at(place) for name, place in places.items()}
    else:
        for table in map(_at, places):
            entries |= table() if callable(table) else table
    return {name: sentence(entry) for name, entry in entries.items()}


def _at(place: str) -> Any:
    """What is at "package.module:NAME"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
