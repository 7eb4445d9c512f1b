"""The table of metrics of generated images, and the decorator that enters a function in it.

A file of this folder declares one beside its mathematics:

    @metric("kid", keep=True, real=True, least=1000)
    def _kid(generated: FeatureSet, real: Statistics, options: Any) -> Results:
        return {"kid": ...}

and config.eval.metrics may name it. The numbers it returns are shown where `report.quantities` has
an entry for them; the others stand in results.json beside them, to say how they were made.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from evaluation.metrics.feature_set import FeatureSet
from evaluation.metrics.statistics import Statistics

Results = dict[str, Any]
Function = Callable[[FeatureSet, Statistics, Any], Results]

_METRICS: dict[str, Metric] = {}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A function of generated images' features, the data set's statistics and config.eval.

    Attributes:
      compute: the function; it returns numbers by name.
      output: the network's output that it compares: "pool", "logits" or "spatial"; only Inception
        has the last two.
      moments: True if it needs the mean and covariance of that output.
      keep: True if it needs that output of every image, or a function of config.eval that says so.
      real: True if it needs the features of every real image; else their statistics are enough.
      network: the only value of eval.features that it is defined for; "": any.
      least: the smallest number of images that it can be computed of.
      packages: those of the extra `metrics` that it needs, by the names of their modules.
    """

    compute: Function
    output: str = "pool"
    moments: bool = False
    keep: bool | Callable[[Any], bool] = False
    real: bool = False
    network: str = ""
    least: int = 2
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def keeps(self, options: Any) -> bool:
        """True if it needs its output of every image under these options, config.eval."""
        return self.keep(options) if callable(self.keep) else self.keep


def metric(name: str, **needs: Any) -> Callable[[Function], Function]:
    """A decorator that enters a function in the table of metrics; `needs` are fields of `Metric`.

    Raises:
      ValueError: another metric has this name.
    """

    def enter(function: Function) -> Function:
        if name in _METRICS:
            raise ValueError(f"there are two metrics {name!r}")
        _METRICS[name] = Metric(function, **needs)
        return function

    return enter


@functools.cache
def table() -> dict[str, Metric]:
    """All metrics by name: those that any file of this folder declares."""
    for file in sorted(pathlib.Path(__file__).parent.glob("[!_]*.py")):
        importlib.import_module(f"{__package__}.{file.stem}")
    return _METRICS
