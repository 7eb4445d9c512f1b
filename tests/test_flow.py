"""What a network of the velocity gets for being one of the score: all of it, against closed forms.

The networks are the exact velocities of Gaussians and mixtures, told the time as 999 t / T.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import controllable
import likelihood
import models
import sampling
from configs.flow import mixture_rectified, two_moons_rectified
from data.toy import GaussianMixture
from diffusion import coupling, few_steps, grids, parametrisation, reverse_sde
from diffusion.noise import recorded_noise
from diffusion.probes import exact
from diffusion.straightness import straightness
from evaluation.evaluate import evaluate
from sde_lib import SDE, RectifiedSDE, ScoreFn, TrigonometricSDE, batch_mul
from tests import gaussians
from tests.marks import but_slow
from tests.test_sampling import normal_noise
from training.loop import train

MEAN, STD = 0.3, 0.5
KINDS = but_slow(gaussians.FLOWS, ["rectified"])
every_kind = pytest.mark.parametrize("kind", KINDS)


def flow_of(sde: SDE, mean: float, std: float) -> Callable[[Array, Array], Array]:
    """The velocity of N(mean, std^2) as a network: `alpha' E[x_0 | x] + sigma' E[z | x]`."""

    def network(x: Array, labels: Array) -> Array:
        t = labels / 999 * sde.T
        (fall, rise), alpha, sigma = sde.rates(t), sde.alpha(t), sde.sigma(t)
        centred = batch_mul(
            1.0 / ((alpha * std) ** 2 + sigma**2), x - batch_mul(alpha, mean + 0 * x)
        )
        x0, z = mean + batch_mul(alpha * std**2, centred), batch_mul(sigma, centred)
        return batch_mul(fall, x0) + batch_mul(rise, z)

    return network


def score_of(sde: SDE, network: Callable[[Array, Array], Array]) -> ScoreFn:
    return models.score_fn(sde, network, True, prediction="flow")


def gaussian_score(sde: SDE) -> ScoreFn:
    return score_of(sde, flow_of(sde, MEAN, STD))


def mixture_flow(sde: SDE, mixture: gaussians.Mixture) -> ScoreFn:
    """The score by way of a network of the velocity, which is made of the mixture's score."""

    def network(x: Array, labels: Array) -> Array:
        t = labels / 999 * sde.T
        return parametrisation.convert(sde, x, t, mixture.score_fn(sde)(x, t), "score", "flow")

    return score_of(sde, network)


@every_kind
def test_its_score_is_that_of_the_data(kind: str) -> None:
    sde = gaussians.FLOWS[kind]
    t = jnp.asarray(np.linspace(1e-3, 1.0, 9) * sde.T, jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((9, 3)), jnp.float32)

    @jax.jit
    def both() -> tuple[Array, Array]:
        ours, truth = gaussian_score(sde)(x, t), gaussians.linear_score(sde, MEAN, STD)(x, t)
        return batch_mul(sde.sigma(t), ours), batch_mul(sde.sigma(t), truth)

    ours, truth = both()
    np.testing.assert_allclose(ours, truth, atol=2e-5)


@every_kind
def test_its_likelihood_is_exact(kind: str) -> None:
    """That of the data, to 1e-4 bits a dimension, where the prior's distance to p_T, about
    `alpha(T) |x_0|` nats either way, is taken out; it leaves the mean as it is."""
    sde = gaussians.FLOWS[kind]
    data = gaussians.two_modes((2,))
    z = np.random.default_rng(1).standard_normal((4, 2))
    part = np.array([0, 1, 1, 1])
    x = jnp.asarray(np.asarray(data.means)[part] + np.asarray(data.stds)[part] * z, jnp.float32)
    eps = sde.training_eps

    @jax.jit
    def errors() -> tuple[Array, Array]:
        probes = exact(jnp.arange(4), (2,))
        ours = likelihood.log_likelihood(sde, mixture_flow(sde, data), x, probes)
        at_end = data.log_prob(sde, ours.z, jnp.full(4, sde.T)) - sde.prior_logp(ours.z)
        return ours.logp - data.log_prob(sde, x, jnp.full(4, eps)), at_end

    error, at_end = (np.asarray(v) / (2 * np.log(2)) for v in errors())
    np.testing.assert_allclose(error + at_end, 0, atol=1e-4)
    np.testing.assert_allclose(error, 0, atol=2e-3)


