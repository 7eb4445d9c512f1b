"""Tables of all fields, made from the schema: the documentation's, and one for the console.

python -m configs.table              prints it
python -m configs.table PAGE         puts it between the two markers of a page:
python -m configs.table docs/configs.md
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import rules, schema
from configs.names import dotted

BEGIN = "<!-- Made by `python -m configs.table docs/configs.md` from configs/schema.py. -->"
WIDEST = 16  # characters of a value in the column on the console
END = "<!-- The end of what is made. -->"


def table() -> str:
    """Every field in Markdown: for each section its words and a table."""
    parts = [_rows(schema.RUN)]
    for name, (words, fields) in schema.SECTIONS.items():
        parts += [f"### `{name}`", words, _rows(fields, f"{name}.")]
    return "\n\n".join(parts)


def _rows(fields: Mapping[str, rules.Field], prefix: str = "") -> str:
    rows = [("field", "default", "valid", "meaning"), ("---",) * 4]
    for name, field in fields.items():
        valid = field.rule.words or type(field.default).__name__
        rows.append((f"`{prefix}{name}`", f"`{field.default!r}`", valid, field.words))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def listing(name: str, config: ConfigDict | None = None) -> str:
    """Fields with their values and words for the console.

    Args:
      name: "" for all, or a section, or the dotted name of a field.
      config: whose values are shown; None: the defaults.
    """
    values = dotted((schema.base() if config is None else config).to_dict())
    sections = {"": rules.Section("", schema.RUN), **schema.SECTIONS}
    blocks = []
    for section, (words, fields) in sections.items():
        shown = {f"{section}.{field}".removeprefix("."): entry for field, entry in fields.items()}
        if name and name != section:
            shown = {field: entry for field, entry in shown.items() if field == name}
        if not shown:
            continue
        title = [f"{section}: {words}"] if section and name in ("", section) else []
        cells = [(f"  {f}", repr(values[f]), _meaning(e, values[f])) for f, e in shown.items()]
        wide = max(len(field) for field, _, _ in cells)
        rows = [f"{a:{wide}}  {b:{WIDEST}}  {c}" for a, b, c in cells]
        blocks.append("\n".join(title + rows))
    return "\n\n".join(blocks)


def _meaning(field: rules.Field, value: Any) -> str:
    """The words of a field, with what is valid, and the default where the value is another."""
    notes = [f"must be {field.rule.words}"] if field.rule.words else []
    notes += [f"default: {field.default!r}"] if value != field.default else []
    return field.words + (f" [{'; '.join(notes)}]" if notes else "")


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
