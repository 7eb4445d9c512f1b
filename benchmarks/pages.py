"""The part of a page that a script writes, between two comments that have its name."""

from __future__ import annotations

import pathlib

from runtime import files


def write(page: pathlib.Path, script: str, text: str) -> None:
    """Puts the text between the comments `begin: script` and `end: script` of the page.

    Raises:
      ValueError: the page does not have both.
    """
    begin, end = f"<!-- begin: {script} -->", f"<!-- end: {script} -->"
    old = page.read_text()
    if begin not in old or end not in old:
        raise ValueError(f"{page} has no lines {begin} and {end}")
    before, after = old.partition(begin)[0], old.partition(end)[2]
    files.write_text(page, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
