"""The paper's comparisons at a scale that a CPU can run: `make reproduce-small`.

    python -m benchmarks.reproduction [--workdir=runs/small] [--datasets=digits,fashion]

trains the networks of configs/small alike, but for their SDE, measures the cells of the paper's
Tables 1 and 2 (arXiv:2011.13456) and few-step solvers, each over several sampling seeds, and gives
a verdict on every published ordering. The tables have 100 noise levels for the paper's 1000, and
the signal-to-noise ratio of each corrector is searched for, as the paper's was. Interrupted and
started again, it goes on where it was. `<workdir>/reproduction.md` and its pictures are the result.
"""

from __future__ import annotations

from runtime import stop

if __name__ == "__main__":
    stop.end_imports()  # of all else

import argparse
import pathlib
from collections.abc import Sequence

from runtime import backend

backend.prepare()  # before JAX is imported

import jax

from benchmarks.reproduction import study, tables
from benchmarks.reproduction.cells import SCALES
from runtime import endings, files, lock


def run() -> None:
    """Studies the data sets of the command line, in a folder that nobody else writes to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/small")
    parser.add_argument("--datasets", default=",".join(SCALES), help="separated by commas")
    args = parser.parse_args()
    datasets = args.datasets.split(",")
    if unknown := sorted(set(datasets) - set(SCALES)):
        parser.error(f"--datasets names unknown {unknown}; known: {', '.join(SCALES)}")
    with lock.held(args.workdir, "benchmarks.reproduction"):
        study_all(datasets, args.workdir)


def study_all(datasets: Sequence[str], workdir: pathlib.Path) -> None:
    """Studies the data sets, and writes and prints what came out."""
    # Every cell is a program of its own, but its seeds share it.
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / ".cache"))
    sections = [tables.INTRODUCTION]
    for dataset in datasets:
        results = study.study(dataset, workdir)
        sections.append(tables.section(results, study.verdicts(results, workdir)))
        picture = pathlib.Path("pictures", f"reproduction_{dataset}.png")
        tables.draw(workdir / picture, results)
        sections.append(f"![All distances]({picture})\n")
    target = workdir / "reproduction.md"
    files.write_text(target, "\n".join(sections))
    print(target.read_text())
    print(f"{target} and its pictures are written")


if __name__ == "__main__":
    with endings.in_one_line():
        run()
