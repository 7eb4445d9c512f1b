"""Generated images judged by the features of a network: FID and its kin.

A `Judge` is made before anything is drawn, so that whatever is wrong is refused at once; it takes
generated images batch by batch and compares them with the statistics of the data set, which a file
holds or the training images give. Only what the metrics need is kept in memory.
"""

from __future__ import annotations

import time
from typing import Any

import ml_collections
import numpy as np

from configs import extras
from configs.names import lookup
from evaluation import features, reference
from evaluation.feature_networks import NETWORKS
from evaluation.metrics import metric
from evaluation.metrics.feature_set import FeatureSet
from evaluation.metrics.metric import Metric
from evaluation.metrics.moments import Gaussian, Moments
from evaluation.metrics.statistics import Origin, Statistics
from runtime import experiment

Results = dict[str, Any]


def metrics_of(parts: experiment.Parts, options: ml_collections.ConfigDict) -> dict[str, Metric]:
    """The metrics that `eval.metrics` names.

    Raises:
      ValueError: an unknown one, one that needs a network that is not used, or fewer samples than
        one needs.
      ImportError: one whose packages are not installed.
    """
    metrics = {
        name: lookup(metric.table(), name, "metric of eval.metrics") for name in options.metrics
    }
    network = features.network_of(parts, options)
    outputs = NETWORKS[network].outputs if network else ("pool",)
    for name, entry in metrics.items():
        if entry.output not in outputs or entry.network not in ("", network):
            needed = entry.network or "inception"
            raise ValueError(
                f"eval.metrics has {name}, which needs --config.eval.features={needed}"
            )
        extras.require(f"eval.metrics has {name}, which", "metrics", **entry.packages)
        refuse_few(name, entry, options.num_samples, f"eval.num_samples is {options.num_samples}")
    return metrics


def refuse_few(name: str, entry: Metric, count: int, why: str) -> None:
    """Raises a ValueError if a metric needs more than `count` images."""
    if count < entry.least:
        raise ValueError(
            f"eval.metrics has {name}, which needs {entry.least} images or more; {why}"
        )


def compare_features(
    parts: experiment.Parts,
    options: ml_collections.ConfigDict,
    generated: np.ndarray,
    real: np.ndarray,
) -> Results:
    """The metrics of `eval.metrics` beside the Fréchet distance, on the data set's own features.

    `generated [n, d]` are features of generated images or points, `real [m, d]` those of real ones.
    The names begin with where the features are from: "classifier_kid".
    """
    metrics = metrics_of(parts, options)
    metrics.pop("fid", None)
    prefix = "classifier" if parts.levels else "coordinates"
    samples = FeatureSet(["pool"], ["pool"])
    samples.add({"pool": generated})
    moments = Moments.of(real)
    statistics = Statistics(Gaussian(moments.mean, moments.covariance), None, real, Origin())
    return {
        f"{prefix}_{name}": value
        for entry in metrics.values()
        for name, value in entry.compute(samples, statistics, options).items()
    }


class Judge:
    """Generated images against the data set, by a network's features.

    The numbers have their own names by Inception's, and begin with the name of another network:
    "dinov2_fid".

    Raises:
      FileNotFoundError: weights or statistics that are not here.
      ValueError: metrics that cannot be computed, or statistics that do not fit.
    """

    def __init__(self, parts: experiment.Parts, options: ml_collections.ConfigDict) -> None:
        self.options = options
        self.metrics = metrics_of(parts, options)
        name = features.network_of(parts, options)
        self.prefix = "" if name == "inception" else f"{name}_"
        self.extractor = features.NetworkExtractor(name, parts, options)
        with_features = any(entry.real for entry in self.metrics.values())
        self.real = reference.reference(parts, options, self.extractor, with_features)
        for name, entry in self.metrics.items():
            if entry.output == "spatial" and self.real.spatial is None:
                raise ValueError(
                    f"eval.metrics has {name}, but {self.real.path} has no mu_s and sigma_s; "
                    "--mode=stats makes statistics that have them"
                )
            if entry.real and self.real.features is not None:
                count = len(self.real.features)
                refuse_few(name, entry, count, f"of the data set there are {count}")
        self.begin()

    def begin(self) -> None:
        """Forgets the images that were added: those to come are a set of their own."""
        entries = self.metrics.values()
        moments = {entry.output for entry in entries if entry.moments}
        keep = {entry.output for entry in entries if entry.keeps(self.options)}
        self.generated = FeatureSet(moments, keep)
        self.seconds = 0.0

    def add(self, images: np.ndarray) -> None:
        """Takes in the next generated images, as the data set stores them."""
        began = time.monotonic()
        for outputs in self.extractor(images):
            self.generated.add(outputs)
        self.seconds += time.monotonic() - began

    def results(self) -> Results:
        """The numbers, and what they were made from."""
        began = time.monotonic()
        if self.generated.count != self.options.num_samples:
            raise ValueError(
                f"eval.num_samples is {self.options.num_samples}, but "
                f"{self.generated.count} images were judged"
            )
        numbers: Results = {}
        for entry in self.metrics.values():
            made = entry.compute(self.generated, self.real, self.options)
            numbers |= {f"{self.prefix}{name}": value for name, value in made.items()}
        real, network = self.real, self.extractor.origin
        return numbers | {
            "metrics": list(self.metrics),
            "features": self.extractor.label,
            "network": {
                "network": network.network,
                "weights_sha256": network.weights_sha256,
                "resize": network.resize,
            },
            "statistics": real.facts(),
            "real_features": 0 if real.features is None else len(real.features),
            "num_samples": self.generated.count,
            "features_seconds": self.seconds + time.monotonic() - began,
        }
