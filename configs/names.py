"""Names in configs: of fields, by section, and of what tables know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


def lookup(table: Mapping[str, Value], name: str, what: str) -> Value:
    """`table[name]`, or a ValueError that lists the known names."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(sorted(table))}")
    return table[name]


def dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a nested config by their dotted names, "model.nf"."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            fields |= dotted(value, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def printable(text: str) -> str:
    """A text as messages show it: line breaks, bytes that are no UTF-8 and the like escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
