"""A training step beside the official network's, compiled for chips that are not here.

    python benchmarks/compiled.py --peer=PATH [--config=vp/cifar10_ddpmpp_continuous]
        [--blocks=N] [--levels=N] [--topology v5e:1x1 h100:1] [--folder=runs/compiled]
        [--contender ours ...]

PATH is a checkout of the official JAX code; both steps are those of one chip with the whole batch,
through the same compiler with the same options (extras plan-tpu, plan-cuda). What was compiled lies
in the folder, and is not compiled again: the same command goes on after a stop. A step of CIFAR-10
takes up to half an hour of CPU each; --blocks and --levels make it smaller, by residual blocks and
resolutions, and XLA's lowest effort, which is the default here, halves that (--effort=0 is JAX's
own).
"""

from __future__ import annotations

import argparse
import collections
import functools
import gzip
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from runtime import backend

backend.prepare()

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import SingleDeviceSharding

import configs
import sde_lib
from benchmarks import peers
from models.ops import native
from planning import costs, hlo, programs, topology
from runtime import figures, files

LAYOUT = {"copy", "transpose", "copy-start"}
CONTENDERS = ("official", "ours", "ours, bfloat16")


class Step(NamedTuple):
    """A training step: lowered for a chip, and its FLOPs before compilation."""

    lowered: Any
    flops: float


def ours(config: ml_collections.ConfigDict, chip: Any, dtype: str) -> Step:
    """Our step."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.model.dtype = dtype
    step = programs.training(config, config.training.batch_size, 1)
    return Step(costs.lowered(step, [chip]), costs.Work(step, 1, "cuda").flops)


def official(path: str, config: ml_collections.ConfigDict, chip: Any) -> Step:
    """The official network's step."""
    peer, module = peers.load(path), peers.network(path, config)
    sde = peers.sde(peer, sde_lib.from_config(config))
    step = peers.jax_step(peer, module, sde, peers.official_config(config))
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    init = functools.partial(peers.init_jax, module, image_shape=shape)
    state = jax.eval_shape(
        lambda key: step.init(init(jax.random.key(0)), key), jax.random.PRNGKey(0)
    )
    images = jax.ShapeDtypeStruct((config.training.batch_size, *shape), jnp.float32)
    there = SingleDeviceSharding(chip)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there), (state, images)
    )
    program = jax.jit(step.step, donate_argnums=0)
    traced = program.trace(state, images).lower(lowering_platforms=("cuda",))
    cost: Any = traced.cost_analysis()
    return Step(program.lower(*arguments), float(cost["flops"]))


def compiled(path: pathlib.Path, step: Callable[[], Step]) -> dict[str, Any]:
    """What the compiler says of a program, from its file or newly compiled; its text beside it."""
    if path.exists():
        return files.read_json(path, "remove it")
    lowered, flops = step()
    start, before = time.monotonic(), time.process_time()
    executable = lowered.compile()
    cost: Any = executable.cost_analysis() or {}
    memory = executable.memory_analysis()
    program = executable.as_text()
    result = {
        "flops_lowered": flops,
        "flops": cost.get("flops"),
        "bytes": cost.get("bytes accessed"),
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
        "seconds": time.monotonic() - start,
        "cpu_seconds": time.process_time() - before,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path.with_suffix(".hlo.gz"), "wt") as file:
        file.write(program)
    files.write_json(path, result)
    return result


def with_text(result: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The same with what is read from the compiled text."""
    with gzip.open(path, "rt") as file:
        text = file.read()
    moved = result["bytes"] or hlo.traffic(text)
    read = {"convolutions": convolutions(text), "layout": of_layout(text)}
    return {**result, "bytes": moved, **read}


def convolutions(text: str) -> dict[str, int]:
    """How many convolutions there are, by the types of their operands: {"f32 f32": 3}."""
    found = hlo.computations(text)
    types = {
        i.name: array[1]
        for rows in found.values()
        for i in rows
        if (array := hlo.ARRAY.search(i.shape))
    }
    counts: collections.Counter[str] = collections.Counter()
    for name, rows in found.items():
        for i in rows if name else ():  # "" is the entry again
            if i.opcode == "convolution" or "__cudnn$conv" in i.rest:
                counts[" ".join(types.get(operand, "?") for operand in i.operands[:2])] += 1
    return dict(counts)


def of_layout(text: str) -> tuple[int, int]:
    """Copies and transposes that stand alone, and the bytes that they read and write."""
    found = hlo.computations(text)
    count = moved = 0
    for i in hlo.run(found):
        bodies = i.called if i.opcode == "fusion" else []
        inside = {inner.opcode for body in bodies for inner in found[body]} - hlo.STILL
        if i.opcode in LAYOUT or (inside and inside <= LAYOUT):
            count, moved = count + 1, moved + 2 * i.bytes
    return count, moved


def table(results: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Contenders beside each other; ratios are to the official step on the same chip."""
    rows = []
    for (chip, contender), numbers in results.items():
        first = results.get((chip, "official"), numbers)
        rows.append(
            [
                chip,
                contender,
                f"{numbers['flops_lowered'] / 1e12:.3f}",
                f"{numbers['flops_lowered'] / first['flops_lowered']:.3f}",
                f"{numbers['bytes'] / 1e9:.1f}",
                f"{numbers['bytes'] / first['bytes']:.3f}",
                f"{numbers['peak'] / 1e9:.2f}",
                f"{numbers['peak'] / first['peak']:.2f}",
                ", ".join(f"{n} of {t}" for t, n in sorted(numbers["convolutions"].items())),
                f"{numbers['layout'][0]}: {numbers['layout'][1] / 1e9:.1f} GB",
            ]
        )
    header = ["chip", "step", "TFLOP", "ratio", "GB moved", "ratio", "peak GB", "ratio"]
    return figures.table(rows, [*header, "convolutions", "copies and transposes"])


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="checkout of the official JAX code")
    parser.add_argument("--config", default="vp/cifar10_ddpmpp_continuous")
    parser.add_argument("--blocks", type=int, help="residual blocks of a resolution")
    parser.add_argument("--levels", type=int, help="resolutions, the finest first")
    parser.add_argument("--topology", nargs="+", default=["v5e:1x1", "h100:1"])
    parser.add_argument("--effort", type=float, default=-1.0, help="XLA's, from -1 to 1")
    parser.add_argument("--contender", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/compiled"))
    options = parser.parse_args()
    jax.config.update("jax_exec_time_optimization_effort", options.effort)
    config = configs.load(options.config)
    if options.blocks:
        config.model.num_res_blocks = options.blocks
    if options.levels:
        config.model.ch_mult = tuple(config.model.ch_mult[: options.levels])
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for name in options.topology:
        chip, *_ = topology.devices(topology.parse(name))
        for contender in options.contender:
            step = (
                functools.partial(official, options.peer, config, chip)
                if contender == "official"
                else functools.partial(
                    ours, config, chip, "bfloat16" if "bfloat16" in contender else "float32"
                )
            )
            size = [str(options.blocks or "all"), str(options.levels or "all")]
            parts = [options.config.replace("/", "+"), *size, contender]
            stem = "@".join([*parts, name.replace(":", "_")]).replace(", ", "_")
            path = options.folder / f"{stem}.json"
            print(f"{stem} ...", file=sys.stderr, flush=True)
            result = compiled(path, step)
            results[name, contender] = with_text(result, path.with_suffix(".hlo.gz"))
    print(table(results))


if __name__ == "__main__":
    with native.elsewhere():
        run()
