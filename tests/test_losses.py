"""The objectives against closed forms, exact expectations and the original code's numbers."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
from typing import Any, ClassVar

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
from diffusion import training_draws
from diffusion.times import independent, time_draws, uniform_times
from interop import official
from sde_lib import SDE, VESDE, VPSDE, SubVPSDE, batch_mul
from tests import golden_cases
from tests.marks import slow

SDES = [VPSDE(), SubVPSDE(), VESDE()]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
weightings = pytest.mark.parametrize("weighted", [False, True], ids=["sigma2", "g2"])
TIMES: Any = np.array([1e-5, 0.02, 0.3, 0.7, 1.0], np.float32)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def image_keys(count: int) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(count))


@jax.jit
def loss_keys(numbers: jax.Array) -> jax.Array:
    """The keys of the losses of these images, as training makes them."""

    def one(i: jax.Array) -> jax.Array:
        return jax.random.split(jax.random.fold_in(jax.random.key(0), i), 4)[0]

    return jax.vmap(one)(numbers)


def weight(sde: SDE, t: Any, weighted: bool) -> Any:
    """The weight on the squared error of the noise, from the definition of lambda, float64."""
    sigma, g = np.asarray(sde.sigma(t), np.float64), np.asarray(sde.diffusion(t), np.float64)
    return g**2 / sigma**2 if weighted else np.ones_like(sigma)


def weight_by_name(sde: SDE, t: Any, weighted: bool) -> Any:
    """The weight as the code has it."""
    return losses.weight(sde, jnp.asarray(t), "likelihood" if weighted else "noise")


def weighed(
    noise_mse: jax.Array, x0: Any, weight: Any = None, reduce_mean: bool = False
) -> losses.Losses:
    """The loss of an objective on images x0, with its part `noise_mse`."""
    return losses.weighted(noise_mse, math.prod(x0.shape[1:]), weight, reduce_mean)


# Continuous denoising score matching.


@every_sde
@weightings
@pytest.mark.parametrize("reduce_mean", [False, True], ids=["sum", "mean"])
def test_dsm_of_a_multiple_of_the_target(sde: SDE, weighted: bool, reduce_mean: bool) -> None:
    """s = c grad log p(x_t | x_0) leaves the fraction (1 - c)^2 of the loss that s = 0 has."""
    x0, z = normal(5, 3, 2), normal(5, 3, 2, seed=1)
    share = 0.3
    alpha, sigma = sde.alpha(TIMES), sde.sigma(TIMES)

    def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        np.testing.assert_array_equal(t, TIMES)
        expected = alpha[:, None, None] * x0 + sigma[:, None, None] * z
        np.testing.assert_allclose(x, expected, rtol=1e-5)
        return batch_mul(-share / sigma, z)

    lam = weight_by_name(sde, TIMES, weighted)
    loss, parts = weighed(losses.dsm(sde, score_fn, x0, TIMES, z), x0, lam, reduce_mean)
    mse = (1 - share) ** 2 * np.mean(np.square(z, dtype=np.float64), axis=(1, 2))
    np.testing.assert_allclose(parts["noise_mse"], mse, rtol=1e-5)
    size = 1.0 if reduce_mean else 0.5 * 6
    np.testing.assert_allclose(loss, size * mse * weight(sde, TIMES, weighted), rtol=1e-5)


@every_sde
@weightings
def test_dsm_is_the_fisher_divergence_plus_a_constant(sde: SDE, weighted: bool) -> None:
    """Vincent 2011, eq. 11, by exact expectations over x_0 in {-1, 2} and z (Gauss-Hermite).

    The constant is what the true score is left with: lambda / 2 (E |target|^2 - E |score|^2).
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    probability = np.array([0.3, 0.7])
    x0: Any = np.repeat(np.array([-1.0, 2.0], np.float32), 120)[:, None]
    z: Any = np.tile(nodes.astype(np.float32), 2)[:, None]
    mass = np.outer(probability, weights / weights.sum()).ravel()
    for t in (0.02, 0.1, 0.3, 0.7):
        times: Any = np.full(len(x0), t, np.float32)
        alpha, sigma = float(sde.alpha(times)[0]), float(sde.sigma(times)[0])
        means = alpha * np.array([-1.0, 2.0])

        def true_score(x: Any, t: Any, means=means, sigma=sigma) -> Any:
            log_odds = jnp.log(probability) - 0.5 * ((x - means) / sigma) ** 2
            return ((means - x) / sigma**2 * jax.nn.softmax(log_odds, 1)).sum(1, keepdims=True)

        candidates = {
            "true": true_score,
            "zero": lambda x, t: jnp.zeros_like(x),
            "scaled": lambda x, t: 0.8 * true_score(x, t),
            "shifted": lambda x, t: true_score(x, t) + batch_mul(1 / sde.sigma(t), jnp.cos(x)),
        }
        x = alpha * x0 + sigma * z
        factor = 0.5 * weight(sde, times, weighted)[0] * sigma**2
        gaps = []
        for score_fn in candidates.values():
            lam = weight_by_name(sde, times, weighted)
            loss, _ = weighed(losses.dsm(sde, score_fn, x0, times, z), x0, lam)
            dsm = mass @ np.asarray(loss, np.float64)
            difference = np.asarray(score_fn(x, times) - true_score(x, times), np.float64)
            gaps.append(dsm - factor * (mass @ difference[:, 0] ** 2))
        score_norm = mass @ np.asarray(true_score(x, times), np.float64)[:, 0] ** 2
        constant = factor * (1.0 / sigma**2 - score_norm)
        np.testing.assert_allclose(gaps, constant, rtol=1e-4, atol=2e-5 * factor / sigma**2)


