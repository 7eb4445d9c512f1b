"""Names in configs, looked up in tables of what is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def lookup(table: Mapping[str, Value], name: str, what: str) -> Value:
    """`table[name]`, or a ValueError that lists the known names."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(sorted(table))}")
    return table[name]
