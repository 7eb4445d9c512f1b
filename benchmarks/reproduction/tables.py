"""The tables, pictures and verdicts of a study as Markdown."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from benchmarks.reproduction.cells import FLOW, PAPER_LEVELS, SDES, SOLVERS, cell_name, label
from benchmarks.reproduction.sequential import LEVEL, LOOKS, Decision, holm
from benchmarks.reproduction.study import EXACT_LOOKS, Study, Verdict, best, in_words
from benchmarks.reproduction.why import Why
from runtime import files

WORDS = ("reproduced", "not reproduced", "undecided")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines: list[Sequence[str]] = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def spread(values: np.ndarray) -> str:
    """Mean ± standard deviation over trainings."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def short(studies: Sequence[Study]) -> str:
    """How many claims came out how, and which errors these verdicts may have."""
    rows, all_verdicts = [], [verdict for study in studies for verdict in study.verdicts]
    for study in studies:
        found = [verdict.text for verdict in study.verdicts]
        rows.append([study.bench.dataset, *(str(found.count(word)) for word in WORDS)])
    found = [verdict.text for verdict in all_verdicts]
    rows.append(["all", *(str(found.count(word)) for word in WORDS)])
    adjusted = holm([verdict.decision.p for verdict in all_verdicts])
    return "\n".join(
        [
            markdown(["", *WORDS], rows),
            f"Each verdict is wrong with a probability of at most {LEVEL:g}, so that of "
            f"{len(found)} at most {LEVEL * len(found):.1f} are expected to be; the "
            f"{int((adjusted < LEVEL).sum())} in bold stand together: the probability that any of "
            f"them is wrong is at most {LEVEL:g} (Holm).\n",
        ]
    )


def section(study: Study, together: frozenset[str], reasons: Sequence[Why]) -> str:
    """The section of one data set; the texts of claims that stand `together` are bold."""
    return "\n".join(
        [
            *_data(study),
            *_samplers(study),
            *_likelihoods(study),
            *_few_evaluations(study),
            *_verdicts(study, together),
            *_reasons(study, reasons),
        ]
    )


def stand_together(studies: Sequence[Study]) -> list[frozenset[str]]:
    """By study, the texts of the claims that Holm's procedure keeps among those of all."""
    adjusted = iter(holm([v.decision.p for study in studies for v in study.verdicts]))
    return [
        frozenset(v.claim.text for v in study.verdicts if next(adjusted) < LEVEL)
        for study in studies
    ]


def _data(study: Study) -> list[str]:
    """The data set, and the numbers of images that were compared."""
    bench, flow = study.bench, study.numbers["vp", FLOW]
    biased = np.mean([row["distance_of_n"] - row["distance"] for row in flow])
    return [
        f"## {bench.dataset.capitalize()}\n",
        f"{bench.scale.images} images of each training, compared with {bench.real.count} training "
        f"images; {bench.extractor.label}. Mean ± standard deviation over {LOOKS[0]} trainings. "
        f"The bias that is taken off is {biased:.2f} for VP's flow.\n",
    ]


def _samplers(study: Study) -> list[str]:
    """Table 1, and the ratios of its correctors."""
    scale, rows = study.bench.scale, []
    for sde in ("ve", "vp"):
        for row in scale.rows:
            names = [cell_name(row, column) for column in scale.columns]
            rows.append(
                [f"{SDES[sde]}, {row}", *(spread(study.values(sde, name)) for name in names)]
            )
    ratios = [
        [
            f"{SDES[task.sde]}, {_described(study, task.name)}",
            f"{best(distances):g}",
            ", ".join(f"{snr:g}: {distance:.2f}" for snr, distance in distances.items()),
        ]
        for task, distances in study.ratios.items()
    ]
    return [
        "### Samplers (Table 1)\n",
        markdown(["", *(label(column, scale.levels) for column in scale.columns)], rows),
        "Signal-to-noise ratios of the correctors, and the distances that chose them:\n",
        markdown(["", "ratio", "distances"], ratios),
    ]


def _described(study: Study, name: str) -> str:
    """The name of a cell in words."""
    return label(name, study.bench.scale.levels).replace("_", " ")


