"""The page of a report: its content as HTML that needs no other file and runs no script."""

from __future__ import annotations

import base64
import html
import math
import os
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Content = Mapping[str, Any]


class Picture(NamedTuple):
    """A picture with its title, its type ("image/png") and its file's content."""

    title: str
    kind: str
    data: bytes


ARROWS = {"higher": "↑", "lower": "↓", "": ""}

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #1c1b19; --soft: #67635c;
  --line: #e3dfd6; --accent: #2f5d8a; --warn: #96541a; --warnpaper: #fdf3e4; }
@media (prefers-color-scheme: dark) { :root { --paper: #16171a; --card: #1e2024; --ink: #e9e7e2;
  --soft: #a09c94; --line: #33353b; --accent: #8fb8e0; --warn: #e8b173; --warnpaper: #2c2419; }
  .plot img { filter: invert(1) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .9rem; padding-bottom: .35rem;
  border-bottom: 1px solid var(--line); }
p { margin: .3rem 0; }
.soft, figcaption, .facts, th { color: var(--soft); }
.lead { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem;
  margin: 1.6rem 0 0; }
.lead div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem 1rem; }
.lead .name:not(.differs) { color: var(--soft); }
.lead .name { font-size: .85rem; }
.lead .value { font-size: 1.9rem; font-weight: 650; line-height: 1.25; }
.value, td.n { font-variant-numeric: tabular-nums; }
.error { font-size: .62em; font-weight: 400; color: var(--soft); white-space: nowrap; }
.note { background: var(--warnpaper); color: var(--warn); border-radius: .4rem;
  padding: .5rem .8rem; font-size: .9rem; margin-top: .8rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr));
  gap: 1.2rem; align-items: start; }
