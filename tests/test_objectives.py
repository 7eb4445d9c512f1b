"""Every objective, weighting, distribution of times and prediction: all find the known score."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from ml_collections import ConfigDict

import losses
import models
from configs import schema
from configs.toy import mixture_dsm_vp
from diffusion import parametrisation
from diffusion.times import time_draws, times_from_config
from runtime import ema, experiment
from sde_lib import EDMSDE, SDE, VESDE, VPSDE, SubVPSDE, batch_mul
from tests import gaussians
from training.objective import objective_from_config
from training.state import new_state
from training.step import make_train_step

EVERY_SDE = gaussians.EVERY_SDE
every_sde = pytest.mark.parametrize(
    "sde",
    [
        pytest.param(sde, marks=() if name == "subvp" else pytest.mark.slow)
        for name, sde in EVERY_SDE.items()
    ],
    ids=EVERY_SDE,
)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def config(**changes: Any) -> ConfigDict:
    """The schema's defaults for 2-D data with these changes, `section__field=value`."""
    settings = schema.base()
    settings.data.image_size, settings.data.num_channels = 1, 2
    settings.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return settings


# Objectives without noise as a target.


@pytest.mark.parametrize("count", [2, 11])
def test_sliced_losses_of_a_linear_score_are_closed_forms(count: int) -> None:
    """s = A x with A not symmetric: v' A v + (v' A x)^2 / 2, tr A + |A x|^2 / 2, in a batch of
    directions that fits at once and one that does not."""
    sde, size = VPSDE(), 3
    A, x0, z = normal(size, size, seed=1), normal(4, size, seed=2), normal(4, size, seed=3)
    t, lam, v = (
        jnp.array([0.1, 0.3, 0.6, 1.0]),
        jnp.array([1.0, 2.0, 0.5, 3.0]),
        normal(count, 4, 3),
    )
    alpha, sigma = (np.asarray(s, np.float64)[:, None] for s in (sde.alpha(t), sde.sigma(t)))
    x = alpha * x0 + sigma * z
    Ax, Av = x @ A.T, v @ A.T
    curvature = (v * Av).sum(2).mean(0)
    expected = {
        "ssm": curvature + 0.5 * np.square((v * Ax).sum(2)).mean(0),
        "ssm_vr": curvature + 0.5 * np.square(Ax).sum(1),
        "ism": np.trace(A) + 0.5 * np.square(Ax).sum(1),
    }

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def evaluate(name: str, reduce_mean: bool = False) -> Any:
        more = {} if name == "ism" else {"directions": v}
        objective = losses.OBJECTIVES[name].noise_mse
        noise_mse = objective(sde, lambda x, t: x @ A.T, x0, t, z, **more)
        return losses.weighted(noise_mse, size, lam, reduce_mean)

    for name, value in expected.items():
        loss, parts = evaluate(name)
        expected_loss = lam * (sigma[:, 0] ** 2 * value + 0.5 * size)
        np.testing.assert_allclose(loss, expected_loss, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(loss, lam * 0.5 * size * parts["noise_mse"], rtol=1e-6)
    mean, parts = evaluate("ssm", True)
    np.testing.assert_allclose(mean, lam * parts["noise_mse"], rtol=1e-6)


@pytest.mark.parametrize(
    "sde", [VPSDE(), pytest.param(VESDE(), marks=pytest.mark.slow)], ids=["vp", "ve"]
)
@pytest.mark.parametrize(
    "name",
    ["dsm", "ism", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ssm", "ssm_vr")), "esm"],
)
def test_every_objective_is_half_the_fisher_divergence_plus_a_constant(name: str, sde: SDE) -> None:
    """By exact expectations over x_0 in {-1, 2} and z (Gauss-Hermite), for four models.

    Without the target's constant it is the same for all but esm, which has none.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    probability = np.array([0.5, 0.5]) if name == "esm" else np.array([0.3, 0.7])
    bandwidth = 0.4 if name == "esm" else 0.0
    x0: Any = np.repeat(np.array([-1.0, 2.0], np.float32), 120)[:, None]
    z: Any = np.tile(nodes.astype(np.float32), 2)[:, None]
    mass = np.outer(probability, weights / weights.sum()).ravel()
    more = {
        "esm": {"points": jnp.array([[-1.0], [2.0]]), "bandwidth": bandwidth},
        "ssm": {"directions": np.sign(normal(3, 240, 1))},
        "ssm_vr": {"directions": np.sign(normal(3, 240, 1))},
    }.get(name, {})

    def true_score(x: Any, t: Any) -> Any:
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        centred = alpha * np.array([-1.0, 2.0]) - x
        variance = sigma**2 + (alpha * bandwidth) ** 2
        shares = jax.nn.softmax(jnp.log(probability) - 0.5 * centred**2 / variance, 1)
        return (centred / variance * shares).sum(1, keepdims=True)

    candidates = [
        true_score,
        lambda x, t: -x,
        lambda x, t: 0.8 * true_score(x, t),
        lambda x, t: true_score(x, t) + batch_mul(1 / sde.sigma(t), jnp.cos(x)),
    ]

    @jax.jit
    def evaluate(t: jax.Array) -> Any:
        times = jnp.full(len(x0), t)
        alpha, sigma = sde.alpha(times)[:, None], sde.sigma(times)[:, None]
        x = alpha * x0 + jnp.sqrt(sigma**2 + (alpha * bandwidth) ** 2) * z
        objective = functools.partial(losses.OBJECTIVES[name].noise_mse, sde)
        loss = [
            losses.weighted(objective(score_fn, x0, times, z, **more), 1)[0]
            for score_fn in candidates
        ]
        true = true_score(x, times)
        error = [score_fn(x, times) - true for score_fn in candidates]
        return jnp.stack(loss), (sigma * jnp.stack(error))[..., 0], (sigma * true)[:, 0]

    for t in (0.1, 0.5):
        loss, error, true = (np.asarray(v, np.float64) for v in evaluate(jnp.float32(t)))
        gaps = loss @ mass - 0.5 * error**2 @ mass
        constant = 0.0 if name == "esm" else 0.5 * (1.0 - true**2 @ mass)
        np.testing.assert_allclose(gaps, constant, rtol=1e-4, atol=3e-5)


def test_explicit_matching_does_not_depend_on_how_pixels_lie_in_arrays() -> None:
    """A batch of as many images as one has pixels, and the same ones as vectors."""
    x0, points, z = (normal(4, 2, 1, 2, seed=seed) for seed in range(3))
    t = jnp.linspace(0.1, 0.9, 4)
    found = losses.esm(VPSDE(), lambda x, t: -x, x0, t, z, points, 0.4)
    flat, centres, draws = (array.reshape(4, 4) for array in (x0, points, z))
    as_vectors = losses.esm(VPSDE(), lambda x, t: -x, flat, t, draws, centres, 0.4)
    np.testing.assert_allclose(found, as_vectors, rtol=1e-5)


# Objectives as configs describe them.

POINTS = normal(5, 2, seed=8)
CASES: dict[str, tuple[SDE, dict[str, Any]]] = {
    "dsm": (VPSDE(), {"weighting": "likelihood", "time": "likelihood"}),
    "dsm as EDM": (EDMSDE(), {"time": "log_normal", "weighting": "edm"}),
    "dsm at one level": (VPSDE(), {"time": "fixed", "sigma": 0.5}),
    "esm": (VESDE(), {"objective": "esm", "kde_bandwidth": 0.3}),
    "ism": (VPSDE(), {"objective": "ism", "weighting": "velocity"}),
    "ssm": (SubVPSDE(), {"objective": "ssm", "directions": "gaussian", "num_directions": 2}),
    "ssm_vr": (VPSDE(), {"objective": "ssm_vr", "likelihood_weighting": True}),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case == "dsm" else pytest.mark.slow) for case in CASES],
)
def test_the_true_score_is_where_the_gradient_vanishes(case: str) -> None:
    """The slope along a perturbation is 0 within its Monte-Carlo error at the true score only, and
    a wrong score has a larger loss."""
    sde, changes = CASES[case]
    settings = config(**{f"training__{name}": value for name, value in changes.items()})
    count = 6000
    if case == "esm":
        mixture = gaussians.Mixture(jnp.full(5, 0.2), jnp.asarray(POINTS), jnp.full((5, 2), 0.3))
        x0 = jnp.asarray(POINTS)[jnp.arange(count) % 5]
    else:
        mixture = gaussians.two_modes()
        parts = np.random.default_rng(1).choice(2, count, p=np.asarray(mixture.weights))
        x0 = mixture.means[parts] + mixture.stds[parts] * normal(count, 2)
    loss = losses.from_config(settings, sde, jnp.asarray(POINTS))
    score_fn = mixture.score_fn(sde)

    def network_from(scale: Any, epsilon: Any) -> losses.Network:
        """A network whose score is `scale * true + epsilon h`."""

        def network(x: jax.Array, labels: jax.Array) -> jax.Array:
            t = (
                sde.time_of_log_snr(-2 * jnp.log(labels))
                if sde.variance_exploding
                else labels / 999
            )
            std = jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2)
            unit = batch_mul(1 / std, x)
            h = batch_mul(1 / std, jnp.sin(unit) + 0.5 * jnp.roll(unit, 1, 1))
            score = scale * score_fn(x, t) + epsilon * h
            return score if sde.variance_exploding else batch_mul(-sde.sigma(t), score)

        return network

    @jax.jit
    def slopes(scale: jax.Array) -> Any:
        u = (jnp.arange(count) + 0.5) / count
        keys = jax.random.split(jax.random.key(2), count)
        return jax.jvp(
            lambda epsilon: loss(network_from(scale, epsilon), x0, keys, u)[0],
            (jnp.zeros(()),),
            (jnp.ones(()),),
        )

    (value, slope), (wrong, its_slope) = (map(np.asarray, slopes(jnp.float32(s))) for s in (1, 0.6))
    error = slope.std() / math.sqrt(count)
    assert abs(slope.mean()) < 4 * error
    assert abs(its_slope.mean()) > 6 * error
    gain = wrong - value
    assert gain.mean() > 4 * gain.std() / math.sqrt(count)


@every_sde
def test_weightings_are_squared_errors_in_the_space_of_their_name(sde: SDE) -> None:
    x0, z, wrong = normal(5, 3), normal(5, 3, seed=1), 0.3 * normal(5, 3, seed=2)
    t = jnp.linspace(0.1, 0.9, 5) * sde.T
    sigma_data = 1.3

    @jax.jit
    def evaluate() -> Any:
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        x, right = alpha * x0 + sigma * z, -z / sigma
        weighed, spaces = {}, {}
        for name in losses.WEIGHTINGS:
            lam = losses.weight(sde, t, name, sigma_data)
            noise_mse = losses.dsm(sde, lambda x, t: wrong + right, x0, t, z)
            weighed[name] = losses.weighted(noise_mse, 3, lam)[0]
        for kind in parametrisation.PREDICTIONS:
            convert = functools.partial(parametrisation.convert, sde, x, t)
            values = [convert(v, "score", kind, sigma_data) for v in (wrong + right, right)]
            spaces[kind] = jnp.stack(values)
        return weighed, spaces, alpha, sigma, sde.diffusion(t)[:, None]

    weighed, spaces, alpha, sigma, g = evaluate()
    for kind, (value, right) in spaces.items():
        expected = 0.5 * np.square(np.asarray(value, np.float64) - right).sum(1)
        atol = 1e-6 * float(np.square(right).sum(1).max())
        np.testing.assert_allclose(weighed[kind], expected, rtol=1e-4, atol=atol)
    r = sigma / alpha
    karras = (r**2 + sigma_data**2) / (r * sigma_data) ** 2 * (sigma**2 / alpha * wrong) ** 2
    np.testing.assert_allclose(weighed["edm"], 0.5 * karras.sum(1), rtol=1e-4)
    expected = 0.5 * np.square(g * wrong).sum(1)
    np.testing.assert_allclose(weighed["likelihood"], expected, rtol=1e-4)


def huber(
    sde: SDE, score_fn: Any, x0: jax.Array, t: jax.Array, z: jax.Array, bend: float
) -> jax.Array:
    """`dsm` that forgives large errors: the pseudo-Huber loss of the noise (Charbonnier 1997)."""
    mean, std = sde.marginal_prob(x0, t)
    error = batch_mul(std, score_fn(mean + batch_mul(std, z), t)) + z
    per_axis = 2.0 * bend**2 * (jnp.sqrt(1.0 + jnp.square(error / bend)) - 1.0)
    return per_axis.reshape(len(x0), -1).mean(1)


@pytest.mark.slow
def test_a_new_objective_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains by its name in a config, in one step of the training loop on points, with the
    weighting, the scale of the loss and the part `noise_mse` of every other."""
    line = losses.ScoreMatching(huber, lambda config, points: lambda keys, shape: {"bend": 20.0})
    monkeypatch.setitem(losses.OBJECTIVES, "huber", line)
    batch = {
        "image": jnp.asarray(np.random.default_rng(0).integers(0, 255, (1, 4, 1, 1, 2)), jnp.uint8),
        "label": jnp.zeros((1, 4), jnp.int32),
    }

    def metrics(name: str) -> dict[str, float]:
        settings = mixture_dsm_vp.get_config()
        settings.model.nf, settings.model.num_res_blocks = 8, 1
        settings.training.objective, settings.training.weighting = name, "x0"
        parts, averaging = experiment.build(settings), ema.from_config(settings)
        objective = objective_from_config(settings, parts)
        optimizer = optax.sgd(0.1)
        state = new_state(parts.module, optimizer, 0, parts.image_shape, averaging.further)
        train = make_train_step(objective, optimizer, averaging, flip=False, axis_name=None)
        _, rows = jax.jit(train)(state, batch)
        return {name: float(values[0]) for name, values in rows.items()}

    ours, dsm = metrics("huber"), metrics("dsm")
    assert set(ours) == {"loss", "noise_mse", "gradient_norm"}
    for name, value in dsm.items():  # what it is where no error is large
        assert ours[name] == pytest.approx(value, rel=1e-2), name


# Times.


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("independent", marks=pytest.mark.slow),
        pytest.param("antithetic", marks=pytest.mark.slow),
        "stratified",
    ],
)
def test_time_draws_are_uniform_for_every_image_and_their_mean_is_steadier(kind: str) -> None:
    keys = jax.random.split(jax.random.key(0), 2000)

    @jax.jit
    def draw(numbers: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: time_draws(kind, key, numbers, 8))(keys)

    u = np.asarray(draw(jnp.arange(8)))
    assert u.min() >= 0.0
    assert u.max() < 1.0
    for image in (0, 3, 7):
        assert scipy.stats.kstest(u[:, image], "uniform").pvalue > 0.01
    means = np.square(u).mean(1)
    assert abs(means.mean() - 1 / 3) < 4 * means.std() / math.sqrt(len(means))
    independent = np.var(np.square(np.random.default_rng(0).uniform(size=(2000, 8))).mean(1))
    assert (
        means.var()
        < {"independent": 1.2, "antithetic": 0.2, "stratified": 0.05}[kind] * independent
    )
    order = np.array([5, 2, 7, 0, 1, 3, 6, 4])  # as on other devices
    np.testing.assert_array_equal(draw(jnp.asarray(order)), u[:, order])
    if kind == "antithetic":
        np.testing.assert_allclose(u[:, 2] + u[:, 3], 1.0, atol=1e-6)
    if kind == "stratified":
        np.testing.assert_array_equal(np.sort(np.floor(8 * u), 1), np.arange(8.0) + 0 * u)
        assert scipy.stats.kstest((8 * u[:, 2]) % 1, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    "sde",
    [
        pytest.param(sde, marks=() if name == "edm" else pytest.mark.slow)
        for name, sde in EVERY_SDE.items()
    ],
    ids=EVERY_SDE,
)
def test_importance_sampled_times_are_those_of_the_likelihood(sde: SDE) -> None:
    """The factor keeps means over uniform times, and makes the weight of the noise constant."""
    u = (jnp.arange(20000) + 0.5) / 20000
    times = {
        name: jax.jit(times_from_config(config(training__time=name), sde))(u)
        for name in ("uniform", "likelihood")
    }
    t, factor = times["likelihood"]
    weights = factor * losses.weight(sde, t, "likelihood")
    span = sde.log_snr(jnp.array([sde.training_eps, sde.T]))
    constant = (span[0] - span[1]) / (sde.T - sde.training_eps)
    np.testing.assert_allclose(weights, constant, rtol=1e-4)
    for function in (jnp.ones_like, lambda t: t / sde.T, lambda t: jnp.square(sde.sigma(t))):
        means = [float(jnp.mean(factor * function(t))) for t, factor in times.values()]
        assert means[1] == pytest.approx(means[0], rel=2e-3)


