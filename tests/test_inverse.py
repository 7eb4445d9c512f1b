"""Linear inverse problems: for Gaussian data the posterior is known."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import controllable
from diffusion import few_steps, grids, inverse
from sde_lib import SDE, VESDE, VPSDE, batch_mul
from tests import gaussians
from tests.marks import but_slow

Array = jax.Array
SHAPE = (4, 4, 1)
MEAN, STD = 0.3, 0.7

OPERATORS: dict[str, inverse.Operator] = {
    "identity": inverse.identity,
    "masking": inverse.masking((jnp.arange(4) % 2.0)[:, None, None]),
    "average_pool": inverse.average_pool(2),
    "gaussian_blur": inverse.gaussian_blur(0.8),
    "random": inverse.random_measurements(5, SHAPE),
}


@functools.cache
def matrix(operator: inverse.Operator) -> np.ndarray:
    """A as a matrix, from its values on the unit vectors."""
    columns = jax.jit(operator)(np.eye(16, dtype=np.float32).reshape(16, *SHAPE))
    return np.asarray(columns, np.float64).reshape(16, -1).T


def correlated() -> np.ndarray:
    """The covariance of images whose neighbouring pixels are alike, [16, 16]."""
    places = np.stack(np.meshgrid(range(4), range(4)), -1).reshape(16, 2)
    distances = np.abs(places[:, None] - places).sum(-1)
    return STD**2 * 0.6**distances + 0.01 * np.eye(16)


def posterior(operator: inverse.Operator, y: Array, noise_std: float) -> tuple[Any, Any]:
    """Mean [B, D] and covariance of x_0 ~ N(MEAN, `correlated`) given y = A x_0 + noise."""
    a, prior = matrix(operator), correlated()
    gain = prior @ a.T @ np.linalg.inv(a @ prior @ a.T + noise_std**2 * np.eye(len(a)))
    mean = MEAN + (np.asarray(y).reshape(len(y), -1) - MEAN * a.sum(1)) @ gain.T
    return mean, prior - gain @ a @ prior


def gaussian_score(sde: SDE, mean: Any, covariance: np.ndarray) -> Any:
    """The score of N(mean, covariance) with noise; through the eigenvectors of the covariance."""
    values, vectors = np.linalg.eigh(covariance)

    def score_fn(x: Array, t: Array) -> Array:
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        error = (alpha * mean - x.reshape(-1, 16)) @ vectors
        return (error / (alpha**2 * values + sigma**2) @ vectors.T).reshape(x.shape)

    return score_fn


@pytest.mark.parametrize(
    "name",
    [
        "average_pool",
        *(pytest.param(n, marks=pytest.mark.slow) for n in OPERATORS if n != "average_pool"),
    ],
)
def test_operators_have_their_adjoint(name: str) -> None:
    operator = OPERATORS[name]
    inverse.check_adjoint(operator, SHAPE)
    x = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)
    both = jax.jit(lambda x: (operator(x), inverse.adjoint(operator, SHAPE)(operator(x))))
    y, back = (np.asarray(v).reshape(3, -1) for v in both(x))
    np.testing.assert_allclose(back, y @ matrix(operator), atol=1e-5)


def test_what_operators_measure() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    pooled = np.asarray(jax.jit(inverse.average_pool(2))(x))
    np.testing.assert_allclose(pooled[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]], atol=1e-5)
    point = np.zeros((1, 9, 9, 1), np.float32)
    point[0, 4, 4, 0] = 1.0
    blurred = np.asarray(jax.jit(inverse.gaussian_blur(0.8))(point))[0, ..., 0]
    np.testing.assert_allclose(blurred[5, 4] / blurred[4, 4], np.exp(-0.5 / 0.8**2), rtol=1e-5)
    ones = np.ones((1, 4, 4, 1), np.float32)
    np.testing.assert_allclose(jax.jit(inverse.gaussian_blur(2.0))(ones), 1.0, atol=1e-6)
    rows = matrix(OPERATORS["random"])
    np.testing.assert_allclose(rows @ rows.T, np.eye(5), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("vp", ["random"]),
        pytest.param("ve", list(OPERATORS), marks=pytest.mark.slow),
        pytest.param(
            "subvp",
            ["identity", "masking", "average_pool", "gaussian_blur"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_posterior_guidance_is_exact_for_gaussian_data(kind: str, names: list[str]) -> None:
    """Pointwise: the guided score is that of the posterior N(m, S), noised.

    With one iteration, or at the half scale, it is another; damping stands for noise.
    """
    sde, noise_std, chosen = gaussians.SDES[kind], 0.2, [OPERATORS[name] for name in names]
    score_fn = gaussian_score(sde, MEAN, correlated())
    t: Any = np.array([0.1, 0.3, 0.5, 0.8], np.float32)
    rng = np.random.default_rng(2)
    unit, other = rng.normal(size=(2, 4, *SHAPE)).astype(np.float32)
    x = batch_mul(jnp.hypot(sde.alpha(t), sde.sigma(t)), unit)
    x0 = (MEAN + STD * other).reshape(4, -1)

    @functools.cache
    def measurement(operator: inverse.Operator) -> Any:
        y = (x0 @ matrix(operator).T).astype(np.float32)
        y += noise_std * np.random.default_rng(3).normal(size=y.shape).astype(np.float32)
        return y.reshape(4, *jax.eval_shape(operator, np.zeros((1, *SHAPE), np.float32)).shape[1:])

    noisy = float(sde.sigma(t[2:3])[0] ** 2 / sde.alpha(t[2:3])[0] ** 2)
    cases = [(30, 0.0, 1.0), (1, 0.0, 1.0), (30, 0.0, 0.5), (30, noise_std**2 / noisy, 1.0)]

    @jax.jit
    def errors() -> Array:
        found = []
        for operator in chosen:
            y = measurement(operator)
            exact = gaussian_score(sde, *posteriors[operator])(x, t)
            size = jnp.max(jnp.abs(exact), (1, 2, 3))
            for iterations, damping, scale in cases:
                guided = inverse.posterior_guided(
                    sde, score_fn, operator, y,
                    noise_std=noise_std if not damping else 0.0,
                    iterations=iterations, damping=damping, scale=scale,
                )(x, t)  # fmt: skip
                found.append(jnp.max(jnp.abs(guided - exact), (1, 2, 3)) / size)
        return jnp.stack(found).reshape(-1, 4, 4)

    posteriors = {op: posterior(op, measurement(op), noise_std) for op in chosen}
    solved, hasty, halved, damped = np.asarray(errors()).swapaxes(0, 1)
    assert solved.max() < 1e-3, solved
    assert hasty.max() > 0.02
    assert halved.max(1).min() > 0.02
    assert damped[:, 2].max() < 1e-3, "damping is noise, of this variance at this time"


def draws(sde: SDE, sampler: Any, y: float, count: int = 2048) -> Array:
    """Samples of two pixels N(MEAN, STD^2 I) whose mean is measured as y."""
    key = jax.random.key(3)
    score_fn = gaussians.linear_score(sde, MEAN, STD)

    def noise(i: Any) -> Array:
        return jax.random.normal(jax.random.fold_in(key, i), (count, 1, 2, 1))

    return sampler(sde, score_fn, noise, jnp.full((count, 1, 1, 1), y))


def pair_mean(x: Array) -> Array:
    return jnp.mean(x, (1, 2), keepdims=True)


@pytest.mark.slow
def test_the_samples_have_the_posterior_of_a_measurement() -> None:
    """2,048 samples: standard error of the means 1.5 %, of variances 3 %.

    Without noise, `MeasurementConstraint` is exact for isotropic data, whose mean and difference
    are independent.
    """
    y, noise_std = 1.0, 0.3

    def noisy(sde: SDE, score_fn: Any, noise: Any, y: Array) -> Array:
        guided = inverse.posterior_guided(sde, score_fn, pair_mean, y, noise_std=noise_std)
        times = grids.time_grid(sde, "log_snr", 100)
        return few_steps.ddim(sde, guided, noise, times, eta=1.0).x

    def exactly(sde: SDE, score_fn: Any, noise: Any, y: Array) -> Array:
        known = inverse.constraint_of(pair_mean, y, (1, 2, 1))
        return controllable.repaint(
            sde, score_fn, noise, grids.time_grid(sde, "log_snr", 100), known
        ).x

    for sampler, std in ((noisy, noise_std), (exactly, 0.0)):
        x = np.asarray(jax.jit(lambda sampler=sampler: draws(VPSDE(), sampler, y))())
        x = x.reshape(-1, 2)
        gain = (STD**2 / 2) / (STD**2 / 2 + std**2)
        mean, difference = x.mean(1), x[:, 0] - x[:, 1]
        assert abs(mean.mean() - (MEAN + gain * (y - MEAN))) < 0.02
        np.testing.assert_allclose(mean.var(), STD**2 / 2 * (1 - gain), rtol=0.15, atol=1e-9)
        np.testing.assert_allclose(difference.var(), 2 * STD**2, rtol=0.15)
        assert abs(difference.mean()) < 0.08
        if not std:
            assert np.abs(mean - y).max() < 1e-5


@pytest.mark.parametrize("kind", but_slow(gaussians.SDES, ["subvp"]))
def test_dps_steps_are_those_of_its_paper(kind: str) -> None:
    """One step, written out for a linear score."""
    sde = gaussians.SDES[kind]
    times = np.array([0.6, 0.5])
    z = jax.random.normal(jax.random.key(4), (2, 3, 2, 1, 1))
    y = jnp.array([1.0, -0.5, 0.2]).reshape(3, 1, 1, 1)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    scale = 0.7

    @jax.jit
    def one_step() -> tuple[Array, Array]:
        x = inverse.dps(sde, score_fn, lambda i: z[i], times, pair_mean, y, scale=scale).x
        plain = few_steps.ddim(sde, score_fn, lambda i: z[i], times, eta=1.0).x
        return x, plain

    moved, plain = one_step()
    t, s = (jnp.full(3, v) for v in times)
    alpha, sigma = sde.alpha(t)[0], sde.sigma(t)[0]
    slope = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    x0 = MEAN + slope * (sde.prior_std * z[0] - alpha * MEAN)
    residual = y - pair_mean(x0)
    gradient = -2.0 * residual * slope / 2.0 * jnp.ones((3, 2, 1, 1)) / jnp.abs(residual)
    ratio = jnp.hypot(alpha, sigma) * jnp.hypot(sde.alpha(s), sde.sigma(s))[0]
    end = sde.alpha(s)[0] * STD**2 / (sde.alpha(s)[0] ** 2 * STD**2 + sde.sigma(s)[0] ** 2)
    np.testing.assert_allclose(moved - plain, -end * scale * ratio * gradient, rtol=1e-3, atol=1e-5)


def test_dps_that_takes_no_steps_down_is_ancestral_sampling() -> None:
    """And counts an evaluation for each step and one for the end."""
    sde, times = VPSDE(), np.array([0.8, 0.5, 0.3])
    z = jax.random.normal(jax.random.key(4), (3, 3, 2, 1, 1))
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    y = jnp.ones((3, 1, 1, 1))
    found = inverse.dps(sde, score_fn, lambda i: z[i], times, pair_mean, y, scale=1e-9)
    plain = few_steps.ddim(sde, score_fn, lambda i: z[i], times, eta=1.0)
    np.testing.assert_allclose(found.x, plain.x, rtol=1e-4, atol=1e-5)
    assert found.nfe == plain.nfe == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_dps_meets_the_measurement(kind: str) -> None:
    sde = {"vp": VPSDE(), "ve": VESDE(sigma_max=10.0)}[kind]

    def run(sde: SDE, score_fn: Any, noise: Any, y: Array) -> Array:
        times = grids.time_grid(sde, "log_snr", 60)
        return inverse.dps(sde, score_fn, noise, times, pair_mean, y, scale=0.3).x

    x = jax.jit(lambda: draws(sde, run, 1.0, 256))()
    assert abs(float(x.mean()) - 1.0) < 0.1, "towards y, further than the posterior would"


def test_conjugate_gradients_stop_where_the_operator_is_not_positive() -> None:
    """Two images: one solved, one whose first direction has a negative curvature; zero stays."""
    diagonal = jnp.array([[1.0, 4.0], [-1.0, -1.0], [1.0, 1.0]])
    y = jnp.array([[1.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    solved = inverse.conjugate_gradients(lambda v: diagonal * v, y)
    np.testing.assert_allclose(solved, [[1.0, 0.5], [0.0, 0.0], [0.0, 0.0]], rtol=1e-5)
    floored = inverse.conjugate_gradients(lambda v: diagonal * v, y, smallest=1.5)
    first = jnp.array([5.0, 10.0]) / 17.0  # |y|^2 / (y D y) y, and the next curvature is 1.2
    np.testing.assert_allclose(floored[0], first, rtol=1e-5)


def test_a_blur_leaves_constant_images_as_they_are_whatever_their_sides() -> None:
    blurred = inverse.gaussian_blur(1.3)(jnp.full((2, 4, 6, 1), 0.7))
    np.testing.assert_allclose(blurred, 0.7, rtol=1e-5)


def test_conjugate_gradients_end_at_their_tolerance_and_not_long_before() -> None:
    """In float64, for two conditions; residuals fall by small steps."""
    with jax.enable_x64(True):
        diagonal, y = jnp.stack([jnp.linspace(1, top, 40) for top in (30, 300)]), jnp.ones((2, 40))
        solved = inverse.conjugate_gradients(lambda v: diagonal * v, y, iterations=400)
        residual = jnp.linalg.norm(diagonal * solved - y, axis=1) / jnp.linalg.norm(y, axis=1)
        assert (residual <= inverse.TOLERANCE).all()
        assert (residual > 0.01 * inverse.TOLERANCE).any()


def test_the_pseudo_inverse_is_each_images_own() -> None:
    operator = OPERATORS["random"]
    y = jnp.stack([jnp.arange(5.0), jnp.zeros(5), 1e4 * jnp.ones(5)])
    pseudo_inverse = jax.jit(lambda y: inverse.pseudo_inverse(operator, SHAPE, y))
    x = pseudo_inverse(y)
    np.testing.assert_allclose(x.reshape(3, -1), y @ matrix(operator), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pseudo_inverse(y[::-1])[::-1], x, rtol=1e-5, atol=1e-6)
    known = inverse.MeasurementConstraint(operator, x)
    imposed = jax.jit(known.impose)(jnp.ones((3, *SHAPE)), x)
    np.testing.assert_allclose(operator(imposed)[:2], y[:2], atol=1e-4)


def test_operators_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="no adjoint: it is not linear"):
        inverse.check_adjoint(lambda x: x**2, SHAPE)
    with pytest.raises(ValueError, match=r"adjoint does not match.* differ by"):
        inverse.check_adjoint(lambda x: x + 1.0, SHAPE)
    with pytest.raises(ValueError, match="adjoint does not match"):
        inverse.check_adjoint(inverse.average_pool(2), SHAPE, lambda y: y.repeat(2, 1).repeat(2, 2))
    with pytest.raises(ValueError, match=r"adjoint gives \(2, 2, 1\), not images of \(4, 4, 1\)"):
        inverse.check_adjoint(inverse.average_pool(2), SHAPE, inverse.identity)
    with pytest.raises(ValueError, match="factor 3 does not divide images of 4x4"):
        inverse.average_pool(3)(jnp.zeros((1, *SHAPE)))
    with pytest.raises(ValueError, match="factor 2 does not divide images of 5 pixels"):
        inverse.average_pool(2)(jnp.zeros((7, 5)))
    with pytest.raises(ValueError, match="standard deviation must be positive, not 0"):
        inverse.gaussian_blur(0.0)
    with pytest.raises(ValueError, match="16 entries; 17 measurements"):
        inverse.random_measurements(17, SHAPE)
    zero = jnp.zeros((1, *SHAPE))
    for noise_std, iterations in ((-0.1, 3), (0.0, 0)):
        with pytest.raises(ValueError, match=f"noise_std={noise_std:g} .* iterations={iterations}"):
            inverse.posterior_guided(
                VPSDE(), lambda x, t: x, inverse.identity, zero,
                noise_std=noise_std, iterations=iterations,
            )  # fmt: skip
    with pytest.raises(ValueError, match="scale of DPS must be positive"):
        inverse.dps(
            VPSDE(), lambda x, t: x, lambda i: zero, np.ones(2), inverse.identity, zero, scale=0.0
        )
