"""Guidance against closed forms: what each guided score is the score of, and what it is not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import guidance
from diffusion.ancestral import ScoreAndVariance
from diffusion.guidance import Product
from diffusion.parametrisation import convert
from sde_lib import SDE, VESDE, VPSDE, ScoreFn
from tests import gaussians
from tests.test_models import quick_jit

Array = jax.Array

FREE, TOLD = 0.3, -0.7  # means of two Gaussians


def scores(sde: SDE) -> tuple[ScoreFn, ScoreFn]:
    """Those of N(FREE, 0.9^2) and N(TOLD, 0.5^2)."""
    return gaussians.linear_score(sde, FREE, 0.9), gaussians.linear_score(sde, TOLD, 0.5)


@functools.partial(quick_jit, static_argnums=0)
def x0_of(sde: SDE, x: Array, t: Array, score: Array) -> Array:
    return convert(sde, x, t, score, "score", "x0")


def estimate(sde: SDE, x: Array, t: Array, score: Array) -> np.ndarray:
    return np.asarray(x0_of(sde, x, t, score), np.float64).reshape(len(x), -1)


# Autoguidance.


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_autoguidance_is_the_score_of_strong_to_the_scale_over_weak_to_the_rest(sde: SDE) -> None:
    """Of Gaussians that is a Gaussian: precisions 1 / v and means m / v are combined."""
    weak, strong = scores(sde)
    x, t = gaussians.places(sde, 5, seed=1, margin=0.05)
    alpha, sigma = (
        np.asarray(v, np.float64).reshape(-1, 1, 1, 1) for v in (sde.alpha(t), sde.sigma(t))
    )
    precisions = [1.0 / (alpha**2 * std**2 + sigma**2) for std in (0.9, 0.5)]
    for scale in (1.0, 2.5):
        shares = 1.0 - scale, scale
        precision = sum(w * p for w, p in zip(shares, precisions, strict=True))
        mean = (
            alpha
            * sum(w * p * m for w, p, m in zip(shares, precisions, (FREE, TOLD), strict=True))
            / precision
        )
        got = quick_jit(guidance.autoguided(strong, weak, scale))(x, t)
        np.testing.assert_allclose(
            sigma * got, sigma * precision * (mean - x), rtol=1e-4, atol=1e-5
        )


def test_a_variance_that_the_stronger_network_tells_is_told_on() -> None:
    """The ancestral sampler steps by it, whatever guides; an earlier guide is added as before."""
    sde = VPSDE()
    weak, strong = scores(sde)
    x, t = gaussians.places(sde, 5, seed=1, margin=0.05)
    told = ScoreAndVariance(lambda x, t: (strong(x, t), 0.5 * x)).guided(lambda x, t: x)
    for guided in (
        guidance.autoguided(told, weak, 2.0),
        guidance.projected(sde, weak, told, 2.0, parallel=1.0),
    ):
        assert isinstance(guided, ScoreAndVariance)
        both, alone = guided.both, guided.__call__
        score, share, same, expected = quick_jit(
            lambda x, t, both=both, alone=alone: (
                *both(x, t), alone(x, t), 2.0 * strong(x, t) - weak(x, t)
            )
        )(x, t)  # fmt: skip
        np.testing.assert_array_equal(share, 0.5 * np.asarray(x))
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(same, score + np.asarray(x), rtol=1e-6)


# Adaptive projected guidance.


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_projected_guidance_is_the_algorithm_of_the_paper(sde: SDE) -> None:
    """Written out again in NumPy; with all of the parallel part and no limit it is that of Ho and
    Salimans."""
    free, told = scores(sde)
    x, t = gaussians.places(sde, 5, seed=1, margin=0.05)
    plain = quick_jit(guidance.classifier_free(free, told, 3.0))(x, t)
    same = quick_jit(guidance.projected(sde, free, told, 3.0, parallel=1.0))(x, t)
    size = np.asarray(sde.sigma(t)).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(size * same, size * plain, rtol=1e-4, atol=1e-5)
    before, after = (estimate(sde, x, t, quick_jit(score)(x, t)) for score in (free, told))
    difference = after - before
    length = np.linalg.norm(difference, axis=1, keepdims=True)
    limit = float(np.median(length))  # of which half of the images are beyond
    for parallel, center in ((0.0, 0.0), (0.25, 0.5)):
        short = difference * np.minimum(1.0, limit / length)
        unit = (after - center) / np.linalg.norm(after - center, axis=1, keepdims=True)
        along = (short * unit).sum(1, keepdims=True) * unit
        expected = after + 2.0 * (short - along + parallel * along)
        guided = guidance.projected(
            sde, free, told, 3.0, parallel=parallel, limit=limit, center=center
        )
        np.testing.assert_allclose(
            estimate(sde, x, t, quick_jit(guided)(x, t)), expected, rtol=2e-3, atol=2e-3
        )


def test_projected_guidance_acts_inside_its_interval_only() -> None:
    sde = VPSDE()
    free, told = scores(sde)
    x, t = gaussians.places(sde, 5, seed=1, margin=0.05)
    guided = guidance.projected(sde, free, told, guidance.within(0.4, 0.6, 3.0, 1.0))(x, t)
    same = np.all(np.asarray(guided == told(x, t)), axis=(1, 2, 3))
    np.testing.assert_array_equal(same, [True, True, False, True, True])
    with pytest.raises(ValueError, match="limit of the guidance's length is 0; it must be"):
        guidance.projected(sde, free, told, 3.0, limit=0.0)


def test_where_both_scores_agree_projected_guidance_does_nothing() -> None:
    """Also where the estimate of x_0 is 0, and has no direction."""
    sde = VPSDE()
    score = gaussians.linear_score(sde, 0.0, 1.0)
    x, t = jnp.zeros((2, *gaussians.SHAPE)), jnp.full(2, 0.5)
    guided = guidance.projected(sde, score, score, 5.0, limit=1.0)
    np.testing.assert_array_equal(guided(x, t), jnp.zeros_like(x))


# Products of experts.


def test_a_product_of_gaussians_has_the_sum_of_scores_and_their_excess() -> None:
    sde = VPSDE()
    x, t = gaussians.places(sde, 5, seed=1, margin=0.05)
    first, second = (np.asarray(quick_jit(score)(x, t), np.float64) for score in scores(sde))
    weights = (0.6, 0.9)
    product = Product(scores(sde), weights)
    (score, excess), same = quick_jit(lambda x, t: (product.with_excess(x, t), product(x, t)))(x, t)
    total = weights[0] * first + weights[1] * second
    squares = [np.square(s).reshape(len(x), -1).sum(1) for s in (total, first, second)]
    np.testing.assert_allclose(score, total, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(same, score)
    expected = squares[0] - weights[0] * squares[1] - weights[1] * squares[2]
    np.testing.assert_allclose(excess, expected, rtol=1e-3, atol=1e-4)


def test_the_excess_of_guidance_is_right_where_there_is_little_noise() -> None:
    """Of 3072 pixels the squares are 3e8 there, and differ by less than their rounding: by
    w (w - 1) |s_y - s|^2."""
    noise = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32) / 3e-3

    def free(x: Array, t: Array) -> Array:
        return jnp.asarray(noise)

    def told(x: Array, t: Array) -> Array:
        return jnp.asarray(noise) + 0.125

    product = Product((free, told), (1.0 - 2.5, 2.5))
    _, excess = quick_jit(product.with_excess)(np.zeros_like(noise), np.ones(1, np.float32))
    difference = np.square(np.float64(noise + np.float32(0.125) - noise)).sum()
    np.testing.assert_allclose(excess, [2.5 * 1.5 * difference], rtol=1e-5)


@pytest.mark.parametrize(
    "kind", ["vp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("ve", "subvp", "edm"))]
)
@pytest.mark.parametrize(
    "weights", [pytest.param((1.0, 1.0), marks=pytest.mark.slow), (-1.5, 2.5), (0.7,)], ids=str
)
def test_the_excess_is_what_the_fokker_planck_equation_lacks(
    weights: tuple[float, ...], kind: str
) -> None:
    """For the product q_t of mixtures, d log q / dtau less what a reverse SDE with its score does
    to q is (g^2 / 2) excess at every x, up to a number that is the same for all of them."""
    sde = gaussians.EVERY_SDE[kind]
    mixtures = [
        gaussians.two_modes((2,)),
        gaussians.Mixture(
            jnp.array([0.5, 0.5]), jnp.array([[0.8, -0.2], [-0.6, 0.9]]), jnp.array([[0.4], [0.6]])
        ),
    ][: len(weights)]
    product = Product(tuple(m.score_fn(sde) for m in mixtures), weights)
    time = 0.4 * sde.T
    scale = float(sde.sigma(jnp.asarray(time)))
    xs = jnp.asarray(scale * np.random.default_rng(3).standard_normal((6, 2)), jnp.float32)

    def log_q(x: Array, t: Array) -> Array:
        logs = [w * m._log_prob(sde, x, t) for m, w in zip(mixtures, weights, strict=True)]
        return jnp.sum(jnp.stack(logs))

    def lack(x: Array) -> Array:
        t = jnp.asarray(time)
        g2 = jnp.square(sde.diffusion(t[None]))[0]

        def velocity(x: Array) -> Array:  # in tau, backwards in t
            return -sde.drift(x[None], t[None])[0] + g2 * jax.grad(log_q)(x, t)

        slope, spread = jax.grad(log_q)(x, t), jnp.trace(jax.hessian(log_q)(x, t))
        moved = -jnp.trace(jax.jacfwd(velocity)(x)) - velocity(x) @ slope
        moved += 0.5 * g2 * (spread + slope @ slope)
        return (-jax.jacfwd(log_q, argnums=1)(x, t) - moved) / g2

    @quick_jit
    def both() -> tuple[Array, Array]:
        return jax.vmap(lack)(xs), product.with_excess(xs, jnp.full(6, time))[1]

    lacks, excess = (scale**2 * np.asarray(v) for v in both())
    assert np.ptp(excess) > 0.05
    np.testing.assert_allclose(lacks - lacks[0], 0.5 * (excess - excess[0]), atol=2e-3)


@pytest.mark.parametrize(
    ("experts", "weights", "message"),
    [
        ((), (), "0 experts have 0 weights"),
        ((jnp.add,), (1.0, 1.0), "1 experts have 2 weights"),
        ((jnp.add, jnp.add), (1.0, -1.0), r"sum to 0; a density needs a positive sum"),
    ],
)
def test_what_is_no_product_is_refused(experts: tuple, weights: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Product(experts, weights)
