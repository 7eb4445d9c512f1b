"""Maps along the flow: against Gaussian data, whose flow is known, and on two moons, trained."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from ml_collections import ConfigDict

import configs
import control.run
import data
import losses
import models
import sampling
from diffusion import grids, parametrisation
from diffusion.flow_maps import (
    FlowMap,
    consistency_error,
    consistency_sampler,
    consistency_tangent,
    mean_flow_error,
    mean_flow_sampler,
)
from diffusion.noise import recorded_noise
from evaluation import evaluate
from evaluation.metrics.sliced import sliced_wasserstein
from generation import guides
from generation.generator import Generator
from planning import programs
from runtime import ema, experiment
from runtime.workdir import restore
from sde_lib import EDMSDE, SDE, VPSDE, TrigonometricSDE, batch_mul
from tests import gaussians
from tests.marks import but_slow
from tests.test_models import quick_jit
from training import optimizers
from training.loop import train
from training.objective import objective_from_config
from training.state import state_from_config
from training.step import make_train_step

MEAN, STD = 0.8, 0.3
KINDS: dict[str, SDE] = {
    "edm": EDMSDE(sigma_max=5.0),
    "trigonometric": TrigonometricSDE(),
    "rectified": gaussians.FLOWS["rectified"],
    "vpsde": VPSDE(),
}
every_kind = pytest.mark.parametrize("kind", but_slow(KINDS, ["edm", "trigonometric"]))
Function = Callable[[Array, Array], Array]


def end_of_path(sde: SDE, mean: float = MEAN, std: float = STD) -> Function:
    """The consistency function of N(mean, std^2 I): (x - alpha mean) / r stays, r -> std."""

    def f(x: Array, t: Array) -> Array:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        r = jnp.sqrt((alpha * std) ** 2 + sigma**2)
        return mean + batch_mul(std / r, x - batch_mul(alpha, mean + 0 * x))

    return f


def expected_x0(sde: SDE, mean: float = MEAN, std: float = STD) -> Function:
    """E[x_0 | x] of N(mean, std^2 I)."""

    def estimate(x: Array, t: Array) -> Array:
        score = gaussians.linear_score(sde, mean, std)(x, t)
        return parametrisation.convert(sde, x, t, score, "score", "x0")

    return estimate


def coefficients(sde: SDE, t: Array, prediction: str) -> Any:
    return parametrisation.coefficients(parametrisation.level(sde, t), prediction, "x0")


@functools.cache
def states(sde: SDE, count: int = 40) -> tuple[Array, Array, Array]:
    """x [B, 3], t [B] over most of the process, and the x_0 [B, 3] that x was made of."""
    draws, z = np.random.default_rng(0).standard_normal((2, count, 3))
    t = jnp.asarray(np.linspace(0.02, 0.98, count) * sde.T, jnp.float32)
    x0 = MEAN + STD * draws
    alpha, sigma = (np.asarray(v)[:, None] for v in (sde.alpha(t), sde.sigma(t)))
    return jnp.asarray(alpha * x0 + sigma * z, jnp.float32), t, jnp.asarray(x0, jnp.float32)


@every_kind
def test_along_the_flow_the_consistency_function_stays(kind: str) -> None:
    """Its tangent is 0, and so is the gradient of its loss; with half of either part it is not."""
    sde = KINDS[kind]
    x, t, x0 = states(sde)

    @quick_jit
    def tangents() -> Array:
        f, teacher = end_of_path(sde), expected_x0(sde)
        of_x = coefficients(sde, t, "velocity")[0]
        return jnp.stack(
            [
                consistency_tangent(sde, f, x, t, start, of_x, share)[1]
                for start, share in ((teacher(x, t), 1.0), (teacher(x, t), 0.5), (x0, 1.0))
            ]
        )

    along, warming, single = tangents()
    np.testing.assert_allclose(along, 0, atol=2e-5)
    assert np.abs(warming).max() > 0.05
    assert np.abs(single).max() > 0.05


@every_kind
def test_over_single_paths_the_mean_gradient_vanishes_at_the_true_function(kind: str) -> None:
    """Consistency training: by quadrature over (x_0, z), exact, for f* + a + b x of a network."""
    sde = KINDS[kind]
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / weights.sum()
    x0, z = (jnp.asarray(v.reshape(-1, 1), jnp.float32) for v in np.meshgrid(nodes, nodes))
    both = jnp.asarray(np.outer(weights, weights).ravel(), jnp.float32)
    x0 = MEAN + STD * x0

    def gradient(time: float, std: float, teacher: bool) -> Array:
        t = jnp.full(len(x0), time * sde.T)
        x = batch_mul(sde.alpha(t), x0) + batch_mul(sde.sigma(t), z)
        start = expected_x0(sde)(x, t) if teacher else x0

        def loss(weights: Array) -> Array:
            def network(x: Array, t: Array) -> Array:
                return end_of_path(sde, std=std)(x, t) + weights[0] + weights[1] * x

            of = coefficients(sde, t, "edm")
            return jnp.sum(both * consistency_error(sde, network, x, t, start, of))

        return jax.grad(loss)(jnp.zeros(2))

    times = jnp.array([0.1, 0.5, 0.9])
    found = quick_jit(
        lambda: jax.tree.map(
            lambda case: jax.vmap(lambda time: gradient(time, *case))(times),
            {"true": (STD, False), "taught": (STD, True), "wrong": (2 * STD, False)},
            is_leaf=lambda case: isinstance(case, tuple),
        )
    )()
    scale = np.abs(found["wrong"]).max()
    assert scale > 0.1
    np.testing.assert_allclose(found["true"], 0, atol=2e-4 * scale)
    np.testing.assert_allclose(found["taught"], 0, atol=2e-4 * scale)


def test_on_trigonometric_paths_it_is_algorithm_1_of_lu_and_song() -> None:
    """TrigFlow, with data and noise of deviation s: `f = cos t x - sin t s F(x / s, t)`,
    `g = -cos^2 t (s F - dx/dt) - r cos t sin t (x + s dF/dt)`, for a network F of our own."""
    sde, s, r = TrigonometricSDE(), 0.5, 0.3
    x, t, x0 = states(sde)
    angle = sde.RATE * t[:, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)

    def network(x: Array, angle: Array) -> Array:
        return jnp.tanh(
            x @ jnp.array([[0.5, -1.0, 0.2], [0.3, 0.1, 1.0], [-0.7, 0.4, 0.6]]) + angle
        )

    def theirs() -> Array:
        scaled, z = s * x, (x - cos * x0) / sin  # x_t of data s x_0 and noise s z
        velocity = s * (cos * z - sin * x0)
        value, rate = jax.jvp(
            lambda x, a: network(x / s, a), (scaled, angle), (velocity, jnp.ones_like(angle))
        )
        return -(cos**2) * (s * value - velocity) - r * cos * sin * (scaled + s * rate)

    def ours() -> Array:
        def f(x: Array, t: Array) -> Array:
            value = network(x, sde.RATE * t[:, None])
            return parametrisation.convert(sde, x, t, value, "velocity", "x0")

        of_x, of_network = coefficients(sde, t, "velocity")
        tangent = consistency_tangent(sde, f, x, t, x0, of_x, r)[1]
        return batch_mul(-s / of_network, tangent)

    expected, found = quick_jit(lambda: (theirs(), ours()))()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_the_gradient_is_that_of_the_normalised_tangent() -> None:
    """`|F - (F + g / (|g| / sqrt(D) + c))|^2 / D`, and the number is `|g|^2 / D`."""
    sde, c = KINDS["edm"], 0.1
    x, t, x0 = states(sde, 5)
    of = coefficients(sde, t, "velocity")

    def f(shift: Array, x: Array, t: Array) -> Array:
        return batch_mul(of[0], x) + batch_mul(of[1], jnp.sin(x) + shift)

    @quick_jit
    def found() -> Any:
        def loss(shift: Array) -> tuple[Array, Array]:
            values = consistency_error(sde, functools.partial(f, shift), x, t, x0, of, softening=c)
            return jnp.sum(values), values

        gradient, values = jax.grad(loss, has_aux=True)(jnp.zeros_like(x))
        tangent = consistency_tangent(
            sde, functools.partial(f, jnp.zeros_like(x)), x, t, x0, of[0]
        )[1]
        return gradient, values, batch_mul(-1.0 / of[1], tangent)

    gradient, values, g = (np.asarray(v) for v in found())
    square = np.mean(g**2, 1)
    np.testing.assert_allclose(values, square, rtol=1e-5)
    target = g / (np.sqrt(square) + c)[:, None]
    np.testing.assert_allclose(gradient, -2 * target / 3, rtol=1e-4, atol=1e-5)


# Mean velocities.


def between_times(sde: SDE) -> Callable[[Array, Array, Array], Array]:
    """The flow map of N(MEAN, STD^2 I), where (x - alpha MEAN) / r stays."""

    def carried(x: Array, t: Array, s: Array) -> Array:
        (a, r), (b, q) = (
            (sde.alpha(v), jnp.sqrt((sde.alpha(v) * STD) ** 2 + sde.sigma(v) ** 2)) for v in (t, s)
        )
        mean = MEAN + 0 * x
        return batch_mul(b, mean) + batch_mul(q / r, x - batch_mul(a, mean))

    return carried


def true_velocity(sde: SDE) -> Callable[[Array, Array, Array], Array]:
    return lambda x, t, s: batch_mul(1.0 / (t - s), x - between_times(sde)(x, t, s))


@every_kind
def test_along_the_flow_the_mean_velocity_fulfils_its_identity(kind: str) -> None:
    """The error is 0 with the velocities of the flow, relative to these; with single paths, not."""
    sde = KINDS[kind]
    x, t, x0 = states(sde)
    s = t * jnp.linspace(0.1, 0.8, len(t))

    @quick_jit
    def errors() -> Any:
        u = true_velocity(sde)
        return tuple(
            jnp.sqrt(mean_flow_error(sde, u, x, t, s, start))
            for start in (expected_x0(sde)(x, t), x0)
        )

    along, single = errors()
    np.testing.assert_allclose(along, 0, atol=2e-3 * single.max())
    assert single.min() > 0


@every_kind
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_gradient_of_a_mean_velocity(kind: str, power: float) -> None:
    """Over single paths it vanishes in the mean at the true one (p = 0, by quadrature), and is
    otherwise that of the error with its target held fixed, over `(error + 1e-3)^p`."""
    sde = KINDS[kind]
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    x0, z = (jnp.asarray(v.reshape(-1, 1), jnp.float32) for v in np.meshgrid(nodes, nodes))
    both = jnp.asarray(np.outer(weights, weights).ravel(), jnp.float32)
    x0 = MEAN + STD * x0
    t, s = jnp.full(len(x0), 0.6 * sde.T), jnp.full(len(x0), 0.2 * sde.T)
    x = batch_mul(sde.alpha(t), x0) + batch_mul(sde.sigma(t), z)

    @quick_jit
    def found() -> Any:
        def loss(shift: Array, scale: float) -> tuple[Array, Array]:
            def u(x: Array, t: Array, s: Array) -> Array:
                return scale * true_velocity(sde)(x, t, s) + shift

            errors = mean_flow_error(sde, u, x, t, s, x0, power)
            return jnp.sum(errors), errors

        shift = jnp.zeros_like(x)
        return [jax.grad(loss, has_aux=True)(shift, scale) for scale in (1.0, 1.5)]

    (gradient, errors), (wrong, of_wrong) = found()
    for slopes, squares in ((gradient, errors), (wrong, of_wrong)):
        expected = 2 * np.sqrt(squares) / (squares + 1e-3) ** power
        np.testing.assert_allclose(np.abs(slopes[:, 0]), expected, rtol=2e-3, atol=1e-5)
    if not power:
        means = [both @ slopes[:, 0] for slopes in (gradient, wrong)]
        along_x = [both @ (slopes * x)[:, 0] for slopes in (gradient, wrong)]
        size = max(np.abs(means[1]), np.abs(along_x[1]))
        assert size > 0.1
        np.testing.assert_allclose([means[0], along_x[0]], 0, atol=1e-3 * size)


# Samples.


def law(sampler: Any, sde: SDE, flow_map: Any, times: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of affine samples, from their coefficients: row i has draw i equal to 1,
    the last row none."""
    rows = len(times) + 1

    def noise(i: Any) -> Array:
        return jnp.where(jnp.arange(rows) == i, 1.0, 0.0)[:, None]

    x = np.asarray(quick_jit(lambda: sampler(sde, flow_map, noise, times).x)(), np.float64)
    return float(x[-1, 0]), float(np.sqrt(np.sum((x[:-1, 0] - x[-1, 0]) ** 2)))


