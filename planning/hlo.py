"""Collectives of a compiled program, read from the text of its HLO."""

from __future__ import annotations

import math
import re

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    *("collective-broadcast", "ragged-all-to-all"),
)
# "%name = <shape> all-reduce(...)"; an asynchronous one is counted where it starts.
INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.\-]+ = (?P<shape>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
WHOLE_RESULT = {"all-gather", "collective-permute"}  # whose start returns (operands, results)


def collectives(text: str) -> dict[str, dict[str, float]]:
    """{"all-reduce": {"count": n, "bytes": b}, ...}: how many there are, and the bytes of their
    results on one chip. What is inside a loop is counted once."""
    sums: dict[str, dict[str, float]] = {}
    for row in text.splitlines():
        match = INSTRUCTION.match(row)
        if match is None:
            continue
        kind = match["kind"]
        sizes = [_bytes(dtype, sides) for dtype, sides in ARRAY.findall(match["shape"])]
        if match["start"] and kind in WHOLE_RESULT and len(sizes) > 1:
            sizes = sizes[len(sizes) // 2 :] if kind == "all-gather" else sizes[1:2]
        entry = sums.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += sum(sizes)
    return sums


def _bytes(dtype: str, sides: str) -> int:
    width = re.search(r"\d+", dtype)
    bits = 8 if dtype == "pred" else int(width[0]) if width else 0
    return math.ceil(math.prod(int(side) for side in sides.split(",") if side) * bits / 8)
