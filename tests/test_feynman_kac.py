"""Feynman-Kac correction and steering: densities that are known in closed form are drawn."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import feynman_kac, grids
from diffusion.guidance import Product
from diffusion.noise import image_noise, recorded_noise
from diffusion.particles import Cloud
from sde_lib import SDE, VESDE, VPSDE, ScoreFn
from tests import gaussians
from tests.test_models import quick_jit

Array = jax.Array

IMAGES, COUNT = 8, 512


def keys_of(count: int) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(count))


def cloud_now(
    sde: SDE,
    score_fn: ScoreFn,
    steps: int = 60,
    reward: feynman_kac.Reward | None = None,
    threshold: float = feynman_kac.THRESHOLD,
) -> Cloud:
    times = grids.time_grid(sde, "log_snr", steps)
    noise = image_noise(keys_of(IMAGES), (1,))
    return feynman_kac.cloud(sde, score_fn, noise, times, COUNT, reward=reward, threshold=threshold)


cloud = quick_jit(cloud_now, static_argnums=(0, 1, 2, 3, 4))


def moments(end: Cloud) -> np.ndarray:
    """Mean and standard deviation of the weighted particles of all images."""
    weights = np.asarray(jax.nn.softmax(end.log_weights, 1), np.float64) / len(end.log_weights)
    x = np.asarray(end.x, np.float64).reshape(weights.shape)
    mean = (weights * x).sum()
    return np.array([mean, math.sqrt((weights * (x - mean) ** 2).sum())])


def of_reverse_sde(sde: SDE, experts: list[tuple[float, float, float]]) -> np.ndarray:
    """Mean and deviation of what the reverse SDE with the score sum_i w_i s_i of N(m_i, v_i) draws
    from the prior to the power of the sum of weights: two linear ODEs, by small steps."""
    grid = np.asarray(sde.log_snr(jnp.asarray(grids.time_grid(sde, "log_snr", 4000))), np.float64)
    total = sum(weight for weight, _, _ in experts)
    start = jnp.asarray([sde.T])
    mean, variance = 0.0, sde.prior_std**2 / total / float(sde.alpha(start)[0]) ** 2
    for lam, after in itertools.pairwise(grid):  # of x / alpha, whose drift is 0
        noise = math.exp(-lam)  # its variance
        added = noise - math.exp(-after)
        slope = sum(weight / (std**2 + noise) for weight, _, std in experts)
        pull = sum(weight * m / (std**2 + noise) for weight, m, std in experts)
        mean += added * (pull - slope * mean)
        variance = (1.0 - added * slope) ** 2 * variance + added
    return np.array([mean, math.sqrt(variance)])


@pytest.mark.parametrize("sde", [VPSDE(), pytest.param(VESDE(), marks=pytest.mark.slow)], ids=str)
def test_a_product_of_gaussians_is_drawn_with_the_weights_and_missed_without(sde: SDE) -> None:
    """N(-0.5, 0.6^2) N(0.5, 0.3^2) is N(0.3, 0.27^2). Without weights the sampler draws what its
    linear SDE says, another mean and a smaller deviation."""
    experts = [(1.0, -0.5, 0.6), (1.0, 0.5, 0.3)]
    product = Product(
        tuple(gaussians.linear_score(sde, mean, std) for _, mean, std in experts), (1.0, 1.0)
    )
    precision = 1 / 0.36 + 1 / 0.09
    exact = np.array([(-0.5 / 0.36 + 0.5 / 0.09) / precision, precision**-0.5])
    biased = of_reverse_sde(sde, experts)
    assert abs(biased[0] - exact[0]) > 0.07
    assert abs(biased[1] - exact[1]) > 0.03
    np.testing.assert_allclose(moments(cloud(sde, product.__call__)), biased, atol=0.015)
    np.testing.assert_allclose(moments(cloud(sde, product)), exact, atol=0.02)


def test_a_temperature_moves_weight_between_modes_only_with_the_correction() -> None:
    """p^2 of modes of weights 0.3 and 0.7 that do not overlap has them in the ratio 0.09 to 0.49,
    and half the variance; p itself, by scaling the score, has another law."""
    sde = VPSDE()
    mixture = gaussians.Mixture(
        jnp.array([0.3, 0.7]), jnp.array([[-1.0], [1.0]]), jnp.array([[0.2], [0.2]])
    )
    score = mixture.score_fn(sde)
    end = cloud(sde, Product((score,), (2.0,)))
    weights = np.asarray(jax.nn.softmax(end.log_weights, 1)) / IMAGES
    x = np.asarray(end.x).reshape(weights.shape)
    share = weights[x < 0].sum()
    assert share == pytest.approx(0.09 / 0.58, abs=0.03)
    spread = (weights * (np.abs(x) - 1.0) ** 2).sum()
    assert math.sqrt(spread) == pytest.approx(0.2 / math.sqrt(2.0), rel=0.06)


def test_a_reward_tilts_a_gaussian_to_the_one_that_is_known() -> None:
    """N(m, v) exp(a x + b x^2 / 2) is N((m / v + a) / p, 1 / p), p = 1 / v - b, and its integral
    is known too. The reward has no gradient here, as it needs none."""
    mean, std = 0.4, 0.6
    sde = VPSDE()

    @quick_jit
    def tilted(slope: Array, curvature: Array) -> Cloud:
        def reward(x: Array) -> Array:
            point = jax.lax.stop_gradient(x[:, 0])
            return slope * point + 0.5 * curvature * point**2

        return cloud_now(sde, gaussians.linear_score(sde, mean, std), reward=reward)

    for slope, curvature in ((1.5, 0.0), (0.0, -4.0)):
        end = tilted(jnp.float32(slope), jnp.float32(curvature))
        precision = 1 / std**2 - curvature
        moved = (mean / std**2 + slope) / precision
        np.testing.assert_allclose(moments(end), [moved, precision**-0.5], atol=0.02)
        evidence = 0.5 * (precision * moved**2 - mean**2 / std**2 - math.log(std**2 * precision))
        estimates = np.exp(np.asarray(end.evidence, np.float64))
        error = estimates.std(ddof=1) / math.sqrt(IMAGES)
        assert estimates.mean() == pytest.approx(math.exp(evidence), abs=5 * error + 0.01)
        assert error < 0.05 * math.exp(evidence)


def test_a_product_and_a_reward_are_one_target() -> None:
    """Classifier-free guidance at scale 2 of N(0, 1) and N(0.5, 0.5^2) is N(4/7, 1/7); exp(x) moves
    it by its variance."""
    sde = VPSDE()
    experts = gaussians.linear_score(sde, 0.0, 1.0), gaussians.linear_score(sde, 0.5, 0.5)
    end = cloud(sde, Product(experts, (-1.0, 2.0)), reward=lambda x: x[:, 0])
    np.testing.assert_allclose(moments(end), [5 / 7, 7**-0.5], atol=0.02)


def test_without_resampling_the_weights_say_the_same() -> None:
    """They are exp(r) of what is returned, whatever came before."""
    sde = VPSDE()

    def reward(x: Array) -> Array:
        return 1.5 * x[:, 0]

    end = cloud(sde, gaussians.linear_score(sde, 0.4, 0.6), 60, reward, 0.0)
    np.testing.assert_array_equal(end.log_evidence, 0.0)
    np.testing.assert_allclose(end.log_weights.reshape(-1), reward(end.x), atol=1e-4)
    np.testing.assert_allclose(moments(end), [0.4 + 1.5 * 0.36, 0.6], atol=0.03)


def test_without_weights_it_is_a_sampler_of_second_weak_order() -> None:
    """The deviation of a Gaussian comes four times as close in twice the steps, by the same noise:
    a first-order sampler's comes twice as close."""
    sde, std = VPSDE(), 0.6
    score = gaussians.linear_score(sde, 0.4, std)
    errors = [moments(cloud(sde, score, steps))[1] - std for steps in (10, 20)]
    assert 3.0 < errors[0] / errors[1] < 5.5