@pytest.mark.parametrize(
    ("sde", "mean", "std"),
    [pytest.param(EDMSDE(), -1.2, 1.2, marks=pytest.mark.slow), (VPSDE(), 1.0, 2.5)],
    ids=["edm", "vp"],
)
def test_log_normal_noise_levels_are_truncated_to_those_of_the_sde(
    sde: SDE, mean: float, std: float
) -> None:
    u = (jnp.arange(4000) + 0.5) / 4000
    settings = config(
        training__time="log_normal", training__log_sigma_mean=mean, training__log_sigma_std=std
    )
    t, factor = jax.jit(times_from_config(settings, sde))(u)
    assert float(t.min()) >= sde.training_eps * (1 - 1e-6)
    assert float(t.max()) <= sde.T
    ends = -0.5 * np.asarray(sde.log_snr(jnp.array([sde.training_eps, sde.T])), np.float64)
    expected = scipy.stats.truncnorm(*(ends - mean) / std, loc=mean, scale=std).ppf(np.asarray(u))
    np.testing.assert_allclose(-0.5 * sde.log_snr(t), expected, atol=2e-3)
    np.testing.assert_array_equal(factor, 1.0)


@every_sde
def test_a_fixed_noise_level_is_that_relative_to_the_data(sde: SDE) -> None:
    settings = config(training__time="fixed", training__sigma=0.7)
    t, factor = times_from_config(settings, sde)(jnp.linspace(0, 0.9, 3))
    np.testing.assert_allclose(sde.sigma(t) / sde.alpha(t), 0.7, rtol=1e-4)
    np.testing.assert_array_equal(factor, 1.0)


