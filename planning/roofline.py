"""Bounds on what a chip can do: seconds, images per second, share of the peak, batch size.

A program cannot end before its arithmetic is done at the peak rate, its bytes have passed the
memory's bus, and its collectives have passed the links (Williams, Waterman and Patterson 2009,
"Roofline"). The largest of the three is a lower bound on its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

DAY = 86400.0


class Bound(NamedTuple):
    """A lower bound on seconds, and what sets it: "arithmetic", "memory" or "links"."""

    seconds: float
    by: str


def bound(
    flops: float, traffic: float, sent: float, *, rate: float, bandwidth: float, links: float
) -> Bound:
    """The bound of a program of `flops` that moves `traffic` bytes to and from the memory of a
    chip, and `sent` bytes from it to others."""
    seconds = {
        "arithmetic": flops / rate,
        "memory": traffic / bandwidth,
        "links": sent / links if sent else 0.0,
    }
    by = max(seconds, key=lambda name: seconds[name])
    return Bound(seconds[by], by)


def sent(collectives: Mapping[str, Mapping[str, float]], chips: int) -> float:
    """Bytes that leave a chip: with n of them, 2 (n - 1) / n of what a ring reduces and spreads,
    (n - 1) / n of what it gathers, scatters or exchanges, all of what is handed on."""
    share = (chips - 1) / chips
    factors = {"all-reduce": 2 * share, "collective-permute": 1.0}
    return sum(factors.get(name, share) * numbers["bytes"] for name, numbers in collectives.items())


def utilisation(flops: float, seconds: float, peak: float) -> float:
    """The share of the peak rate that is used: MFU, where the FLOPs are the model's."""
    return flops / (seconds * peak) if seconds else 0.0


def days(steps: int, seconds: float) -> float:
    return steps * seconds / DAY


def largest_batch(memory: int, fixed: float, per_image: float) -> int:
    """The most images of a chip with `memory` bytes, of which some are taken in any case; 0: none.

    An estimate: what images take is taken to be proportional to their number.
    """
    return max(int((memory - fixed) // per_image), 0)


def line(smaller: tuple[int, float], larger: tuple[int, float]) -> tuple[float, float]:
    """Intercept, at least 0, and slope of the line through two points (images, bytes)."""
    slope = (larger[1] - smaller[1]) / (larger[0] - smaller[0])
    return max(smaller[1] - slope * smaller[0], 0.0), slope
