"""Compiled programs, kept while they are in use: a job of the same settings compiles nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

MOST = 24  # programs that are kept, each with its constants and code

Program = TypeVar("Program")


class Programs:
    """The programs that were used last, by what they depend on."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.by_key: OrderedDict[Hashable, object] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Program]) -> Program:
        """The program of a key, which is made if it is not there."""
        if key not in self.by_key:
            self.by_key[key] = make()
            while len(self.by_key) > self.most:
                self.by_key.popitem(last=False)
        self.by_key.move_to_end(key)
        program: Program = self.by_key[key]  # type: ignore[assignment]
        return program
