"""What a compiled program moves, read from the text of its HLO.

What is inside a loop is counted once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    *("collective-broadcast", "ragged-all-to-all"),
)
# "%name = <shape> opcode(<operands>), <attributes>"; a layout such as {1,0:T(8,128)} has no space
# before its brackets.
INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.+?) (?P<opcode>[a-z][\w\-]*)\((?P<rest>.*)$"
)
COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
CALLED = re.compile(
    r"(?:to_apply|body|condition|called_computations|branch_computations|calls)="
    r"\{?(?P<names>%[\w.\-]+(?:, ?%[\w.\-]+)*)"
)
ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
WHOLE_RESULT = {"all-gather", "collective-permute"}  # whose start returns (operands, results)
# They move nothing, or what another instruction is counted for.
STILL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id"),
    *("after-all", "opt-barrier", "replica-id", "iota"),
}
SLICES = {"slice", "dynamic-slice", "gather"}  # they read no more than they give
# Their elements are no functions of one element of each operand, even where the sizes agree.
NOT_LOCAL = {
    "reduce-window",
    "scatter",
    "dynamic-update-slice",
    "sort",
    "tuple",
    "convolution",
    "dot",
}
CONTROL = {"call", "while", "conditional", "async-start"}


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      shape: of the result, as it is written.
      rest: operands and attributes.
    """

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(_bytes(dtype, sides) for dtype, sides in ARRAY.findall(self.shape))

    @property
    def elements(self) -> int:
        """Elements of the result, or of all arrays of it."""
        return sum(_count(sides) for _, sides in ARRAY.findall(self.shape))

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        depth, end = 1, len(self.rest)
        for place, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                end = place
                break
        return re.findall(r"%([\w.\-]+)", self.rest[:end])

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        groups = [match["names"] for match in CALLED.finditer(self.rest)]
        return [name.strip(" %") for group in groups for name in group.split(",")]


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation by its name; those of the entry also by ""."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for row in text.splitlines():
        if head := COMPUTATION.match(row):
            current = found.setdefault(head["name"], [])
            if head["entry"]:
                found[""] = current
        elif match := INSTRUCTION.match(row):
            current.append(Instruction(*match.groups()))
    return found


def run(found: dict[str, list[Instruction]], name: str = "") -> Iterator[Instruction]:
    """What a program does one after the other: its fused instructions are one."""
    for instruction in found[name]:
        if instruction.opcode in CONTROL:
            for inner in instruction.called:
                yield from run(found, inner)
        else:
            yield instruction


def traffic(text: str) -> int:
    """Bytes of operands and results of all instructions between which arrays lie in memory."""
    found = computations(text)
    sizes = {i.name: i.bytes for rows in found.values() for i in rows}
    total = 0
    for instruction in run(found):
        if instruction.opcode in STILL or instruction.opcode.endswith("-done"):
            continue
        reads = [sizes.get(name, 0) for name in instruction.operands]
        if instruction.opcode.endswith("-start"):  # whose result names its operands, too
            total += 2 * sum(reads)
            continue
        if instruction.opcode in SLICES:
            reads = [instruction.bytes]
        for body in instruction.called if instruction.opcode == "fusion" else ():
            parts = _parts(found[body])
            reads = [parts.get(number, size) for number, size in enumerate(reads)]
        total += instruction.bytes + sum(reads)
    return total


def _parts(body: list[Instruction]) -> dict[int, int]:
    """The bytes that a fused computation reads of those operands of which it needs but a part, by
    number: a slice needs what it gives, and so do elementwise functions of its own operand."""
    sizes = {instruction.name: instruction.elements for instruction in body}
    needed = {body[-1].name: body[-1].elements} if body else {}
    for instruction in reversed(body):
        elements = needed.get(instruction.name, 0)
        for place, name in enumerate(instruction.operands):
            size = sizes.get(name, 0)
            local = size == instruction.elements and instruction.opcode not in NOT_LOCAL
            partial = local or (instruction.opcode in SLICES and place == 0)
            needed[name] = min(size, needed.get(name, 0) + (elements if partial else size))
    parameters = [i for i in body if i.opcode == "parameter"]
    return {
        int(i.rest.partition(")")[0]): i.bytes * needed[i.name] // i.elements
        for i in parameters
        if needed.get(i.name, 0) < i.elements
    }


def collectives(text: str) -> dict[str, dict[str, float]]:
    """{"all-reduce": {"count": n, "bytes": b}, ...}: how many there are, and the bytes of their
    results on one chip; an asynchronous one is counted where it starts."""
    sums: dict[str, dict[str, float]] = {}
    for row in text.splitlines():
        match = INSTRUCTION.match(row)
        kind = match["opcode"].removesuffix("-start") if match else ""
        if match is None or kind not in COLLECTIVES:
            continue
        sizes = [_bytes(dtype, sides) for dtype, sides in ARRAY.findall(match["shape"])]
        if kind in WHOLE_RESULT and match["opcode"] != kind and len(sizes) > 1:
            sizes = sizes[len(sizes) // 2 :] if kind == "all-gather" else sizes[1:2]
        entry = sums.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += sum(sizes)
    return sums


def _bytes(dtype: str, sides: str) -> int:
    width = re.search(r"\d+", dtype)
    bits = 8 if dtype == "pred" else int(width[0]) if width else 0
    return math.ceil(_count(sides) * bits / 8)


def _count(sides: str) -> int:
    return math.prod(int(side) for side in sides.split(",") if side)
