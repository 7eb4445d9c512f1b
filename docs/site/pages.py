"""The pages of docs/ and of the root, with links that lead to the site's own pages.

The pages are written for GitHub, where a link leads to a file. On the site, a link to a page or to
a notebook's source leads to that page, and one to any other file to a page that shows the file;
names of config fields in backticks lead to where the field is described.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator

from configs import schema, table
from docs.notebooks.__main__ import sources

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FRONT = "README.md"  # is shown below docs/index.md, from its first section on
OF_ROOT = ("CONTRIBUTING.md", "CHANGELOG.md")
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".cff": "yaml", ".toml": "toml"}
LINK = re.compile(r'(?P<before>\]\(|src=")(?P<target>[^)"\s]+)(?P<after>[)"])')
NAMED = re.compile(r"\[(?:docs/)?\w+\.md\]\((?P<target>[^)#\s]+)(?P<anchor>[^)\s]*)\)")
FIELD = re.compile(r"(?<![\[`])`(?P<name>[a-z]+\.\w+)(?P<value>=[^`]*)?`(?!`)")
FIELDS = "fields.md"


def site_paths() -> dict[str, str]:
    """The site's page of each Markdown file and each notebook's source, as paths in the
    repository and on the site."""
    paths = {name: name for name in OF_ROOT} | {FRONT: "index.md"}
    for path in [*sorted((ROOT / "docs").rglob("*.md")), *sources()]:
        name = path.relative_to(ROOT).as_posix()
        paths[name] = path.with_suffix(".md").relative_to(ROOT / "docs").as_posix()
    return paths


class Pages:
    """Pages for the site, by their paths there, and of each file that one of them links to.

    Those of notebooks are made by `docs.site.notebooks`, which needs more than the text.
    """

    def __init__(self) -> None:
        self.paths = site_paths()
        self.pages: dict[str, str] = {}
        for name, path in self.paths.items():
            if name != FRONT and name.endswith(".md"):
                self.pages[path] = self.converted(name, (ROOT / name).read_text())
        readme = (ROOT / FRONT).read_text()
        sections = readme[readme.index("\n## ") :]
        self.pages["index.md"] += "\n" + self.converted(FRONT, sections)

    def converted(self, name: str, text: str) -> str:
        """Text of the file `name`, with its links and fields as the site has them."""
        lines = []
        for line, is_code in lines_and_code(text):
            if not is_code:
                line = self._with_fields(name, self._with_links(name, line))
            lines.append(line)
        text = "\n".join(lines)
        if table.BEGIN in text:
            text = table.replaced(text, table.BEGIN, f"[All fields]({FIELDS}), by section.")
        return text

    def _with_links(self, name: str, line: str) -> str:
        """The line with links to the site's pages; a page's title stands for its file's name."""
        line = NAMED.sub(
            lambda m: f"[{title((ROOT / name).parent / m['target'])}]({m['target']}{m['anchor']})",
            line,
        )
        return LINK.sub(
            lambda m: m["before"] + self.link(name, m["target"]) + m["after"],
            line,
        )

    def link(self, name: str, target: str) -> str:
        """The link of page `name` to `target`, as the site has it.

        Raises:
          FileNotFoundError: there is no such file.
        """
        if re.match(r"\w+:|#", target):
            return target
        file, anchor = target.partition("#")[0], "".join(target.partition("#")[1:])
        path = (ROOT / name).parent.joinpath(file).resolve()
        if not path.is_file() or not path.is_relative_to(ROOT):
            raise FileNotFoundError(f"{name} links to {target}, which is no file")
        linked = path.relative_to(ROOT).as_posix()
        if linked in self.paths:
            place = self.paths[linked]
        elif path.is_relative_to(ROOT / "docs" / "pictures"):
            place = linked.removeprefix("docs/")
        else:
            place = f"source/{linked}.md"
            self.pages.setdefault(place, _source_page(linked))
        return os.path.relpath(place, os.path.dirname(self.paths[name]) or ".") + anchor

    def _with_fields(self, name: str, line: str) -> str:
        place = os.path.relpath(FIELDS, os.path.dirname(self.paths[name]) or ".")

        def linked(match: re.Match[str]) -> str:
            if match["name"] not in schema.fields():
                return match[0]
            return f"[{match[0]}]({place}#{match['name']})"

        return line if line.startswith("#") else FIELD.sub(linked, line)


def title(page: pathlib.Path) -> str:
    """The heading of a page."""
    return page.read_text().partition("\n")[0].removeprefix("# ")


def lines_and_code(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of a page, each with whether it is in a block of code."""
    fenced, blank = False, True
    indented = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
            yield line, True
            continue
        indented = line.startswith("    ") and (blank or indented)
        yield line, fenced or indented
        blank = not line.strip()


def _source_page(name: str) -> str:
    """A page that shows a file of the repository."""
    text = (ROOT / name).read_text()
    language = LANGUAGES.get(pathlib.Path(name).suffix, "text")
    fence = "`" * 4
    return f"# `{name}`\n\n{fence}{language}\n{text}\n{fence}\n"
