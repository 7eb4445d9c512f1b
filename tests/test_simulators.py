"""Tasks of simulation-based inference: their simulators, and posteriors that belong to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import data
from data.simulators import SLCP, GaussianLinear, Simulator, TwoMoonsSBI
from evaluation.metrics import metric, two_sample
from evaluation.metrics.feature_set import FeatureSet
from evaluation.report import quantities

TASKS: tuple[type[Simulator], ...] = (TwoMoonsSBI, GaussianLinear, SLCP)


def pairs(task: type[Simulator], split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """theta [n, DIM_THETA] and x of a split, in double precision."""
    examples = data.load(task.name, split, shape=task.IMAGE_SHAPE).images.astype(np.float64)
    return examples[:, : task.DIM_THETA], examples[:, task.DIM_THETA :]


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_the_same_for_ever(task: type[Simulator]) -> None:
    train, test = (data.load(task.name, s, shape=task.IMAGE_SHAPE) for s in ("train", "test"))
    assert (len(train), len(test)) == (100_000, 10_000)
    assert train.image_shape == task.IMAGE_SHAPE
    assert np.all(np.isfinite(train.images))
    assert np.all(train.images * 2.0**16 == np.rint(train.images * 2.0**16))
    assert (
        test.fingerprint.rpartition("/")[2]
        == {
            "two_moons_sbi": "b79c5634",
            "gaussian_linear": "0c76db26",
            "slcp": "637fc175",
        }[task.name]
    )
    with pytest.raises(ValueError, match=rf"{task.name} has examples of data.shape=.*, not \(7,\)"):
        data.load(task.name, "test", shape=(7,))


def test_theta_is_from_the_prior() -> None:
    for task, low in ((TwoMoonsSBI, 1.0), (SLCP, 3.0)):
        theta, _ = pairs(task)
        assert np.abs(theta).max() <= low
        np.testing.assert_allclose(theta.mean(0), 0.0, atol=0.04 * low)
        np.testing.assert_allclose(theta.var(0), low**2 / 3.0, rtol=0.04)
    theta, x = pairs(GaussianLinear)
    np.testing.assert_allclose(np.cov(theta.T), 0.1 * np.eye(10), atol=0.006)
    np.testing.assert_allclose(np.cov((x - theta).T), 0.1 * np.eye(10), atol=0.006)
    np.testing.assert_allclose(theta.T @ (x - theta) / len(x), 0.0, atol=0.005)


def test_two_moons_are_half_circles_of_radius_a_tenth() -> None:
    theta, x = pairs(TwoMoonsSBI)
    turned = np.stack([-np.abs(theta.sum(1)), theta[:, 1] - theta[:, 0]], 1) / np.sqrt(2.0)
    crescent = x - turned - [0.25, 0.0]
    radius = np.linalg.norm(crescent, axis=1)
    assert radius.mean() == pytest.approx(0.1, abs=1e-3)
    assert radius.std() == pytest.approx(0.01, abs=1e-3)
    assert crescent[:, 0].min() > -0.001
    angle = np.arctan2(crescent[:, 1], crescent[:, 0])
    assert angle.var() == pytest.approx(np.pi**2 / 12.0, rel=0.03)


def test_slcp_draws_four_points_of_one_gaussian() -> None:
    theta, x = pairs(SLCP)
    points = x.reshape(-1, 4, 2)
    s1, s2, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
    a = (points[..., 0] - theta[:, :1]) / s1[:, None]
    b = (points[..., 1] - theta[:, 1:2]) / s2[:, None]
    wide = (s1 > 0.1) & (s2 > 0.1)  # where rounding is small beside them
    a, b, rho = a[wide], b[wide], rho[wide]
    assert (a.mean(), b.mean()) == pytest.approx((0.0, 0.0), abs=0.02)
    assert (a.var(), b.var()) == pytest.approx((1.0, 1.0), rel=0.03)
    assert np.mean(a * b - rho[:, None]) == pytest.approx(0.0, abs=0.02)
    from scipy.stats import multivariate_normal

    t = theta[5]
    cov = np.array([[s1[5] ** 2, 0], [0, s2[5] ** 2]])
    cov[0, 1] = cov[1, 0] = np.tanh(t[4]) * s1[5] * s2[5]
    expected = multivariate_normal(t[:2], cov).logpdf(points[5]).sum()
    assert SLCP.log_likelihood(t[None], x[5])[0] == pytest.approx(expected, rel=1e-6)
    assert SLCP.log_likelihood(np.full((1, 5), 3.1), x[5])[0] == -np.inf


@pytest.mark.parametrize("task", [TwoMoonsSBI, GaussianLinear])
def test_the_true_parameters_are_one_more_draw_of_the_posterior(task: type[Simulator]) -> None:
    """Simulation-based calibration: ranks among posterior draws are uniform (Talts et al. 2018)."""
    theta, x = pairs(task)
    rng = np.random.default_rng(0)
    ranks = np.array(
        [
            (task.posterior(x[i], 99, rng) < theta[i]).sum(0)
            for i in range(600)
        ]
    )  # fmt: skip
    uniform = (99.0 / 2.0, np.sqrt((100.0**2 - 1.0) / 12.0))
    np.testing.assert_allclose(ranks.mean(0), uniform[0], atol=4.0 * uniform[1] / np.sqrt(600))
    np.testing.assert_allclose(ranks.std(0), uniform[1], rtol=0.12)


def test_two_moons_given_x_are_mirrored_crescents() -> None:
    draws = TwoMoonsSBI.posterior(np.zeros(2), 4000, np.random.default_rng(1))
    upper = draws.sum(1) > 0
    assert upper.mean() == pytest.approx(0.5, abs=0.04)
    np.testing.assert_allclose(draws[upper].mean(0), -draws[~upper].mean(0)[::-1], atol=0.02)


def test_two_moons_given_x_at_the_priors_edge_stay_inside_of_it() -> None:
    draws = TwoMoonsSBI.posterior(np.array([-1.04, 0.0]), 500, np.random.default_rng(1))
    assert np.abs(draws).max() <= 1.0
    assert np.abs(draws).max() > 0.99


class FewWalkers(SLCP):
    """Fewer candidates than there are walkers worth beginning with, and fewer moves."""

    CANDIDATES = 3_000
    MOVES = 150


def test_few_walkers_of_slcp_find_the_posterior_by_their_moves() -> None:
    """From a few likely candidates, of which most walkers are copies at first, to draws that are
    all apart, with the moments of importance sampling to a tenth of the deviations."""
    theta, x = pairs(SLCP)
    number = int(np.argmax(np.abs(theta[:, 2:4]).min(1)))
    rng = np.random.default_rng(3)
    prior = rng.uniform(-3.0, 3.0, (400_000, 5))
    log_p = SLCP.log_likelihood(prior, x[number])
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    draws = FewWalkers.posterior(x[number], 2001, rng)
    assert draws.shape == (2001, 5)
    assert len(np.unique(draws, axis=0)) > 1990
    mean, square = weights @ prior, weights @ prior**2
    std = np.sqrt(square - mean**2)
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.12 * std.max())
    np.testing.assert_allclose(draws.std(0), std, rtol=0.12)
    narrow = int(np.argmin(np.abs(theta[:, 2:4]).min(1)))  # where moves change signs easily
    assert np.abs(FewWalkers.posterior(x[narrow], 500, rng)).max() <= 3.0


@pytest.mark.slow
def test_walkers_of_slcp_have_the_moments_of_importance_sampling() -> None:
    theta, x = pairs(SLCP)
    number = int(np.argmax(np.abs(theta[:, 2:4]).min(1)))  # wide, so that prior draws are enough
    rng = np.random.default_rng(2)
    prior = rng.uniform(-3.0, 3.0, (2_000_000, 5))
    log_p = SLCP.log_likelihood(prior, x[number])
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    assert 1.0 / np.square(weights).sum() > 5000
    draws = SLCP.posterior(x[number], 4000, rng)
    mean, square = weights @ prior, weights @ prior**2
    std = np.sqrt(square - mean**2)
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.12 * std.max())
    np.testing.assert_allclose(draws.std(0), std, rtol=0.1)


def test_vectors_that_are_told_apart_are_in_units_of_the_first_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its mean and deviation, of a column that never changes its mean alone."""
    rng = np.random.default_rng(0)
    seen: list[Any] = []
    a, b = (np.append(rng.normal(5.0, 3.0, (9, 2)), np.full((9, 1), c), 1) for c in (4.0, 7.0))

    def accuracies(classifier: Any, both: Any, labels: Any, **options: Any) -> Any:
        seen.extend((both, labels))
        return np.array([0.25, 0.75])

    monkeypatch.setattr("sklearn.model_selection.cross_val_score", accuracies)
    assert two_sample.c2st(a, b[:8], folds=2) == 0.5
    mean, std = a[:8].mean(0), a[:8].std(0) + np.array([0, 0, 1.0])
    np.testing.assert_allclose(seen[0] * std + mean, np.concatenate([a[:8], b[:8]]), rtol=1e-12)
    np.testing.assert_array_equal(seen[1], [0] * 8 + [1] * 8)


