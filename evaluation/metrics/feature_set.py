"""Features of one set of images, of which no more is kept than the metrics need."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from evaluation.metrics.moments import Gaussian, Moments

PENDING = 1024  # images whose features are summed up together


class FeatureSet:
    """Outputs of a network for one set of images: the moments of some, others kept whole.

    Args:
      moments: names of the outputs whose moments are wanted.
      keep: names of the outputs that are kept.
    """

    def __init__(self, moments: Collection[str], keep: Collection[str]) -> None:
        self.sums: dict[str, Moments | None] = dict.fromkeys(moments)
        self.kept: dict[str, list[np.ndarray]] = {name: [] for name in keep}
        self.pending: list[dict[str, np.ndarray]] = []
        self.count = 0

    def add(self, outputs: dict[str, np.ndarray]) -> None:
        """Takes in outputs [b, ...] of the next b images."""
        before = self.count // PENDING
        self.pending.append({name: outputs[name] for name in {*self.sums, *self.kept}})
        self.count += len(outputs["pool"])
        if self.count // PENDING > before:
            self.sum_up()

    def sum_up(self) -> None:
        """Merges the outputs since the last time: large sums are cheaper than many."""
        if not self.pending:
            return
        for name, so_far in self.sums.items():
            moments = Moments.of(np.concatenate([outputs[name] for outputs in self.pending]))
            self.sums[name] = so_far.merge(moments) if so_far else moments
        for name, parts in self.kept.items():
            parts += [outputs[name] for outputs in self.pending]
        self.pending = []

    def gaussian(self, name: str) -> Gaussian:
        """Mean and covariance of an output."""
        self.sum_up()
        moments = self.sums[name] or Moments.empty(0)
        return Gaussian(moments.mean, moments.covariance)

    def array(self, name: str) -> np.ndarray:
        """An output that was kept, [n, ...]."""
        self.sum_up()
        return np.concatenate(self.kept[name])
