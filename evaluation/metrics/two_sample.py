"""Classifier two-sample test: how well a network tells two sets of vectors apart."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from configs import extras
from evaluation.metrics.feature_set import FeatureSet
from evaluation.metrics.metric import metric
from evaluation.metrics.statistics import Statistics

Results = dict[str, Any]
FOLDS = 5
EPOCHS = 1000  # at most
PACKAGES = {"sklearn": "scikit-learn", "threadpoolctl": "threadpoolctl"}
LARGEST = 2000  # vectors of each set that are told apart by the metric of `eval.metrics`


def c2st(a: np.ndarray, b: np.ndarray, seed: int = 0, folds: int = FOLDS) -> float:
    """The accuracy, over folds held out, of a classifier trained to tell a [n, d] from b [m, d].

    0.5: nothing tells them apart; 1: everything does (Lopez-Paz and Oquab 2017, arXiv:1610.06545).
    As in sbibm (Lueckmann et al. 2021, arXiv:2101.04653), vectors are standardised by mean and
    deviation of the first set, and the classifier has two hidden layers of 10 d units, trained by
    Adam for at most 1000 epochs. Of the larger set the first min(n, m) count.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: no matrices of one width, or fewer vectors than folds.
    """
    extras.require("C2ST", "metrics", **PACKAGES)
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < folds:
        raise ValueError(
            f"sets of vectors must be [n, d] and [m, d] with n, m >= {folds}, not {a.shape} and "
            f"{b.shape}"
        )
    count, width = min(len(a), len(b)), 10 * a.shape[1]
    a, b = a[:count].astype(np.float64), b[:count].astype(np.float64)
    mean, std = a.mean(0), a.std(0)
    both = (np.concatenate([a, b]) - mean) / np.where(std > 0, std, 1.0)
    labels = np.repeat([0, 1], count)
    classifier = MLPClassifier(
        activation="relu",
        hidden_layer_sizes=(width, width),
        max_iter=EPOCHS,
        solver="adam",
        random_state=seed,
    )
    shuffle = KFold(n_splits=folds, shuffle=True, random_state=seed)
    # Products so small take six times as long where threads share them.
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimisers that could go on
        accuracies = cross_val_score(classifier, both, labels, cv=shuffle, scoring="accuracy")
    return float(np.mean(accuracies))


@metric("c2st", keep=True, real=True, least=100, packages=PACKAGES)
def _c2st(generated: FeatureSet, real: Statistics, options: Any) -> Results:
    """Accuracy of a classifier that tells samples from data (Lopez-Paz and Oquab 2017)."""
    assert real.features is not None
    vectors = generated.array("pool")
    count = min(len(vectors), len(real.features), LARGEST)
    rows = np.random.default_rng(options.seed).permutation(len(real.features))[:count]
    return {"c2st": c2st(real.features[rows], vectors[:count], options.seed), "c2st_each": count}
