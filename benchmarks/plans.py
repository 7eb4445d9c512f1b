"""The official configs on chips that are not here: does it fit, what bounds a step, days.

    python benchmarks/plans.py [--compile] [--folder=runs/plans] [--config ve/cifar10_ncsnpp ...]
        [--topology v5e:4x4 v4:2x2x2 h100:8 h100:1]

Each config and topology becomes a file of the folder, and what is there is not made again: the
same command goes on after a stop. Without --compile the numbers are estimates of the program before
compilation, a minute or less of CPU each. With it, one config of each network is compiled for each
topology (needs the extras plan-tpu and plan-cuda, and up to half an hour of CPU each); configs of
the same network and batch differ from it by constants, and take its numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from runtime import backend

backend.prepare()

import ml_collections

import configs
from planning import plan, roofline
from runtime import figures, files

TOPOLOGIES = ["v5e:4x4", "v4:2x2x2", "h100:8", "h100:1"]
OF_SDE = ("sigma_min", "sigma_max", "beta_min", "beta_max", "ema_rate", "num_scales")


def official() -> list[str]:
    """The configs of the official code, by name."""
    return [name for name in configs.shipped() if name.split("/")[0] in ("ve", "vp", "subvp")]


def network(config: ml_collections.ConfigDict) -> str:
    """A text that is the same for configs of one network and batch."""
    model = {name: value for name, value in config.model.items() if name not in OF_SDE}
    images = (config.data.image_size, config.data.num_channels)
    step = (config.training.batch_size, config.training.accumulation, config.training.objective)
    return json.dumps([model, images, step], default=str, sort_keys=True)


def entry(name: str, topology: str, folder: pathlib.Path, compile: bool) -> dict[str, Any]:
    """The plan of a config, from its file or newly made."""
    path = folder / f"{name.replace('/', '+')}@{topology.replace(':', '_')}.json"
    if path.exists():
        stored = files.read_json(path, "remove it")
        if stored.get("compiled") or "refused" in stored or not compile:
            return stored
    config = configs.load(name)
    same = [n for n in official() if network(configs.shipped()[n]) == network(config)]
    if compile and same[0] != name:
        result = entry(same[0], topology, folder, compile) | {"network_of": same[0]}
        if "refused" not in result:
            steps = config.training.n_iters
            days = roofline.days(steps, result["training"]["seconds"])
            result["training"] = {**result["training"], "steps": steps, "days": days}
    else:
        try:
            result = plan.make(config, topology, compile, draws=False)
        except ValueError as error:
            result = {"refused": str(error)}
    files.write_json(path, result)
    return result


def row(name: str, topology: str, result: dict[str, Any]) -> list[Any]:
    if "refused" in result:
        return [name, topology, "the batch is not shared evenly", "", "", "", "", ""]
    memory, step = result["memory"], result["training"]
    return [
        name,
        topology,
        "yes" if memory["fits"] else "NO",
        f"{memory['needed'] / 1e9:.2f}",
        f"{1000 * step['seconds']:.1f}",
        step["bound_by"],
        f"{step['days']:.2f}",
        "compiled" if result["compiled"] else "estimated",
    ]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/plans"))
    parser.add_argument("--config", nargs="+", default=official(), choices=official(), metavar="C")
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    header = ["config", "chips", "fits", "GB", "ms a step", "bound by", "days", "how"]
    rows = []
    for name in options.config:
        for topology in options.topology:
            result = entry(name, topology, options.folder, options.compile)
            rows.append(row(name, topology, result))
            print(" ".join(map(str, rows[-1])), flush=True)
    print("\n" + figures.table(rows, header))


if __name__ == "__main__":
    run()
