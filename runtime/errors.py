"""Errors of users: one line each, with what, where, and what would be valid."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs.names import printable

if TYPE_CHECKING:  # one line of --help needs no arrays
    import numpy as np

# Where the operating system says what it met, and not what would be valid.
REASONS = {
    errno.EISDIR: "this is a folder, and a file is needed",
    errno.ENOTDIR: "a file stands where a folder is needed",
}


class Refused(Exception):
    """A command line that cannot be understood; exit code 2."""


def one_line(error: BaseException, limit: int | None = None) -> str:
    """The message of an error, printable and in one line, cut at `limit` characters if it is given.

    One of the operating system begins with the file's name.
    """
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        reasons = {os.strerror(number): words for number, words in REASONS.items()}
        text = f"{error.filename}: {reasons.get(error.strerror, error.strerror)}"
    if text.startswith(("'", '"')):  # KeyError quotes its message
        with contextlib.suppress(SyntaxError, ValueError):
            text = str(ast.literal_eval(text))
    text = printable(" ".join(text.split())) or type(error).__name__
    return text if limit is None or len(text) <= limit else f"{text[:limit]}..."


def gave_up(solver: str, nfe: np.ndarray, *tolerances: tuple[str, float]) -> str:
    """The evaluations that an adaptive solver spent on images it could not solve, and the cure."""
    settings = " and ".join(f"{name}={value:g}" for name, value in tolerances)
    return (
        f"were not solved: {solver} gave up after {nfe.max(initial=0):.0f} evaluations, its "
        f"steps too many or too small; loosen {settings}"
    )


def refuse(numbers: np.ndarray, why: str) -> None:
    """Raises a ValueError that counts the failed images and names the first `numbers`, if any."""
    if len(numbers):
        named = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
        raise ValueError(f"{len(numbers)} samples (numbers {named}) {why}")


def abridged(items: Sequence[str], separator: str, limit: int = 8) -> str:
    """The first `limit` of the items in one text, printable, and how many more there are."""
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(map(printable, items[:limit])) + more
