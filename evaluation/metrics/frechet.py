r"""Fréchet distance between two sets of features, each summarised as a Gaussian.

    d^2 = |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^{1/2}

(Dowson and Landau 1982; with Inception features it is the FID of Heusel et al., arXiv:1706.08500.)
Features of another network give another number: say which, wherever it is printed.

**Bias.** Means and covariances of n samples are noisy, so that two sets of one distribution are
about c (1/n_a + 1/n_b) apart, and other sets that much further apart than they should be. Distances
compare at equal sample counts only. Between disjoint halves of n real images (n/2 and n/2 samples)
the bias is twice that between n generated and n real images; `split_distance` with `size` gives
both sides of every comparison the same number of samples. `extrapolated_distance` and
`jackknife_distance` estimate the distance that infinitely many generated images would have.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from evaluation.metrics.feature_set import FeatureSet
from evaluation.metrics.metric import Results, metric
from evaluation.metrics.moments import Gaussian, Moments
from evaluation.metrics.statistics import Statistics

SPLITS = 10  # random draws of subsets


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """d^2 between the Gaussians with the moments of `a` and `b`."""
    return gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)


def gaussian_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """d^2 between N(mean_a, cov_a) and N(mean_b, cov_b) in float64.

    S_a S_b has the eigenvalues of the symmetric R^T S_b R, with S_a = R R^T; the trace of its root
    is the sum of their roots, and nothing becomes complex. R comes from a pivoted Cholesky
    factorisation, which reveals the rank: with the side of lower rank as R, no eigenvalue that is
    zero by construction is left to be rounded, when there are fewer samples than features.

    Raises:
      ValueError: shapes that differ.
    """
    if mean_a.shape != mean_b.shape or cov_a.shape != cov_b.shape:
        raise ValueError(f"{mean_a.size} features cannot be compared with {mean_b.size}")
    root_a, root_b = _root(cov_a), _root(cov_b)
    root, other = (root_a, cov_b) if root_a.shape[1] <= root_b.shape[1] else (root_b, cov_a)
    cross = 0.0
    if root.shape[1]:
        eigenvalues = scipy.linalg.eigvalsh(root.T @ other @ root)
        cross = float(np.sqrt(np.maximum(eigenvalues, 0.0)).sum())
    shift = np.asarray(mean_a, np.float64) - mean_b
    return max(0.0, float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross))


def _root(covariance: np.ndarray) -> np.ndarray:
    """R [d, rank] with R R^T = covariance, positive semi-definite [d, d]."""
    factor, pivots, rank, _ = scipy.linalg.lapack.dpstrf(
        np.asarray(covariance, np.float64), lower=1
    )
    root = np.zeros_like(factor)
    root[pivots - 1] = np.tril(factor)
    return root[:, :rank]


class Splits(NamedTuple):
    """Distances between random subsets: mean, deviation over the draws, samples on each side."""

    mean: float
    std: float
    size: int
    values: np.ndarray


def split_distance(
    features: np.ndarray,
    n_splits: int = SPLITS,
    size: int | None = None,
    seed: int = 0,
    other: np.ndarray | None = None,
) -> Splits:
    """d^2 between random subsets of `size` samples each, over `n_splits` draws.

    Without `other` the two subsets are disjoint parts of `features` [n, d] (halves by default): the
    distance of a perfect generator at this sample count. With `other` [m, d] one subset is drawn
    from each (all of the smaller set by default), so that FD(generated, real) at `size` stands
    fairly beside FD(real, real) at the same `size`.

    Raises:
      ValueError: fewer samples than asked for.
    """
    n = len(features)
    available = n // 2 if other is None else min(n, len(other))
    size = available if size is None else size
    if not 2 <= size <= available:
        raise ValueError(f"cannot draw 2 x {size} samples: at most 2 x {available} are there")
    rng = np.random.default_rng(seed)
    values = np.empty(n_splits)
    for i in range(n_splits):
        rows = rng.permutation(n)
        first = features[rows[:size]]
        if other is None:
            second = features[rows[size : 2 * size]]
        else:
            second = other[rng.permutation(len(other))[:size]]
        values[i] = frechet_distance(Moments.of(first), Moments.of(second))
    spread = float(values.std(ddof=1)) if n_splits > 1 else 0.0
    return Splits(float(values.mean()), spread, size, values)


def bootstrap_error(
    features: np.ndarray, reference: Moments | Gaussian, draws: int, seed: int = 0
) -> float:
    """Standard error of d^2(features, reference) over samples: features [n, d] drawn anew.

    The standard deviation over `draws` sets of n rows, drawn with replacement (Efron 1979). Only
    the spread is used: repeated rows make such sets further from the reference than `features`.

    Raises:
      ValueError: fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"a standard deviation needs at least 2 draws, not {draws}")
    rng = np.random.default_rng(seed)
    n = len(features)
    values = [
        frechet_distance(Moments.of(features[rng.integers(0, n, n)]), reference)
        for _ in range(draws)
    ]
    return float(np.std(values, ddof=1))


