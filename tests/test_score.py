"""The score that a network stands for: the official numbers, and closed forms."""

import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from diffusion import ancestral
from sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, SubVPSDE
from tests import analytic_models, golden_cases
from tests.test_models import load_network, quick_jit


def golden_tags() -> list[Any]:
    cases = []
    for path in golden_cases.about("math", "score_fn"):
        for tag in golden_cases.load(path)["meta_json"]:
            cases.append(pytest.param(path, tag, id=f"{path.stem}-{tag}"))
    return cases


def network_of(meta: dict[str, Any], sde: Any) -> tuple[Any, float]:
    """The network that a group of d_score_fn names, and the tolerance of its outputs."""
    kind, _, analytic = meta["weights"].partition("analytic ")
    if analytic:
        table = np.geomspace(sde.sigma_max, sde.sigma_min, sde.N) if analytic == "veidx" else None
        return analytic_models.network(analytic, meta.get("mix", 0.0), table), 2e-5
    return golden_network(kind)


@functools.cache
def golden_network(stem: str) -> tuple[Any, float]:
    stored = golden_cases.load(golden_cases.network_file(stem))
    module, params, _ = load_network(stored)
    fourier = stored["config_json"]["model"]["embedding_type"] == "fourier"
    apply = quick_jit(lambda x, labels: module.apply({"params": params}, x, labels))
    return apply, 1e-3 if fourier else 2e-5


@pytest.mark.golden
@pytest.mark.parametrize(("path", "tag"), golden_tags())
def test_official_scores(path: pathlib.Path, tag: str) -> None:
    """Labels and scores. The original loses digits of VP's std near t = 0, where it rounds
    1 - alpha^2 to float32: as many are allowed for."""
    stored = golden_cases.load(path)
    meta = stored["meta_json"][tag]
    sde = analytic_models.sde_of(meta["sde"], meta, re.findall(r"[A-Za-z]+[\d.]+", tag))
    network, tolerance = network_of(meta, sde)
    x, t = (jnp.asarray(stored[f"{tag}/{name}"]) for name in ("x", "t"))

    inputs = []

    def listening(x: jax.Array, labels: jax.Array) -> jax.Array:
        inputs.append(labels)
        return network(x, labels)

    score = models.score_fn(sde, listening, meta["continuous"], official_labels=True)(
        jnp.moveaxis(x, 1, -1), t
    )
    (labels,) = inputs
    expected = stored[f"{tag}/labels"]
    assert labels.dtype.kind == expected.dtype.kind
    np.testing.assert_allclose(labels, expected, rtol=2e-6)
    expected = golden_cases.nhwc(stored[f"{tag}/score"])
    rounding = 0.0 if meta["sde"] == "ve" else 6e-8 / (1 - np.asarray(sde.alpha(t)) ** 2)
    errors = np.abs(score - expected).max((1, 2, 3)) / np.abs(expected).max((1, 2, 3))
    assert (errors < tolerance + rounding).all(), errors


T = jnp.array([1e-3, 0.2, 0.75, 1.0])
X = jax.random.normal(jax.random.key(0), (4, 2, 2, 3))
OTHER = {
    "vp": VPSDE(N=200, beta_min=0.5, beta_max=7.0),
    "subvp": SubVPSDE(N=200, beta_max=7.0),
    "cosine": CosineVPSDE(),
}


@pytest.mark.parametrize("sde", OTHER.values(), ids=OTHER)
def test_a_perfect_noise_predictor_gives_the_score_of_a_gaussian(sde: SDE) -> None:
    """Data N(0, 4): x_t ~ N(0, v), v = 4 alpha^2 + sigma^2; E[z | x] = sigma x / v."""

    def network(x: jax.Array, labels: jax.Array) -> jax.Array:
        t = labels / 999
        variance = 4 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2
        return x * (sde.sigma(t) / variance)[:, None, None, None]

    variance = 4 * sde.alpha(T) ** 2 + sde.sigma(T) ** 2
    score = models.score_fn(sde, network, continuous=True)(X, T)
    np.testing.assert_allclose(score, -X / variance[:, None, None, None], rtol=1e-4)