def _likelihoods(study: Study) -> list[str]:
    """Table 2."""
    rows = []
    for sde in SDES:
        bits = study.values(sde, FLOW, "bits_per_dim")
        nfe = study.values(sde, FLOW, "nfe").mean()
        rows.append(
            [
                SDES[sde],
                f"{bits.mean():.3f} ± {bits.std(ddof=1):.3f}",
                spread(study.values(sde, FLOW)),
                f"{nfe:.0f}",
            ]
        )
    header = ["", "bits/dim of test images", "distance of the ODE's samples", "its NFE"]
    return ["### Likelihood and the probability flow (Table 2)\n", markdown(header, rows)]


def _few_evaluations(study: Study) -> list[str]:
    """The table of the solvers that need few evaluations."""
    scale, rows = study.bench.scale, []
    for sde, solvers in scale.solvers.items():
        for name in solvers:
            cells = [(sde, f"{name}_{n}") for n in scale.evaluations]
            values = [
                f"{spread(study.values(*key))} ({study.values(*key, 'nfe').mean():.0f})"
                for key in cells
            ]
            rows.append([f"{SDES[sde]}, {name}", *values])
    header = ["", *(f"about {n} evaluations (NFE)" for n in scale.evaluations)]
    return ["### Few evaluations\n", markdown(header, rows)]


def _verdicts(study: Study, together: frozenset[str]) -> list[str]:
    """The table of the claims and the verdicts on them."""
    rows = [
        [
            verdict.claim.text,
            f"{verdict.claim.published[0]:g} < {verdict.claim.published[1]:g}",
            _difference(verdict.decision),
            str(verdict.decision.looked_at),
            "< 1e-16" if verdict.decision.p < 1e-16 else f"{verdict.decision.p:.1e}",
            _word(verdict, together),
            in_words(verdict.kernel) if verdict.kernel else "",
            f"{_difference(verdict.exact)}, {in_words(verdict.exact)}" if verdict.exact else "",
        ]
        for verdict in study.verdicts
    ]
    header = ["claim", "published", "difference here", "trainings", "p", "verdict"]
    header += ["by the kernel distance", f"with the exact score ({EXACT_LOOKS[-1]} draws)"]
    return ["### Verdicts\n", markdown(header, rows)]


def _reasons(study: Study, reasons: Sequence[Why]) -> list[str]:
    """The table of what is not reproduced, and of the experiments that say why."""
    if not reasons:
        return []

    def found(decision: Decision | None) -> str:
        return f"{_difference(decision)}, {in_words(decision)}" if decision else ""

    rows = [
        [why.claim.text, found(why.exact), found(why.exact_of_all_levels), why.text]
        for why in reasons
    ]
    levels = f"{study.bench.scale.levels} levels", f"{PAPER_LEVELS} levels"
    header = ["claim", *(f"exact score, {count}" for count in levels)]
    return ["### Not reproduced, and why\n", markdown([*header, "hence"], rows)]


def _difference(decision: Decision) -> str:
    """The difference and its standard error, with as many digits as that has."""
    digits = int(np.clip(2 - np.floor(np.log10(max(decision.error, 1e-9))), 2, 5)) - 1
    return f"{decision.difference:+.{digits}f} ± {decision.error:.{digits}f}"


def _word(verdict: Verdict, together: frozenset[str]) -> str:
    return f"**{verdict.text}**" if verdict.claim.text in together else verdict.text


def draw(path: pathlib.Path, study: Study) -> None:
    """Draws all distances of a data set: a row for each sampler, a panel for each SDE."""
    figure = Figure(figsize=(11, 5.2), dpi=110, layout="constrained")
    for axes, sde in zip(figure.subplots(1, len(SDES), sharex=True), SDES, strict=True):
        names = [name for key, name in study.numbers if key == sde]
        for i, name in enumerate(names):
            values = study.values(sde, name)
            color = "C0" if name == FLOW else "C1" if name.startswith(tuple(SOLVERS)) else "C2"
            axes.plot(values, np.full(len(values), i), "o", color=color, markersize=4, alpha=0.7)
            exact = [row["distance"] for row in study.exact[sde, name]]
            axes.plot(np.mean(exact), i, "|", color="0.3", markersize=9)
        labels = [_described(study, name) for name in names]
        axes.set_yticks(range(len(names)), labels, fontsize="x-small")
        axes.invert_yaxis()
        axes.set(xlabel="Fréchet distance without bias")
        axes.set_xscale("symlog", linthresh=1.0)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1.0, subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(SDES[sde], fontsize="medium", loc="left")
        axes.grid(color="0.9", linewidth=0.7)
    figure.supxlabel("points: trainings; bars: the exact score of the training images", fontsize=8)
    with files.whole(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary)