# Predictions.


@every_sde
def test_edm_preconditioning_is_of_unit_variance_and_least_amplification(sde: SDE) -> None:
    """For data of variance sigma_data^2: input and target have variance 1 (Karras et al. 2022), and
    the target is uncorrelated with x, so the network predicts only what x does not tell."""
    t, sigma_data = jnp.linspace(0.05, 0.95, 7) * sde.T, 0.7
    alpha, sigma = (np.asarray(v, np.float64) for v in (sde.alpha(t), sde.sigma(t)))
    level = parametrisation.Level(alpha, sigma, sigma_data=sigma_data)
    a, b = parametrisation.PREDICTIONS["edm"](level)
    np.testing.assert_allclose(a**2 * sigma_data**2 + b**2, 1.0, rtol=1e-12)
    np.testing.assert_allclose(a * alpha * sigma_data**2 + b * sigma, 0.0, atol=1e-12 * sigma.max())
    variance = parametrisation.input_std(alpha, sigma, sigma_data) ** 2
    np.testing.assert_allclose(variance, (alpha * sigma_data) ** 2 + sigma**2, rtol=1e-12)
    # x_0 = c_skip y + c_out F for y = x / alpha = x_0 + r noise, as the paper's table 1 has it.
    r = sigma / alpha
    m, n = parametrisation.coefficients(level, "edm", "x0")
    np.testing.assert_allclose(m * alpha, sigma_data**2 / (r**2 + sigma_data**2), rtol=1e-9)
    np.testing.assert_allclose(n, r * sigma_data / np.sqrt(r**2 + sigma_data**2), rtol=1e-9)