@every_kind
@pytest.mark.parametrize("steps", [1, 3])
def test_the_law_of_consistency_samples_is_exact_for_any_number_of_steps(
    kind: str, steps: int
) -> None:
    """But for the prior, which is off p_T by alpha(T) of the data."""
    sde = KINDS[kind]
    times = grids.time_grid(sde, "karras", steps)
    mean, std = law(consistency_sampler, sde, FlowMap(end_of_path(sde)), times)
    t = jnp.full((1,), sde.T)
    start = float(sde.alpha(t)[0] / sde.sigma(t)[0])
    assert mean == pytest.approx(MEAN, abs=1.1 * STD * MEAN * start + 1e-4)
    assert std == pytest.approx(STD, abs=0.6 * STD * start + 1e-4)
    noisy = functools.partial(consistency_sampler, denoise=False)
    mean, std = law(noisy, sde, FlowMap(end_of_path(sde)), times)
    last = jnp.full((1,), times[-1], jnp.float32)
    alpha, sigma = float(sde.alpha(last)[0]), float(sde.sigma(last)[0])
    assert std == pytest.approx(math.hypot(alpha * STD, sigma), abs=0.6 * STD * start + 1e-4)


def test_consistency_samples_are_those_of_algorithm_1() -> None:
    """Step by step, on images of more pixels than there are images, with draws that are known."""
    sde, draws = KINDS["edm"], jax.random.normal(jax.random.key(0), (4, 3, 5))
    times, f = grids.time_grid(sde, "karras", 3), end_of_path(sde)
    found = consistency_sampler(sde, FlowMap(f), recorded_noise(draws), times, denoise=False)
    x = sde.prior_std * draws[0]
    for i, (t, s) in enumerate(itertools.pairwise(jnp.asarray(times, x.dtype))):
        x0 = f(x, jnp.full(3, t))
        x = sde.alpha(s[None]) * x0 + sde.sigma(s[None]) * draws[i + 1]
    np.testing.assert_allclose(found.x, x, rtol=1e-5, atol=1e-5)