class Extrapolation(NamedTuple):
    """The distance at infinitely many samples, and the distances that it was drawn from."""

    distance: float
    sizes: np.ndarray
    values: np.ndarray


def extrapolated_distance(
    features: np.ndarray, reference: Moments | Gaussian, points: int = 15, seed: int = 0
) -> Extrapolation:
    """d^2 at infinitely many samples: FID-infinity (Chong and Forsyth, arXiv:1911.07023).

    Distances of random subsets of n samples, n in equal steps from a tenth of features [N, d] to
    all of them, lie on a line in 1/n up to smaller terms; the distance is the line's value at 0.
    (With all 50,000 samples that is from 5000 on in 15 points, as in the paper.)

    Raises:
      ValueError: too few samples for so many points.
    """
    count = len(features)
    sizes = np.linspace(max(2, count // 10), count, points).astype(int)
    if points < 2 or count < 2 * points:
        raise ValueError(f"{count} samples are too few to extrapolate from {points} subsets")
    rng = np.random.default_rng(seed)
    values = np.array(
        [
            frechet_distance(Moments.of(features[rng.permutation(count)[:size]]), reference)
            for size in sizes
        ]
    )
    _, distance = np.polyfit(1.0 / sizes, values, 1)
    return Extrapolation(float(distance), sizes, values)


def jackknife_distance(
    features: np.ndarray, reference: Moments | Gaussian, groups: int = 10
) -> float:
    """d^2 at infinitely many samples, by the jackknife of groups (Quenouille 1956).

    With g groups of the rows of features [n, d] it is g D - (g - 1) mean_i D_i, where D_i leaves
    group i out: a bias c / n is gone, as in `extrapolated_distance`, at a smaller variance, since
    every D_i has nearly all samples. It may be negative.

    Raises:
      ValueError: fewer than two groups, or groups of fewer than two samples.
    """
    if groups < 2 or len(features) < 2 * groups:
        raise ValueError(f"{len(features)} samples are too few for a jackknife of {groups} groups")
    parts = [Moments.of(features[i::groups]) for i in range(groups)]

    def distance(kept: list[Moments]) -> float:
        return frechet_distance(functools.reduce(Moments.merge, kept), reference)

    without = [distance(parts[:i] + parts[i + 1 :]) for i in range(groups)]
    return groups * distance(parts) - (groups - 1) * float(np.mean(without))


# --- metrics of generated images ---


@metric("fid", moments=True, keep=lambda options: options.bootstrap > 0)
def _fid(generated: FeatureSet, real: Statistics, options: Any) -> Results:
    """Fréchet Inception distance (Heusel et al. 2017, arXiv:1706.08500)."""
    results: Results = {"fid": frechet_distance(generated.gaussian("pool"), real.pool)}
    if options.bootstrap:
        results["fid_stderr"] = bootstrap_error(
            generated.array("pool"), real.pool, options.bootstrap, options.seed
        )
        results["fid_stderr_draws"] = options.bootstrap
    return results


@metric("sfid", output="spatial", moments=True)
def _sfid(generated: FeatureSet, real: Statistics, options: Any) -> Results:
    """Fréchet distance of Inception's spatial features (Nash et al. 2021, arXiv:2103.03841)."""
    del options
    assert real.spatial is not None
    return {"sfid": frechet_distance(generated.gaussian("spatial"), real.spatial)}


@metric("fid_infinity", keep=True, least=30)
def _fid_infinity(generated: FeatureSet, real: Statistics, options: Any) -> Results:
    """FID extrapolated to infinitely many samples (Chong and Forsyth 2020, arXiv:1911.07023)."""
    line = extrapolated_distance(generated.array("pool"), real.pool, seed=options.seed)
    return {
        "fid_infinity": line.distance,
        "fid_infinity_sizes": line.sizes.tolist(),
        "fid_infinity_values": line.values.tolist(),
    }
