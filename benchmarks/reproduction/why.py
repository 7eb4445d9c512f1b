"""Why an ordering is not reproduced: the same comparison with the exact score, and with all levels.

Two things differ here from the paper that can be changed one after the other: the network, for
which the exact score of the training images may stand, and the number of noise levels, which may
be the paper's. Orderings that come back with the exact score are lost by the networks' errors, and
those that come back with the exact score and all levels alone are lost by the length of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.reproduction.cells import PAPER_LEVELS, with_all_levels
from benchmarks.reproduction.claims import Claim
from benchmarks.reproduction.measure import EXACT
from benchmarks.reproduction.sequential import Decision
from benchmarks.reproduction.study import (
    EXACT_LOOKS,
    Shard,
    Study,
    best,
    decision_of,
    in_words,
    measured,
    units_of,
)


class Why(NamedTuple):
    """What the experiments say of a claim that is not reproduced.

    Attributes:
      exact: with the exact score; None of what is no distance.
      exact_of_all_levels: with the exact score and the paper's levels; None where there are none.
    """

    claim: Claim
    exact: Decision | None
    exact_of_all_levels: Decision | None = None

    @property
    def text(self) -> str:
        """The conclusion in words."""
        if self.exact is None:
            return "no experiment"
        found = in_words(self.exact)
        fine = self.exact_of_all_levels and in_words(self.exact_of_all_levels)
        if found == "reproduced":
            return "the networks' errors: with the exact score it is as published"
        if found == "undecided":
            return "the networks' errors: the exact score makes no such difference"
        if fine == "reproduced":
            return f"the levels: with {PAPER_LEVELS} the exact score has the published order"
        return "the sampler with these images: the exact score does the same" + (
            f", with {PAPER_LEVELS} levels, too" if fine == found else ""
        )


def explained(study: Study, shard: Shard) -> Sequence[Why]:
    """The experiments on all claims of a study that are not reproduced."""
    doubted = [verdict for verdict in study.verdicts if verdict.text == "not reproduced"]
    ratios = {(task.sde, task.name): best(tried) for task, tried in study.ratios.items()}
    fine = with_all_levels(study.bench.scale, ratios)
    pairs = {key for verdict in doubted for key in (verdict.claim.better, verdict.claim.worse)}
    cells = {key: cell for key, cell in fine.items() if key in pairs}
    rows = measured(study.bench, cells, units_of(EXACT), shard)
    reasons = []
    for verdict in doubted:
        claim, decision = verdict.claim, None
        if claim.quantity == "distance" and {claim.better, claim.worse} <= set(cells):
            decision = decision_of(claim, rows, claim.quantity, EXACT_LOOKS)
        reasons.append(Why(claim, verdict.exact, decision))
    return reasons
