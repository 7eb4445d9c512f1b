"""Parameters of tests that the default run leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def slow(*values: Any) -> list[Any]:
    """The values as parameters that `pytest -m slow` runs."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def but_slow(values: Iterable[Any], fast: Sequence[Any]) -> list[Any]:
    """All of the values in their order, those that are not `fast` as `slow` parameters."""
    return [value if value in fast else slow(value)[0] for value in values]
