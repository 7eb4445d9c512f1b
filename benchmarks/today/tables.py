"""Tables of what was measured: medians, and ratios to ours, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.today.rows import CONTENDERS, OURS, ROWS, Row

Result = dict[str, Any]  # of a case: "contenders", measured, and "missing", names
EVALUATED = 5000  # images


def median(measured: Mapping[str, Any], call: str, kind: str = "seconds") -> float:
    return float(np.median(measured[kind][call]))


def seconds(row: str, measured: Mapping[str, Any]) -> float:
    """What is compared: seconds of the work of one row."""
    if row == "fid":
        each = median(measured, "features") / measured["facts"]["images"]
        return EVALUATED * each + median(measured, "distance")
    call = {"step": "step", "sampler": "sampler", "bits": "likelihood"}.get(row, "command")
    return median(measured, call, "cpu" if call == "command" else "seconds")


def overhead(measured: Mapping[str, Any]) -> float:
    """What a sampler takes beyond its evaluations, as a share of them: the median over rounds."""
    samplers, networks = (np.array(measured["seconds"][n]) for n in ("sampler", "network"))
    return float(np.median(samplers / (measured["facts"]["nfe"] * networks))) - 1.0


def details(row: str, measured: Mapping[str, Any]) -> list[str]:
    """The further columns of a row: see `HEADERS`."""
    facts = measured["facts"]
    peak = f"{facts['peak']:.1f} GB" if "peak" in facts else ""
    if row == "step":
        return [f"{facts['parameters']:,}", peak]
    if row == "sampler":
        share = f"{100 * overhead(measured):+.1f} %"
        return [f"{facts['parameters']:,}", str(facts["nfe"]), share, peak]
    if row == "bits":
        return [f"{facts['bits']:.3f}", str(facts["nfe"]), peak]
    if row == "fid":
        each = 1e3 * median(measured, "features") / facts["images"]
        return [f"{each:.1f}", f"{median(measured, 'distance'):.2f}", peak]
    return []


PEAK = "peak memory"  # of the process, compilation included
HEADERS = {
    "step": ["parameters", PEAK],
    "sampler": ["parameters", "evaluations", "beyond the network", PEAK],
    "bits": ["bits/dim", "evaluations", PEAK],
    "fid": ["ms an image", "s a distance", PEAK],
}


def of_row(name: str, row: Row, results: Mapping[str, Result]) -> list[str]:
    """The lines of Markdown of a row whose cases, or some of them, have results."""
    extra = HEADERS.get(name, [])
    lines = [f"**{row.title}** (to reach: {row.goal})", ""]
    lines.append("| " + " | ".join(["", "", "time", "time / ours", *extra]) + " |")
    lines.append("|" + "---|" * (4 + len(extra)))
    for case, (words, _) in row.cases.items():
        if case not in results:
            continue
        measured = results[case]["contenders"]
        base = seconds(name, measured[OURS])
        for i, contender in enumerate(measured):
            value = seconds(name, measured[contender])
            cells = [words if i == 0 else "", CONTENDERS[contender].title]
            cells += [shown(value), f"{value / base:.2f}", *details(name, measured[contender])]
            lines.append("| " + " | ".join(cells) + " |")
    missing = sorted({title for r in results.values() for title in r["missing"]})
    if missing:
        names = ", ".join(CONTENDERS[title].title for title in missing)
        lines += ["", f"Not measured, as it was not there: {names}."]
    return [*lines, ""]


def shown(value: float) -> str:
    """Seconds with three digits or so."""
    if value < 1:
        return f"{1e3 * value:.0f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def markdown(results: Mapping[str, Mapping[str, Result]]) -> str:
    """All rows that have results, by row and case."""
    lines: list[str] = []
    for name, row in ROWS.items():
        if results.get(name):
            lines += of_row(name, row, results[name])
    return "\n".join(lines)
