"""What each of the CPU's workarounds is worth with the installed jaxlib: time without it / with it.

    python benchmarks/workarounds.py [--seconds 10] [--only flag,patches] [--json FILE]
    python benchmarks/workarounds.py --table FILE...     # what several jaxlibs gave, side by side

A program is compiled twice, with the workaround and without it, and the two take turns; the median
of the ratios of neighbouring calls is printed, with its quartiles. Above 1 the workaround wins.
Gradients are forward pass and all derivatives, twice in a `scan`, as in training; `blocks` are six
residual blocks of 32 channels, and their gradient. Sizes are batch, side and channels. XLA's flag
is the environment of a process: its two programs are in two processes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

FLAG = "--xla_cpu_experimental_ynn_fusion_type="
Call = Callable[[], Any]

# Batch, side and channels of images.
NARROW, QUICK, SMALL = (16, 32, 8), (128, 8, 24), (128, 2, 48)
WIDE, WIDER = (16, 32, 32), (4, 16, 128)


class Row(NamedTuple):
    """A program, with native functions or without them, and what is taken out of it."""

    lacks: str
    program: str  # a function of this file
    native: bool
    size: tuple[int, int, int] = WIDE
    looped: bool = True

    @property
    def name(self) -> str:
        size = "x".join(map(str, self.size))
        where = "native functions" if self.native else "XLA alone"
        return f"{self.program.replace('_', ' ')}, {size}, {where}{'' if self.looped else ', once'}"


WORDS = {
    "flag": f"XLA's flag `{FLAG}`, set for 0.10.2 without oneDNN",
    "forward": "gradients of convolutions as forward convolutions",
    "patches": "images smaller than the kernel as patches",
    "onednn": "oneDNN's convolutions",
    "norm": "native group normalisation",
    "materialise": "`materialise`",
    "products": "sums over pixels, and their transposes, as products",
}
ROWS = (
    *(Row("flag", "convolution", False, size) for size in (NARROW, QUICK, WIDE, WIDER)),
    *(Row("flag", "convolution_gradient", False, s) for s in (NARROW, QUICK, WIDE, WIDER)),
    Row("flag", "blocks", False),
    Row("flag", "blocks", True),
    *(Row("forward", "convolution_gradient", False, s) for s in (NARROW, QUICK, WIDE, WIDER)),
    *(Row("forward", "convolution_gradient", False, s, False) for s in (NARROW, WIDE)),
    Row("patches", "convolution", False, SMALL),
    Row("patches", "convolution_gradient", False, SMALL),
    *(Row("onednn", "convolution", True, size) for size in (SMALL, QUICK, WIDE, WIDER)),
    *(Row("onednn", "convolution_gradient", True, s) for s in (SMALL, QUICK, WIDE, WIDER)),
    *(Row("norm", "normalisation", True, size) for size in (QUICK, WIDE, WIDER)),
    *(Row("norm", "normalisation_gradient", True, size) for size in (QUICK, WIDE, WIDER)),
    Row("materialise", "blocks", True),
    Row("materialise", "blocks", False),
    *(Row("products", "normalisation", False, size) for size in (QUICK, WIDE, WIDER)),
    *(Row("products", "normalisation_gradient", False, size) for size in (QUICK, WIDE, WIDER)),
)


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Inside, programs are traced and lowered without a workaround."""
    import jax.numpy as jnp
    from jax.interpreters import mlir

    from models.ops import conv, group_norm, materialise

    def lowered(primitive: Any, function: Callable[..., Any]) -> None:
        rule = mlir.lower_fun(function, multiple_results=False)
        mlir.register_lowering(primitive, rule, "cpu")

    none = mock.Mock(takes=lambda *operands: False, for_cpu=lambda: True)
    with contextlib.ExitStack() as stack:
        if name == "onednn":
            stack.enter_context(mock.patch.object(conv, "native", none))
        elif name == "norm":
            stack.enter_context(mock.patch.object(group_norm, "native", none))
        elif name == "patches":
            stack.enter_context(mock.patch.object(conv, "_smaller", return_value=False))
        elif name == "products":
            sums: dict[str, Any] = {"spread": lambda a, count: jnp.repeat(a[:, None], count, 1)}
            sums["sum_pixels"] = lambda x: x.sum(1)
            stack.enter_context(mock.patch.multiple(group_norm, **sums))
        elif name == "materialise":
            lowered(materialise.materialise_p, lambda x: x)
            stack.callback(lowered, materialise.materialise_p, materialise._cpu)
        elif name == "forward":
            for primitive, plain, ours in (
                (conv.conv_dx_p, conv._dx_transposed, conv._dx_forward),
                (conv.conv_dw_p, conv._dw_transposed, conv._dw_forward),
            ):
                lowered(primitive, plain)
                stack.callback(lowered, primitive, ours)
        yield


def looped(function: Callable[..., Any], operands: Any, row: Row) -> tuple[Any, tuple[Any]]:
    """`function` with its gradient, twice in a scan."""
    import jax
    import jax.numpy as jnp

    def step(operands: Any, _: Any) -> tuple[Any, None]:
        value, gradient = jax.value_and_grad(lambda p: jnp.sum(jnp.sin(function(*p))))(operands)
        return jax.tree.map(lambda a, b: a + 1e-6 * (b + value), operands, gradient), None

    def run(operands: Any) -> Any:
        if not row.looped:
            return step(operands, None)[0]
        return jax.lax.scan(step, operands, None, 2)[0]

    return run, (operands,)


def normal(seed: int, *shape: int) -> Any:
    import jax

    return jax.random.normal(jax.random.key(seed), shape)


def convolution(row: Row) -> tuple[Any, tuple[Any, ...]]:
    from models.ops.conv import conv

    batch, side, channels = row.size
    x = normal(0, batch, side, side, channels)
    return conv, (x, 0.1 * normal(1, 3, 3, channels, channels))