def test_an_image_is_drawn_from_its_own_particles_alone() -> None:
    """Whatever others are in the batch, and with the evaluations of all of its particles."""
    sde, count = VPSDE(), 4
    times = grids.time_grid(sde, "log_snr", 5)
    score = gaussians.linear_score(sde, 0.4, 0.6)

    @quick_jit
    def three() -> Array:
        noise = image_noise(keys_of(3), (2,))
        samples = feynman_kac.sample(
            sde, score, noise, times, count, reward=lambda x: 3.0 * x[:, 0]
        )
        assert samples.nfe == 6 * count
        return samples.x

    @quick_jit
    def last() -> Array:
        noise = image_noise(keys_of(3)[2:], (2,))
        return feynman_kac.sample(sde, score, noise, times, count, reward=lambda x: 3.0 * x[:, 0]).x

    np.testing.assert_allclose(three()[2:], last(), atol=1e-6)


def test_steps_without_weights_are_written_out() -> None:
    """One particle: an ancestral step, then the estimate where it ends, linear in the log-SNR."""
    sde, times = VPSDE(), np.array([1.0, 0.6, 0.3])
    score_fn = gaussians.two_modes((4,)).score_fn(sde)
    z = jax.random.normal(jax.random.key(0), (4, 3, 4))

    def levels(t: float) -> tuple[Array, Array, Array]:
        time = jnp.full(3, t, jnp.float32)
        return time, sde.alpha(time)[:, None], sde.sigma(time)[:, None]

    def score_and_mean(x: Array, t: float) -> tuple[Array, Array]:
        time, alpha, sigma = levels(t)
        score = score_fn(x, time)
        return score, (x + sigma**2 * score) / alpha

    @quick_jit
    def both() -> tuple[Array, Array]:
        x = z[0]
        score, estimate = score_and_mean(x, times[0])
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            (_, a0, s0), (_, a1, s1) = levels(t), levels(s)
            growth = 2 * jnp.log(a1 / s1 * s0 / a0)
            kept = (s1 / s0) ** 2 * a0 / a1  # of x in the mean of p(x_s | x_t, x_0)
            std = s1 * jnp.sqrt(-jnp.expm1(-growth))
            ahead = kept * x - a1 * jnp.expm1(-growth) * (x + s0**2 * score) / a0 + std * z[1 + i]
            score, after = score_and_mean(ahead, s)
            x = ahead + (1 + jnp.expm1(-growth) / growth) * a1 * (after - estimate)
            estimate = after
        return feynman_kac.sample(sde, score_fn, recorded_noise(z), times, 1).x, estimate

    ours, expected = both()
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


def test_no_draw_is_used_twice() -> None:
    sde, seen = VPSDE(), list[int]()
    normal = image_noise(keys_of(2), (2,))

    def noise(i: Any) -> Array:
        jax.debug.callback(lambda i: seen.append(int(i)), i)
        return normal(i)

    times = grids.time_grid(sde, "log_snr", 5)
    score = gaussians.linear_score(sde, 0.4, 0.6)
    feynman_kac.sample(sde, score, noise, times, 3, reward=lambda x: 3.0 * x[:, 0])
    jax.effects_barrier()
    assert len(seen) == 6 * 3 + 5 + 1  # of particles at each time, of each resampling, of the end
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("count", "threshold", "message"),
    [(0, 0.5, "0 particles of an image; use 1 or more"), (2, 1.5, "is 1.5; use 0 to 1")],
)
def test_what_is_no_cloud_is_refused(count: int, threshold: float, message: str) -> None:
    sde = VPSDE()
    noise = image_noise(keys_of(1), (1,))
    with pytest.raises(ValueError, match=message):
        feynman_kac.cloud(
            *(sde, lambda x, t: -x, noise, np.array([1.0, 0.1]), count), threshold=threshold
        )
