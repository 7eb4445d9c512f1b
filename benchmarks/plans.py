"""The official configs on chips that are not here: does it fit, what bounds a step, days.

    python benchmarks/plans.py [--compile] [--folder=runs/plans] [--config ve/cifar10_ncsnpp ...]
        [--topology v5e:4x4 v4:2x2x2 h100:8 h100:1] [--page docs/pods.md]

What takes long becomes a file of the folder, and is not made again: the same command goes on after
a stop. Two traces of each network, before compilation, give what it needs for any number of images
on a chip: half a minute of CPU each. The compiler counts more, as it does not fuse everything: how
much more is found with --compile, by one network of each kind with one residual block at each
resolution, compiled quickly (XLA's lowest effort; extras plan-tpu, plan-cuda; minutes of CPU each).
The deeper ones repeat its blocks. A kind that was not compiled takes the median of the others.
With --page the table goes between the two markers of a page.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from runtime import backend

backend.prepare()

import jax
import ml_collections

import configs
from configs import table as pages
from planning import costs, plan, programs, roofline, topology
from planning.programs import Program
from runtime import figures, files

TOPOLOGIES = ["v5e:4x4", "v4:2x2x2", "h100:8", "h100:1"]
COMPILED = {"tpu": "v5e:1x1", "cuda": "h100:1"}  # where the ratios are measured
BEGIN = "<!-- Made by `python benchmarks/plans.py --compile --page docs/pods.md`. -->"
MOST_CHIPS = 16
LOWEST_EFFORT = -1.0
OF_SDE = ("sigma_min", "sigma_max", "beta_min", "beta_max", "ema_rate", "num_scales")
OF_DEPTH = (  # networks that differ by these alone are of one kind
    *(*OF_SDE, "num_res_blocks", "scale_by_sigma", "dropout", "embedding_type"),
    *("conditional", "num_classes"),
)


class Line(NamedTuple):
    """What a program tells (`costs.Told`), on the line through two numbers of images on a chip."""

    flops: float
    traffic: float
    temporaries: float
    results: float


def official() -> list[str]:
    """The configs of the official code, by name."""
    return [name for name in configs.shipped() if name.split("/")[0] in ("ve", "vp", "subvp")]


def network(config: ml_collections.ConfigDict, without: tuple[str, ...] = OF_SDE) -> str:
    """A text that is the same for configs of one network and batch."""
    model = {name: value for name, value in config.model.items() if name not in without}
    images = (config.data.image_size, config.data.num_channels)
    step = (config.training.batch_size, config.training.accumulation, config.training.objective)
    return json.dumps([model, images, step], default=str, sort_keys=True)


def first_of(name: str, without: tuple[str, ...] = OF_SDE) -> str:
    """The first config of the same network."""
    wanted = network(configs.shipped()[name], without)
    return next(n for n in official() if network(configs.shipped()[n], without) == wanted)


def kept(path: pathlib.Path, make: Any) -> Any:
    """What the file has, or newly made."""
    if path.exists():
        return files.read_json(path, "remove it")
    result = make()
    files.write_json(path, result)
    return result


def told(program: Program) -> dict[str, float]:
    """What the program of one chip tells, as JSON knows it; FLOPs are of any platform."""
    work = costs.Work(program, 1, "cuda")
    return {name: getattr(work, name) for name in Line._fields}


def lines(name: str, folder: pathlib.Path) -> dict[str, Any]:
    """What a step tells with few images on a chip, and with all of them."""
    config = configs.load(name)
    batch = config.training.batch_size

    def make() -> dict[str, Any]:
        print(f"tracing {name} ...", file=sys.stderr, flush=True)
        counts = (max(batch // MOST_CHIPS, 1), batch)
        steps = {images: programs.training(config, images, 1) for images in counts}
        return {str(images): told(step) for images, step in steps.items()}

    return kept(folder / f"{name.replace('/', '+')}.json", make)


def on_line(points: dict[str, Any], program: Program, chips: int, platform: str) -> Line:
    """What a program of so many images tells, by the line through two of them."""
    del platform
    (few, low), (many, high) = ((int(n), numbers) for n, numbers in points.items())
    share = (program.images // chips - few) / (many - few)
    return Line(*(low[f] + share * (high[f] - low[f]) for f in Line._fields))


def measured(name: str, platform: str, folder: pathlib.Path) -> dict[str, float | None]:
    """How many times what it tells the compiler counts, of the config with one residual block at
    each resolution. Of a program that it refuses for want of memory it counts no traffic: None."""
    jax.config.update("jax_exec_time_optimization_effort", LOWEST_EFFORT)
    config = configs.load(name)
    config.model.num_res_blocks = 1

    def make() -> dict[str, float | None]:
        print(f"compiling {name} for {COMPILED[platform]} ...", file=sys.stderr, flush=True)
        once = costs.Ratios()
        result = plan.make(config, COMPILED[platform], draws=False, ratios=once)
        if not result["compiled"]:
            raise SystemExit(result["note"])
        step = result["training"]
        counted = step["bytes"] / step["estimate"]["bytes"] if step["bytes_counted"] else None
        return {
            "traffic": counted,
            "temporaries": result["memory"]["temporaries"] / step["estimate"]["temporaries"],
            "compile_seconds": step["compile_seconds"],
        }

    return kept(folder / f"{name.replace('/', '+')}@{platform}.json", make)


def ratios(
    folder: pathlib.Path, compile: bool, names: list[str], platforms: set[str]
) -> dict[tuple[str, str], costs.Ratios]:
    """By platform and first config of a kind of network; the median by platform and ""."""
    numbers: dict[tuple[str, str], dict[str, Any]] = {}
    for kind in dict.fromkeys(first_of(name, OF_DEPTH) for name in names):
        for platform in sorted(platforms):
            path = folder / f"{kind.replace('/', '+')}@{platform}.json"
            if compile or path.exists():
                numbers[platform, kind] = measured(kind, platform, folder)
    found = {}
    for platform in platforms:
        middle = costs.RATIOS[platform]._asdict()
        for name in middle:
            those = [n[name] for (p, _), n in numbers.items() if p == platform and n[name]]
            middle[name] = statistics.median(those) if those else middle[name]
        found[platform, ""] = costs.Ratios(**middle)
        for (p, kind), of_kind in numbers.items():
            if p == platform:
                known = {name: of_kind[name] or middle[name] for name in middle}
                found[platform, kind] = costs.Ratios(**known)
    return found


def row(
    name: str,
    chips: str,
    folder: pathlib.Path,
    found: dict[tuple[str, str], costs.Ratios],
) -> list[str]:
    """A row of the table."""
    config, platform = configs.load(name), topology.parse(chips).chip.platform
    points, kind = lines(first_of(name), folder), first_of(name, OF_DEPTH)
    ratio = found.get((platform, kind))
    try:
        result = plan.make(
            config,
            chips,
            compile=False,
            draws=False,
            work=functools.partial(on_line, points),
            ratios=ratio or found[platform, ""],
        )
    except ValueError:
        batch = config.training.batch_size
        return [name, chips, f"a batch of {batch} is not shared", "", "", "", "", ""]
    memory, step = result["memory"], result["training"]
    return [
        name,
        chips,
        "yes" if memory["fits"] else "NO",
        f"{memory['needed'] / 1e9:.2f}",
        f"{1000 * step['seconds']:.1f}",
        step["bound_by"],
        f"{roofline.days(config.training.n_iters, step['seconds']):.2f}",
        kind if ratio else "the median",
    ]


def wide(rows: list[list[str]], topologies: list[str]) -> str:
    """The rows in Markdown: a config in each, and what each kind of pod gives in a column."""
    header = ["config", *topologies, "compiled for TPU", "for CUDA"]
    lines = [header, ["---"] * len(header)]
    for name in dict.fromkeys(row[0] for row in rows):
        of_config = {row[1]: row for row in rows if row[0] == name}
        cells = [cell(of_config[chips]) for chips in topologies]
        kinds = {topology.parse(chips).chip.platform: of_config[chips][7] for chips in topologies}
        lines.append([f"`{name}`", *cells, *(kinds.get(p, "") for p in ("tpu", "cuda"))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row: list[str]) -> str:
    """What one kind of pod gives: a bound on the time of a step, its days, the memory of a chip."""
    _, _, fits, needed, milliseconds, _, days, _ = row
    if not needed:
        return fits
    lacks = "" if fits == "yes" else "**does not fit**, "
    return f"{lacks}{milliseconds} ms, {days} days, {needed} GB"


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/plans"))
    parser.add_argument("--config", nargs="+", default=official(), choices=official(), metavar="C")
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--page", type=pathlib.Path)
    options = parser.parse_args()
    platforms = {topology.parse(name).chip.platform for name in options.topology}
    found = ratios(options.folder, options.compile, options.config, platforms)
    header = ["config", "chips", "fits", "GB", "ms a step", "bound by", "days", "compiled"]
    rows = []
    for name in options.config:
        for chips in options.topology:
            rows.append(row(name, chips, options.folder, found))
            print(" ".join(rows[-1]), flush=True)
    print("\n" + figures.table(rows, header))
    if options.page:
        page = options.page.read_text()
        options.page.write_text(pages.replaced(page, BEGIN, wide(rows, options.topology)))


if __name__ == "__main__":
    run()