def test_a_ve_network_is_the_score() -> None:
    """Data N(0, 4): the score is -x / (4 + sigma^2), and the network is told sigma."""
    sde = VESDE(N=50, sigma_min=0.1, sigma_max=9.0)

    def network(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return -x / (4 + sigma**2)[:, None, None, None]

    sigma = 0.1 * 90.0**T
    score = models.score_fn(sde, network, continuous=True)(X, T)
    np.testing.assert_allclose(score, -X / (4 + sigma**2)[:, None, None, None], rtol=1e-5)
    edm = models.score_fn(EDMSDE(), network, continuous=True)(X, 80 * T)  # told sigma = t
    np.testing.assert_allclose(edm, -X / (4 + (80 * T) ** 2)[:, None, None, None], rtol=1e-5)


def test_discrete_labels_are_the_nearest_levels() -> None:
    """0 is the least noisy level of DDPM and the noisiest of SMLD."""
    t = jnp.array([0.0, 0.049, 0.051, 0.5, 1.0])
    vp, ve = VPSDE(N=11, beta_max=2.0), VESDE(N=11)
    np.testing.assert_array_equal(models.discrete_labels(vp, t), [0, 0, 1, 5, 10])
    np.testing.assert_array_equal(models.discrete_labels(ve, t), [10, 10, 9, 5, 0])
    assert models.discrete_labels(vp, t).dtype == models.discrete_labels(ve, t).dtype == jnp.int32


def test_discrete_networks_are_told_the_index_whose_noise_they_are_divided_by() -> None:
    """By default label and std are both of the nearest level, whatever t is between levels."""
    sde = VPSDE(N=11, beta_max=2.0)
    t = jnp.array([0.04, 0.06, 0.5, 0.98])

    def echo(x: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.ones_like(x) * (1.0 + labels)[:, None, None, None]

    index = np.array([0, 1, 5, 10])
    alphas = np.cumprod(1 - np.linspace(0.1, 2.0, 11) / 11)
    expected = -(1 + index) / np.sqrt(1 - alphas[index])
    score = models.score_fn(sde, echo, continuous=False)(X, t)
    np.testing.assert_allclose(score[:, 0, 0, 0], expected, rtol=1e-5)
    official = models.score_fn(sde, echo, continuous=False, official_labels=True)(X, t)
    cut = np.array([0, 0, 5, 9])
    expected = -(1 + 10 * np.asarray(t)) / np.sqrt(1 - alphas[cut])
    np.testing.assert_allclose(official[:, 0, 0, 0], expected, rtol=1e-5)

    score = models.score_fn(VESDE(N=11), echo, continuous=False)(X, t)
    np.testing.assert_allclose(score[:, 0, 0, 0], [11, 10, 6, 1])


def test_sub_vp_has_no_discrete_version() -> None:
    sde = SubVPSDE()
    scores = [
        models.score_fn(sde, lambda x, labels: x * labels[:, None, None, None], continuous)(X, T)
        for continuous in (True, False)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])


def test_a_network_of_twice_the_channels_has_its_score_and_behind_it_the_share() -> None:
    x, t = jnp.arange(96.0).reshape(2, 4, 4, 3), jnp.array([0.1, 0.9])

    def network(x: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.concatenate([5.0 * x, 7.0 * x + labels[0]], -1)

    told = models.score_and_variance(network, lambda usual: lambda x, t: usual(x, t) / 5.0)
    assert isinstance(told, ancestral.ScoreAndVariance)
    score, share = told.both(x, t)
    np.testing.assert_allclose(score, x, rtol=1e-6)
    np.testing.assert_allclose(share, 7.0 * x + 0.1, rtol=1e-6)
