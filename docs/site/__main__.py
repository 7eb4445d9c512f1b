"""Builds the site: writes its pages into build/site/pages, and has zensical render them.

    python -m docs.site

A link to a page, a heading or a file that does not exist ends the build with an error.
"""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import yaml
from fontTools import subset

from docs.site import notebooks, pages, reference

HERE = pathlib.Path(__file__).parent
OUT = pages.ROOT / "build" / "site"
# What equations are made of: ASCII, Greek, arrows, operators, accents, letters of other shapes.
CHARACTERS = [
    *range(0x20, 0x7F),
    *(0xAC, 0xAF, 0xB1, 0xB7, 0xD7, 0x2C6, 0x2DC, 0x2061, 0xFE00),
    *range(0x300, 0x339),
    *range(0x391, 0x3F6),
    *range(0x2016, 0x2058),
    *range(0x20D0, 0x20EF),
    *range(0x2102, 0x2140),
    *range(0x2190, 0x2300),
    *range(0x2308, 0x230C),
    *range(0x23B4, 0x23E1),
    *range(0x27E6, 0x27F0),
    *range(0x2A00, 0x2A10),
    *range(0x1D400, 0x1D7FF),
]


def write_pages(out: pathlib.Path) -> None:
    """Writes what zensical reads: its configuration, all pages, pictures, style and font."""
    shutil.rmtree(out, ignore_errors=True)
    site = pages.Pages()
    notebooks.write_pages(site, out / "pages")
    content = site.pages | reference.api_pages()
    content[pages.FIELDS] = reference.fields_page()
    for name, text in content.items():
        path = out / "pages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copytree(pages.ROOT / "docs" / "pictures", out / "pages" / "pictures")
    assets = out / "pages" / "assets"
    assets.mkdir()
    for name in ("site.css", "iframe-worker.js"):
        shutil.copy(HERE / name, assets)
    write_font(assets / "mathematics.woff")
    settings = yaml.safe_load((HERE / "mkdocs.yml").read_text())
    complete(settings["nav"])
    (out / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False))


def complete(navigation: list[Any]) -> None:
    """Puts the API's pages in place of the entry `API: api`, and each notebook's after their index,
    however deep those are."""
    for entry in list(navigation):
        if entry == "notebooks/README.md":
            navigation += notebooks.navigation()
        elif isinstance(entry, dict):
            for title, value in entry.items():
                if value == "api":
                    entry[title] = reference.api_navigation()
                elif isinstance(value, list):
                    complete(value)


def write_font(path: pathlib.Path) -> None:
    """Writes the part of STIX Two Math that equations need, which ziamath's package has whole.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    package = importlib.util.find_spec("ziamath")  # which has much to import
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the site needs: pip install -e '.[docs]'")
    source = pathlib.Path(package.submodule_search_locations[0], "fonts", "STIXTwoMath-Regular.ttf")
    options = subset.Options(flavor="woff", layout_features=["*"], hinting=False)
    font = subset.load_font(str(source), options)
    chosen = subset.Subsetter(options)
    chosen.populate(unicodes=CHARACTERS)
    chosen.subset(font)
    subset.save_font(font, str(path), options)


def build(out: pathlib.Path = OUT) -> int:
    """Writes the pages and renders them; the exit code is zensical's."""
    write_pages(out)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    command += ["--config-file", str(out / "mkdocs.yml")]
    return subprocess.run(command, cwd=pages.ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(build())
