"""A flow of two scores, which change hands at a noise level, and the noise of its images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.reproduction import cells, exact, measure, switch
from benchmarks.reproduction.measure import Bench
from runtime import experiment
from tests import tiny


def test_the_score_changes_hands_at_a_noise_level(tmp_path, monkeypatch):
    """A network's score is -2 x here."""
    monkeypatch.setattr(measure, "load", lambda *_: tiny.config())
    monkeypatch.setattr(experiment.Parts, "score", lambda _, params, *__: lambda x, t: params * x)
    bench = Bench("digits", tmp_path)
    flow = next(cell for cell in cells.planned(bench.scale, {}) if cell.name == cells.FLOW)
    parts = bench.parts(flow)
    params = -2.0
    images = np.random.default_rng(0).uniform(size=(3, *parts.image_shape)).astype(np.float32)
    x = 3 * jax.random.normal(jax.random.key(1), (2, *parts.image_shape))
    t = jnp.array([0.2, 0.9])
    low, high = parts.sde.sigma(t) / parts.sde.alpha(t)
    by_network = parts.score(params)(x, t)
    by_examples = exact.score(parts.sde, jnp.asarray(images), x, t)
    scores = {name: one for name, _, one in switch.cases(flow, parts)}
    middle = dataclasses.replace(scores["network"], level=float(low + high) / 2)
    for one, of_low, of_high in [
        (scores["network"], by_network, by_network),
        (scores["exact"], by_examples, by_examples),
        (dataclasses.replace(middle, exact_above=True), by_network, by_examples),
        (dataclasses.replace(middle, exact_above=False), by_examples, by_network),
    ]:
        found = one.score((params, jnp.asarray(images)))(x, t)
        np.testing.assert_allclose(found[0], of_low[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[1], of_high[1], rtol=1e-4, atol=1e-4)
    finer = [cell for name, cell, _ in switch.cases(flow, parts) if "tolerance" in name]
    assert finer[0].settings["sampling.rtol"] == flow.settings["sampling.rtol"] / 100


@pytest.mark.parametrize("sigma", [0.02, 0.3])
def test_noise_of_images_is_that_of_white_noise_on_smooth_ones(sigma):
    y, x = np.mgrid[:28, :28] / 28
    smooth = np.stack([0.5 + 0.3 * x * y, 0.2 + 0.1 * y - 0.4 * x])[..., None]
    noisy = smooth + sigma * np.random.default_rng(0).standard_normal(smooth.shape)
    assert switch.noise(smooth).max() < 3e-4
    np.testing.assert_allclose(switch.noise(noisy), sigma, rtol=0.12)
