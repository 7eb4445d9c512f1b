"""The fields of the page: what a value must be, when a field acts, and how the config gets them.

What a browser sends is a stranger's: every value is read here against the field that it is for, and
anything else is refused with one line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from configs import schema
from configs.names import lookup

SDE_SOLVER = "SEA"  # of the sampler "sde", in fixed steps

Settings = Mapping[str, Any]  # values by the dotted names of their fields
When = Mapping[str, tuple[Any, ...]]  # of other fields, the values with which a field acts


@dataclasses.dataclass(frozen=True)
class Field:
    """A field that the page shows.

    Attributes:
      name: dotted, of the config.
      label: what the page calls it.
      default: the value that the page begins with; a number is brought within the bounds.
      low, high: the least and the largest number.
      names: the values of a choice; empty for numbers.
      when: the field acts where each of these others has one of its values.
      also: further fields of the config that get the same value.
    """

    name: str
    label: str
    default: Any
    low: float = 0.0
    high: float = 0.0
    names: tuple[str, ...] = ()
    when: When = dataclasses.field(default_factory=dict)
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            kind = type(self.default)
            object.__setattr__(self, "default", kind(max(self.low, min(self.default, self.high))))

    @property
    def words(self) -> str:
        """What the schema says of the field; "" where it is none of the config."""
        field = schema.fields().get(self.name)
        return field.words if field else ""

    @property
    def whole(self) -> bool:
        """True of whole numbers."""
        return isinstance(self.default, int)

    def read(self, value: Any) -> Any:
        """The value, checked.

        Raises:
          ValueError: one line that says what would be valid.
        """
        if self.names:
            if value not in self.names or not isinstance(value, str):
                raise ValueError(f"{self.label} is {value!r:.60}; valid: {', '.join(self.names)}")
            return value
        kinds = (int,) if self.whole else (int, float)
        good = isinstance(value, kinds) and not isinstance(value, bool)
        if not good or not self.low <= value <= self.high:
            what = "a whole number" if self.whole else "a number"
            found = "empty" if value is None else f"{value!r:.60}"
            raise ValueError(
                f"{self.label} is {found}; valid: {what} from {self.low:g} to {self.high:g}"
            )
        return int(value) if self.whole else float(value)

    def acts(self, values: Settings) -> bool:
        """True where the others have values with which this one acts."""
        return all(values.get(name) in choices for name, choices in self.when.items())


def values_of(fields: Sequence[Field], given: Any) -> dict[str, Any]:
    """The values of all fields that act, the defaults where nothing is given.

    Raises:
      ValueError: a value that a field does not take, or a name that is none of them.
    """
    if not isinstance(given, dict):
        raise ValueError("settings must be values by the names of their fields")
    known = {field.name: field for field in fields}
    for name in given:
        lookup(known, str(name), "setting")
    values: dict[str, Any] = {}
    for field in fields:  # those that others depend on come first
        if field.acts(values):
            values[field.name] = field.read(given.get(field.name, field.default))
    return values


def overrides_of(fields: Sequence[Field], values: Settings) -> dict[str, Any]:
    """The values of the config's fields, by their dotted names."""
    of_config = schema.fields()
    result: dict[str, Any] = {}
    for field in fields:
        if field.name in values and field.name in of_config:
            result |= dict.fromkeys((field.name, *field.also), values[field.name])
    if result.get("sampling.method") == "sde":
        result["sampling.solver"] = SDE_SOLVER
    return result
