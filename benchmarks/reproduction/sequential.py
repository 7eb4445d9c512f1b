"""A sequential test of the sign of a mean difference, and what many of them may claim together.

The difference of two samplers is measured once for each training of a network, on the same draws.
After each of the numbers of trainings in `LOOKS` a paired t-test looks at all differences so far,
and the first look that decides ends the measurements of this comparison. By Bonferroni's inequality
K times the p-value of any of K looks is a p-value, whenever one stops: where there is no
difference, a verdict of the whole sequence at `LEVEL` is wrong with that probability at most.
Of all comparisons together, those that Holm's procedure (1979) keeps have no wrong verdict among
them with probability 1 - `LEVEL`, however they depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.05
LOOKS = (4, 6, 9, 12)  # trainings


class Decision(NamedTuple):
    """What the looks so far say.

    Attributes:
      looked_at: the number of differences.
      difference, error: their mean and its standard error.
      p: the p-value of the sequence, at most 1.
    """

    looked_at: int
    difference: float
    error: float
    p: float

    @property
    def decided(self) -> bool:
        """True if the sign of the difference is decided at `LEVEL`."""
        return self.p < LEVEL


def decide(differences: np.ndarray, looks: Sequence[int] = LOOKS) -> Decision:
    """The first look at differences [n] that decides, or else the last one that they allow.

    Differences that are all the same number tell nothing about their spread: p is 1.

    Raises:
      ValueError: fewer differences than the first look needs.
    """
    if len(differences) < looks[0]:
        raise ValueError(
            f"the first look needs {looks[0]} differences; there are {len(differences)}"
        )
    for count in (count for count in looks if count <= len(differences)):
        seen = differences[:count]
        mean, error = float(np.mean(seen)), float(np.std(seen, ddof=1)) / count**0.5
        single = 2.0 * float(special.stdtr(count - 1, -abs(mean) / error)) if error else 1.0
        decision = Decision(count, mean, error, min(1.0, len(looks) * single))
        if decision.decided:
            break
    return decision


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values: those below a level are right together at that level.

    The smallest of m p-values counts m times, the next m - 1 times, and none less than one before.
    """
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * values[order]))
    return adjusted
