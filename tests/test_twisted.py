"""Twisted SMC: the evidence and the posterior of Gaussian data, whatever the guess is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import few_steps, grids, inverse, particles, twisted
from diffusion.noise import image_noise
from sde_lib import VPSDE
from tests import affine
from tests.marks import but_slow
from tests.test_restoration import CORRELATED, SHAPE, like, mean

Array = jax.Array
NOISE_STD, Y = 0.3, np.array([0.9])
MATRIX = np.array([[0.5, 0.5]])


def clouds(
    count: int, images: int, steps: int | np.ndarray, **options: Any
) -> tuple[particles.Cloud, int]:
    """The clouds of images of correlated pixels whose mean is measured."""
    sde = VPSDE()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(images))
    score = affine.score_of(sde, CORRELATED)
    times = grids.time_grid(sde, "log_snr", steps) if isinstance(steps, int) else steps
    draws = []

    @jax.jit
    def run() -> particles.Cloud:
        cloud, number = twisted.twisted_particles(
            *(sde, score, image_noise(keys, SHAPE), times, mean, like(Y, images)),
            **({"noise_std": NOISE_STD, "count": count, "gain": 0.5} | options),
        )
        draws.append(number)
        return cloud

    return run(), draws[0]


@pytest.mark.parametrize("data_std", but_slow([0.94, 0.4], [0.4]))
def test_the_evidence_and_the_posterior_are_those_of_gaussian_data(data_std: float) -> None:
    """The guess is that of the mean's own variance, or a wrong one: the weights make up for it.

    400 images of 8 particles. p(y) is that of the discretised model, whose variance is up to 3 %
    too small with 100 steps; standard errors are 1 to 3 %.
    """
    cloud, _ = clouds(8, 400, 100, data_std=data_std)
    variance = float((MATRIX @ CORRELATED.covariance @ MATRIX.T)[0, 0]) + NOISE_STD**2
    off = Y[0] - float((MATRIX @ CORRELATED.mean)[0])
    density = np.exp(-0.5 * off**2 / variance) / np.sqrt(2 * np.pi * variance)
    np.testing.assert_allclose(jnp.mean(jnp.exp(cloud.evidence)), density, rtol=0.08)
    truth = affine.posterior(CORRELATED, MATRIX, Y, NOISE_STD)
    # All images as one cloud, so that there is no bias of few particles.
    share = np.asarray(jnp.exp(cloud.log_evidence[:, None] + cloud.log_weights)).reshape(-1)
    x = np.asarray(cloud.x, np.float64).reshape(-1, 2)
    found = (share[:, None] * x).sum(0) / share.sum()
    np.testing.assert_allclose(found, truth.mean, atol=0.05)
    covariance = ((x - found) * share[:, None]).T @ (x - found) / share.sum()
    np.testing.assert_allclose(covariance, truth.covariance, atol=0.03)


@pytest.mark.parametrize("times", [(1.0, 0.7, 0.5, 0.3), (0.15, 0.08, 0.04, 0.02)])
def test_the_evidence_of_few_steps_is_that_of_their_own_samples(times: tuple[float, ...]) -> None:
    """That end where much noise is left, or begin where scores differ: the law of E[x_0 | x] is
    that of ancestral sampling, and p(y) that of its mean with noise. 300 images of 32 particles:
    3 %."""
    sde, grid = VPSDE(), np.array(times)
    score = affine.score_of(sde, CORRELATED)
    law = affine.law(
        lambda noise, count: jax.jit(lambda: few_steps.ddim(sde, score, noise, grid, eta=1.0).x)(),
        SHAPE,
        len(grid),
    )
    variance = float((MATRIX @ law.covariance @ MATRIX.T)[0, 0]) + NOISE_STD**2
    off = Y[0] - float((MATRIX @ law.mean)[0])
    density = np.exp(-0.5 * off**2 / variance) / np.sqrt(2 * np.pi * variance)
    cloud, _ = clouds(32, 300, grid, data_std=0.94)
    np.testing.assert_allclose(jnp.mean(jnp.exp(cloud.evidence)), density, rtol=0.05)


def test_a_true_guess_leaves_the_weights_equal_and_no_resampling_is_needed() -> None:
    """The variance of the pixels' mean is 0.94^2 / 2: the guess is right, and only the steps' size
    moves the weights."""
    fine, _ = clouds(4, 20, 100, data_std=0.9391, threshold=0.0)
    rough, _ = clouds(4, 20, 100, data_std=0.4, threshold=0.0)
    assert particles.effective_number(fine.log_weights).mean() > 3.5
    assert particles.effective_number(rough.log_weights).mean() < 3.0


def test_one_particle_is_returned_and_all_evaluations_are_counted() -> None:
    sde, images, count = VPSDE(), 3, 5
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(images))
    score, times = affine.score_of(sde, CORRELATED), grids.time_grid(sde, "log_snr", 4)
    options: dict[str, Any] = {"noise_std": NOISE_STD, "count": count}

    @jax.jit
    def both() -> tuple[Any, particles.Cloud]:
        given = sde, score, image_noise(keys, SHAPE), times, mean, like(Y, images)
        return twisted.twisted(*given, **options), twisted.twisted_particles(*given, **options)[0]

    samples, cloud = both()
    assert samples.nfe == count * len(times)
    for image in range(images):
        assert (
            (cloud.x[count * image : count * (image + 1)] == samples.x[image]).all((1, 2, 3)).any()
        )
    asked: list[int] = []

    def noise(i: Any) -> Array:
        jax.debug.callback(lambda i: asked.append(int(i)), i)
        return jnp.zeros((1, *SHAPE))

    def counted() -> Array:
        return twisted.twisted(sde, score, noise, times, mean, like(Y, 1), **options).x

    jax.block_until_ready(jax.jit(counted)())
    jax.effects_barrier()
    assert sorted(asked) == list(range(count * 5 + 4 + 1)), "each draw once"


def test_gains_are_mean_diagonals() -> None:
    """Of a mean of four pixels 1/4; of a mask its share; of x^2 at a: 4 a^2, with noise 0.1."""
    assert twisted.gain_of(inverse.average_pool(2), (8, 8, 1)) == pytest.approx(0.25, rel=0.1)
    mask = (jnp.arange(8) < 2).astype(jnp.float32)[:, None, None]
    assert twisted.gain_of(inverse.masking(mask), (8, 8, 1)) == pytest.approx(0.25, rel=0.1)
    assert twisted.gain_of(lambda x: x**2, (8, 8, 1), 0.5) == pytest.approx(1.04, rel=0.1)
    assert twisted.gain_of(lambda x: 0.0 * x, (2, 2, 1)) == 1e-6


@pytest.mark.parametrize("wrong", [{"noise_std": 0.0}, {"count": 0}, {"gain": 0.0}])
def test_what_leaves_no_particle_a_weight_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="twisted SMC needs a positive noise_std"):
        clouds(**({"count": 2, "images": 1, "steps": 2} | wrong))
