"""Mathematics of the site: an extension of Python-Markdown that makes MathML of equations.

Three things become MathML, which browsers show without any script: equations in backticks, indented
blocks of which every line is an equation (`docs.site.notation` says what is one), and TeX between
dollars, as notebooks write it. Everything else in backticks stays code.
"""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as etree
from typing import Any

from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.util import AtomicString
from math_core import LatexToMathML

from docs.site import notation

BACKTICKS = r"(?<![\\`])`(?!`)([^`]+?)`(?!`)"
DOLLARS = r"(?<![\\$\w])\$(?![\s$])([^$]+?)(?<![\s\\])\$(?![\w$])"
DISPLAY = re.compile(r"\$\$(.+?)\$\$\s*\Z", re.DOTALL)


@functools.cache
def _converter() -> LatexToMathML:
    return LatexToMathML(fancy_error=False)


def mathml(tex: str, display: bool = False) -> str:
    """MathML of TeX.

    Raises:
      math_core.LatexError: `tex` is no TeX, or has a command that is not known.
    """
    return _converter().convert_with_local_state(tex, displaystyle=display)


class Backticks(InlineProcessor):
    """What stands between single backticks, as an equation or as code."""

    def handleMatch(self, m: re.Match[str], data: str) -> Any:
        text = " ".join(m[1].split())
        tex = notation.tex(text)
        if tex is not None:
            return self.md.htmlStash.store(mathml(tex)), m.start(0), m.end(0)
        code = etree.Element("code")
        code.text = AtomicString(text.replace("&", "&amp;").replace("<", "&lt;"))
        return code, m.start(0), m.end(0)


class Dollars(InlineProcessor):
    """TeX between two dollars of a paragraph."""

    def handleMatch(self, m: re.Match[str], data: str) -> Any:
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


class Equations(BlockProcessor):
    """An indented block of equations, or TeX between double dollars."""

    def test(self, parent: etree.Element, block: str) -> bool:
        return bool(self._lines(block))

    def run(self, parent: etree.Element, blocks: list[str]) -> None:
        block = blocks.pop(0)
        rows = [mathml(tex, display=True) for tex in self._lines(block)]
        place = etree.SubElement(parent, "p")
        html = f'<div class="equations">{"".join(rows)}</div>'
        place.text = self.parser.md.htmlStash.store(html)

    def _lines(self, block: str) -> list[str]:
        """TeX of each row, or nothing where the block is something else."""
        display = DISPLAY.match(block.strip())
        if display:
            return [display[1].strip()]
        rows: list[str] = []
        for line in block.rstrip().splitlines():
            if line.strip() and not line.startswith(" " * 4):
                return []
            columns = [
                notation.tex(part) for part in re.split(r"(?<=,) {3,}", line.strip()) if part
            ]
            if None in columns:
                return []
            row = r" \qquad ".join(str(column) for column in columns)
            deeper = line.startswith(" " * 6)
            rows.append(rf"\quad {row}" if deeper and rows else row)
        return rows


class Mathematics(Extension):
    """The three processors, before those of Python-Markdown and its other extensions."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(Backticks(BACKTICKS, md), "equations_in_backticks", 195)
        md.inlinePatterns.register(Dollars(DOLLARS, md), "equations_in_dollars", 186)
        md.parser.blockprocessors.register(Equations(md.parser), "equations", 85)


def makeExtension(**options: Any) -> Mathematics:
    """The extension, as Python-Markdown asks for it by the module's name."""
    return Mathematics(**options)
