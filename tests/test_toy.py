"""Points of the plane: every objective finds the score of a mixture, and the loops serve them.

The relative Fisher error of a trained score s is E |s - s*|^2 / E |s*|^2, with s* the score of p_t,
the mixture diffused to time t, in closed form, and both means over x_t ~ p_t at the times that the
objective trains: the N levels of SMLD and DDPM, the one level of `mixture_dsm_sigma`, log-normal
noise for EDM, and uniform t in [training_eps, T] for all others. (Importance-sampled times belong
to an integral over uniform ones; explicit score matching has the estimate from a kernel density for
its target, and is measured against the mixture all the same.)
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import data
import models
from data import transforms
from data.toy import GaussianMixture
from diffusion import times
from evaluation import evaluate
from evaluation.metrics.sliced import sliced_wasserstein
from generation import examples, point_figures, sample, score_field
from runtime import devices, experiment
from runtime.workdir import restore
from sde_lib import SDE, VESDE, VariancePreservingSDE
from tests import tiny
from tests.gaussians import Mixture
from tests.test_training import use_devices
from training import loop, optimizers
from training.objective import objective_from_config
from training.state import new_state
from training.step import step_from_config

ROOT = pathlib.Path(__file__).parent.parent
NAMES = [
    f"{family}/{path.stem}"
    for family in ("toy", "digits")
    for path in sorted((ROOT / "configs" / family).glob("*.py"))
]
CLASSIFIERS = ("toy/mixture_classifier", "digits/classifier")
MIXTURES = [n for n in NAMES if n.startswith("toy/mixture_") and n not in CLASSIFIERS]
SETS = ("mixture", "two_moons", "checkerboard", "swiss_roll")

MIXTURE = Mixture(
    jnp.array(GaussianMixture.WEIGHTS),
    jnp.array(GaussianMixture.MEANS).reshape(-1, 1, 1, 2),
    jnp.array(GaussianMixture.STDS).reshape(-1, 1, 1, 2),
)


def load(name: str, **changes: Any) -> ConfigDict:
    config = importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """Times [n] with their alpha and sigma; as an SDE, its time i is the i-th of them."""

    t: jax.Array
    alphas: jax.Array
    sigmas: jax.Array

    def alpha(self, i: jax.Array) -> jax.Array:
        return self.alphas[i]

    def sigma(self, i: jax.Array) -> jax.Array:
        return self.sigmas[i]


def trained_levels(config: ConfigDict, sde: SDE, n: int) -> Levels:
    """n times at which the config's objective trains, evenly spread over their distribution."""
    u = (jnp.arange(n) + 0.5) / n
    if config.training.continuous:
        if config.training.time == "likelihood":
            t, _ = times.uniform_times(sde, u)
        else:
            t, _ = times.times_from_config(config, sde)(u)
        return Levels(t, sde.alpha(t), sde.sigma(t))
    i = jnp.floor(u * sde.N).astype(jnp.int32)
    t = i * (sde.T / (sde.N - 1))
    if isinstance(sde, VESDE):
        return Levels(t, jnp.ones(n), sde.discrete_sigmas[i])
    assert isinstance(sde, VariancePreservingSDE)
    return Levels(t, sde.sqrt_alphas_cumprod[i], sde.sqrt_1m_alphas_cumprod[i])


def squares(config: ConfigDict, workdir: pathlib.Path, n: int = 20_000) -> Any:
    """|s - s*|^2 and |s*|^2 [n] of the run's EMA weights, and the noise levels sigma [n]."""
    parts = experiment.build(config)
    params = devices.fetch(restore(config, parts, workdir).params)
    levels = trained_levels(config, parts.sde, n)
    data_key, noise_key = jax.random.split(jax.random.key(1))

    @jax.jit
    def scores(params: Any) -> tuple[jax.Array, jax.Array]:
        x0, z = MIXTURE.sample(data_key, n), jax.random.normal(noise_key, (n, 1, 1, 2))
        alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in (levels.alphas, levels.sigmas))
        x = alpha * x0 + sigma * z
        true = MIXTURE.score_fn(levels)(x, jnp.arange(n))  # type: ignore[arg-type]
        return parts.score(params)(x, levels.t), true

    score, true = (np.asarray(array) for array in scores(params))
    return *(np.sum(np.square(a), (1, 2, 3)) for a in (score - true, true)), levels.sigmas