def test_a_classifier_cannot_tell_equal_sets_and_can_tell_others() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 200, 2))
    assert two_sample.c2st(a, b) == pytest.approx(0.5, abs=0.08)
    assert two_sample.c2st(a, b + 10.0) > 0.99
    with pytest.raises(ValueError, match=r"n, m >= 5, not \(200, 2\) and \(200, 3\)"):
        two_sample.c2st(a, rng.normal(size=(200, 3)))


@pytest.mark.slow
def test_a_classifier_is_right_as_often_as_the_best_one_can_be() -> None:
    """Of N(0, 1) and N(1, 1) the best classifier is right with probability Phi(1 / 2)."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(4000, 1)), 1.0 + rng.normal(size=(4000, 1))
    assert two_sample.c2st(a, b) == pytest.approx(0.6915, abs=0.015)


def test_the_metric_compares_as_many_samples_as_data() -> None:
    rng = np.random.default_rng(2)
    generated = FeatureSet(["pool"], ["pool"])
    generated.add({"pool": rng.normal(size=(150, 2)).astype(np.float32)})
    real: Any = type("Real", (), {"features": 5.0 + rng.normal(size=(300, 2))})
    options: Any = type("Options", (), {"seed": 0})
    numbers = metric.table()["c2st"].compute(generated, real, options)
    assert numbers["c2st_each"] == 150
    assert numbers["c2st"] > 0.98
    shown = quantities.numbers({f"coordinates_{name}": v for name, v in numbers.items()})
    assert shown["coordinates_c2st"].note == "150 generated, 150 real; 0.5 is best"
