"""The tables, pictures and verdicts of a study as Markdown."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.reproduction.cells import LEVELS, SDES, SOLVERS, cell_name
from benchmarks.reproduction.claims import SIGNIFICANT, Verdict
from benchmarks.reproduction.study import Study, best
from runtime import files

INTRODUCTION = f"""# The paper's comparisons on a CPU

Made by `make reproduce-small`. Small networks (`configs/small/`) are trained with the VE, VP and
sub-VP SDEs, alike but for the SDE, and the cells of Tables 1 and 2 of arXiv:2011.13456 and few-step
solvers are measured with their EMA weights. Every sampler has a tenth of the paper's noise levels:
P{LEVELS} predicts, P{2 * LEVELS} predicts with twice the steps, C{2 * LEVELS} corrects only,
PC{LEVELS} does both. The corrector's signal-to-noise ratio is the best of a few by the distance of
images from another seed, with reverse diffusion. Distances are Fréchet distances of the features of
a small classifier of the data set itself: they compare with each other, not with published FIDs.

A verdict is on the sign of a difference that was published: *reproduced*, *not reproduced* (the
opposite was found) or *undecided* (p is {SIGNIFICANT:g} or more). p is that of a paired t-test over
sampling seeds, which all cells share, or over test images for bits/dim. One verdict in twenty is
made by chance where there is no difference, and seeds do not show what other trainings would give.
"""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines: list[Sequence[str]] = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def spread(values: np.ndarray) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def section(study: Study, verdicts: Sequence[Verdict]) -> str:
    """The section of one data set."""
    return "\n".join(
        [
            *_data(study),
            *_samplers(study),
            *_likelihoods(study),
            *_few_evaluations(study),
            *_verdicts(verdicts),
        ]
    )


def _data(study: Study) -> list[str]:
    """The data set, and the numbers of images that were compared."""
    first = next(iter(study.cells.values()))
    real = first["frechet_distance_real"]
    seeds = len(first["over_seeds"]["seeds"])
    return [
        f"## {study.dataset.capitalize()}\n",
        f"{first['num_samples']} images a seed, {seeds} seeds (mean ± standard deviation), "
        f"compared with {first['num_train']} training images; {first['features']}. Between "
        f"disjoint parts of the training images, {first['frechet_samples_real']} each, the "
        f"distance is {real:.2f}: the bias of small samples, roughly in proportion to 1/m + 1/n.\n",
    ]


def _samplers(study: Study) -> list[str]:
    """Table 1, and the ratios of its correctors."""
    rows = []
    for sde in ("ve", "vp"):
        for row in study.scale.rows:
            names = [cell_name(row, column) for column in study.scale.columns]
            values = [spread(study.distances(sde, name)) for name in names]
            rows.append([f"{SDES[sde]}, {row}", *values])
    columns = [column.replace("000", "00") for column in study.scale.columns]
    ratios = [
        f"{SDES[sde]} {column.replace('000', '00')} {best(distances):g} of "
        f"{', '.join(f'{snr:g}' for snr in distances)}"
        for (sde, column), distances in study.ratios.items()
    ]
    return [
        "### Samplers (Table 1)\n",
        markdown(["", *columns], rows),
        f"Signal-to-noise ratios found: {'; '.join(ratios)}.\n",
    ]


def _likelihoods(study: Study) -> list[str]:
    """Table 2."""
    rows = []
    for sde in SDES:
        cell = study.cells[sde, "flow"]
        bits = f"{cell['bits_per_dim']:.3f} ± {cell['bits_per_dim_stderr']:.3f}"
        distance = spread(study.distances(sde, "flow"))
        rows.append([SDES[sde], bits, distance, f"{cell['nfe']:.0f}", f"{cell['loss']:.4f}"])
    header = ["", "bits/dim", "distance of the ODE's samples", "NFE", "test loss"]
    return [
        "### Likelihood and the probability flow (Table 2)\n",
        markdown(header, rows),
        "Bits/dim: mean and standard error over the "
        f"{cell['bits_per_dim_images']} test images, {cell['likelihood_of']}.\n",
    ]


def _few_evaluations(study: Study) -> list[str]:
    """The table of the solvers that need few evaluations."""
    rows = []
    for sde, solvers in study.scale.solvers.items():
        for name in solvers:
            cells = [(sde, f"{name}_{n}") for n in study.scale.evaluations]
            values = [
                f"{spread(study.distances(*key))} ({study.cells[key]['nfe']:.0f})" for key in cells
            ]
            rows.append([f"{SDES[sde]}, {name}", *values])
    header = ["", *(f"about {n} evaluations (NFE)" for n in study.scale.evaluations)]
    return ["### Few evaluations\n", markdown(header, rows)]


def _verdicts(verdicts: Sequence[Verdict]) -> list[str]:
    """The table of the claims and the verdicts on them."""
    rows = [
        [
            verdict.claim.text,
            f"{verdict.claim.published[0]:g} < {verdict.claim.published[1]:g}",
            f"{verdict.difference:+.3f} ± {verdict.error:.3f}",
            "< 1e-16" if verdict.p < 1e-16 else f"{verdict.p:.1e}",
            f"**{verdict.text}**" if verdict.text != "undecided" else verdict.text,
        ]
        for verdict in verdicts
    ]
    header = ["claim", "published", "difference here", "p", "verdict"]
    return ["### Verdicts\n", markdown(header, rows)]


def draw(path: pathlib.Path, study: Study) -> None:
    """Draws all distances of a data set: a row for each sampler, a panel for each SDE."""
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    for axes, sde in zip(figure.subplots(1, len(SDES), sharex=True), SDES, strict=True):
        names = [name for key, name in study.cells if key == sde]
        for i, name in enumerate(names):
            values = study.distances(sde, name)
            color = "C0" if name == "flow" else "C1" if name.startswith(tuple(SOLVERS)) else "C2"
            axes.plot(values, np.full(len(values), i), "o", color=color, markersize=4, alpha=0.7)
        labels = [name.replace("_", " ").replace("000", "00") for name in names]
        axes.set_yticks(range(len(names)), labels, fontsize="x-small")
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="Fréchet distance")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_title(SDES[sde], fontsize="medium", loc="left")
        axes.grid(color="0.9", linewidth=0.7)
    with files.whole(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary)
