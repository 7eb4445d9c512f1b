"""Pages of the notebooks: text, code and, where they have been executed, what came out.

`python -m docs.notebooks` leaves executed notebooks in build/notebooks. One that was made from the
source as it is now has its outputs on its page, and can be downloaded there; of another the page
has text and code, and says so.
"""

from __future__ import annotations

import base64
import itertools
import os
import pathlib
import re
from typing import Any

from docs.notebooks import __main__ as notebooks
from docs.site.pages import ROOT, Pages

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
WITHOUT_OUTPUTS = """\
!!! note "Without outputs"
    The cells below have not been executed since they were last changed: `make notebooks` does that,
    and `make site` then shows their pictures.
"""


def write_pages(site: Pages, folder: pathlib.Path, built: pathlib.Path = notebooks.FOLDER) -> None:
    """Adds the page of each notebook to the site; writes pictures and notebooks into its folder.

    Args:
      folder: where the pages are written.
      built: where executed notebooks are.
    """
    for source in notebooks.sources():
        name = source.relative_to(ROOT).as_posix()
        page = site.paths[name]
        beside = folder / page.removesuffix(".md")
        book = notebooks.executed(source, built)
        if book is None:
            cells, note = notebooks.notebook(source).cells, WITHOUT_OUTPUTS
        else:
            beside.mkdir(parents=True)
            download = beside / f"{source.stem}.ipynb"
            download.write_bytes((built / download.name).read_bytes())
            address = os.path.relpath(download, (folder / page).parent)
            cells, note = book.cells, f"[Download this page as a notebook]({address})\n"
        # The text is that of the source: built, it leads to other places.
        texts = [cell.source for cell in notebooks.notebook(source, built=False).cells]
        pictures = Pictures(beside, beside.name)
        parts = [
            site.converted(name, text) if cell.cell_type == "markdown" else code(cell, pictures)
            for text, cell in zip(texts, cells, strict=True)
        ]
        parts.insert(1, note)
        site.pages[page] = "\n\n".join(parts) + "\n"


class Pictures:
    """Files of the pictures of a page, in the order in which they come.

    Args:
      folder: where they are written.
      address: of the folder, as the page has it.
    """

    def __init__(self, folder: pathlib.Path, address: str) -> None:
        self.folder, self.address, self.count = folder, address, 0

    def add(self, png: bytes) -> str:
        """A picture, whose file it writes, with a link to it in full size."""
        self.count += 1
        file = f"{self.count}.png"
        (self.folder / file).write_bytes(png)
        address = f"{self.address}/{file}"
        picture = f"[![Picture {self.count}]({address})]({address})"
        return f'<div class="plot" markdown>\n{picture}\n</div>'


def code(cell: Any, pictures: Pictures) -> str:
    """Markdown of a cell of code with what came out of it: what it printed, and pictures.

    Progress bars and warnings, its stderr, are left out.
    """
    parts = [fenced(cell.source.strip("\n"), "python")]
    if notebooks.NO_ADDRESS.partition("=")[0] in cell.source:
        indented = "\n".join(f"    {line}".rstrip() for line in parts[0].splitlines())
        return f'??? note "On a fresh machine, such as Colab\'s"\n{indented}'
    shown = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
    for is_text, outputs in itertools.groupby(shown, lambda output: output.output_type == "stream"):
        if is_text:  # in several pieces, as the kernel sent them
            text = printed("".join(output.text for output in outputs))
            parts.append(f'<div class="printed" markdown>\n{fenced(text, "text")}\n</div>')
            continue
        for output in outputs:
            if "image/png" in output.get("data", {}):
                parts.append(pictures.add(base64.b64decode(output.data["image/png"])))
    return "\n\n".join(parts)


def printed(text: str) -> str:
    """What a terminal would show at the end: of a line that is written over, its last state."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in ANSI.sub("", text).split("\n"))
    return "\n".join(lines).strip("\n")


def fenced(text: str, language: str) -> str:
    """A block of code, whatever backticks are in it."""
    longest = max([2, *map(len, re.findall("`{3,}", text))])
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def navigation() -> list[dict[str, str]]:
    """The entries of the notebooks: their titles, and their pages."""
    entries = []
    for source in notebooks.sources():
        title = source.read_text().splitlines()[1].removeprefix("# # ")
        entries.append({title: f"notebooks/{source.stem}.md"})
    return entries
