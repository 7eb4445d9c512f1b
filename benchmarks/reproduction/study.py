"""The study of a data set: trainings and cells, look by look, until every claim is decided."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from tqdm import tqdm

from benchmarks.reproduction.cells import FURTHER_SNRS, SDES, Cell, Search, planned, searches
from benchmarks.reproduction.claims import Claim, claims
from benchmarks.reproduction.measure import EXACT, TRAINED, Bench, Numbers, Unit
from benchmarks.reproduction.sequential import LOOKS, Decision, decide

EXACT_LOOKS = LOOKS[:1]  # of the exact score, whose draws are all that differs from unit to unit
POLL = 2.0  # seconds between looks for what others measure


Rows: TypeAlias = Mapping[tuple[str, str], Sequence[Numbers]]  # by SDE and cell, for each unit


class Shard(NamedTuple):
    """Which of several processes, here or elsewhere, this one is: `place` 0, ..., `total` - 1."""

    place: int = 0
    total: int = 1

    def has(self, number: int) -> bool:
        """True of every `total`-th number."""
        return number % self.total == self.place


class Verdict(NamedTuple):
    """What came of a claim.

    Attributes:
      decision: on the differences worse - better of trained networks.
      kernel: the same by the kernel distance, where the claim is about distances.
      exact: the same with the exact score of the training images, if it was measured.
    """

    claim: Claim
    decision: Decision
    kernel: Decision | None
    exact: Decision | None

    @property
    def text(self) -> str:
        """The verdict in words."""
        return in_words(self.decision)


def in_words(decision: Decision) -> str:
    """A decision on the sign of a difference that was published as positive."""
    if not decision.decided:
        return "undecided"
    return "reproduced" if decision.difference > 0 else "not reproduced"


class Study(NamedTuple):
    """The measurements on one data set.

    Attributes:
      ratios: distances by signal-to-noise ratio, for each search.
      numbers: of every cell, by SDE and name, for the trainings of the first look.
      exact: of every cell, with the exact score.
    """

    bench: Bench
    ratios: Mapping[Search, Mapping[float, float]]
    numbers: Rows
    exact: Rows
    verdicts: Sequence[Verdict]

    def values(self, sde: str, name: str, quantity: str = "distance") -> np.ndarray:
        """A quantity of a cell for each training."""
        return np.array([numbers[quantity] for numbers in self.numbers[sde, name]])


def best(distances: Mapping[float, float]) -> float:
    """The ratio with the smallest distance."""
    return min(distances, key=distances.__getitem__)


def search(bench: Bench, task: Search, mine: bool, bar: tqdm) -> Mapping[float, float]:
    """Distances by signal-to-noise ratio; the best is inside the range of ratios, if it can be."""
    unit, distances = Unit(TRAINED, 0), dict[float, float]()
    for snr in (*bench.scale.snrs, *FURTHER_SNRS):
        if len(distances) >= len(bench.scale.snrs) and best(distances) < max(distances):
            break
        cell = task.trial(bench.scale, snr)
        if mine and not bench.numbers(cell, unit):
            bench.train(task.sde, unit)
            bench.measure(cell, [unit])
        await_others(bench, [(cell, unit)], bar)
        distances[snr] = bench.numbers(cell, unit)["distance"]
    bar.update()
    return distances


def await_others(bench: Bench, pairs: Sequence[tuple[Cell, Unit]], bar: tqdm) -> None:
    """Returns when the numbers of all pairs are there, which other shards may have to measure."""
    for cell, unit in pairs:
        while not bench.numbers(cell, unit):
            bar.set_postfix_str(f"waits for {bench.folder(cell.sde, unit) / cell.name}.json")
            time.sleep(POLL)
    bar.set_postfix_str("")


def units_of(kind: str) -> list[Unit]:
    """The units of the first look."""
    count = {TRAINED: LOOKS, EXACT: EXACT_LOOKS}[kind][0]
    return [Unit(kind, number) for number in range(1, count + 1)]


def study(bench: Bench, shard: Shard = Shard(), budget: int = LOOKS[-1]) -> Study:
    """The study of a data set; what an earlier one left is neither trained nor measured again.

    With a smaller `budget` of trainings it ends at the last look within that, and can go on later:
    the test is the same.
    """
    tasks = searches(bench.scale)
    with tqdm(total=len(tasks), desc=f"{bench.dataset}: ratios", unit="search") as bar:
        mine = [task for task in tasks if shard.has(list(SDES).index(task.sde))]
        own = {task: search(bench, task, True, bar) for task in mine}
        found = {task: own.get(task) or search(bench, task, False, bar) for task in tasks}
    ratios = {(task.sde, task.name): best(distances) for task, distances in found.items()}
    cells = {(cell.sde, cell.name): cell for cell in planned(bench.scale, ratios)}
    made = [claim for claim in claims() if {claim.better, claim.worse} <= set(cells)]
    first = measured(bench, cells, units_of(TRAINED), shard)
    numbers = {key: [*rows] for key, rows in first.items()}
    decisions = {claim: decision_of(claim, numbers, claim.quantity, LOOKS) for claim in made}
    for before, look in itertools.pairwise(look for look in LOOKS if look <= budget):
        open_claims = [claim for claim in made if not decisions[claim].decided]
        needed = {key for claim in open_claims for key in (claim.better, claim.worse)}
        some = {key: cell for key, cell in cells.items() if key in needed}
        units = [Unit(TRAINED, i + 1) for i in range(before, look)]
        for key, rows in measured(bench, some, units, shard).items():
            numbers[key] += rows
        decisions |= {
            claim: decision_of(claim, numbers, claim.quantity, LOOKS) for claim in open_claims
        }
    exact = measured(bench, cells, units_of(EXACT), shard)
    verdicts = [judged(claim, decisions[claim], numbers, exact) for claim in made]
    of_first = {key: rows[: LOOKS[0]] for key, rows in numbers.items()}
    return Study(bench, found, of_first, exact, verdicts)


def measured(
    bench: Bench, cells: Mapping[tuple[str, str], Cell], units: Sequence[Unit], shard: Shard
) -> Rows:
    """The numbers of cells for each of the units, of which this process measures its own."""
    if not cells:
        return {}
    own = [unit for unit in units if shard.has(unit.number - 1)]
    first, last = units[0], units[-1]
    with tqdm(total=len(cells), desc=f"{bench.dataset}: {first} to {last}", unit="cell") as bar:
        for cell in cells.values():
            for unit in own:
                if unit.kind == TRAINED and not bench.numbers(cell, unit):
                    bench.train(cell.sde, unit)
            bench.measure(cell, own)
            bar.update()
        await_others(bench, [(cell, unit) for cell in cells.values() for unit in units], bar)
    return {key: [bench.numbers(cell, unit) for unit in units] for key, cell in cells.items()}


def decision_of(claim: Claim, rows: Rows, quantity: str, looks: Sequence[int]) -> Decision:
    """The decision on the differences worse - better of a quantity, as far as there are both."""
    pairs = zip(rows[claim.better], rows[claim.worse], strict=False)
    return decide(np.array([worse[quantity] - better[quantity] for better, worse in pairs]), looks)


def judged(claim: Claim, decision: Decision, numbers: Rows, exact: Rows) -> Verdict:
    """The verdict on a claim, with what the kernel distance and the exact score say of it."""
    if claim.quantity != "distance":
        return Verdict(claim, decision, None, None)
    seen = {key: numbers[key][: decision.looked_at] for key in (claim.better, claim.worse)}
    kernel = decision_of(claim, seen, "kernel_distance", LOOKS)
    by_exact = decision_of(claim, exact, "distance", EXACT_LOOKS)
    return Verdict(claim, decision, kernel, by_exact)
