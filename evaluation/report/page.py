"""The page of a report: its content as HTML that needs no other file and runs no script.

`report.html.jinja` is its template and `style.css` its look; every string that comes from a result
or a config is escaped.
"""

from __future__ import annotations

import base64
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from evaluation.report import quantities
from runtime import files

Content = Mapping[str, Any]

ARROWS = {"higher": "↑", "lower": "↓", "": ""}


class Picture(NamedTuple):
    """A picture with its title, its type ("image/png") and its file's content.

    Attributes:
      plot: True if it is drawn in lines on white, which the dark page inverts.
    """

    title: str
    kind: str
    data: bytes
    plot: bool = False

    @property
    def address(self) -> str:
        """The picture itself, as an address that asks for no file."""
        return f"data:{self.kind};base64,{base64.b64encode(self.data).decode()}"


def write(
    path: pathlib.Path, report: Content, samples: Sequence[Picture], curves: Sequence[Picture]
) -> None:
    """Writes the page of a report, whole or not at all.

    Args:
      samples: pictures of them.
      curves: pictures of the training, or of all evaluations together.
    """
    files.write_text(path, render(report, samples, curves))


def render(report: Content, samples: Sequence[Picture], curves: Sequence[Picture]) -> str:
    """The text of the page."""
    runs = {
        name: {
            "title": name_of(run),
            "made_by": making(run),
            "numbers": run["numbers"],
            "leading": leading(run["numbers"]),
            "settings": settings(run["settings"]),
        }
        for name, run in report["evaluations"].items()
    }
    numbers = [number for run in runs.values() for number in run["numbers"]]
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=title(report),
            config=report["config"],
            compared_with_published=any("published" in number for number in numbers),
            runs=runs,
            several=len(runs) > 1,
            only=next(iter(runs.values())),
            table=comparison(report["evaluations"].values()),
            samples=samples,
            curves=curves,
            arrows=ARROWS,
        )
    )


def environment() -> jinja2.Environment:
    """Jinja as the template wants it: strings escaped, and no unknown name passed over."""
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.globals["decimals"] = quantities.decimals
    jinja.filters["fixed"] = lambda value, digits: f"{value:.{digits}f}"
    jinja.filters["grouped"] = lambda value: f"{value:,.0f}"
    jinja.tests["has"] = lambda entries, name: name in entries
    return jinja


def title(report: Content) -> str:
    """The data set, and the step or the number of evaluations."""
    runs = list(report["evaluations"].values())
    which = f"{len(runs)} evaluations" if len(runs) > 1 else f"step {runs[0]['step']:,}"
    dataset = report["dataset"].replace("_", " ")
    return f"{dataset}: {which}" if len(runs) > 1 else f"{dataset}, {which}"


def name_of(run: Content) -> str:
    """An evaluation's heading among several."""
    return f"Step {run['step']:,}: {run['sampler']}"


def making(run: Content) -> str:
    """The weights and the sampler of an evaluation, in a line."""
    changed = run["sampler_changed"]
    note = f"; the config's sampler with {'; '.join(changed)}" if changed else ""
    return f"{run['weights']}, sampler {run['sampler']}{note}"


def leading(numbers: Sequence[Content]) -> list[Content]:
    """The numbers that are seen first."""
    by_name = {number["name"]: number for number in numbers}
    return [by_name[name] for name in quantities.leading() if name in by_name]


def settings(sections: Content) -> str:
    """The whole config by its sections, a line "section.field = value" for each field."""
    lines = []
    for section, fields in sections.items():
        for field, value in fields.items() if isinstance(fields, dict) else [("", fields)]:
            lines.append(f"{section}{'.' if field else ''}{field} = {value}")
    return "\n".join(lines)


def comparison(runs: Sequence[Content]) -> dict[str, Any]:
    """The table of several evaluations: the leading numbers of each, the best of them marked.

    Returns:
      "columns", a number for each leading name; "rows", each evaluation with its cells, where the
      number may be None; "seeds", the counts of seeds that means are over.
    """
    by_name = [{number["name"]: number for number in run["numbers"]} for run in runs]
    columns, best = [], {}
    for name in quantities.leading():
        numbers = [entries[name] for entries in by_name if name in entries]
        if numbers:
            values = {mean(number) for number in numbers}
            choose = max if numbers[0]["better"] == "higher" else min
            columns.append(numbers[0])
            best[name] = choose(values) if len(values) > 1 else None
    rows = []
    for run, entries in zip(runs, by_name, strict=True):
        cells = []
        for name, value in best.items():
            number = entries.get(name)
            cells.append({"number": number, "best": number and mean(number) == value})
        rows.append({"run": run, "cells": cells})
    spreads = [number["over_seeds"] for number in columns if "over_seeds" in number]
    return {
        "columns": columns,
        "rows": rows,
        "seeds": sorted({len(spread["seeds"]) for spread in spreads}),
    }


def mean(number: Content) -> float:
    """The mean over seeds, where there are several, or the value itself."""
    return number["over_seeds"]["mean"] if "over_seeds" in number else number["value"]