@every_sde
def test_networks_that_predict_the_exact_thing_have_the_same_score(sde: SDE) -> None:
    """Data N(m, s^2): E[x_0 | x] and E[noise | x] are known, and so are their combinations."""
    m, s, sigma_data = 0.3, 0.8, 0.6
    t = jnp.linspace(0.1, 0.9, 6) * sde.T

    @jax.jit
    def evaluate() -> Any:
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        variance = (alpha * s) ** 2 + sigma**2
        x = alpha * m + jnp.sqrt(variance) * normal(6, 3)
        centred = (x - alpha * m) / variance
        x0, noise = m + alpha * s**2 * centred, sigma * centred
        fall, rise = (rate[:, None] for rate in sde.rates(t))
        inputs, scores = {}, {}
        for kind, form in parametrisation.PREDICTIONS.items():
            a, b = form(parametrisation.Level(alpha, sigma, fall, rise, sigma_data))

            def network(x: jax.Array, labels: jax.Array, kind=kind, a=a, b=b) -> jax.Array:
                inputs[kind] = x, labels
                return a * x0 + b * noise

            score_fn = models.score_fn(sde, network, True, prediction=kind, sigma_data=sigma_data)
            scores[kind] = sigma * score_fn(x, t)
        return inputs, scores, x, noise, alpha, sigma

    inputs, scores, x, noise, alpha, sigma = evaluate()
    for kind, score in scores.items():
        np.testing.assert_allclose(score, -noise, atol=2e-5 * float((alpha / sigma).max() + 1))
        std = np.sqrt((alpha * sigma_data) ** 2 + sigma**2) if kind == "edm" else 1.0
        np.testing.assert_allclose(inputs[kind][0], x / std, rtol=1e-5)
        np.testing.assert_allclose(inputs[kind][1], models.continuous_labels(sde, t), rtol=1e-6)


