"""The paper's comparisons at a scale that a CPU can run: `make reproduce-small`.

    python -m benchmarks.reproduction [--workdir=runs/small] [--datasets=digits,fashion,emoji]
        [--shard=1/2] [--trainings=12] [--page=docs/reproduction.md --pictures=docs/pictures]

trains the networks of configs/small alike, but for their SDE, each several times, and measures the
cells of the paper's Tables 1 and 2 (arXiv:2011.13456) and few-step solvers with every one of them.
A sequential test gives a verdict on every published ordering; what it has not decided is measured
with further trainings, up to a number that is fixed in advance. The signal-to-noise ratio of every
corrector is searched for on a training of its own, and what is not reproduced is tried with the
exact score and with the paper's number of levels. Interrupted and started again, it goes on where
it was. With `--shard=1/2` and `--shard=2/2` two processes share the work, in one folder or in two
whose `.json` files are copied to and fro; each waits for the other's numbers where it needs them,
and both come to the same end. With fewer `--trainings` it ends at an earlier look, from which the
same command goes on without them. `<workdir>/reproduction.md` and its pictures are the result.
`--page` also keeps the numbers in `benchmarks/reproduction/numbers.json`, from which every study
goes on (`kept.py`); without that file all is measured anew.
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

from benchmarks import pages
from benchmarks.reproduction import kept, study, tables, why
from benchmarks.reproduction.cells import SCALES
from benchmarks.reproduction.measure import Bench
from benchmarks.reproduction.sequential import LOOKS
from runtime import endings, files

SCRIPT = "benchmarks/reproduction"


def run() -> None:
    """Studies the data sets of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/small")
    parser.add_argument("--datasets", default=",".join(SCALES), help="separated by commas")
    parser.add_argument("--shard", default="1/1", help="which of how many processes this is: 1/2")
    parser.add_argument("--trainings", type=int, default=LOOKS[-1], help="of each network, at most")
    parser.add_argument("--page", type=pathlib.Path, help="a page whose part is written anew")
    parser.add_argument("--pictures", type=pathlib.Path, help="where the page's pictures are")
    args = parser.parse_args()
    datasets = args.datasets.split(",")
    if unknown := sorted(set(datasets) - set(SCALES)):
        parser.error(f"--datasets names unknown {unknown}; known: {', '.join(SCALES)}")
    index, _, count = args.shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        parser.error(f"--shard={args.shard} is not the number of one of several, such as 1/2")
    if args.trainings not in LOOKS:
        parser.error(f"--trainings={args.trainings} is not a number of a look: one of {LOOKS}")
    if bool(args.page) != bool(args.pictures):
        parser.error("--page and --pictures need each other")
    shard = study.Shard(int(index) - 1, int(count))
    # Every cell is a program of its own, but its trainings share it.
    cache = args.workdir.absolute() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    benches = [Bench(dataset, args.workdir) for dataset in datasets]
    for bench in benches:
        _ = bench.data  # all are here, before hours are spent on the first
    studies = [study.study(bench, shard, args.trainings) for bench in benches]
    target, pictures = args.workdir / "reproduction.md", pathlib.Path("pictures")
    reasons = [why.explained(one, shard) for one in studies]
    text = report(studies, reasons, args.workdir / pictures, pictures)
    files.write_text(target, text)
    print(text)
    print(f"{target} and its pictures are written")
    if args.page:
        beside = pathlib.Path(args.pictures.absolute()).relative_to(args.page.absolute().parent)
        pages.write(args.page, SCRIPT, report(studies, reasons, args.pictures, beside))
        kept.keep(args.workdir)


def report(
    studies: Sequence[study.Study],
    reasons: Sequence[Sequence[why.Why]],
    folder: pathlib.Path,
    link: pathlib.Path,
) -> str:
    """The sections of all data sets; draws their pictures into `folder`, a `link` in the text."""
    sections = [tables.short(studies)]
    stand = tables.stand_together(studies)
    for one, together, whys in zip(studies, stand, reasons, strict=True):
        picture = f"reproduction_{one.bench.dataset}.png"
        tables.draw(folder / picture, one)
        sections += [tables.section(one, together, whys), f"![All distances]({link / picture})\n"]
    return "\n".join(sections)


if __name__ == "__main__":
    with endings.in_one_line():
        run()