@every_kind
@pytest.mark.parametrize("steps", [1, 3])
def test_mean_flow_samples_are_the_ends_of_their_paths(kind: str, steps: int) -> None:
    sde = KINDS[kind]
    times, z = grids.time_grid(sde, "uniform", steps), jnp.linspace(-1.5, 1.5, 6).reshape(3, 2)
    carried = FlowMap(end_of_path(sde), between_times(sde))

    def samples(denoise: bool) -> Any:
        noise = recorded_noise(z[None])
        return mean_flow_sampler(sde, carried, noise, times, denoise=denoise)

    whole, noisy = quick_jit(lambda: (samples(True), samples(False)))()
    for found, end in ((whole, 0.0), (noisy, times[-1])):
        expected = gaussians.flow_map(sde, MEAN, STD, sde.prior_std * z, sde.T, end)
        np.testing.assert_allclose(found.x, expected, rtol=1e-3, atol=1e-4)
        assert found.nfe == steps
    with pytest.raises(ValueError, match="needs the map between any two times"):
        mean_flow_sampler(sde, FlowMap(end_of_path(sde)), recorded_noise(z[None]), times)


def test_its_evaluations_are_its_steps_and_its_frames_lead_to_the_sample() -> None:
    sde = KINDS["edm"]
    asked: list[Array] = []

    def f(x: Array, t: Array) -> Array:
        asked.append(t)
        return end_of_path(sde)(x, t)

    times = grids.time_grid(sde, "karras", 4)
    noise = recorded_noise(jax.random.normal(jax.random.key(0), (5, 2, 1)))
    samples = consistency_sampler(sde, FlowMap(f), noise, times, num_frames=5)
    assert samples.nfe == 4
    assert len(asked) == 1, "one evaluation in the body of one loop"
    assert samples.trajectory is not None
    np.testing.assert_array_equal(samples.trajectory[-1], samples.x)
    np.testing.assert_allclose(samples.trajectory[0], sde.prior_std * noise(0), rtol=1e-6)


