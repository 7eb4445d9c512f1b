"""The documentation's table of all fields, made from the schema.

python -m configs.table              prints it
python -m configs.table PAGE         puts it between the two markers of a page:
python -m configs.table docs/configs.md
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping

from configs import schema

BEGIN = "<!-- Made by `python -m configs.table docs/configs.md` from configs/schema.py. -->"
END = "<!-- The end of what is made. -->"


def table() -> str:
    """Every field in Markdown: for each section its words and a table."""
    parts = [_rows(schema.RUN)]
    for name, (words, fields) in schema.SECTIONS.items():
        parts += [f"### `{name}`", words, _rows(fields, f"{name}.")]
    return "\n\n".join(parts)


def _rows(fields: Mapping[str, schema.Field], prefix: str = "") -> str:
    rows = [("field", "default", "valid", "meaning"), ("---",) * 4]
    for name, field in fields.items():
        valid = field.rule.words or type(field.default).__name__
        rows.append((f"`{prefix}{name}`", f"`{field.default!r}`", valid, field.words))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def updated(page: str) -> str:
    """The page with the table between its markers."""
    return replaced(page, BEGIN, table())


def replaced(page: str, begin: str, content: str) -> str:
    """The page with this content between the line `begin` and the next line `END`.

    Raises:
      ValueError: a marker is missing.
    """
    before, _, rest = page.partition(begin)
    if begin not in page or END not in rest:
        raise ValueError(f"the page lacks a line {begin} and after it a line {END}")
    return f"{before}{begin}\n\n{content}\n\n{END}{rest.partition(END)[2]}"


def main(arguments: list[str]) -> None:
    """Prints the table, or brings the page that is named up to date."""
    if not arguments:
        print(table())
        return
    path = pathlib.Path(arguments[0])
    path.write_text(updated(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