def relative_fisher_error(config: ConfigDict, workdir: pathlib.Path) -> float:
    error, true, _ = squares(config, workdir)
    return float(error.mean() / true.mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_every_objective_finds_the_score(
    name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(name)
    loop.train(config, tmp_path)
    error = relative_fisher_error(config, tmp_path)
    with capsys.disabled():
        print(f"\n{name}: relative Fisher error {100 * error:.2f} %")
    assert error < 0.05


@pytest.mark.slow
def test_the_classifier_finds_the_posterior(tmp_path: pathlib.Path) -> None:
    """The mean relative entropy to p_t(y | x) is below 1 % of what the class itself has."""
    config = load("toy/mixture_classifier")
    loop.train(config, tmp_path)
    parts, n = experiment.build(config), 20_000
    params = devices.fetch(restore(config, parts, tmp_path).params)
    t, _ = times.uniform_times(parts.sde, (jnp.arange(n) + 0.5) / n)
    x0, z = MIXTURE.sample(jax.random.key(1), n), jax.random.normal(jax.random.key(2), (n, 1, 1, 2))
    mean, std = parts.sde.marginal_prob(x0, t)
    x = mean + std[:, None, None, None] * z
    network = functools.partial(parts.module.apply, {"params": params})
    log_prob = models.class_log_prob(parts.sde, network)(x, t)
    exact = jax.nn.log_softmax(jax.vmap(functools.partial(MIXTURE._log_parts, parts.sde))(x, t))
    weights = jnp.array(GaussianMixture.WEIGHTS)
    entropy = -jnp.sum(weights * jnp.log(weights))
    assert jnp.mean(jnp.sum(jnp.exp(exact) * (exact - log_prob), 1)) < 0.01 * entropy


def test_score_matching_finds_the_score_in_seconds(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same by a smaller network in fewer steps, of the objective that learns fastest."""
    use_devices(monkeypatch, 1)
    config = load(
        "toy/mixture_dsm_sigma",
        training__n_iters=1500,
        training__eval_freq=1500,
        training__batch_size=256,
        optim__decay_steps=1500,
        model__nf=32,
        model__num_res_blocks=1,
        eval__batch_size=500,
        sampling__num_samples=100,
        sampling__batch_size=100,
    )
    loop.train(config, tmp_path)
    error, true, _ = squares(config, tmp_path, 2000)
    assert error.mean() / true.mean() < 0.05


# --- data ---


@pytest.mark.parametrize(
    ("name", "train_mark", "test_mark"),
    [
        ("mixture", "e4d2e14b", "7dc18d11"),
        ("two_moons", "bd60c4a4", "69baed5b"),
        ("checkerboard", "8e4c8418", "0f088b86"),
        ("swiss_roll", "e2826bb5", "9bc568f9"),
    ],
)
def test_sets_of_points_are_fixed(name: str, train_mark: str, test_mark: str) -> None:
    whole = data.load(name, "train", image_size=1, num_channels=2)
    held_out = data.load(name, "test")
    assert whole.fingerprint == f"{name}/train/50000/{train_mark}"
    assert held_out.fingerprint == f"{name}/test/10000/{test_mark}"
    assert whole.images.shape == (50_000, 1, 1, 2)
    assert (whole.images.dtype, whole.labels.dtype) == (np.float32, np.int32)
    assert (whole.levels, whole.image_shape) == (0, (1, 1, 2))
    assert np.abs(whole.images.mean((0, 1, 2))).max() < 0.3
    assert 0.6 < whole.images.std((0, 1, 2)).min() <= whole.images.std((0, 1, 2)).max() < 1.2
    shares = np.bincount(whole.labels, minlength=whole.num_classes) / len(whole)
    expected = GaussianMixture.WEIGHTS if name == "mixture" else 1.0 / whole.num_classes
    np.testing.assert_allclose(shares, expected, atol=0.01)


def test_the_mixture_is_what_its_constants_say() -> None:
    whole = data.load("mixture", "train")
    for k in range(4):
        points = whole.images[whole.labels == k].reshape(-1, 2)
        mean, std = (np.array(a)[k] for a in (GaussianMixture.MEANS, GaussianMixture.STDS))
        np.testing.assert_allclose(points.mean(0), mean, atol=4 * std.max() / 100)
        np.testing.assert_allclose(np.cov(points.T), np.diag(std**2), atol=0.01)
        # Third and fourth moments, which no other distribution of these would share.
        z = (points - mean) / std
        np.testing.assert_allclose((z**3).mean(0), 0.0, atol=0.1)
        np.testing.assert_allclose((z**4).mean(0), 3.0, atol=0.2)


def test_the_other_sets_have_their_shapes() -> None:
    moons, board, roll = (data.load(name, "test") for name in SETS[1:])
    x, y = board.images.reshape(-1, 2).T
    assert ((np.floor(x) + np.floor(y)) % 2 == 0).all()
    assert (np.floor(y) + 2 == board.labels).all()
    for k, centre in enumerate([(-0.65, -0.325), (0.65, 0.325)]):
        radius = np.linalg.norm(moons.images[moons.labels == k].reshape(-1, 2) - centre, axis=1)
        assert abs(radius.mean() - 1.3) < 0.01
        assert abs(radius.std() - 0.08) < 0.005
    radius = np.linalg.norm(roll.images.reshape(-1, 2), axis=1)
    means = [radius[roll.labels == k].mean() for k in range(3)]
    np.testing.assert_allclose(means, 1.8 * np.array([8, 12, 16]) / 18, atol=0.02)


def test_points_reach_the_network_as_they_are() -> None:
    x = np.array([[-3.7, 0.0, 12.25]], np.float32)
    np.testing.assert_array_equal(transforms.scale(x, 0, True), x)
    np.testing.assert_array_equal(transforms.inverse_scale(x, 0, True), x)
    with pytest.raises(ValueError, match="points have no grey levels"):
        transforms.uniform_dequantize(x, jax.random.split(jax.random.key(0), 1), 0)


@pytest.mark.parametrize("option", ["random_flip", "uniform_dequantization"])
def test_what_only_images_have_is_refused(option: str) -> None:
    config = load("toy/mixture_dsm_vp")
    config.data[option] = True
    with pytest.raises(ValueError, match=rf"^config.data.{option} is True, but mixture[^\n]*$"):
        experiment.build(config)


# --- configs ---


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("toy/")])
def test_every_config_trains(name: str) -> None:
    """One step is traced, of a network of one block for brevity."""
    config = load(name, model__num_res_blocks=1)
    dataset = data.from_config(config, "train")
    parts = experiment.build(config)
    objective = objective_from_config(config, parts, dataset)
    optimizer = optimizers.from_config(config)
    state = jax.eval_shape(
        functools.partial(new_state, parts.module, optimizer, 0, parts.image_shape)
    )
    shape = (1, 1, config.training.batch_size)  # devices, steps, batch
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, *parts.image_shape), dataset.images.dtype),
        "label": jax.ShapeDtypeStruct(shape, jnp.int32),
    }
    step = step_from_config(config, objective, optimizer)
    on_device = jax.vmap(step, axis_name=devices.AXIS, in_axes=(None, 0))
    after, metrics = jax.eval_shape(on_device, state, batch)
    assert metrics["loss"].shape == (1, 1)
    same = jax.tree.map(lambda a, b: a.shape[1:] == b.shape, after, state)
    assert all(jax.tree.leaves(same))
    if name not in CLASSIFIERS:
        tiny.generator(config, parts)  # its sampler suits its network


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if name.startswith("digits/") and name not in CLASSIFIERS],
)
def test_every_config_of_digits_has_a_loss(name: str) -> None:
    """It is traced without a network: that of the quickstart is traced elsewhere."""
    config = load(name)
    parts = experiment.build(config)
    objective = objective_from_config(config, parts, data.load("digits", "train"))
    objective = dataclasses.replace(objective, apply=lambda _, x, labels, **conditions: x)
    count = config.training.batch_size
    loss, _ = jax.eval_shape(
        functools.partial(objective, {}, total=count, train=True, flip=False),
        jax.ShapeDtypeStruct((count, 8, 8, 1), jnp.uint8),
        jax.ShapeDtypeStruct((count,), jnp.int32),
        jax.random.key(0),
        jnp.arange(count),
    )
    assert loss.shape == (count,)
    tiny.generator(config, parts)


def test_every_set_of_points_is_used_and_every_objective_meets_the_mixture() -> None:
    configs = [load(name) for name in NAMES if name.startswith("toy/")]
    assert {config.data.dataset for config in configs} == set(SETS)
    mixtures = [load(name).training for name in MIXTURES]
    assert {training.objective for training in mixtures} == {"dsm", "esm", "ism", "ssm", "ssm_vr"}
    flows = [load(f"flow/{name}").training for name in ("mixture_interpolant", "two_moons_coupled")]
    assert {training.time for training in [*mixtures, *flows]} == set(times.TIMES)


# --- the network ---


def network(**changes: Any) -> Any:
    """An MLP with random weights, without the time that compiling its own initialiser takes."""
    fields = {"nf": 8, "num_res_blocks": 1, "embedding_type": "fourier", **changes}
    module = models.MLP(**fields)
    shapes = jax.eval_shape(lambda key: models.init(module, key, (1, 1, 2)), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype("f4"), shapes)
    return functools.partial(module.apply, {"params": params})


def test_the_network_has_the_derivatives_that_objectives_want() -> None:
    apply = network()

    def divergence(x: jax.Array) -> jax.Array:
        jacobian = jax.jacfwd(lambda x: apply(x.reshape(1, 1, 1, 2), jnp.ones(1)).ravel())(x)
        return jnp.trace(jacobian)

    x, v, h = jnp.array([0.3, -0.2]), jnp.array([0.6, 0.8]), 1e-2
    along = jax.jit(lambda x: (divergence(x), jax.grad(divergence)(x) @ v))
    slope = along(x)[1]
    assert abs(slope) > 1e-3
    difference = (along(x + h * v)[0] - along(x - h * v)[0]) / (2 * h)
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


def test_the_network_is_told_noise_level_and_class() -> None:
    x, labels = jnp.ones((2, 1, 1, 2)), jnp.array([0.1, 5.0])
    apply = network(num_labels=3)
    of_class = apply(x, labels, y=jnp.array([0, 0]))
    assert of_class.shape == x.shape
    assert np.abs(of_class[0] - of_class[1]).max() > 1e-4
    assert np.abs(of_class - apply(x, labels, y=jnp.array([2, 2]))).max() > 1e-4
    np.testing.assert_array_equal(apply(x, labels), apply(x, labels, y=jnp.array([3, 3])))
    unaware = network(conditional=False)(x, labels)
    np.testing.assert_array_equal(unaware[0], unaware[1])
    divided = network(conditional=False, scale_by_sigma=True)(x, labels)
    np.testing.assert_allclose(divided * labels.reshape(-1, 1, 1, 1), unaware, rtol=1e-6)
    keys = jax.random.split(jax.random.key(2), 2)
    dropped = network(conditional=False, dropout=0.5)(x, labels, dropout_keys=keys)
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-4
    with pytest.raises(ValueError, match=r"model.nf is 6; it must be a multiple of 4"):
        models.MLP(nf=6)


# --- likelihood, distances, pictures ---


def test_likelihoods_of_points_are_in_nats_and_of_images_in_bits() -> None:
    logp = jnp.array([-3.0])
    points = examples.kind_of(experiment.build(load("toy/mixture_dsm_vp")).pixels)
    assert points.unit == "nats"
    np.testing.assert_allclose(points.per_dim(logp, (1, 1, 2)), 1.5)
    images = examples.kind_of(experiment.build(load("digits/edm")).pixels)
    assert images.unit == "bits"
    bits = 3.0 / (64 * np.log(2.0)) + np.log2(17 / 2.0)
    np.testing.assert_allclose(images.per_dim(logp, (8, 8, 1)), bits, rtol=1e-6)


def test_a_network_of_one_noise_level_has_no_likelihood(tmp_path: pathlib.Path) -> None:
    config = load("toy/mixture_dsm_sigma", eval__enable_bpd=True)
    with pytest.raises(ValueError, match=r"^eval.enable_bpd is True, .*'fixed'\)$"):
        evaluate.evaluate(config, tmp_path, "eval")


def test_sliced_wasserstein_distance_of_shifted_points() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 1))
    assert sliced_wasserstein(a, a[::-1] + 0.7) == pytest.approx(0.7)
    # A direction theta sees theta_1 of a shift along the first axis; the mean of theta_1^2 is 1/2.
    b = rng.normal(size=(500, 2))
    many = sliced_wasserstein(b, b + np.array([2.0, 0.0]), num_directions=4000)
    assert many == pytest.approx(np.sqrt(2.0), rel=0.02)
    # N(0, 1) to N(0, 4), from sets of unequal size: the standard deviations differ by 1.
    c, d = rng.normal(size=(20_000, 1)), 2.0 * rng.normal(size=(5_000, 1))
    assert sliced_wasserstein(c, d) == pytest.approx(1.0, abs=0.05)
    # Of a set of two the quantiles between 1/4 and 3/4 are on the line between both.
    pair, line = np.array([[0.0], [1.0]]), np.array([[0.0], [0.25], [0.75], [1.0]])
    assert sliced_wasserstein(pair, line) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match=r"not \(500, 1\) and \(500, 2\)"):
        sliced_wasserstein(a, b)


def test_densities_and_cells_agree_on_where_things_are() -> None:
    places = point_figures.cells(2.0, 4)
    np.testing.assert_allclose(places[:4], [[x, -1.5] for x in (-1.5, -0.5, 0.5, 1.5)])
    np.testing.assert_allclose(places[4], [-1.5, -0.5])
    density = point_figures.histogram(places[[1]], 2.0, 4)
    np.testing.assert_array_equal(np.flatnonzero(density), [1])
    assert density.sum() == 1.0  # cells of area 1
    blurred = point_figures.histogram(np.zeros((1, 2)), 4.0, 80, blur=0.5)
    assert blurred.max() == pytest.approx(1 / (2 * np.pi * 0.25), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["toy/mixture_dsm_ve", "toy/mixture_smld", "toy/mixture_dsm_sigma"]
)
def test_training_ends_with_a_picture(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_devices(monkeypatch, 1)
    monkeypatch.setattr(score_field, "CELLS", 8)
    changes = {
        "training__n_iters": 4,
        "training__n_jitted_steps": 2,
        "sampling__num_samples": 16,
        "sampling__batch_size": 16,
        "eval__batch_size": 64,
        "eval__num_samples": 16,
        "eval__bpd_num_images": 8,
        "model__nf": 8,
    }
    config = load(name, **changes)
    loop.train(config, tmp_path)
    fields, save_field = [], point_figures.save_field

    def spy(path: pathlib.Path, field: point_figures.Field) -> None:
        fields.append(field)
        save_field(path, field)

    monkeypatch.setattr(point_figures, "save_field", spy)
    score_field.draw(config, tmp_path)
    (field,) = fields
    assert field.density.shape == (8, 8)
    assert ("model" in field.density_title) == name.endswith("_ve")
    assert field.samples.shape == (16, 2)
    sample.sample(config, tmp_path)
    shard = np.load(tmp_path / "samples" / "shard_000000.npz")
    assert (shard["image"].shape, shard["image"].dtype) == ((16, 1, 1, 2), np.float32)
    assert (tmp_path / "samples" / "scatter.png").stat().st_size > 0
    assert not (tmp_path / "samples" / "images").exists()
    results = evaluate.evaluate(config, tmp_path, "eval")
    assert ("nats_per_dim" in results) == name.endswith("_ve")
    assert results["features"] == "coordinates of the points"
    assert 0 < results["sliced_wasserstein_real"] < results["sliced_wasserstein"]
