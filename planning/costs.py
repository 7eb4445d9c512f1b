"""What a program costs each chip: FLOPs, bytes, memory; as compiled, or estimated before that."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from models.ops import native
from planning import hlo, trace
from planning.programs import Program, Tree
from runtime import devices, peak_memory

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of a run of a program, for one chip.

    Attributes:
      flops: as XLA counts them in the program before compilation.
      traffic: bytes to and from the chip's memory: as XLA counts them in the compiled program, or
        what its kernels read and write (of a GPU, where XLA does not say), or estimated.
      arguments, results, temporaries: bytes in the memory, results in place of arguments left out.
      memory: bytes that are needed at once.
      collectives: see `hlo.collectives`; those of an estimate are the gradients.
      compile_seconds: None where nothing was compiled.
      traffic_counted: True if the compiler counted it.
    """

    flops: float
    traffic: float
    arguments: int
    results: int
    temporaries: int
    memory: int
    collectives: dict[str, dict[str, float]]
    compile_seconds: float | None = None
    traffic_counted: bool = False


class Told(Protocol):
    """What a program before compilation tells of a run on one chip.

    Attributes:
      flops: as XLA counts them, those inside the loop over parts of a batch for each part.
      traffic: bytes to and from the memory, if all is fused with convolutions and matrix products;
        without state and gradients of training.
      temporaries: bytes that lie in memory inside.
      results: bytes.
    """

    @property
    def flops(self) -> float: ...
    @property
    def traffic(self) -> float: ...
    @property
    def temporaries(self) -> float: ...
    @property
    def results(self) -> float: ...


class Work:
    """What a program tells; each of it is computed when it is asked for."""

    def __init__(self, program: Program, chips: int, platform: str) -> None:
        self._program, self._chips, self._platform = program, chips, platform

    @functools.cached_property
    def _traced(self) -> Any:
        return traced(self._program, self._chips)

    @functools.cached_property
    def _of_one_chip(self) -> Any:
        """The program of one chip with its share of the images, inside that over all."""
        (mapped,) = (e for e in self._traced.jaxpr.jaxpr.eqns if e.primitive.name == "shard_map")
        return mapped.params["jaxpr"]

    @functools.cached_property
    def flops(self) -> float:
        once = self._program.without_loop
        program = self._traced if once is None else traced(once, self._chips)
        cost: Any = program.lower(lowering_platforms=(self._platform,)).cost_analysis()
        return float(cost["flops"])

    @functools.cached_property
    def traffic(self) -> float:
        return float(trace.traffic(self._of_one_chip))

    @functools.cached_property
    def temporaries(self) -> float:
        return float(peak_memory.peak(self._of_one_chip))

    @functools.cached_property
    def results(self) -> float:
        return float(sum(map(peak_memory.size, self._of_one_chip.outvars)))


class Ratios(NamedTuple):
    """How many times what the program before compilation tells the compiler counts."""

    traffic: float = 1.0
    temporaries: float = 1.0


# By platform, what corrects an estimate for which nothing was measured: the medians over kinds of
# networks that `benchmarks/plans.py --compile` found (9 of them; traffic is from 1.7 to 3.7 times).
RATIOS = {"tpu": Ratios(2.2, 1.1), "cuda": Ratios(2.9, 1.5)}


def traced(program: Program, chips: int) -> Any:
    """The program over all chips, which need not be there, as an accelerator traces it."""
    mesh = AbstractMesh((chips,), (devices.AXIS,), (AxisType.Auto,))
    with native.elsewhere():
        return jax.jit(_over(program, mesh)).trace(*program.arguments)


def _over(program: Program, mesh: Any) -> Any:
    return jax.shard_map(
        program.function,
        mesh=mesh,
        in_specs=program.split,
        out_specs=program.results,
        check_vma=False,
    )


def estimated(program: Program, work: Told, chips: int, ratios: Ratios) -> Costs:
    """The costs as the program before compilation tells them, times `ratios`."""
    share = program.share(chips)
    kept = [tree for number, tree in enumerate(share) if number in program.donated]
    arguments = nbytes(share)
    results = max(round(work.results) - nbytes(kept), 0)
    inside = round(ratios.temporaries * work.temporaries)
    traffic = work.traffic
    collectives: dict[str, dict[str, float]] = {}
    if program.donated:  # a training step: state read and written, gradients made and read
        gradients = nbytes(share[0].params)
        traffic += 2 * nbytes(share[0]) + 2 * gradients
        whole = nbytes(share[0].ema_params) == gradients
        kinds = ("all-reduce",) if whole else ("reduce-scatter", "all-gather")
        collectives = {kind: {"count": 1.0, "bytes": float(gradients)} for kind in kinds}
        collectives = collectives if chips > 1 else {}
    memory = arguments + results + inside
    traffic *= ratios.traffic
    return Costs(work.flops, traffic, arguments, results, inside, memory, collectives)


def lowered(program: Program, chips: list[Any]) -> Any:
    """The program over all chips, in the compiler's language."""
    mesh = Mesh(np.array(chips), (devices.AXIS,), (AxisType.Auto,))
    arguments = program.with_split(
        lambda leaf, spec: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
        )
    )
    with native.elsewhere():
        return jax.jit(_over(program, mesh), donate_argnums=program.donated).lower(*arguments)


def compiled(program: Program, chips: list[Any], estimate: Costs) -> Costs:
    """The costs as the platform's compiler tells them, and for the rest the estimate."""
    text = lowered(program, chips)
    start = time.monotonic()
    try:
        executable = text.compile()
    except jax.errors.JaxRuntimeError as error:
        fixed = estimate.arguments + estimate.results
        used = lack(str(error), fixed)
        if used is None:
            raise
        return dataclasses.replace(
            estimate,
            memory=used,
            temporaries=max(used - fixed, 0),
            compile_seconds=time.monotonic() - start,
        )
    seconds = time.monotonic() - start
    cost: Any = executable.cost_analysis() or {}
    compiled_text = executable.as_text()
    memory = executable.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Costs(
        flops=estimate.flops,
        traffic=program.loop * float(cost.get("bytes accessed") or hlo.traffic(compiled_text)),
        arguments=arguments,
        results=max(results, 0),
        temporaries=temporaries,
        memory=max(arguments + max(results, 0) + temporaries, memory.peak_memory_in_bytes),
        collectives=hlo.collectives(compiled_text),
        compile_seconds=seconds,
        traffic_counted=True,
    )


def lack(message: str, fixed: int) -> int | None:
    """The bytes that a program would need of which its compiler says that they are not there.

    None where the message says something else. `fixed` are those of arguments and results, which
    one form of the message leaves out: it is about the temporaries alone.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern, more in (
        (r"Used ([\d.]+)([KMGT]?)i?B? of", 0),
        (r"required for HLO temporaries \(([\d.]+)([KMGT]?)i?B?\) exceeds", fixed),
    ):
        if match := re.search(pattern, message):
            return round(float(match[1]) * UNITS[match[2]]) + more
    return None


def nbytes(tree: Tree) -> int:
    """Bytes of all arrays, or shapes, in a tree; keys are two numbers of 32 bits."""
    return sum(
        int(np.prod(leaf.shape, dtype=np.int64)) * getattr(leaf.dtype, "itemsize", 8)
        for leaf in jax.tree.leaves(tree)
    )
