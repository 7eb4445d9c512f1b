"""How good generated images are, by the features of a network: FID and its kin.

A `Judge` is made before anything is drawn, so that whatever is wrong is refused at once; it takes
generated images batch by batch and compares them with the statistics of the data set, which a file
holds or the training images give. Only what the asked metrics need is kept in memory.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

import data
from evaluation import features, reference
from evaluation.metrics import frechet, inception_score, kernel, manifold
from evaluation.metrics.frechet import Gaussian, Moments
from evaluation.metrics.statistics import Origin, Statistics

Results = dict[str, Any]


def _fid(found: features.Collected, real: Statistics, options: Any) -> Results:
    results: Results = {"fid": frechet.frechet_distance(found.gaussian("pool"), real.pool)}
    if options.bootstrap:
        results["fid_stderr"] = frechet.bootstrap_error(
            found.array("pool"), real.pool, options.bootstrap, options.seed
        )
        results["fid_stderr_draws"] = options.bootstrap
    return results


def _fid_infinity(found: features.Collected, real: Statistics, options: Any) -> Results:
    line = frechet.extrapolated_distance(found.array("pool"), real.pool, seed=options.seed)
    return {
        "fid_infinity": line.distance,
        "fid_infinity_sizes": line.sizes.tolist(),
        "fid_infinity_values": line.values.tolist(),
    }


def _sfid(found: features.Collected, real: Statistics, options: Any) -> Results:
    del options
    assert real.spatial is not None
    return {"sfid": frechet.frechet_distance(found.gaussian("spatial"), real.spatial)}


def _inception_score(found: features.Collected, real: Statistics, options: Any) -> Results:
    del real, options
    score = inception_score.inception_score(found.array("logits"))
    return {
        "inception_score": score.mean,
        "inception_score_std": score.std,
        "inception_score_splits": score.splits,
    }


def _kid(found: features.Collected, real: Statistics, options: Any) -> Results:
    assert real.features is not None
    distance = kernel.kernel_distance(found.array("pool"), real.features, seed=options.seed)
    return {
        "kid": distance.mean,
        "kid_std": distance.std,
        "kid_subsets": distance.subsets,
        "kid_subset_size": distance.size,
    }


def _precision_recall(found: features.Collected, real: Statistics, options: Any) -> Results:
    del options
    assert real.features is not None
    return manifold.precision_recall(real.features, found.array("pool"))._asdict()


def _density_coverage(found: features.Collected, real: Statistics, options: Any) -> Results:
    del options
    assert real.features is not None
    return manifold.density_coverage(real.features, found.array("pool"))._asdict()


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric by its function.

    Attributes:
      compute: numbers by name, from the generated images, the data set's statistics, config.eval.
      output: of the network, that it compares: "pool", "logits" (Inception) or "spatial" (too).
      keep: whether it needs the outputs themselves; else their moments.
      real: whether it needs the features of the real images themselves.
      least: the smallest number of images that it can be computed of.
    """

    compute: Callable[[features.Collected, Statistics, Any], Results]
    output: str = "pool"
    keep: bool = False
    real: bool = False
    least: int = 2


METRICS: dict[str, Metric] = {
    "fid": Metric(_fid),
    "inception_score": Metric(_inception_score, "logits", keep=True, least=10),
    "kid": Metric(_kid, keep=True, real=True, least=1000),
    "precision_recall": Metric(_precision_recall, keep=True, real=True, least=4),
    "density_coverage": Metric(_density_coverage, keep=True, real=True, least=6),
    "sfid": Metric(_sfid, "spatial"),
    "fid_infinity": Metric(_fid_infinity, keep=True, least=30),
}


def asked(config: ml_collections.ConfigDict) -> dict[str, Metric]:
    """`eval.metrics`, looked up.

    Raises:
      ValueError: an unknown one, one that needs Inception where that is not used, or fewer samples
        than one needs.
    """
    options = config.eval
    for name in options.metrics:
        if name not in METRICS:
            raise ValueError(
                f"unknown metric {name!r} in eval.metrics; known: {', '.join(METRICS)}"
            )
        if METRICS[name].output != "pool" and not features.uses_inception(config):
            raise ValueError(
                f"eval.metrics has {name}, which needs --config.eval.features=inception"
            )
        _refuse_few(name, options.num_samples, f"eval.num_samples is {options.num_samples}")
    return {name: METRICS[name] for name in options.metrics}


def _refuse_few(name: str, count: int, found: str) -> None:
    if count < METRICS[name].least:
        raise ValueError(
            f"eval.metrics has {name}, which needs {METRICS[name].least} images or more; {found}"
        )


def own_features(
    config: ml_collections.ConfigDict, found: np.ndarray, expected: np.ndarray
) -> Results:
    """The metrics of `eval.metrics` beside the Fréchet distance, on the data set's own features.

    `found [n, d]` are of generated images or points, `expected [m, d]` of real ones. The names
    begin with where the features are from: "classifier_kid".
    """
    metrics = asked(config)
    metrics.pop("fid", None)
    kind = "classifier" if data.grey_levels(config.data.dataset) else "coordinates"
    generated = features.Collected(["pool"], ["pool"])
    generated.add({"pool": found})
    moments = Moments.of(expected)
    real = Statistics(Gaussian(moments.mean, moments.covariance), None, expected, Origin())
    return {
        f"{kind}_{name}": value
        for metric in metrics.values()
        for name, value in metric.compute(generated, real, config.eval).items()
    }


# --- the judge ---


class Judge:
    """Generated images against the data set, by Inception's features.

    Raises:
      FileNotFoundError: weights or statistics that are not here.
      ValueError: metrics that cannot be computed, or statistics that do not fit.
    """

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self.options = config.eval
        self.metrics = asked(config)
        self.extractor = features.InceptionExtractor(config)
        with_features = any(metric.real for metric in self.metrics.values())
        self.real = reference.reference(config, self.extractor, with_features)
        if "sfid" in self.metrics and self.real.spatial is None:
            raise ValueError(
                f"eval.metrics has sfid, but {self.real.path} has no mu_s and sigma_s; "
                "--mode=stats makes statistics that have them"
            )
        for name, metric in self.metrics.items():
            if metric.real and self.real.features is not None:
                count = len(self.real.features)
                _refuse_few(name, count, f"of the data set there are {count}")
        self.begin()

    def begin(self) -> None:
        """Forgets the images that were added: those to come are a set of their own."""
        used = self.metrics.values()
        keep = {metric.output for metric in used if metric.keep}
        if "fid" in self.metrics and self.options.bootstrap:
            keep.add("pool")
        moments = {metric.output for metric in used if not metric.keep}
        self.generated = features.Collected(moments, keep)
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
        for metric in self.metrics.values():
            numbers |= metric.compute(self.generated, self.real, self.options)
        real = self.real
        return numbers | {
            "metrics": list(self.metrics),
            "features": self.extractor.label,
            "inception": {
                "network": self.extractor.origin.network,
                "weights_sha256": self.extractor.origin.weights_sha256,
                "resize": self.extractor.origin.resize,
            },
            "statistics": {
                "path": real.path,
                "sha256": real.sha256,
                "form": real.form,
                **dataclasses.asdict(real.origin),
            },
            "real_features": 0 if real.features is None else len(real.features),
            "num_samples": self.generated.count,
            "features_seconds": self.seconds + time.monotonic() - began,
        }
