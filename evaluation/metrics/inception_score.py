r"""Inception Score: are the classes of single images certain, and are all of them there?

    exp( mean_x KL( p(y|x) || p(y) ) ),   p(y) = mean_x p(y|x)

(Salimans et al., arXiv:1606.03498), with p(y|x) the softmax of Inception's logits without bias.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.special

from evaluation.metrics.feature_set import FeatureSet
from evaluation.metrics.metric import Results, metric
from evaluation.metrics.statistics import Statistics


class Score(NamedTuple):
    """Mean over the splits, their standard deviation, and how many there are."""

    mean: float
    std: float
    splits: int


def inception_score(logits: np.ndarray, splits: int = 10) -> Score:
    """The score of logits [n, classes], in consecutive splits in the order of the samples.

    Raises:
      ValueError: another shape, fewer samples than splits, or values that are not finite.
    """
    if logits.ndim != 2 or len(logits) < splits:
        raise ValueError(f"logits {logits.shape} cannot be split into {splits}")
    if not np.isfinite(logits).all():
        raise ValueError("logits are not finite")
    bounds = np.arange(splits + 1) * len(logits) // splits
    scores = [_score(logits[bounds[i] : bounds[i + 1]].astype(np.float64)) for i in range(splits)]
    return Score(float(np.mean(scores)), float(np.std(scores)), splits)


def _score(logits: np.ndarray) -> float:
    log_p = scipy.special.log_softmax(logits, axis=1)
    log_mean = scipy.special.logsumexp(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(axis=1).mean()))


@metric("inception_score", output="logits", keep=True, least=10)
def _inception_score(generated: FeatureSet, real: Statistics, options: Any) -> Results:
    """Inception Score (Salimans et al. 2016, arXiv:1606.03498)."""
    del real, options
    score = inception_score(generated.array("logits"))
    return {
        "inception_score": score.mean,
        "inception_score_std": score.std,
        "inception_score_splits": score.splits,
    }