# Runs.


def tiny_run(**changes: Any) -> ConfigDict:
    """Consistency training on two moons by a network too small to learn."""
    config = configs.load("few_steps/two_moons_consistency")
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "model.nf": 8,
                "model.num_res_blocks": 1,
                "training.batch_size": 16,
                "training.n_iters": 4,
                "training.n_jitted_steps": 2,
                "sampling.num_samples": 4,
                "sampling.batch_size": 4,
                "eval.num_samples": 8,
                **{name.replace("__", "."): value for name, value in changes.items()},
            }
        )
    return config


def built(config: ConfigDict) -> Any:
    sampling.from_config(config)
    return objective_from_config(config, experiment.build(config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling__method": "ddim"}, "'ddim' asks for the score, .* serves consistency"),
        (
            {"training__objective": "dsm", "training__weighting": "edm"},
            "'consistency' asks for a map along the flow, .*objective is 'dsm'.*: consistency",
        ),
        ({"model__prediction": "x0"}, "prediction is 'x0', whose estimate at t = 0"),
        ({"training__weighting": "edm"}, "weighting is 'edm', which weighs errors of a score"),
        ({"training__accumulation": 3, "training__time": "likelihood"}, "time 'likelihood' is for"),
        ({"training__teacher": "/nowhere"}, "training.teacher='/nowhere' holds no run"),
        ({"training__continuous": False}, "needs training.continuous=True"),
    ],
)
def test_what_does_not_suit_a_flow_map_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        built(tiny_run(**changes))
    assert "\n" not in str(caught.value)


