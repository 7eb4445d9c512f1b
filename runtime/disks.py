"""The checkpoints of one run on the disks of several hosts, and whether they are of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from runtime import errors

ADVICE = "move the wrong folder away, and its host gets what it lacks from the others"


class Disk(NamedTuple):
    """The checkpoints that a process sees.

    Attributes:
      host: the name of its machine.
      folder: of the checkpoints.
      steps: their steps, each with a checksum of its arrays and its metric; None where it is
        damaged.
    """

    host: str
    folder: str
    steps: Mapping[int, tuple[int, float | None] | None]

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Disk:
        """The disk that was described in JSON."""
        steps = {int(k): None if v is None else (v[0], v[1]) for k, v in words["steps"].items()}
        return cls(words["host"], words["folder"], steps)

    def whole(self) -> dict[int, int]:
        """The checksums of its steps that are not known to be damaged."""
        return {step: found[0] for step, found in self.steps.items() if found is not None}


def merged(disks: Sequence[Disk]) -> dict[int, float | None]:
    """The steps on any of the disks, one for each process, ascending, with their metrics.

    Raises:
      ValueError: they are not of one run: two have different checkpoints of one step, or have none
        in common.
    """
    if fault := _difference(disks) or _gap(disks):
        raise ValueError(f"{fault}; {ADVICE}")
    metrics: dict[int, float | None] = {}
    for disk in disks:
        for step, found in disk.steps.items():
            if found is not None or step not in metrics:
                metrics[step] = None if found is None else found[1]
    return dict(sorted(metrics.items()))


def _difference(disks: Sequence[Disk]) -> str:
    """In words, a step of which there are two different checkpoints; the newest of these."""
    first: dict[int, tuple[int, int]] = {}  # process and checksum, by step
    faults = {}
    for index, disk in enumerate(disks):
        for step, checksum in disk.whole().items():
            other, expected = first.setdefault(step, (index, checksum))
            if checksum != expected:
                faults[step] = (
                    f"the checkpoints of step {step} of {_named(disks, other)} and of "
                    f"{_named(disks, index)} are two different ones"
                )
    return faults[max(faults)] if faults else ""


def _gap(disks: Sequence[Disk]) -> str:
    """In words, two disks whose checkpoints nothing connects."""
    full = [index for index, disk in enumerate(disks) if disk.whole()]
    if not full:
        return ""
    connected, steps = {full[0]}, set(disks[full[0]].whole())
    while more := {i for i in full if i not in connected and steps & set(disks[i].whole())}:
        connected |= more
        steps = steps.union(*(disks[i].whole() for i in more))
    alone = [index for index in full if index not in connected]
    if not alone:
        return ""
    return (
        f"{_named(disks, full[0])} has checkpoints of steps {_listed(disks[full[0]].whole())}, and "
        f"{_named(disks, alone[0])} of {_listed(disks[alone[0]].whole())}: none in common, so "
        "nobody knows whether they are of one run"
    )


def _named(disks: Sequence[Disk], index: int) -> str:
    return f"process {index} ({disks[index].host}:{disks[index].folder})"


def _listed(steps: Iterable[int]) -> str:
    return errors.abridged([str(step) for step in sorted(steps)], ", ")
