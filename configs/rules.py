"""Fields of configs and their rules: what a value must fulfil beyond its type, in words too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

INTEGERS = 2**31  # below which every integer is that does not say otherwise: int32 holds it


class Rule(NamedTuple):
    """A condition on a value, and the words that complete "it must be ...".

    Attributes:
      holds: the condition, of a value of the field's type; what is in a tuple may be of any type.
      words: the condition in words.
      below: the bound of integers, which holds for each one in a tuple.
    """

    holds: Callable[[Any], bool]
    words: str
    below: int = INTEGERS


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of the config: its default, what a value must fulfil, and what it means."""

    default: Any
    rule: Rule
    words: str


class Section(NamedTuple):
    """The fields `config.<name>.*` by name, and what they are about."""

    words: str
    fields: Mapping[str, Field]


def one_of(*values: Any) -> Rule:
    """The value is among `values`."""
    return Rule(lambda v: v in values, f"one of {', '.join(map(str, values))}")


def only(value: Any) -> Rule:
    """The value is `value`: official configs have the field, and never another value."""
    return Rule(lambda v: v == value, f"{value}, the only one there is")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_different(values: Any) -> bool:
    return len(set(values)) == len(values)


def _are_sizes(values: Any) -> bool:
    return all(_is_integer(n) and n > 0 for n in values)


def _with_steps(sampler: str) -> tuple[str, int | str]:
    """A sampler's method and number of steps, where 0 is the method's own: "ddim:0" is "ddim"."""
    method, _, steps = sampler.partition(":")
    return method, int(steps or 0) if steps.isdecimal() or not steps else steps


def _is_interval(value: Any) -> bool:
    return len(value) == 2 and all(map(_is_number, value)) and 0 <= value[0] < value[1]


ANY = Rule(lambda v: True, "")
TIMES = 2**24  # numbers of times in [0, T] that float32 tells apart, of steps or noise levels
POSITIVE = Rule(lambda v: v > 0, "positive")
NOT_NEGATIVE = Rule(lambda v: v >= 0, "0 or more")
LEVELS = POSITIVE._replace(below=TIMES)
STEPS = NOT_NEGATIVE._replace(below=TIMES)
NOT_ZERO = Rule(lambda v: v != 0, "positive, or negative: none")
ONE_OR_MORE = Rule(lambda v: v >= 1, "1 or more")
TWO_OR_MORE = Rule(lambda v: v >= 2, "2 or more")
ZERO_OR_SEVERAL = Rule(lambda v: v == 0 or v > 1, "0, or 2 or more")
FRACTION = Rule(lambda v: 0 <= v < 1, "at least 0 and below 1")
PROBABILITY = Rule(lambda v: 0 <= v <= 1, "between 0 and 1")
SHARE = Rule(lambda v: 0 < v < 1, "between 0 and 1")
POSITIVE_SHARE = Rule(lambda v: 0 < v <= 1, "above 0 and at most 1")
SPLIT = one_of("train", "test")
SIZES = Rule(_are_sizes, "a tuple of positive integers")
NOT_EMPTY_SIZES = Rule(lambda v: len(v) > 0 and _are_sizes(v), SIZES.words)
FILTER = Rule(
    lambda v: all(map(_is_number, v)) and sum(v) != 0, "a tuple of numbers whose sum is not 0"
)
SEED = Rule(lambda v: 0 <= v < 2**32, "0 or more and below 4294967296", below=2**32)
NAMES = Rule(
    lambda v: all(isinstance(name, str) for name in v) and _are_different(v),
    "a tuple of different names",
)
SAMPLERS = Rule(
    lambda v: NAMES.holds(v) and _are_different([_with_steps(name) for name in v]),
    "a tuple of different samplers, each a method or method:num_steps",
)
RATES = Rule(
    lambda v: all(_is_number(r) and 0 <= r < 1 for r in v) and _are_different(v),
    "a tuple of different numbers at least 0 and below 1",
)
WIDTHS = Rule(
    lambda v: all(_is_number(w) and 0 < w <= 12**-0.5 for w in v) and _are_different(v),
    "a tuple of different relative widths, positive and at most 0.288",
)
NUMBERS = Rule(lambda v: all(map(_is_number, v)), "a tuple of numbers")
POSITIVE_NUMBERS = Rule(
    lambda v: all(_is_number(n) and n > 0 for n in v), "a tuple of positive numbers"
)
INTERVAL = Rule(lambda v: v == () or _is_interval(v), "() or two noise levels, (low, high)")
CLASSES = Rule(
    lambda v: all(_is_integer(y) and y >= 0 for y in v),
    "a tuple of class numbers, counted from 0",
)
