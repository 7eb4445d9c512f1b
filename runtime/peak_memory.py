"""What a program needs of the CPU's memory, before it runs.

An accelerator refuses a program that does not fit by itself; on the CPU the system would kill the
process. Here the program is refused when it is traced, if it is hopeless, or else when it is
compiled, by what XLA says. Trace and compiled program are those that run afterwards.

XLA fuses sums and products into what consumes them, but the operands and results of convolutions,
normalisations and matrix products lie in memory, from where they are made to where they are last
read: in training, from the forward pass to the backward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from runtime import memory

# Their operands and results are arrays in memory.
WHOLE = {"conv", "conv_dx", "conv_dw", "conv_general_dilated", "norm", "norm_jvp", "norm_vjp"}

# Their result is their operand.
SAME = {"reshape", "squeeze", "expand_dims", "materialise", "materialise_cotangent", "copy"}

HOPELESS = 2.0  # a `peak` of so many times what is free; it was 0.86 of what XLA takes in training


def require(
    pmapped: Any,
    arguments: tuple[Any, ...],
    what: str,
    lower: str = "it",
    before_compilation: Callable[[], None] = lambda: None,
) -> None:
    """Refuses a pmapped function that would run out of the CPU's memory.

    `arguments` are arrays, or their shapes; `what` and `lower` are those of `memory.require`;
    `before_compilation` may refuse it, too, if it is not hopeless. Several processes are not looked
    after, nor is a machine that does not say what is free.

    Raises:
      Lack: less is free than it takes.
    """
    free = memory.free()
    if jax.default_backend() != "cpu" or jax.process_count() > 1 or free is None:
        return
    devices, leaves = jax.local_device_count(), jax.tree.leaves(arguments)
    there = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, jax.Array))
    size = peak(jax.make_jaxpr(pmapped)(*arguments).jaxpr) * devices
    if size > HOPELESS * free:
        memory.require(size, what, lower)
    before_compilation()
    analysis = pmapped.lower(*arguments).compile().memory_analysis()
    if analysis is not None:
        results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        each = analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes
        memory.require(each * devices - there, what, lower)


def peak(jaxpr: Any) -> int:
    """Bytes that lie in memory at once inside `jaxpr`, beside its inputs: about a lower bound.

    It is one where XLA neither computes an operand twice nor changes the order of the program.
    """
    outside = {*jaxpr.invars, *jaxpr.constvars}
    alias: dict[Any, Any] = {}
    spans: dict[Any, list[int]] = {}
    inside = defaultdict(int)
    for place, equation in enumerate(jaxpr.eqns):
        operands = [alias.get(v, v) for v in equation.invars if not isinstance(v, Literal)]
        name = equation.primitive.name
        if name in SAME and operands:
            alias[equation.outvars[0]] = operands[0]
        elif lies_in_memory(equation):
            for variable in [*operands, *equation.outvars]:
                spans.setdefault(variable, [place, place])[1] = place
        elif name == "scan":
            for variable in [*operands, *_stacked(equation)]:
                spans.setdefault(variable, [place, place])[1] = place
        inside[place] = max((peak(program) for program in inner(equation)), default=0)
    change = np.zeros(len(jaxpr.eqns) + 1, np.int64)
    for variable, (first, last) in spans.items():
        if variable not in outside:
            change[first] += size(variable)
            change[last + 1] -= size(variable)
    live = np.cumsum(change)
    return int(max((live[place] + extra for place, extra in inside.items()), default=0))


def lies_in_memory(equation: Any) -> bool:
    """True if the operands and results of an equation are arrays in memory."""
    name = equation.primitive.name
    return name in WHOLE or (name == "dot_general" and _contracted(equation) > 1)


def size(variable: Any) -> int:
    """Bytes of the array that a variable of a program stands for."""
    itemsize = getattr(variable.aval.dtype, "itemsize", 4)  # of keys, which are few
    return int(np.prod(variable.aval.shape, dtype=np.int64)) * itemsize


def _stacked(scan: Any) -> list[Any]:
    """The results of a scan that have an entry for each turn; the others are carried."""
    [body] = inner(scan)
    pairs = zip(scan.outvars, body.outvars, strict=True)
    return [whole for whole, entry in pairs if whole.aval.ndim > entry.aval.ndim]


def _contracted(equation: Any) -> int:
    """The length of the sums in a matrix product; those of one term are none."""
    (axes, _), _ = equation.params["dimension_numbers"]
    return int(np.prod([equation.invars[0].aval.shape[axis] for axis in axes], dtype=np.int64))


def inner(equation: Any) -> Iterator[Any]:
    """The programs inside an equation: of a scan, a branch, a call."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