# Refusals.


@pytest.mark.parametrize(
    ("sde", "changes", "words"),
    [
        (
            VPSDE(),
            {"training__objective": "csm"},
            "objective 'csm'; known: classifier, clip, consistency, dsm",
        ),
        (
            VPSDE(),
            {"training__weighting": "g"},
            "training.weighting 'g'; known: edm, flow, ",
        ),
        (VPSDE(), {"training__time": "now"}, "training.time 'now'; known: fixed, likelihood"),
        (VPSDE(), {"training__time_draws": "x"}, "training.time_draws 'x'; known: antithetic"),
        (VPSDE(), {"model__prediction": "eps"}, "model.prediction 'eps'; known: edm, flow, noise"),
        (
            VPSDE(),
            {"training__objective": "ssm", "training__directions": "exact"},
            "training.directions 'exact'; known: gaussian, rademacher",
        ),
        (VPSDE(), {"training__time": "likelihood"}, "time 'likelihood' is for .* not 'noise'"),
        (
            VPSDE(),
            {"training__time": "log_normal", "training__likelihood_weighting": True},
            "'uniform' or 'likelihood', not 'log_normal'",
        ),
        (
            VPSDE(),
            {"training__weighting": "x0", "training__likelihood_weighting": True},
            "weighting is 'x0'; it contradicts likelihood_weighting",
        ),
        (VESDE(), {"training__time": "fixed"}, "sigma is 0; .* from 0.01 to 50, those of VESDE"),
        (
            VESDE(),
            {"training__time": "log_normal", "training__log_sigma_mean": -9.0},
            "log_sigma_mean is -9 .* outside of 0.01 to 50",
        ),
        (VPSDE(), {"training__objective": "ism", "data__image_size": 32}, "data of 2048 have more"),
        (
            VESDE(),
            {"model__prediction": "x0", "model__scale_by_sigma": True},
            "scale_by_sigma .* 'x0' needs it False",
        ),
        *(
            (VPSDE(), {"training__continuous": False, f"training__{name}": value}, f"{name} is")
            for name, value in [("objective", "ssm"), ("weighting", "x0"), ("time", "log_normal")]
        ),
        (
            VPSDE(),
            {"training__continuous": False, "model__prediction": "x0"},
            "prediction is 'x0'; with training.continuous=False .* predicts the noise",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    sde: SDE, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        losses.from_config(config(**changes), sde)
    assert "\n" not in str(caught.value)


def test_explicit_score_matching_asks_for_its_points() -> None:
    settings = config(training__objective="esm")
    assert losses.wants_points(settings)
    assert not losses.wants_points(config())
    batch = jnp.zeros((2, 1, 1, 2)), jax.random.split(jax.random.key(0), 2), jnp.zeros(2)
    with pytest.raises(ValueError, match="'esm' needs the training images"):
        losses.from_config(settings, VPSDE())(lambda x, labels: x, *batch)
    with pytest.raises(ValueError, match=r"points are \(5, 2\); x0 \(2, 1, 1, 2\) needs"):
        losses.from_config(settings, VPSDE(), jnp.asarray(POINTS))(lambda x, labels: x, *batch)
