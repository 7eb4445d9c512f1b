"""The check that every run begins with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from configs import schema
from configs.names import dotted


def check(config: ConfigDict) -> None:
    """Refuses a config that no run could use, before anything is compiled.

    Every field of the schema must be there, be of the type of its default (an integer may stand
    for a float) and fulfil its rule. Names (of SDEs, networks, data sets, ...) and their own
    numbers are refused where they are looked up. Further fields are allowed: a new SDE reads its
    own from `config.model`.

    Raises:
        ValueError: one line with the field, its value and what would be valid.
    """
    values = dotted(config.to_dict())
    for name, field in schema.fields().items():
        if name not in values:
            raise ValueError(f"config.{name} is missing{_misspelling(name, values)}")
        _check_value(name, field, values[name])
    if config.eval.end_ckpt < config.eval.begin_ckpt:
        raise ValueError(
            f"config.eval.end_ckpt is {config.eval.end_ckpt}; "
            f"it must be eval.begin_ckpt ({config.eval.begin_ckpt}) or more"
        )


def _check_value(name: str, field: schema.Field, value: Any) -> None:
    kind = type(field.default)
    if type(value) is not kind and (kind, type(value)) != (float, int):
        raise ValueError(f"config.{name} is {value!r}; it must be of type {kind.__name__}")
    if not field.rule.holds(value):
        raise ValueError(f"config.{name} is {value!r}; it must be {field.rule.words}")


def _misspelling(name: str, names: Iterable[str]) -> str:
    """A question after the further field whose name is closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, set(names) - schema.fields().keys(), n=1)
    return f"; is config.{close[0]} a misspelling of it?" if close else ""