def test_what_asks_for_a_score_is_refused() -> None:
    config = tiny_run()
    parts = experiment.build(config)
    parts.require_samples()
    words = "trained a consistency function .*which has no score: neither likelihoods"
    bound, paths = tiny_run(eval__enable_bpd=True), tiny_run(eval__straightness_images=4)
    controlled = tiny_run(control__task="inpaint")
    guided = tiny_run(sampling__guide="/nowhere")
    for ask in (
        parts.require_score,
        lambda: evaluate.refuse(bound, parts),
        lambda: evaluate.refuse(paths, parts),
        lambda: control.run.pose(controlled, parts),
        lambda: guides.described("/nowhere", parts, guides.SCORE),
        lambda: programs.likelihood(config, 2),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            ask()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="holds no run"):
        guides.check(guided.sampling, parts)
    assert programs.score(config, 2).times == 2


def test_the_tangent_grows_over_its_steps_and_is_whole_where_none_is_told() -> None:
    """Losses of steps 0, 5, 10 and 20 of a warm-up of 10, and of no training."""
    config = tiny_run(training__tangent_warmup=10)
    loss = losses.from_config(config, experiment.build(config).sde)
    x0, u = jax.random.normal(jax.random.key(0), (6, 1, 1, 2)), jnp.linspace(0.1, 0.9, 6)
    keys = jax.random.split(jax.random.key(1), 6)

    def loss_at(step: Array | None) -> Array:
        per_image: Array = loss(lambda x, labels: jnp.sin(x), x0, keys, u, step=step)[0]
        return per_image

    start, middle, end, later = quick_jit(jax.vmap(loss_at))(jnp.array([0, 5, 10, 20]))
    measured = quick_jit(lambda: loss_at(None))()
    assert not np.allclose(start, end)
    # Squares of a tangent that is linear in its share.
    assert not np.allclose(middle, (start + end) / 2)
    np.testing.assert_allclose(end, later, rtol=1e-6)
    np.testing.assert_allclose(end, measured, rtol=1e-6)