@every_sde
@weightings
def test_the_true_score_minimises_dsm(sde: SDE, weighted: bool) -> None:
    """The gradient with respect to a perturbation is 0 within its Monte-Carlo error there only."""
    count, mu, std = 20000, 1.0, 0.6
    x0 = mu + std * normal(count, 2, seed=3)

    @jax.jit
    def each_slope(scale: jax.Array) -> jax.Array:
        """d loss / d epsilon of the score `scale * true + epsilon h`."""

        def loss(epsilon: jax.Array) -> jax.Array:
            def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
                alpha, sigma = sde.alpha(t), sde.sigma(t)
                variance = (std * alpha) ** 2 + sigma**2
                centred = x - (alpha * mu)[:, None]
                true = batch_mul(-1 / variance, centred)
                unit = 1 / jnp.sqrt(variance)
                h = batch_mul((1 + t) * unit, jnp.sin(batch_mul(unit, centred)))
                return scale * true + epsilon * h

            u = independent(jax.random.key(0), jnp.arange(count), count)
            t, z = uniform_times(sde, u)[0], normal(count, 2, seed=4)
            noise_mse = losses.dsm(sde, score_fn, x0, t, z)
            return weighed(noise_mse, x0, weight_by_name(sde, t, weighted))[0]

        return jax.jvp(loss, (jnp.zeros(()),), (jnp.ones(()),))[1]

    def gradient(scale: float) -> tuple[float, float]:
        """The mean of the slopes, and its error."""
        slopes = np.asarray(each_slope(np.float32(scale)), np.float64)
        return slopes.mean(), slopes.std() / np.sqrt(count)

    value, error = gradient(1.0)
    assert abs(value) < 4 * error
    value, error = gradient(0.7)
    assert abs(value) > 4 * error


@dataclasses.dataclass(frozen=True)
class LateVPSDE(VPSDE):
    """A VP that trains from t = 0.2 on."""

    training_eps: ClassVar[float] = 0.2


@pytest.mark.parametrize("sde", [LateVPSDE(), *slow(VESDE())], ids=lambda sde: type(sde).__name__)
def test_draws_are_uniform_in_time_normal_and_one_per_image(sde: SDE) -> None:
    @jax.jit
    def draw(numbers: jax.Array) -> Any:
        seen = []

        def network(x: jax.Array, labels: jax.Array) -> jax.Array:
            t = (
                sde.time_of_log_snr(-2 * jnp.log(labels))
                if sde.variance_exploding
                else labels / 999
            )
            seen.append((t, batch_mul(1 / sde.sigma(t), x)))
            return x

        u = time_draws("independent", jax.random.key(0), numbers, 4000)
        keys = loss_keys(numbers)
        by_key = jax.vmap(lambda key: jax.random.uniform(jax.random.split(key)[0]))(keys)
        losses.from_config(config(True), sde)(network, jnp.zeros((len(keys), 3, 2)), keys, u)
        return *seen[0], u, by_key

    t, z, u, by_key = map(np.asarray, draw(jnp.arange(4000)))
    np.testing.assert_array_equal(u, by_key)
    start = sde.training_eps
    assert start == (0.2 if isinstance(sde, LateVPSDE) else 1e-5)
    assert t.min() >= start * (1 - 1e-6)
    assert scipy.stats.kstest(t, scipy.stats.uniform(start, 1 - start).cdf).pvalue > 0.01
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(np.column_stack([t, z.reshape(4000, 6)]).T) - np.eye(7)).max() < 0.07
    some = np.array([7, 5, 3999])
    for together, alone in zip((t, z), draw(jnp.asarray(some))[:2], strict=True):
        np.testing.assert_allclose(together[some], alone, rtol=1e-5)