.pictures.wide { grid-template-columns: 1fr; }
.pictures.small { grid-template-columns: repeat(auto-fill, minmax(min(12rem, 45%), 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border: 1px solid var(--line);
  border-radius: .4rem; background: #fff; }
.wide img { width: auto; max-width: 100%; max-height: 25rem; }
figcaption { font-size: .85rem; margin-top: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 500; font-size: .85rem; }
th, td { padding: .45rem .9rem .45rem 0; vertical-align: baseline; }
.numbers th:nth-child(1) { width: 30%; } .numbers th:nth-child(2) { width: 26%; }
.numbers tbody { border-top: 1px solid var(--line); }
.numbers td { padding-top: .75rem; }
.numbers .value { font-size: 1.2rem; font-weight: 650; white-space: nowrap; }
.error.below { display: block; line-height: 1.4; }
.numbers .facts td { padding: 0 0 .8rem; font-size: .78rem; line-height: 1.6; }
.facts span { margin-right: .9rem; overflow-wrap: anywhere; }
.facts b { font-weight: 500; color: var(--ink); }
.source { color: var(--soft); font-size: .85rem; }
.differs { color: var(--warn); font-size: .85rem; }
.label { display: none; }
.compare th, .compare td { border-bottom: 1px solid var(--line); white-space: nowrap; }
.compare .best { font-weight: 700; color: var(--accent); }
.compare .n, .compare th.n { text-align: right; }
details { margin-top: .6rem; }
summary { cursor: pointer; color: var(--accent); }
pre { font-size: .75rem; line-height: 1.45; columns: 17rem; column-gap: 2rem; margin: .8rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 36rem) { main { padding-top: 1.5rem; } h1 { font-size: 1.5rem; }
  .numbers thead { display: none; } .numbers tr { display: block; } .numbers td { display: block;
  padding: .1rem 0; } .numbers tbody { display: block; padding: .6rem 0; }
  .numbers td.none { display: none; } .label { display: inline; } }
@media print { :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb;
  --accent: #000; --warn: #000; --warnpaper: #fff; } body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; } .plot img { filter: none; } details { display: none; }
  figure, .lead div, .numbers tbody, tr { break-inside: avoid; } h2 { break-after: avoid; } }
"""

PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<p class="soft">Evaluation of a score-based generative model</p>
<h1>$title</h1>
$about
</header>
$body
</main>
</body>
</html>
""")


def write(
    path: pathlib.Path,
    made: Content,
    pictures: Sequence[Picture],
    curves: Sequence[Picture],
    leading: Sequence[str],
) -> None:
    """Writes the page of the report `made`, whole or not at all.

    Args:
      pictures: of the samples.
      curves: of the run, or of all evaluations together.
      leading: names of the numbers that stand on top, in this order.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(render(made, pictures, curves, leading), encoding="utf-8")
    os.replace(temporary, path)


def render(
    made: Content,
    pictures: Sequence[Picture],
    curves: Sequence[Picture],
    leading: Sequence[str],
) -> str:
    """The text of the page."""
    runs = made["evaluations"]
    first = next(iter(runs.values()))
    several = len(runs) > 1
    title = made["dataset"].replace("_", " ")
    title += f": {len(runs)} evaluations" if several else f", step {first['step']:,}"
    parts = [] if several else [lead(first["numbers"], leading)]
    if several:
        parts += [heading("Compared"), compared(runs, leading)]
        parts += [heading("Curves"), figures(curves, "plot")] if curves else []
    if pictures:
        parts += [heading("Samples"), figures(pictures, "small" if several else "")]
    for name, run in runs.items():
        parts += [heading(name_of(run) if several else "Numbers")]
        parts += [f'<p class="soft">{says(about_run(run))}. Folder {name}.</p>'] if several else []
        parts += [numbers(run["numbers"])]
    if curves and not several:
        parts += [heading("Curves"), figures(curves, "plot wide")]
    parts += [heading("Settings"), settings(runs)]
    return PAGE.substitute(
        title=says(title), style=STYLE, about=about(made), body="\n".join(filter(None, parts))
    )


def says(text: Any) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def heading(text: str) -> str:
    return f"<h2>{says(text)}</h2>"


def about(made: Content) -> str:
    """Which config this is; what was changed in it is a warning."""
    known = made["config"]
    if known is None:
        lines = ["<p>A config of its own; all of it stands at the end.</p>"]
    else:
        lines = [f"<p>Config <b>{says(known['name'])}</b></p>"]
        if known["changed"]:
            changed = "; ".join(known["changed"])
            lines = [
                f"<p>As config <b>{says(known['name'])}</b>, with changed fields</p>",
                f'<p class="note">{says(changed)}</p>',
            ]
    runs = list(made["evaluations"].values())
    if not any("published" in one for run in runs for one in run["numbers"]):
        lines.append('<p class="soft">No number here has a published one to be compared with.</p>')
    if len(runs) == 1:
        lines.append(f'<p class="soft">{says(about_run(runs[0]))}</p>')
    return "\n".join(lines)


def name_of(run: Content) -> str:
    """An evaluation among several."""
    return f"Step {run['step']:,}: {run['sampler']}"


def about_run(run: Content) -> str:
    """By what an evaluation was made, in a line."""
    changed = run["sampler_changed"]
    note = f"; the config's sampler with {'; '.join(changed)}" if changed else ""
    return f"{run['weights']}, sampler {run['sampler']}{note}"


def decimals(value: float, least: int) -> int:
    """Digits after the point: `least`, or as many as show two that are not 0."""
    small = -math.floor(math.log10(abs(value))) + 1 if value and math.isfinite(value) else 0
    return max(least, small)


def with_error(one: Content) -> str:
    """A number and its error bar."""
    digits = decimals(one["value"], one["digits"])
    error = one.get("error")
    bar = f' <span class="error">± {error:.{digits}f}</span>' if error is not None else ""
    return f"{one['value']:.{digits}f}{bar}"


def lead(found: Sequence[Content], leading: Sequence[str]) -> str:
    """The numbers that are seen first."""
    by_name = {one["name"]: one for one in found}
    boxes = []
    for one in (by_name[name] for name in leading if name in by_name):
        known = one.get("published")
        below = ""
        if known:
            otherwise = ", made otherwise" if known["differences"] else ""
            look = "name differs" if otherwise else "name"
            below = f'<p class="{look}">published {known["value"]:.2f}{otherwise}</p>'
        boxes.append(
            f'<div><p class="name">{titled(one)}</p>'
            f'<p class="value">{with_error(one)}</p>{below}</div>'
        )
    return f'<div class="lead">{"".join(boxes)}</div>' if boxes else ""


def value_of(one: Content) -> float:
    """The mean over seeds, where there are several."""
    return one["over_seeds"]["mean"] if "over_seeds" in one else one["value"]


def over_seeds(one: Content) -> str:
    """Mean and standard deviation over seeds, where there are several; else the number itself."""
    if "over_seeds" not in one:
        return with_error(one)
    return with_error({**one, "value": value_of(one), "error": one["over_seeds"]["std"]})


def numbers(found: Sequence[Content]) -> str:
    """The table: each number, the published one beside it, and below how it was made."""
    known = any("published" in one for one in found)
    column = "<th>Published</th>" if known else ""
    rows = [f"<thead><tr><th>Number</th><th>Here</th>{column}</tr></thead>"]
    for one in found:
        facts = "".join(
            f"<span><b>{says(name)}</b> {says(value)}</span> "
            for name, value in one["made_from"].items()
        )
        look = "" if "published" in one else ' class="none"'
        published = f"<td{look}>{beside(one)}</td>" if known else ""
        rows.append(
            f"<tbody><tr><td>{titled(one)}</td>"
            f'<td class="value">{with_error(one)}{spread(one)}</td>{published}</tr>'
            f'<tr class="facts"><td colspan="3">{facts}</td></tr></tbody>'
        )
    return f'<table class="numbers">{"".join(rows)}</table>'


def titled(one: Content) -> str:
    """What a number is called, and whether more or less of it is better."""
    arrow = ARROWS[one["better"]]
    return f'{says(one["title"])} <span class="soft">{arrow}</span>'


def spread(one: Content) -> str:
    """What the error bar is of; mean and standard deviation over seeds, where there are any."""
    lines = [f"± {says(one['error_of'])}"] if "error" in one else []
    if "over_seeds" in one:
        seeds = one["over_seeds"]
        digits = decimals(seeds["mean"], one["digits"])
        lines.append(
            f"mean {seeds['mean']:.{digits}f} ± {seeds['std']:.{digits}f} over "
            f"{len(seeds['seeds'])} seeds"
        )
    return "".join(f'<span class="error below">{line}</span>' for line in lines)


def beside(one: Content) -> str:
    """The published number, with all in which it was made otherwise."""
    known = one.get("published")
    if known is None:
        return '<span class="soft">–</span>'
    text = f'<span class="label">published </span><b>{known["value"]:.2f}</b> '
    text += f'<span class="source">{says(known["source"])}</span>'
    if known["differences"]:
        text += f'<br><span class="differs">made otherwise: {says("; ".join(known["differences"]))}'
        text += "</span>"
    return text


def figures(found: Sequence[Picture], look: str) -> str:
    """Pictures side by side, each inside the page itself; `look` are classes of STYLE."""
    made = []
    for picture in found:
        data = base64.b64encode(picture.data).decode()
        title = says(picture.title)
        made.append(
            f'<figure><img alt="{title}" src="data:{picture.kind};base64,{data}">'
            f"<figcaption>{title}</figcaption></figure>"
        )
    return f'<div class="pictures {look}">{"".join(made)}</div>'


def compared(runs: Mapping[str, Content], leading: Sequence[str]) -> str:
    """The table of several evaluations: step, sampler, NFE and the leading numbers of each."""
    found = {name: {one["name"]: one for one in run["numbers"]} for name, run in runs.items()}
    columns = [name for name in leading if any(name in of for of in found.values())]
    titles = {name: next(of[name] for of in found.values() if name in of) for name in columns}
    best = {}
    for name in columns:
        given = [value_of(of[name]) for of in found.values() if name in of]
        choose = max if titles[name]["better"] == "higher" else min
        best[name] = choose(given) if len(set(given)) > 1 else None
    head = "".join(f'<th class="n">{titled(one)}</th>' for one in titles.values())
    seeds = {len(one["over_seeds"]["seeds"]) for one in titles.values() if "over_seeds" in one}
    note = "".join(f"Mean and standard deviation over {count} seeds." for count in seeds)
    rows = []
    for name, run in runs.items():
        cells = []
        for column in columns:
            one = found[name].get(column)
            mark = " best" if one and value_of(one) == best[column] else ""
            cells.append(f'<td class="n{mark}">{over_seeds(one) if one else ""}</td>')
        nfe = "" if run["nfe"] is None else f"{run['nfe']:,.0f}"
        rows.append(
            f'<tr><td class="n">{run["step"]:,}</td><td>{says(run["sampler"])}</td>'
            f'<td class="n">{nfe}</td>{"".join(cells)}</tr>'
        )
    return (
        '<div class="scroll"><table class="compare"><thead><tr><th class="n">step</th>'
        f'<th>sampler</th><th class="n">NFE</th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="soft">{note}</p>'
    )


def settings(runs: Mapping[str, Content]) -> str:
    """The whole config of every evaluation, folded away."""
    blocks = []
    for name, run in runs.items():
        lines = []
        for section, fields in run["settings"].items():
            for field, value in fields.items() if isinstance(fields, dict) else [("", fields)]:
                lines.append(f"{section}{'.' if field else ''}{field} = {value}")
        text = says("\n".join(lines))
        label = says(f"Every field of the config{f' of {name}' if name else ''}")
        blocks.append(f"<details><summary>{label}</summary><pre>{text}</pre></details>")
    return "\n".join(blocks)