@every_kind
def test_solvers_of_the_flow_follow_it(kind: str) -> None:
    """The exact map, a known rescaling: adaptive, and at their orders with fixed steps."""
    base = gaussians.FLOWS[kind]
    z = jnp.linspace(-1.5, 1.5, 8).reshape(1, 8, 1)
    noise = recorded_noise(z[None])
    eps = 0.02

    def samples(steps: int) -> dict[str, Array]:
        sde = dataclasses.replace(base, N=steps)
        score_fn, times = gaussian_score(sde), grids.time_grid(sde, "uniform", steps, eps)
        solve = functools.partial(few_steps.unipc, sde, score_fn, noise, denoise=False)
        pc = functools.partial(sampling.pc_sampler, sde, score_fn, noise, corrector="none")
        return {
            # The step of Euler's method is T / N, so N - 1 of them end at T / N.
            "euler_maruyama": pc(
                predictor="euler_maruyama", probability_flow=True, eps=sde.T / steps
            ).x,
            "ddim": few_steps.ddim(sde, score_fn, noise, times, denoise=False).x,
            "unipc_2": solve(times, order=2).x,
        }

    @jax.jit
    def errors() -> dict[str, Array]:
        def end(t: float) -> Array:
            return gaussians.flow_map(base, MEAN, STD, base.prior_std * z[0], base.T, t)

        rows = {}
        for steps in (40, 80):
            ends = {"euler_maruyama": 0.0}
            for name, x in samples(steps).items():
                gap = x - end(ends.get(name, eps))
                rows[f"{name} {steps}"] = jnp.sqrt(jnp.mean(jnp.square(gap)))
        ode = sampling.ode_sampler(base, gaussian_score(base), noise, eps=eps)
        return rows | {"ode": jnp.abs(ode.x - end(eps)).max()}

    found = errors()
    assert found["ode"] < 1e-4
    for name, order in (("euler_maruyama", 1.0), ("ddim", 1.0), ("unipc_2", 3.0)):
        coarse, fine = float(found[f"{name} 40"]), float(found[f"{name} 80"])
        assert coarse < 0.03, name
        assert np.log2(coarse / fine) > order - 0.3, (name, coarse, fine)