def test_training_tells_the_loss_its_step_and_a_measurement_does_not() -> None:
    config = tiny_run()
    objective = built(config)
    steps: list[Any] = []

    def spy(network: Any, x0: Array, keys: Any, u: Array, y: Any, step: Any) -> Any:
        steps.append(step)
        return jnp.mean(network(x0, u), (1, 2, 3)), {"t": u}

    watched = dataclasses.replace(objective, loss=spy)
    optimizer = optimizers.from_config(config)
    parts = experiment.build(config)
    images, classes = jnp.zeros((1, 4, 1, 1, 2)), jnp.zeros((1, 4), jnp.int32)
    batches = {"image": images, "label": classes}

    def once() -> Any:
        state = state_from_config(config, parts, optimizer).replace(step=7)
        watched(
            state.params, images[0], classes[0], jax.random.key(0), jnp.arange(4), 4,
            train=False, flip=False,
        )  # fmt: skip
        return make_train_step(watched, optimizer, ema.from_config(config), False, None)(
            state.replace(step=jnp.int32(7)), batches
        )

    jax.eval_shape(once)
    assert steps[0] is None
    assert steps[1].dtype == jnp.int32


def test_a_network_of_two_times_is_told_both_and_serves_both_samplers() -> None:
    config = configs.load("few_steps/two_moons_mean_flow")
    config.model.nf, config.model.num_res_blocks = 8, 1
    parts = experiment.build(config)
    params = models.init(parts.module, jax.random.key(1), parts.image_shape)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # whose last layer begins at zero
    x, t = jax.random.normal(jax.random.key(0), (3, 1, 1, 2)), jnp.array([0.3, 0.6, 0.9])

    @quick_jit
    def ends() -> Any:
        carried = parts.for_samplers(params)
        assert isinstance(carried, FlowMap)
        assert carried.between is not None
        return (
            carried(x, t),
            *(carried.between(x, t, share * t) for share in (0.0, 0.5, 1.0)),
        )

    to_data, start, middle, same = ends()
    np.testing.assert_allclose(to_data, start, rtol=1e-6)
    np.testing.assert_array_equal(same, x)
    # Were the span no input, the way would be half as long.
    assert np.abs((middle - x) - (start - x) / 2).max() > 1e-3
    for method in ("mean_flow", "consistency"):
        config.sampling.method = method
        built(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.prediction": "velocity"}, "prediction is 'velocity'; .* needs 'flow'"),
        ({"model.embedding_type": "fourier"}, "embedding_type is 'fourier'; .* 'positional'"),
        ({"model.conditional": False}, "can be told two times: model.name adm, ddpm, mlp, ncsnpp"),
        ({"sampling.method": "ode"}, "'ode' asks for the score, .* serves mean_flow, consistency"),
    ],
)
def test_what_does_not_suit_a_mean_flow_is_refused(changes: dict[str, Any], words: str) -> None:
    config = configs.load("few_steps/two_moons_mean_flow")
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=words):
        built(config)


@pytest.mark.slow
def test_one_step_of_a_trained_map_is_far_better_than_one_of_its_teacher(
    tmp_path: pathlib.Path,
) -> None:
    """Two moons, by consistency, distilled and trained, and by a mean flow: sliced distances."""
    teacher = configs.load("toy/two_moons_edm")
    taught, alone, mean = (
        configs.load(f"few_steps/two_moons_{name}")
        for name in ("distilled", "consistency", "mean_flow")
    )
    taught.training.teacher = str(tmp_path / "teacher")
    points = data.from_config(teacher, "train").images.reshape(-1, 2)

    def distance(config: ConfigDict, name: str) -> float:
        parts = experiment.build(config)
        params = restore(config, parts, tmp_path / name).params
        config.sampling.batch_size = 4000
        generator = Generator(parts, sampling.from_config(config), config.sampling)
        batches = [batch["image"] for _, batch in generator(params, np.arange(4000))]
        return float(sliced_wasserstein(np.concatenate(batches).reshape(-1, 2), points))

    found = {}
    for name, config in (
        ("teacher", teacher),
        ("taught", taught),
        ("alone", alone),
        ("mean", mean),
    ):
        train(config, tmp_path / name)
        config.sampling.num_steps, config.sampling.noise_removal = 1, config is not teacher
        if config is teacher:
            config.sampling.method = "ddim"
        found[name] = distance(config, name)
    assert found["teacher"] > 0.5
    assert max(found["taught"], found["alone"]) < 0.06, found
    assert found["mean"] < 0.12, found
