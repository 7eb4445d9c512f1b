"""What a program moves between a chip and its memory, estimated before it is compiled.

The operands and results of convolutions and matrix products are arrays in memory, and the rest is
fused into them (see `runtime.peak_memory`): each is read or written once where it is used.
"""

from __future__ import annotations

from typing import Any

from jax.extend.core import Literal

from runtime import peak_memory


def traffic(jaxpr: Any) -> int:
    """Bytes that the convolutions, normalisations and matrix products of `jaxpr` read and write."""
    total = 0
    for equation in jaxpr.eqns:
        if peak_memory.lies_in_memory(equation):
            arrays = [v for v in equation.invars if not isinstance(v, Literal)] + equation.outvars
            total += sum(peak_memory.size(array) for array in arrays)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(traffic(inner) for inner in peak_memory.inner(equation))
    return total