@every_kind
def test_samplers_of_its_sde_have_their_weak_order(kind: str) -> None:
    """On Gaussian data a sampler is affine in its draws, so its moments need no sampling.

    Image i has draw i equal to 1 and all others 0, the last image none: their distances are the
    coefficients of the draws, and the variance of a sample is the sum of their squares.
    """
    base = gaussians.FLOWS[kind]
    end = 0.25 * base.T
    at_end = jnp.asarray(np.full(1, end), jnp.float32)
    exact_std = np.hypot(base.alpha(at_end)[0] * STD, base.sigma(at_end)[0])

    def states(steps: int) -> dict[str, Array]:
        sde = dataclasses.replace(base, N=steps + 1)
        noise = recorded_noise(np.eye(steps + 2, steps + 3, dtype=np.float32)[:, :, None])
        score_fn = gaussian_score(sde)
        frames = {
            predictor: sampling.pc_sampler(
                sde,
                score_fn,
                noise,
                predictor=predictor,
                corrector="none",
                eps=1e-6,  # so that levels are T / N apart
                num_frames=steps + 2,
            ).trajectory
            for predictor in ("reverse_diffusion", "ancestral_sampling")
        }
        found = {name: x[3 * steps // 4] for name, x in frames.items() if x is not None}
        times = np.linspace(sde.T, end, 3 * steps // 4 + 1)
        few = (sde, score_fn, noise, times)
        found["ddim_eta_1"] = few_steps.ddim(*few, eta=1.0, denoise=False).x
        return found

    @jax.jit
    def errors() -> list[dict[str, Array]]:
        rows = []
        for steps in (128, 256):
            stds = {
                name: jnp.sqrt(jnp.sum(jnp.square(x[:-1] - x[-1])))
                for name, x in states(steps).items()
            }
            rows.append({name: std / exact_std - 1 for name, std in stds.items()})
        return rows

    coarse, fine = errors()
    for name in coarse:
        order = np.log2(abs(float(coarse[name] / fine[name])))
        assert abs(order - 1.0) < 0.25, (name, order, coarse[name])


@pytest.mark.slow
def test_every_other_sampler_draws_the_data() -> None:
    """Correctors, Langevin dynamics alone, the SDE by stochastic Runge-Kutta, churn."""
    sde = RectifiedSDE(N=200)
    score_fn, noise = gaussian_score(sde), normal_noise(64, (8, 8, 1))
    times = grids.time_grid(sde, "log_snr", 60)

    @jax.jit
    def moments() -> dict[str, Any]:
        pc = functools.partial(sampling.pc_sampler, sde, score_fn, noise, snr=0.1)
        samples = {
            "reverse_diffusion + langevin": pc(),
            "ancestral + ald": pc(predictor="ancestral_sampling", corrector="ald"),
            "euler_maruyama": sampling.pc_sampler(
                dataclasses.replace(sde, N=1000), score_fn, noise,
                predictor="euler_maruyama", corrector="none",
            ),
            "langevin": pc(predictor="none", n_steps_each=3),
            "sde": reverse_sde.sde_sampler(sde, score_fn, noise, times=times),
            "dpmpp_2m_sde": few_steps.dpm_solver_pp(sde, score_fn, noise, times, stochastic=True),
            "churn": few_steps.edm(sde, score_fn, noise, times, churn=20.0),
        }  # fmt: skip
        return {name: (s.x.mean(), s.x.std(), s.ok.all()) for name, s in samples.items()}

    for name, (mean, std, ok) in moments().items():
        assert ok, name
        assert abs(mean - MEAN) < (0.06 if name == "langevin" else 0.02), (name, mean)
        assert abs(std / STD - 1) < (0.15 if name == "langevin" else 0.04), (name, std)


def test_guidance_and_in_painting_take_it_as_a_score() -> None:
    """Guided velocities are those of the class; a picture is filled in as by the closed score."""
    sde = RectifiedSDE(N=30)
    mixture = gaussians.two_modes((2, 2, 1))
    part = gaussians.Mixture(jnp.ones(1), mixture.means[1:], mixture.stds[1:])
    t = jnp.asarray(np.linspace(0.02, 0.98, 6) * sde.T, jnp.float32)
    random = np.random.default_rng(5)
    x = jnp.asarray(random.standard_normal((6, 2, 2, 1)), jnp.float32)
    y = jnp.asarray(np.ones(6, np.int32))
    draws = jnp.asarray(random.standard_normal((200, 6, 2, 2, 1)), jnp.float32)
    half = np.zeros((2, 2, 1), np.float32)
    half[0] = 1.0

    def log_posterior(x: Array, t: Array) -> Array:
        return jax.vmap(lambda x, t: jax.nn.log_softmax(mixture._log_parts(sde, x, t)))(x, t)

    @jax.jit
    def compare(draws: Array) -> Any:
        free, told = mixture_flow(sde, mixture), mixture_flow(sde, part)
        guided = controllable.guided(free, controllable.of_class(log_posterior, y))
        of_scores = controllable.classifier_free(free, told, 2.5)(x, t)
        # Guidance of velocities at the same scale, as flows are guided, is the same guidance.
        flows = [
            parametrisation.convert(sde, x, t, score(x, t), "score", "flow")
            for score in (free, told)
        ]
        of_flows = parametrisation.convert(
            sde, x, t, flows[0] + 2.5 * (flows[1] - flows[0]), "flow", "score"
        )
        known = controllable.in_painting(jnp.full((6, 2, 2, 1), 0.4), jnp.asarray(half))
        filled = [
            controllable.pc_infill(sde, score, recorded_noise(draws), known, corrector="none").x
            for score in (free, mixture.score_fn(sde))
        ]
        scores = (guided(x, t), part.score_fn(sde)(x, t)), (of_scores, of_flows)
        return [batch_mul(sde.sigma(t), a - b) for a, b in scores], filled

    errors, (ours, theirs) = compare(draws)
    for error in errors:
        np.testing.assert_allclose(error, 0, atol=5e-5)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    np.testing.assert_allclose(ours[:, 0], 0.4, atol=1e-6)
    assert np.asarray(ours[:, 1]).std() > 0.1


def test_of_reflowed_pairs_one_step_draws_the_data() -> None:
    """Gaussian data: the teacher's exact flow pairs z with m + s z; along the lines between them
    the velocity is known, its paths are straight, and one step of Euler's method has the data."""
    sde = RectifiedSDE(N=1)
    teacher_sde = TrigonometricSDE()
    z = jnp.asarray(np.random.default_rng(2).standard_normal((500, 3)), jnp.float32)

    def teacher(z: Array) -> Array:
        at_end = teacher_sde.prior_sampling(z)
        return gaussians.flow_map(teacher_sde, MEAN, STD, at_end, teacher_sde.T, 1e-6)

    def network(x: Array, labels: Array) -> Array:
        """`E[x_0' | x_t]` of the pairs: x_t = (1 - t) (m + s z) + t z tells z."""
        t = labels[:, None] / 999 * sde.T
        z = (x - (1 - t) * MEAN) / ((1 - t) * STD + t)
        return z - (MEAN + STD * z)

    @jax.jit
    def compare() -> Any:
        x0, same = coupling.reflow(0 * z, z, teacher=teacher)
        score = score_of(sde, network)
        t = jnp.linspace(0.01, 0.98, 500)[:, None]
        x_t = (1 - t) * x0 + t * same
        flow = parametrisation.convert(sde, x_t, t[:, 0], score(x_t, t[:, 0]), "score", "flow")
        paths = straightness(sde, score, sde.prior_sampling(z[:8]))
        one = sampling.pc_sampler(
            sde, score, recorded_noise(z[None]),
            predictor="euler_maruyama", corrector="none", probability_flow=True,
        )  # fmt: skip
        return same, flow - (same - x0), paths.straightness, one.x, one.nfe

    same, error, straight, x, nfe = compare()
    np.testing.assert_array_equal(same, z)
    np.testing.assert_allclose(error, 0, atol=2e-2)  # the teacher's prior is 1e-3 off
    assert straight.max() < 1e-5
    assert nfe == 1
    np.testing.assert_allclose(x, MEAN + STD * z, atol=3e-3)


@pytest.mark.slow
def test_reflow_straightens_a_trained_flow(tmp_path: pathlib.Path) -> None:
    """Teacher and student of 1,000 steps: the student's paths are half as bent or less."""
    config = two_moons_rectified.get_config()
    config.training.n_iters = config.optim.decay_steps = 1000
    config.training.snapshot_freq = 1000
    config.eval.enable_bpd = config.eval.enable_loss = config.eval.enable_sampling = False
    config.eval.straightness_images = 500
    train(config, tmp_path / "teacher")
    student = config.copy_and_resolve_references()
    student.training.coupling, student.training.teacher = "reflow", str(tmp_path / "teacher")
    train(student, tmp_path / "student")
    bends = {
        name: evaluate(of, tmp_path / name, "eval")["straightness"]
        for name, of in (("teacher", config), ("student", student))
    }
    assert bends["student"] < 0.5 * bends["teacher"], bends


@pytest.mark.slow
def test_a_toy_trains_and_is_measured_by_its_flow_and_by_its_sde(tmp_path: pathlib.Path) -> None:
    """The flow's samples and the SDE's are as near to the data, one network's all of them."""
    config = mixture_rectified.get_config()
    config.eval.num_samples, config.eval.bpd_num_images = 4000, 500
    config.eval.samplers = ("ode", "pc:200", "dpmpp_2m_sde:40")
    config.sampling.probability_flow, config.sampling.predictor = False, "ancestral_sampling"
    train(config, tmp_path)
    evaluate(config, tmp_path, "eval")
    found = {
        path.parent.name.removeprefix("latest_"): json.loads(path.read_text())
        for path in (tmp_path / "eval").glob("*/results.json")
    }
    assert set(found) == {"ode", "pc_200", "dpmpp_2m_sde_40"}
    for name, results in found.items():
        assert results["sliced_wasserstein"] < 0.1, (name, results["sliced_wasserstein"])
    exact_nats = -log_density_of_the_mixture() / 2
    assert found["ode"]["nats_per_dim"] == pytest.approx(exact_nats, abs=0.1)


def log_density_of_the_mixture() -> float:
    """The mean log-density of the mixture's test points."""
    x, _ = GaussianMixture.draw("test")
    weights, means, stds = (
        np.asarray(v)
        for v in (GaussianMixture.WEIGHTS, GaussianMixture.MEANS, GaussianMixture.STDS)
    )
    z = (x.reshape(-1, 1, 2)[:500] - means) / stds
    log_parts = np.log(weights) - 0.5 * (z**2).sum(-1) - np.log(2 * np.pi * stds.prod(-1))
    return float(np.logaddexp.reduce(log_parts, axis=1).mean())
