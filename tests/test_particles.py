"""Particles: counts of children, effective numbers, and evidences that are known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import particles
from diffusion.noise import image_noise, recorded_noise

Array = jax.Array
systematic, resampled = jax.jit(particles.systematic), jax.jit(particles.resampled)
one_of_each = jax.jit(particles.one_of_each)


def test_children_are_as_many_as_the_weight_says_and_that_on_average() -> None:
    """Floor or ceil of K W for every u; over a grid of u the mean is K W to the grid's step."""
    weights = np.array([[0.05, 0.4, 0.25, 0.3], [0.0, 1.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    with np.errstate(divide="ignore"):
        log_weights: Any = np.log(weights.astype(np.float32)) - 300.0  # need not be normalised
    grid = ((np.arange(1000) + 0.5) / 1000).astype(np.float32)
    each = jax.jit(jax.vmap(lambda u: particles.systematic(log_weights, jnp.full(4, u))))
    parents = np.asarray(each(grid))
    counts = (parents[..., None] == np.arange(4)).sum(2)  # [u, B, K]
    assert (counts >= np.floor(4 * weights - 1e-5)).all()
    assert (counts <= np.ceil(4 * weights + 1e-5)).all()
    np.testing.assert_allclose(counts.mean(0), 4 * weights, atol=3e-3)
    assert (np.diff(parents) >= 0).all(), "in order, so that images stay side by side"
    np.testing.assert_array_equal(parents[7, 2], np.arange(4))


def test_rounding_never_leads_to_a_particle_without_weight() -> None:
    """The sum of 12 equal weights and a zero is 1 - 1e-7 in float32, and u closer to 1."""
    log_weights = np.where(np.arange(13) < 12, 0.0, -np.inf).astype(np.float32)[None]
    u = np.array([particles.BELOW_ONE], np.float32)
    shares = jax.jit(lambda log_weights: jnp.cumsum(jax.nn.softmax(log_weights, 1), 1))
    assert np.asarray(shares(log_weights))[0, -1] < u[0]
    assert np.asarray(systematic(log_weights, u)).max() == 11
    x = np.arange(13, dtype=np.float32)
    cloud = particles.Cloud(x, log_weights, np.zeros(1, np.float32))  # type: ignore[arg-type]
    assert np.asarray(one_of_each(cloud, u))[0] == 11.0


def test_effective_numbers_and_mean_weights() -> None:
    log_weights = jnp.log(
        jnp.array([[2.0, 2.0, 2.0, 2.0], [0, 5, 0, 0], [1, 1, 0, 0], [3, 1, 0, 0]])
    )
    effective = particles.effective_number(log_weights + 500.0)
    np.testing.assert_allclose(effective, [4.0, 1.0, 2.0, 16.0 / 10.0], rtol=1e-4)
    np.testing.assert_allclose(
        jnp.exp(particles.log_mean(log_weights)), [2.0, 1.25, 0.5, 1.0], rtol=1e-5
    )


def test_few_are_resampled_and_what_belongs_to_them_follows() -> None:
    """Image 0 has enough at threshold 0.6, image 1 has not; images never mix."""
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.array([[1, 1, 1, 0.5], [0, 0, 8, 0]], np.float32))
    x: Any = np.arange(8, dtype=np.float32).reshape(8, 1)
    cloud = particles.Cloud(x, jnp.asarray(log_weights), jnp.array([0.5, 0.25]))
    u: Any = np.array([0.3, 0.3], np.float32)
    after, parents = jax.device_get(resampled(cloud, u, threshold=0.6))
    np.testing.assert_array_equal(after.x[:, 0], [0, 1, 2, 3, 6, 6, 6, 6])
    np.testing.assert_array_equal(particles.children(10 * x, parents), 10 * after.x)
    np.testing.assert_array_equal(after.log_weights, [log_weights[0], np.zeros(4)])
    np.testing.assert_allclose(after.log_evidence, [0.5, 0.25 + np.log(2.0)], rtol=1e-6)
    np.testing.assert_allclose(after.evidence, cloud.evidence, rtol=1e-6)
    never, parents = resampled(cloud, u, threshold=0.0)
    np.testing.assert_array_equal(never.x, x)
    np.testing.assert_array_equal(parents, [[0, 1, 2, 3]] * 2)
    dead = particles.Cloud(x[:4], jnp.full((1, 4), -jnp.inf), jnp.zeros(1))
    assert jax.jit(lambda: particles.resampled(dead, u[:1])[0].evidence)() == -jnp.inf


def test_the_evidence_of_a_chain_is_unbiased_and_its_particles_have_the_law() -> None:
    """Two states that flip with probability 0.3, weighted four times: 2 x 2 matrices say the rest.

    4,000 runs of 8 particles. The relative standard error of the mean evidence is about 0.6 %.
    """
    count, runs, weight = 8, 4000, jnp.array([0.2, 1.0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(runs))
    noise = image_noise(keys, (1,))
    moves = particles.noise_of_particles(noise, count)

    @jax.jit
    def run() -> tuple[Array, Array]:
        state = (moves(0) > 0).astype(jnp.float32)  # fair
        cloud = particles.cloud(state, count)
        for i in range(4):
            increments = jnp.log(weight)[cloud.x.astype(int)].reshape(runs, count)
            cloud = cloud._replace(log_weights=cloud.log_weights + increments)
            if i == 3:
                break
            cloud, _ = particles.resampled(cloud, particles.uniform(noise, 100 + i), 0.7)
            flips = jax.scipy.special.ndtr(moves(1 + i)) < 0.3
            cloud = cloud._replace(x=jnp.where(flips, 1.0 - cloud.x, cloud.x))
        return jnp.exp(cloud.evidence), particles.one_of_each(cloud, particles.uniform(noise, 200))

    evidence, last = run()
    law = np.array([0.5, 0.5])
    for i in range(4):
        law = (law if i == 0 else np.array([[0.7, 0.3], [0.3, 0.7]]) @ law) * np.asarray(weight)
    np.testing.assert_allclose(evidence.mean(), law.sum(), rtol=0.025)
    assert abs(float(last.mean()) - law[1] / law.sum()) < 0.03


def test_draws_are_each_images_and_particles_own() -> None:
    record = np.random.default_rng(1).normal(size=(6, 2, 3)).astype(np.float32)  # 6 of two images
    noise = particles.noise_of_particles(recorded_noise(record), 3)
    np.testing.assert_array_equal(noise(1), [record[3 + k, b] for b in range(2) for k in range(3)])
    z = jnp.array([[[0.0, 9.0]], [[1.6448536, 0.0]]])
    np.testing.assert_allclose(particles.uniform(lambda i: z, 0), [0.5, 0.95], rtol=1e-5)
    assert particles.uniform(lambda i: jnp.full((1, 2), 9.0), 0)[0] < 1.0


@pytest.mark.parametrize(("number", "count"), [(6, 4), (6, 0)])
def test_counts_that_do_not_fit_are_refused(number: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"6 particles are not {count} for each image"):
        particles.cloud(jnp.zeros((number, 2)), count)
