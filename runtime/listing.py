"""`--mode=list`: all that has a name, a line each, as it is documented where it is made."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from configs.names import sentence


def show(tables: Mapping[str, Sequence[str]], topic: str | None = None) -> None:
    """Prints the entries of all tables, or of one `topic`.

    Args:
      tables: by topic the places of its tables, "package.module:NAME", or of a function that gives
        one; they are imported here.
    """
    for name in [topic] if topic else tables:
        entries = lines(tables[name])
        width = max(map(len, entries))
        print(f"{name.replace('_', ' ')} ({len(entries)})")
        for entry, words in entries.items():
            print(f"  {entry:{width}}  {words}")
        if not topic:
            print()


def lines(places: Sequence[str]) -> dict[str, str]:
    """One sentence for each entry of some tables, by its name."""
    entries: dict[str, Any] = {}
    for place in places:
        module, _, name = place.partition(":")
        table = getattr(importlib.import_module(module), name)
        entries |= table() if callable(table) else table
    return {name: sentence(entry) for name, entry in entries.items()}
