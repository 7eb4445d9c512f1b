"""Names in configs: of fields, by section, and of what tables know."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


def lookup(table: Mapping[str, Value], name: str, what: str) -> Value:
    """`table[name]`, or a ValueError that lists the known names and says which is nearest."""
    if name not in table:
        near = nearest(str(name), table)
        advice = f" (the nearest: {near[0]})" if near else ""
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(sorted(table))}{advice}")
    return table[name]


def nearest(name: str, names: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """The `most` of the names that are spelt most like one that is unknown, the nearest first.

    Args:
      cutoff: how alike they are at least, from 0 (nothing in common) to 1; case does not count.
    """
    by_case = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), by_case, n=most, cutoff=cutoff)
    return [by_case[each] for each in near]


def sentence(entry: Any) -> str:
    """What an entry of a table is, in one sentence: the first of its documentation.

    A function speaks by its docstring, a factory by that of what it makes (`documented_by`), a
    partial function by its function with the arguments that it has, a line of several things by its
    first one, and whatever has `words` by these.
    """
    if isinstance(entry, str):
        return entry
    if isinstance(words := getattr(entry, "words", None), str):
        return words
    if hasattr(entry, "documentation"):
        return sentence(entry.documentation)
    if isinstance(entry, functools.partial):
        arguments = (f"{name} = {value}" for name, value in entry.keywords.items())
        return f"{sentence(entry.func).rstrip('.')}; {', '.join(arguments)}."
    if isinstance(entry, tuple):
        return sentence(entry[0])
    if dataclasses.is_dataclass(entry) and not isinstance(entry, type):
        return sentence(getattr(entry, dataclasses.fields(entry)[0].name))
    return first_sentence(entry.__doc__ or "")


def documented_by(documentation: Any) -> Callable[[Value], Value]:
    """A decorator of a factory: its documentation is that of what it makes."""

    def document(factory: Value) -> Value:
        vars(factory)["documentation"] = documentation
        return factory

    return document


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, or its first paragraph, in one line."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    end = re.search(r"(?<!\b[A-Z])(?<!eq)(?<!eqs)(?<!al)\.(?= [A-Z`])", paragraph)
    return paragraph[: end.end()] if end else paragraph


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