def convolution_gradient(row: Row) -> tuple[Any, tuple[Any]]:
    function, operands = convolution(row)
    return looped(function, operands, row)


def normalisation(row: Row) -> tuple[Any, tuple[Any, ...]]:
    from models.ops.group_norm import group_norm

    batch, side, channels = row.size
    x, scale, bias = normal(0, batch, side**2, channels), normal(1, channels), normal(2, channels)
    return lambda x, scale, bias: group_norm(x, scale, bias, channels // 4, swish=True), (
        x,
        scale,
        bias,
    )


def normalisation_gradient(row: Row) -> tuple[Any, tuple[Any]]:
    function, operands = normalisation(row)
    return looped(function, operands, row)


def blocks(row: Row) -> tuple[Any, tuple[Any]]:
    import flax.linen as nn
    import jax

    from models.layers import ResnetBlockDDPMpp

    batch, side, channels = row.size
    x = normal(0, batch, side // 2, side // 2, channels)
    block = ResnetBlockDDPMpp(channels, nn.swish)
    keys = jax.random.split(jax.random.key(1), 6)
    params = jax.jit(jax.vmap(lambda key: block.init(key, x, None, None)))(keys)

    def network(params: Any, x: Any) -> Any:
        for i in range(len(keys)):
            x = block.apply(jax.tree.map(lambda p, i=i: p[i], params), x, None, None)
        return x

    return looped(network, (params, x), row)


def compiled(row: Row, lacks: str) -> tuple[Call, str]:
    """A call of the row's program, and its text before compilation."""
    import jax

    from models.ops import native

    alone = mock.patch.object(native, "available", return_value=False)  # XLA, on the CPU
    with without(lacks), contextlib.nullcontext() if row.native else alone:
        function, operands = globals()[row.program](row)
        lowered = jax.jit(lambda *operands: function(*operands)).lower(*operands)
    program = lowered.compile()
    return lambda: jax.block_until_ready(program(*operands)), lowered.as_text()


def serve(pipe: Any, flags: str) -> None:
    """Answers each row with the seconds of a call; of a process of its own."""
    os.environ.update({"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"})
    calls: dict[Row, Call] = {}
    with contextlib.suppress(EOFError):
        while row := pipe.recv():
            if row not in calls:
                calls[row] = compiled(row, "")[0]
            pipe.send(timed(calls[row]))


def timed(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Process:
    """A process with other flags of XLA."""

    def __init__(self, flags: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        context.Process(target=serve, args=(end, flags), daemon=True).start()

    def seconds(self, row: Row) -> float:
        self.pipe.send(row)
        return self.pipe.recv()


def ratios(plain: Callable[[], float], ours: Callable[[], float], budget: float) -> list[float]:
    """Those of neighbouring calls, for about so many seconds, but seven pairs at least."""
    plain(), ours()  # the first compiles, or finds its memory
    values: list[float] = []
    began = time.monotonic()
    for i in itertools.count():
        if i >= 7 and (time.monotonic() - began > budget or i >= 100):
            break
        if i % 2:
            ours_took, plain_took = ours(), plain()
        else:
            plain_took, ours_took = plain(), ours()
        values.append(plain_took / ours_took)
    return values


def measure(budget: float, chosen: set[str]) -> dict[str, dict[str, list[float]]]:
    """The ratios of each workaround's rows, by name."""
    found: dict[str, dict[str, list[float]]] = {}
    processes = [Process(flags) for flags in ("", FLAG)] if "flag" in chosen else []
    plain: Callable[[], float]
    ours: Callable[[], float]
    for row in [row for row in ROWS if row.lacks in chosen]:
        if row.lacks == "flag":
            plain, ours = (lambda p=p, row=row: p.seconds(row) for p in processes)
        else:
            made = [compiled(row, lacks) for lacks in (row.lacks, "")]
            if made[0][1] == made[1][1]:
                raise SystemExit(f"error: {row.name} is the same program without {row.lacks}")
            plain, ours = (lambda call=call: timed(call) for call, _ in made)
        values = ratios(plain, ours, budget)
        found.setdefault(row.lacks, {})[row.name] = values
        print(f"{row.lacks}: {row.name}: {shown(values)}", flush=True)
    return found


def shown(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    digits = 0 if middle >= 10 else 2
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def table(paths: list[str]) -> None:
    """Prints what several runs stored, side by side, as Markdown."""
    stored = [json.loads(pathlib.Path(path).read_text()) for path in paths]
    versions = [f"jaxlib {run['jaxlib']}" for run in stored]
    for cells in (["workaround", "program", *versions], ["---"] * (2 + len(stored))):
        print(f"| {' | '.join(cells)} |")
    for row in ROWS:
        values = [run["ratios"].get(row.lacks, {}).get(row.name) for run in stored]
        if any(values):
            cells = [WORDS[row.lacks], row.name, *(shown(v) if v else "" for v in values)]
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="of each comparison")
    parser.add_argument("--only", default=",".join(WORDS), help="workarounds, between commas")
    parser.add_argument("--json", help="a file for all ratios")
    parser.add_argument("--table", nargs="+", metavar="FILE", help="only print such files")
    args = parser.parse_args()
    if args.table:
        return table(args.table)
    chosen = set(args.only.split(","))
    if unknown := sorted(chosen - set(WORDS)):
        raise SystemExit(f"error: --only names unknown {unknown}; known: {', '.join(WORDS)}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    found = measure(args.seconds, chosen)
    if args.json:
        pathlib.Path(args.json).write_text(
            json.dumps({"jaxlib": importlib.metadata.version("jaxlib"), "ratios": found})
        )


if __name__ == "__main__":
    main()