# Discrete objectives.


def test_ddpm_error_is_against_the_noise_itself() -> None:
    """With the identity as network the error is x - z, x from the product of (1 - beta)."""
    sde, labels = VPSDE(N=100), jnp.array([0, 1, 50, 99])
    x0, z = normal(4, 3, 2), normal(4, 3, 2, seed=1)
    cumprod = np.cumprod(1 - np.linspace(0.1, 20, 100) / 100)[np.asarray(labels)][:, None, None]
    x = np.sqrt(cumprod) * x0 + np.sqrt(1 - cumprod) * z

    def network(inputs: jax.Array, steps: jax.Array) -> jax.Array:
        np.testing.assert_array_equal(steps, labels)
        return inputs

    noise_mse = losses.ddpm(sde, network, x0, labels, z)
    loss, parts = weighed(noise_mse, x0, reduce_mean=True)
    np.testing.assert_allclose(loss, np.mean((x - z) ** 2, (1, 2)), rtol=1e-4)
    np.testing.assert_array_equal(parts["noise_mse"], loss)
    half_the_sum, _ = weighed(noise_mse, x0)
    np.testing.assert_allclose(half_the_sum, 0.5 * 6 * np.asarray(loss), rtol=1e-6)


def test_ddpm_equals_dsm_as_the_number_of_steps_grows() -> None:
    """At first order in 1/N: N labels are a quadrature of the integral of beta."""
    x0, z = normal(3, 4), normal(3, 4, seed=1)
    steps, errors = [100, 200, 400], []
    for n in steps:
        sde = VPSDE(N=n)
        labels = jnp.array([n // 10, n // 2, n - 1])
        t = (labels + 1) / n

        def noise(x: jax.Array, labels: jax.Array, sde=sde) -> jax.Array:
            return jnp.tanh(x)

        discrete, _ = weighed(losses.ddpm(sde, noise, x0, labels, z), x0)
        score_fn = models.score_fn(sde, noise, continuous=True)
        continuous, _ = weighed(losses.dsm(sde, score_fn, x0, t, z), x0)
        errors.append(float(jnp.abs(discrete - continuous).max()))
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("reduce_mean", [False, True], ids=["sum", "mean"])
def test_smld_is_dsm_at_its_levels_from_the_largest_down(reduce_mean: bool) -> None:
    sde = VESDE(N=50)
    x0, z = normal(4, 3, 2), normal(4, 3, 2, seed=1)
    labels = jnp.array([0, 10, 30, 49])

    def score_fn(x: jax.Array, _: jax.Array) -> jax.Array:
        return -x / (1.0 + x**2)

    error = losses.smld(sde, score_fn, x0, labels, z)
    discrete, parts = weighed(error, x0, reduce_mean=reduce_mean)
    error = losses.dsm(sde, score_fn, x0, (49 - labels) / 49, z)
    continuous, _ = weighed(error, x0, reduce_mean=reduce_mean)
    np.testing.assert_allclose(discrete, continuous, rtol=1e-4)
    np.testing.assert_allclose(discrete, parts["noise_mse"] * (1 if reduce_mean else 3), rtol=1e-6)


@pytest.mark.parametrize(
    "kind", ["independent", pytest.param("stratified", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("sde", [VPSDE(N=25), VESDE(N=25)], ids=lambda sde: type(sde).__name__)
def test_discrete_labels_are_uniform_and_one_per_image(sde: Any, kind: str) -> None:
    @jax.jit
    def draw(numbers: jax.Array) -> Any:
        seen = []

        def network(x: jax.Array, labels: jax.Array) -> jax.Array:
            seen.append((labels, x))
            return x

        u = time_draws(kind, jax.random.key(0), numbers, 5000)
        keys = loss_keys(numbers)
        loss = losses.from_config(config(False, training__time_draws=kind), sde)
        loss(network, jnp.zeros((len(keys), 2)), keys, u)
        return seen[0]

    labels, x = map(np.asarray, draw(jnp.arange(5000)))
    counts = np.bincount(labels, minlength=25)
    assert len(counts) == 25
    if kind == "stratified":
        assert np.ptp(counts) <= 1
    else:
        assert scipy.stats.chisquare(counts).pvalue > 0.01
    levels = sde.discrete_sigmas[::-1] if isinstance(sde, VESDE) else sde.sqrt_1m_alphas_cumprod
    z = x / np.asarray(levels)[labels][:, None]
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 0.01
    some = np.array([9, 4])
    for together, alone in zip((labels, x), draw(jnp.asarray(some)), strict=True):
        np.testing.assert_allclose(together[some], alone, rtol=1e-6)


# The seam to configs.


def config(
    continuous: bool, reduce_mean: bool = False, weighted: bool = False, **changes: Any
) -> ConfigDict:
    """The schema's defaults with these changes, `section__field=value`."""
    settings = schema.base()
    settings.training.continuous, settings.training.reduce_mean = continuous, reduce_mean
    settings.training.likelihood_weighting = weighted
    settings.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return settings


def network(x: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.tanh(x) + 0.001 * batch_mul(labels.astype(jnp.float32), jnp.ones_like(x))


@jax.jit
def draws_of_keys(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The noise and the label that a loss draws by the key of an image."""
    by_image = [jax.random.split(key) for key in keys]
    z = jnp.stack([jax.random.normal(key, (4, 4, 1)) for _, key in by_image])
    return z, jnp.stack([jax.random.randint(key, (), 0, 50) for key, _ in by_image])


@every_sde
@weightings
@pytest.mark.parametrize(
    "reduce_mean",
    [pytest.param(False, id="sum"), pytest.param(True, id="mean", marks=pytest.mark.slow)],
)
def test_from_config_continuous(sde: SDE, weighted: bool, reduce_mean: bool) -> None:
    x0, keys, u = normal(3, 4, 4, 1), image_keys(3), np.array([0.0, 0.3, 0.9], np.float32)
    loss = losses.from_config(config(True, reduce_mean, weighted), sde)
    ours, parts = jax.jit(loss, static_argnums=0)(network, x0, keys, u)
    score_fn = models.score_fn(sde, network, continuous=True)
    t: Any = np.float32(1e-5) + np.float32(1 - 1e-5) * u
    z, _ = draws_of_keys(keys)
    lam = weight_by_name(sde, t, weighted)
    expected, _ = weighed(losses.dsm(sde, score_fn, x0, t, z), x0, lam, reduce_mean)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert ours.shape == parts["noise_mse"].shape == (3,)


@pytest.mark.parametrize("sde", [VPSDE(N=50), VESDE(N=50)], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("reduce_mean", [False, True], ids=["sum", "mean"])
def test_from_config_discrete(sde: Any, reduce_mean: bool) -> None:
    """Independent labels are integers' own draws; others are u cut into N parts."""
    x0, keys, u = normal(3, 4, 4, 1), image_keys(3), np.array([0.0, 0.3, 0.9], np.float32)
    objective: Any = losses.smld if isinstance(sde, VESDE) else losses.ddpm
    z, labels = draws_of_keys(keys)
    computed = functools.partial(jax.jit, static_argnums=0)
    ours, _ = computed(losses.from_config(config(False, reduce_mean), sde))(network, x0, keys, u)
    expected, _ = weighed(objective(sde, network, x0, labels, z), x0, reduce_mean=reduce_mean)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    paired = config(False, reduce_mean, training__time_draws="antithetic")
    ours, parts = computed(losses.from_config(paired, sde))(network, x0, keys, u)
    labels = np.array([0, 15, 45])
    np.testing.assert_array_equal(models.discrete_labels(sde, parts["t"]), labels)
    expected, _ = weighed(objective(sde, network, x0, labels, z), x0, reduce_mean=reduce_mean)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.from_config(config(False), SubVPSDE()), "continuous is False.*SubVPSDE"),
        (lambda: losses.from_config(config(False, weighted=True), VPSDE()), "likelihood_weighting"),
        (lambda: losses.from_config(config(False, weighted=True), VESDE()), "likelihood_weighting"),
        (lambda: losses.from_config(config(False), VPSDE(N=10)), "use N >= 21"),
    ],
)
def test_refusals_are_one_clear_line(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_continuous_vp_needs_no_discrete_betas() -> None:
    objective = losses.from_config(config(True), VPSDE(N=10))
    loss, _ = objective(network, normal(2, 3), image_keys(2), jnp.array([0.1, 0.9]))
    assert np.isfinite(np.asarray(loss)).all()


# Numbers from the original code.

F_LOSSES = golden_cases.about("math", "losses")
TAG = re.compile(
    r"(?P<by>sde_|net_)?(?P<kind>vp|subvp|ve|ddpm|smld)(?P<rest>_.*)?"
    r"_rm(?P<rm>[01])(_lw(?P<lw>[01]))?"
)


# Networks whose losses differ from another one's only in what analytic models already test.
ALSO_AS_ANALYTIC = ("net_smld", "net_subvp")


def tags(by_network: bool) -> list[Any]:
    """Every loss of every file, computed with a network or with an analytic model."""
    cases = []
    for path in F_LOSSES:
        for key in sorted(golden_cases.load(path)):
            match = TAG.fullmatch(key)
            if match and (match["by"] == "net_") == by_network:
                marks = pytest.mark.slow if key.startswith(ALSO_AS_ANALYTIC) else ()
                cases.append(pytest.param(path, key, id=f"{path.stem}-{key}", marks=marks))
    return cases


@pytest.mark.golden
@pytest.mark.parametrize("path", F_LOSSES, ids=lambda path: path.stem)
def test_every_stored_loss_is_recognised(path: pathlib.Path) -> None:
    stored = [key for key in golden_cases.load(path) if re.search(r"_rm[01]", key)]
    assert stored
    assert not [key for key in stored if not TAG.fullmatch(key)]


def golden_sde(stored: dict[str, Any], kind: str) -> Any:
    meta = stored.get("meta_json", {})
    N = int(meta.get("N", 1000))
    if kind in ("ve", "smld"):
        return VESDE(N, *meta.get("sigma", [0.01, 50.0]))
    return (SubVPSDE if kind == "subvp" else VPSDE)(N, *meta.get("beta", [0.1, 20.0]))


def analytic_model(sde: SDE, labelled_by_index: bool, mix: float) -> losses.Network:
    """The closed-form network of the golden files, in NHWC."""

    def model(x: jax.Array, labels: jax.Array) -> jax.Array:
        shifted = mix * jnp.tanh(jnp.roll(x, 1, axis=-2))
        if isinstance(sde, VESDE):
            sigma = sde.discrete_sigmas[::-1][labels] if labelled_by_index else labels
            variance = 0.25 + sigma**2
            return batch_mul(-1 / variance, x) + batch_mul(1 / jnp.sqrt(variance), shifted)
        return batch_mul(1 / (1 + labels / 999), x) + shifted

    return model


def golden_loss(
    stored: dict[str, Any], key: str, network: losses.Network, batch: str, draw: str, z: str
) -> jax.Array:
    """The loss of one tag with its stored draws: the mean over images."""
    match = TAG.fullmatch(key)
    assert match
    kind, rest = match["kind"], match["rest"] or ""
    reduce_mean, weighted = match["rm"] == "1", match["lw"] == "1"
    sde = golden_sde(stored, kind)
    x0 = jnp.asarray(golden_cases.nhwc(stored[batch]))
    noise = jnp.asarray(golden_cases.nhwc(stored[z]))
    if kind in ("ddpm", "smld"):
        objective: Any = {"ddpm": losses.ddpm, "smld": losses.smld}[kind]
        error = objective(sde, network, x0, stored[draw], noise)
        return jnp.mean(weighed(error, x0, reduce_mean=reduce_mean)[0])
    t = jnp.asarray(stored[draw] * np.float32(1 - 1e-5) + np.float32(1e-5))
    continuous = "continuousFalse" not in rest
    score_fn = models.score_fn(sde, network, continuous, official_labels=not continuous)
    lam = weight_by_name(sde, t, weighted)
    error = losses.dsm(sde, score_fn, x0, t, noise)
    return jnp.mean(weighed(error, x0, lam, reduce_mean)[0])


@functools.cache
def analytic_losses(path: pathlib.Path) -> dict[str, Any]:
    """The losses of a file's tags with analytic models, by one program."""
    stored = golden_cases.load(path)
    mix = float(stored.get("meta_json", {}).get("mix", 0.2))

    def loss(key: str, match: re.Match[str]) -> jax.Array:
        kind = match["kind"]
        model = analytic_model(golden_sde(stored, kind), kind == "smld", mix)
        discrete = kind in ("ddpm", "smld")
        draw, z = (f"{kind}_labels", f"{kind}_z") if discrete else ("sde_u", "sde_z")
        return golden_loss(stored, key, model, "batch", draw, z)

    matches = {key: TAG.fullmatch(key) for key in stored}
    found = {key: match for key, match in matches.items() if match and match["by"] != "net_"}
    return jax.device_get(jax.jit(lambda: {key: loss(key, m) for key, m in found.items()})())


@pytest.mark.golden
@pytest.mark.parametrize(("path", "key"), tags(by_network=False))
def test_analytic_models_have_the_original_losses(path: pathlib.Path, key: str) -> None:
    stored = golden_cases.load(path)
    np.testing.assert_allclose(analytic_losses(path)[key], stored[key], rtol=1e-5)


@functools.cache
def golden_network(weights: str) -> tuple[Any, Any]:
    """The network of a file of networks/ as `(params, x, labels) -> out`, and its parameters."""
    try:
        path = golden_cases.network_file(weights)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    stored = golden_cases.load(path)
    module: Any = models.from_config(golden_cases.config(stored["config_json"]))
    state_dict = {k.removeprefix("sd/"): v for k, v in stored.items() if k.startswith("sd/")}
    shape = golden_cases.nhwc(stored["x"]).shape[1:]
    params = official.params_from_torch(module, state_dict, shape)
    return jax.jit(lambda params, x, labels: module.apply({"params": params}, x, labels)), params


def network_loss(stored: dict[str, Any], key: str, params: Any) -> jax.Array:
    case = key.rpartition("_rm")[0]
    apply, _ = golden_network(stored["meta_json"][f"{case}_weights"])
    network = functools.partial(apply, params)
    return golden_loss(stored, key, network, "net_batch", f"{case}_draw", f"{case}_z")


@pytest.mark.golden
@pytest.mark.parametrize(("path", "key"), tags(by_network=True))
def test_networks_have_the_original_losses(path: pathlib.Path, key: str) -> None:
    stored = golden_cases.load(path)
    _, params = golden_network(stored["meta_json"][f"{key.rpartition('_rm')[0]}_weights"])
    np.testing.assert_allclose(network_loss(stored, key, params), stored[key], rtol=1e-5)


GRADIENT_NORM = "_gradnorm_global"


@pytest.mark.golden
@pytest.mark.parametrize(
    ("path", "key"),
    [
        pytest.param(
            path,
            key.removesuffix(GRADIENT_NORM),
            id=f"{path.stem}-{key}",
            marks=pytest.mark.slow,
        )
        for path in F_LOSSES
        for key in golden_cases.load(path).get("meta_json", {})
        if key.endswith(GRADIENT_NORM)
    ],
)
def test_networks_have_the_original_gradient_norms(path: pathlib.Path, key: str) -> None:
    stored = golden_cases.load(path)
    _, params = golden_network(stored["meta_json"][f"{key.rpartition('_rm')[0]}_weights"])
    gradients = jax.jit(jax.grad(lambda params: network_loss(stored, key, params)))(params)
    golden = stored["meta_json"][key + GRADIENT_NORM]
    np.testing.assert_allclose(optax.tree.norm(gradients), golden, rtol=1e-4)


def test_parts_of_a_key_are_those_of_its_splits_and_all_apart() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    parts = [training_draws.part_of(keys, part) for part in range(4)]
    words = np.array([jax.random.key_data(part) for part in parts]).reshape(8, -1)
    assert len(np.unique(words, axis=0)) == 8
    for number, part in enumerate(parts):
        first = jax.random.split(keys[0], max(number + 1, 2))[number]
        assert (jax.random.key_data(part[0]) == jax.random.key_data(first)).all()
