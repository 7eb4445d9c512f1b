"""The check that every run begins with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import rules, schema
from configs.names import dotted, nearest

LARGEST, SMALLEST = 3.4e38, 1.2e-38  # numbers of float32 by their size, beside 0

# The lower end, and the upper one with its section, of what two fields bound.
ENDS = (("begin_ckpt", "eval.end_ckpt"), ("churn_min", "sampling.churn_max"))


def check(config: ConfigDict) -> None:
    """Refuses a config that no run could use, before anything is compiled.

    Every field of the schema must be there, be of the type of its default (an integer may stand
    for a float) and fulfil its rule, and `ENDS` be in their order. Every number, in tuples too,
    is finite and not too large for what computes with it. Names (of SDEs, networks, data sets,
    ...) and their own numbers are refused where they are looked up. Further fields are allowed: a
    new SDE reads its own from `config.model`.

    Raises:
        ValueError: one line with the field, its value and what would be valid.
    """
    values = dotted(config.to_dict())
    fields = schema.fields()
    for name, field in fields.items():
        if name not in values:
            raise ValueError(f"config.{name} is missing{_misspelling(name, values)}")
        _check_value(name, field, values[name])
    for name in values.keys() - fields.keys():
        _check_numbers(name, values[name], rules.INTEGERS)
    _check_ends(config)


def _check_value(name: str, field: rules.Field, value: Any) -> None:
    kind = type(field.default)
    if type(value) is not kind and (kind, type(value)) != (float, int):
        raise _refusal(name, value, f"of type {kind.__name__}")
    if not field.rule.holds(value):
        raise _refusal(name, value, field.rule.words)
    _check_numbers(name, value, field.rule.below)


def _check_numbers(name: str, value: Any, below: int) -> None:
    """Refuses numbers, `value` itself or what it is a tuple of, that nothing can compute with."""
    for leaf in _leaves(value):
        if isinstance(leaf, int) and not -below < leaf < below:
            raise _refusal(name, value, f"below {below} in size")
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise _refusal(name, value, "finite")
        if isinstance(leaf, float) and leaf and not SMALLEST <= abs(leaf) <= LARGEST:
            raise _refusal(name, value, f"0 or {SMALLEST:g} to {LARGEST:g} in size, as in float32")
        if isinstance(leaf, str) and "\0" in leaf:
            raise _refusal(name, value, "a text without null characters")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _refusal(name: str, value: Any, words: str) -> ValueError:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "too large to be said"
    text = text if len(text) <= 80 else f"{text[:80]}..."
    return ValueError(f"config.{name} is {text}; it must be {words}")


def _check_ends(config: ConfigDict) -> None:
    """Refuses pairs of fields that bound something from the wrong sides.

    Those of an SDE are its own: `sde_lib` refuses them.
    """
    for low, high in ENDS:
        section, _, field = high.partition(".")
        least = config[section][low]
        if config[section][field] < least:
            raise _refusal(high, config[section][field], f"{section}.{low} ({least}) or more")
    last = config.sampling.seed + config.eval.seeds - 1
    if last >= 2**32:
        raise _refusal(
            "eval.seeds",
            config.eval.seeds,
            f"small enough that the last seed, sampling.seed + eval.seeds - 1 = {last}, is below "
            f"{2**32}",
        )


def _misspelling(name: str, names: Iterable[str]) -> str:
    """A question after the further field whose name is closest to `name`, or nothing."""
    close = nearest(name, set(names) - schema.fields().keys())
    return f"; is config.{close[0]} a misspelling of it?" if close else ""
