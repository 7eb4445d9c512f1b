"""A plan as text, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from typing import Any

from planning import roofline
from runtime import figures

WIDTH = 100
WORDS = (
    "Times are lower bounds: the slowest of arithmetic, memory and links, each at its data sheet's "
    "peak. (e): estimated before compilation; (g): a guess, as the solver decides."
)
TITLES = {"training": "training", "sampling": "sampling", "likelihood": "likelihoods"}
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def text(plan: dict[str, Any]) -> str:
    """The tables of a plan, and what would help where it does not fit."""
    how = "as compiled" if plan["compiled"] else "ESTIMATED before compilation"
    head = f"{plan['chips']} x {plan['chip']} ({plan['topology']}), {plan['dtype']}, {how}"
    lines = [head, "", figures.table(_memory(plan), ["memory of a chip", "GB"]), ""]
    lines += [_verdict(plan["memory"]), "", figures.table(*_programs(plan))]
    for name, title in TITLES.items():
        if "refused" in plan[name]:
            lines.append(f"{title}: none, as {plan[name]['refused']}")
    if plan["advice"]:
        lines += ["", "what would help:", *(f"  {line}" for line in plan["advice"])]
    return "\n".join([*lines, "", *textwrap.wrap(WORDS, WIDTH)])


def _memory(plan: dict[str, Any]) -> list[list[str]]:
    memory = plan["memory"]
    names = {
        "parameters": "parameters",
        "optimiser": "optimiser",
        "averages": "averages of the parameters",
        "temporaries": "activations and other temporaries",
        "needed": "needed in training",
        "usable": "usable by JAX",
    }
    return [[words, f"{memory[name] / 1e9:10.3f}"] for name, words in names.items()]


def _verdict(memory: dict[str, Any]) -> str:
    largest = memory["largest_batch_estimate"]
    most = f"the largest batch is about {largest} images, by estimate" if largest else ""
    if memory["fits"]:
        return f"it fits; {most}"
    return "IT DOES NOT FIT" + (f"; {most}" if most else ", whatever the batch")


def _programs(plan: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Rows and header of what the programs cost and take."""
    names = [name for name in TITLES if "refused" not in plan[name]]
    columns = [_column(name, plan[name]) for name in names]
    rows = [[words, *(column.get(words, "") for column in columns)] for words in ROWS]
    rows = [row for row in rows if any(row[1:])]
    titles = {**TITLES, "sampling": f"sampling, {plan['sampling']['method']}"}
    return rows, ["", *(titles[name] for name in names)]


ROWS = (
    *("compiled", "images, all chips", "FLOPs of a chip", "bytes to and from its memory"),
    *("bytes sent to other chips", "collectives", "memory needed", "seconds", "bound by"),
    *("share of bfloat16 peak", "runs", "images/s", "seconds/image", "all of it", "compilation"),
)


def _column(name: str, numbers: dict[str, Any]) -> dict[str, str]:
    """The cells of a program by the words of their rows."""
    program = {
        "training": "one step",
        "sampling": "one evaluation",
        "likelihood": "one with divergence",
    }
    estimate = "" if numbers["bytes_counted"] else " (e)"
    cells = {
        "compiled": program[name],
        "images, all chips": str(numbers["images"]),
        "FLOPs of a chip": _short(numbers["flops"]),
        "bytes to and from its memory": _short(numbers["bytes"], "B") + estimate,
        "bytes sent to other chips": _short(numbers["bytes_sent"], "B"),
        "collectives": ", ".join(
            f"{entry['count']:.0f} {kind}" for kind, entry in numbers["collectives"].items()
        )
        or "none",
        "memory needed": _short(numbers["memory"], "B") + ("" if numbers["fits"] else " NO ROOM"),
        "seconds": f"{numbers['seconds']:.3g} or more",
        "bound by": numbers["bound_by"],
        "share of bfloat16 peak": f"{100 * numbers['peak_share']:.0f} % or less",
        "images/s": f"{numbers['images_per_second']:.4g} or fewer",
    }
    if numbers["compile_seconds"] is not None:
        cells["compilation"] = f"{numbers['compile_seconds']:.0f} s"
    if name == "training":
        cells["runs"] = f"{numbers['steps']} steps"
        cells["all of it"] = f"{_duration(roofline.DAY * numbers['days'])} or more"
    else:
        guess = " (g)" if numbers["evaluations_assumed"] else ""
        cells["runs"] = f"{numbers['evaluations']} evaluations{guess}"
        cells["seconds/image"] = f"{numbers['seconds_per_image']:.3g}"
        cells["all of it"] = f"50000 images: {_duration(3600 * numbers['hours_for_50000'])}"
    return cells


def _short(number: float, unit: str = "") -> str:
    """4 significant digits and a prefix: 1.234 TB."""
    for factor, prefix in PREFIXES:
        if number >= factor:
            return f"{number / factor:.4g} {prefix}{unit}".rstrip()
    return f"{number:.4g} {unit}".rstrip()


def _duration(seconds: float) -> str:
    for length, unit in ((roofline.DAY, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
