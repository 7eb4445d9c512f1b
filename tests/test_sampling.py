"""Samplers against closed forms, the original code's numbers, and their own promises."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from ml_collections import ConfigDict

import likelihood
import sampling
from configs import schema
from diffusion import flow_maps, grids, langevin, ode, reverse_sde
from diffusion.noise import ImageNoise, image_noise, recorded_noise
from diffusion.trajectory import Samples
from sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, SubVPSDE, batch_mul
from tests import analytic_models, gaussians, golden_cases
from tests.marks import but_slow

MEAN, STD = 0.3, 0.5
SHAPE = (8, 8, 1)
BATCH = 128


def keys_of(indices: Any, seed: int = 0) -> jax.Array:
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
        jnp.asarray(indices)
    )


def normal_noise(count: int = BATCH, shape: tuple = SHAPE, seed: int = 0) -> ImageNoise:
    return image_noise(keys_of(np.arange(count), seed), shape)


def draws_of(count: int, batch: int, shape: tuple = SHAPE) -> np.ndarray:
    """Normal draws for `recorded_noise`, for whose generator nothing is compiled."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, batch, *shape), np.float32)


# Closed forms: Gaussian data, exact score.


SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("cosine", "edm")]


@pytest.mark.parametrize("kind", [*but_slow(gaussians.SDES, ["vp"]), *SLOW_KINDS])
def test_every_predictor_and_corrector_samples_the_data(kind: str) -> None:
    """Mean and standard deviation of 8,192 pixels: standard errors 0.006 and 0.8 %.

    With 300 steps Euler's error in the standard deviation is a few percent, more for the
    probability flow, whose error noise does not forget; Langevin of snr r in D pixels adds
    r^2/2 + O(1/D).
    """
    sde = dataclasses.replace(gaussians.EVERY_SDE[kind], N=300)
    if kind == "edm":  # steps even in sigma need to be many
        sde = EDMSDE(N=1500, sigma_max=30.0)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    cases = [
        (predictor, corrector, flow)
        for predictor in sampling.PREDICTORS
        for corrector in sampling.CORRECTORS
        for flow in (False, True)
        if (predictor, corrector) != ("none", "none")
        and not (flow and (predictor == "none" or corrector != "none"))
        and not (flow and predictor == "reverse_diffusion" and kind == "cosine")  # refused
    ]

    @jax.jit
    def moments(draws: jax.Array) -> jax.Array:
        results = []
        for predictor, corrector, flow in cases:
            samples = sampling.pc_sampler(
                sde,
                score_fn,
                recorded_noise(draws),
                predictor=predictor,
                corrector=corrector,
                probability_flow=flow,
                snr=0.1 if predictor != "none" else 0.2,
                n_steps_each=1 if predictor != "none" else 3,
            )
            results.append([samples.x.mean(), samples.x.std(), samples.ok.all()])
        return jnp.array(results)

    found = np.asarray(moments(draws_of(3 * sde.N + 1, BATCH)))
    for case, (mean, std, ok) in zip(cases, found, strict=True):
        predictor, _corrector, flow = case
        assert ok, case
        assert abs(mean - MEAN) < (0.02 if predictor != "none" else 0.06), (case, mean)
        bound = 0.15 if predictor == "none" else 0.08 if flow else 0.05
        if (kind, predictor) == ("edm", "none"):
            bound = 0.25  # even steps leave few of the small levels, and no predictor crosses them
        assert abs(std / STD - 1) < bound, (case, std)


@pytest.mark.parametrize("kind", gaussians.SDES)
def test_predictors_converge_at_order_one(kind: str) -> None:
    """Halving the step halves the error of the probability flow's map, a known rescaling.

    Ending at t = T/N makes the grid's spacing T/N, the step of eqs. 13 and 45, and the last t 0.
    """
    base = gaussians.SDES[kind]
    z = jnp.linspace(-1.5, 1.5, 8).reshape(1, 8, 1, 1)

    @functools.partial(jax.jit, static_argnums=0)
    def errors(steps: int) -> jax.Array:
        sde = dataclasses.replace(base, N=steps)
        score_fn = gaussians.linear_score(sde, MEAN, STD)
        end = gaussians.flow_map(sde, MEAN, STD, sde.prior_sampling(z), sde.T, 0.0)
        results = [
            sampling.pc_sampler(
                sde,
                score_fn,
                recorded_noise(z[None]),
                predictor=predictor,
                corrector="none",
                probability_flow=True,
                eps=1 / steps,
            ).x
            for predictor in ("euler_maruyama", "reverse_diffusion", "ancestral_sampling")
        ]
        return jnp.abs(jnp.stack(results) - end).max((1, 2, 3, 4))

    orders = np.log2(np.asarray(errors(200)) / np.asarray(errors(400)))
    assert np.all(np.abs(orders - 1.0) < 0.2), orders


def test_ancestral_subvp_is_exact_for_one_data_point() -> None:
    """If the data are one point, E[x_0 | x_t] is that point, and the chain visits p_t exactly."""
    sde = SubVPSDE(N=5)
    score_fn = gaussians.linear_score(sde, MEAN, 0.0)

    @jax.jit
    def run() -> Samples:
        return sampling.pc_sampler(
            sde,
            score_fn,
            normal_noise(512),
            predictor="ancestral_sampling",
            corrector="none",
            num_frames=6,
        )

    trajectory = run().trajectory
    assert trajectory is not None
    times: Any = np.array([1.0, 0.75, 0.5, 0.25, 0.0], np.float32)
    alphas, sigmas = np.asarray(sde.alpha(times)), np.asarray(sde.sigma(times))
    states = np.asarray(trajectory)
    for state, alpha, sigma in zip(states[1:], alphas[1:], sigmas[1:], strict=False):
        assert abs(state.mean() - alpha * MEAN) < 0.03
        np.testing.assert_allclose(state.std(), sigma, rtol=0.02, atol=1e-4)
    np.testing.assert_allclose(trajectory[-1], MEAN, atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "solver"),
    [
        ("vp", "Tsit5"),
        pytest.param("subvp", "Dopri8", marks=pytest.mark.slow),
        pytest.param("ve", "Bosh3", marks=pytest.mark.slow),
        pytest.param("edm", "Tsit5", marks=pytest.mark.slow),
        pytest.param("cosine", "Dopri5", marks=pytest.mark.slow),
    ],
)
def test_ode_sampler_follows_the_exact_flow(kind: str, solver: str) -> None:
    sde = gaussians.EVERY_SDE[kind]
    noise = normal_noise(4)

    @jax.jit
    def run() -> Samples:
        return sampling.ode_sampler(
            sde, gaussians.linear_score(sde, MEAN, STD), noise, method=solver, num_frames=4
        )

    samples = jax.device_get(run())
    assert samples.ok.all()
    z = sde.prior_sampling(noise(0))
    end = gaussians.flow_map(sde, MEAN, STD, z, sde.T, sde.sampling_eps)
    np.testing.assert_allclose(samples.x, end, atol=5e-4 if kind == "edm" else 2e-4)
    assert samples.trajectory is not None
    times = np.linspace(sde.T, sde.sampling_eps, 4)
    for state, t in zip(samples.trajectory, times, strict=True):
        expected = gaussians.flow_map(sde, MEAN, STD, z, sde.T, t)
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(state, expected, atol=3e-4 * max(scale, 1.0))
    np.testing.assert_array_equal(samples.trajectory[-1], samples.x)


def test_ode_denoising_takes_one_noise_free_step_at_eps() -> None:
    sde = VPSDE()
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    noise = normal_noise(2)
    run = functools.partial(sampling.ode_sampler, sde, score_fn, noise)

    @jax.jit
    def both() -> tuple[Samples, Samples, jax.Array]:
        plain, denoised = run(), run(denoise=True)
        t = jnp.full(2, sde.sampling_eps)
        f, G = sde.discretize(plain.x, t)
        expected = plain.x - f + G[:, None, None, None] ** 2 * score_fn(plain.x, t)
        return plain, denoised, expected

    plain, denoised, expected = jax.device_get(both())
    np.testing.assert_allclose(denoised.x, expected, atol=1e-6)
    np.testing.assert_array_equal(denoised.nfe, plain.nfe + 1)


# The reverse SDE by stochastic Runge-Kutta.


@pytest.mark.parametrize(
    ("kind", "solver", "steps"),
    [
        pytest.param("edm", "SRA1", 0, marks=pytest.mark.slow),
        ("ve", "Euler", 1000),
        pytest.param("ve", "ShARK", 40, marks=pytest.mark.slow),
        *(
            pytest.param(kind, solver, steps, marks=pytest.mark.slow)
            for kind in gaussians.EVERY_SDE
            for solver, steps in [("Euler", 1000), ("Heun", 60), ("SEA", 1000), ("SRA1", 60)]
            if (kind, solver) != ("ve", "Euler")
        ),
        *(pytest.param(kind, "ShARK", 0, marks=pytest.mark.slow) for kind in gaussians.EVERY_SDE),
    ],
)
def test_sde_sampler_draws_the_data(kind: str, solver: str, steps: int) -> None:
    """Mean and standard deviation of 16,384 pixels at three times: standard errors 0.8 and 0.6 %.

    In reverse time, where diffrax's solvers are silently wrong, they would be off by far more.
    """
    sde = gaussians.EVERY_SDE[kind]
    counter = Counter(sde)
    times = grids.time_grid(sde, "log_snr", steps) if steps else None
    run = functools.partial(
        reverse_sde.sde_sampler, sde, method=solver, times=times, rtol=1e-2, atol=1e-2
    )
    noise = normal_noise(256)
    samples, alone = jax.jit(
        lambda: (
            run(counter.score_fn, noise, denoise=False, num_frames=3),
            run(counter, image_noise(noise.keys[5:6], SHAPE), denoise=False),
        )
    )()
    jax.effects_barrier()
    assert samples.ok.all()
    assert counter.calls == int(alone.nfe[0])
    if steps:
        assert set(samples.nfe.tolist()) == {reverse_sde.sde_solvers()[solver][1] * steps}
    else:
        assert len(set(samples.nfe.tolist())) > 1  # each image has its own steps
    np.testing.assert_allclose(alone.x, samples.x[5:6], atol=1e-4)

    lam = jnp.linspace(
        sde.log_snr(jnp.float32(sde.T)), sde.log_snr(jnp.float32(sde.sampling_eps)), 3
    )
    t = sde.time_of_log_snr(lam)
    assert samples.trajectory is not None
    np.testing.assert_array_equal(samples.trajectory[-1], samples.x)
    for state, alpha, sigma in zip(samples.trajectory, sde.alpha(t), sde.sigma(t), strict=True):
        std = float(jnp.hypot(alpha * STD, sigma))
        # Adaptive steps are sharp where the path is rough: the states between are interpolated.
        assert abs(state.mean() - alpha * MEAN) < 0.03 * std, (state.mean(), alpha * MEAN)
        assert abs(state.std() / std - 1.0) < 0.025


def test_adaptive_steps_begin_and_are_resolved_in_proportion_to_the_interval() -> None:
    steps = reverse_sde.Steps(-3.0, 1.0, None, rtol=1e-2, atol=1e-2, max_steps=10)
    assert steps.resolution == 4.0 / 2**reverse_sde.PATH_DEPTH
    assert steps.first == pytest.approx(4.0 * ode.FIRST_STEP)
    assert steps.limit == 10
    fixed = dataclasses.replace(steps, nodes=np.array([-3.0, 0.0, 1.0]))
    assert fixed.first is None
    assert fixed.limit == 2
    control = steps.control()
    assert isinstance(control, diffrax.PIDController)
    assert control.dtmin == 2 * steps.resolution  # the estimate of the error halves a step


def test_sde_sampler_begins_at_the_prior_and_ends_with_an_evaluation_more_if_denoised() -> None:
    """VE's, whose noise level at the first time is that of no other."""
    sde, noise = VESDE(sigma_max=5.0), normal_noise(2)
    run = functools.partial(
        reverse_sde.sde_sampler, sde, gaussians.linear_score(sde, MEAN, STD), noise
    )
    times = grids.time_grid(sde, "log_snr", 3)
    run = functools.partial(run, method="Euler", times=times, num_frames=2)
    whole, noisy = run(), run(denoise=False)
    assert whole.trajectory is not None
    np.testing.assert_allclose(whole.trajectory[0], sde.prior_sampling(noise(0)), rtol=1e-5)
    np.testing.assert_array_equal(noisy.nfe, 3)
    np.testing.assert_array_equal(whole.nfe, 4)
    last = jnp.full(2, times[-1], jnp.float32)
    mean = noisy.x + batch_mul(
        jnp.square(sde.sigma(last)), gaussians.linear_score(sde, MEAN, STD)(noisy.x, last)
    )
    np.testing.assert_allclose(whole.x, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_stochastic_runge_kutta_backwards_in_time_is_still_wrong() -> None:
    """Why the sampler solves in the log-SNR: where this fails, diffrax has been mended."""
    sde = VPSDE()
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    reverse = sde.reverse(score_fn)

    def one(z: jax.Array, key: jax.Array) -> jax.Array:
        path = diffrax.VirtualBrownianTree(
            1e-3, 1.0, 1e-4, z.shape, key, levy_area=diffrax.SpaceTimeLevyArea
        )

        def diffusion(t: Any, y: jax.Array, _: Any) -> lineax.AbstractLinearOperator:
            return lineax.DiagonalLinearOperator(jnp.full_like(y, sde.diffusion(t)))

        def drift(t: Any, y: Any, _: Any) -> jax.Array:
            return reverse.drift(y[None], t[None])[0]

        terms: Any = diffrax.MultiTerm(
            diffrax.ODETerm(drift),
            diffrax.ControlTerm(diffusion, path),
        )
        solution = diffrax.diffeqsolve(terms, diffrax.ShARK(), 1.0, 1e-3, -0.999 / 400, z)
        assert solution.ys is not None
        return solution.ys[0]

    noise = normal_noise(256)
    x = jax.jit(jax.vmap(one))(noise(0), noise.keys_of(1))
    assert abs(x.std() / STD - 1.0) > 0.1


def test_sde_sampler_gives_up_and_refuses() -> None:
    sde = VESDE()
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    run = functools.partial(reverse_sde.sde_sampler, sde, score_fn)
    assert jax.jit(lambda: run(normal_noise(2, (2,)), max_steps=3))().ok.tolist() == [False] * 2
    with pytest.raises(ValueError, match="must be an ImageNoise"):
        run(recorded_noise(jnp.zeros((1, 2, 2))))
    for options, words in (
        ({"method": "SEA"}, "SEA has no error estimate"),
        (
            {"method": "Kvaerno3"},
            "unknown SDE solver 'Kvaerno3'; known: Euler, Heun, SEA, SRA1, Sh",
        ),
        ({"atol": 0.0}, "rtol and atol must be positive"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            run(normal_noise(2, (2,)), **options)


def test_any_explicit_pair_of_diffrax_is_known_by_its_name() -> None:
    assert set(ode.solvers()) == {
        "Bosh3",
        "Dopri5",
        "Dopri8",
        "Heun",
        "Midpoint",
        "Ralston",
        "Tsit5",
    }
    for name in ("Kvaerno5", "Euler", "LSODA"):  # implicit, without error estimate, of SciPy
        with pytest.raises(ValueError, match=f"unknown .* '{name}'; known: Bosh3, Dopri5"):
            sampling.from_config(config_of(method="ode", solver=name))


@pytest.mark.parametrize("method", sampling.SAMPLERS)
@pytest.mark.parametrize("eps", [1.0, 2.0, 0.99999999])
def test_no_sampler_ends_at_the_prior_or_beyond(method: str, eps: float) -> None:
    """Nor where float32 would take it for there: what it returned would be noise."""
    solver = "SEA" if method == "sde" else "Tsit5"
    config = config_of(method=method, solver=solver, eps=eps)
    with pytest.raises(ValueError, match=r"eps must lie between 0 and T = 1, not .*sampling\.eps"):
        sampling.from_config(config)
    config.training.sde = "edm"  # whose T is 50: there it may be refused by none but the SDE given
    sampler, sde = sampling.from_config(config), VESDE(N=3)
    with pytest.raises(ValueError, match=r"eps must lie between 0 and T = 1, not"):
        sampler(sde, gaussians.linear_score(sde, MEAN, STD), normal_noise(2))


def test_the_probability_flow_ends_before_the_prior_everywhere() -> None:
    sde = VESDE(N=3)
    score_fn, x = gaussians.linear_score(sde, MEAN, STD), jnp.zeros((2, 2))
    for solve in (likelihood.encode, likelihood.decode):
        with pytest.raises(ValueError, match="eps must lie between 0 and T = 1, not 1"):
            solve(sde, score_fn, x, eps=1.0)
    with pytest.raises(ValueError, match="eps must lie between 0 and T = 1, not 3"):
        likelihood.log_likelihood(sde, score_fn, x, x[None], eps=3.0)


# A sample depends on its own key alone.


@pytest.mark.parametrize("method", but_slow(["langevin", "ald", "ode"], ["ald", "ode"]))
def test_an_image_does_not_depend_on_its_batch(method: str) -> None:
    sde = VESDE(N=20)
    mixture = gaussians.two_modes((4, 4, 1))

    @jax.jit
    def run(keys: jax.Array) -> Samples:
        noise = image_noise(keys, (4, 4, 1))
        if method == "ode":
            return sampling.ode_sampler(sde, mixture.score_fn(sde), noise, rtol=1e-3, atol=1e-3)
        return sampling.pc_sampler(sde, mixture.score_fn(sde), noise, corrector=method)

    whole = jax.device_get(run(keys_of(range(9))))
    order = [5, 0, 8, 1, 7, 2, 3, 6, 4]
    for part in (order[:3], order[3:6], order[6:]):
        samples = run(keys_of(part))
        np.testing.assert_allclose(samples.x, whole.x[part], atol=1e-5)
        if method == "ode":
            np.testing.assert_array_equal(samples.nfe, whole.nfe[part])
    if method == "ode":
        assert len(set(whole.nfe.tolist())) > 1  # each image has its own steps


def test_batch_norm_is_the_mean_of_norms_over_batch_and_devices() -> None:
    """Image norms on one image equal batch norms on a batch of it alone; pmean joins devices."""
    sde = VPSDE(N=100)
    mixture = gaussians.two_modes(SHAPE)
    x, *rest = draws_of(3, 4)
    x, zs = x * np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1, 1), np.stack(rest)
    t = np.full(4, 0.3, np.float32)

    def correct(x: jax.Array, t: jax.Array, zs: jax.Array, **options: Any) -> jax.Array:
        corrector = langevin.langevin(0.16, **options)
        return corrector(sde, mixture.score_fn(sde), x, t, zs)[0]

    image = jax.jit(correct)(x, t, zs)
    batch = jax.jit(functools.partial(correct, norm="batch"))
    alone = [batch(x[i : i + 1], t[:1], zs[:, i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(image, np.concatenate(alone), rtol=1e-5, atol=1e-6)
    together = np.asarray(batch(x, t, zs))
    assert np.abs(together - image).max() > 1e-2
    split = jax.pmap(functools.partial(correct, norm="batch", axis_name="d"), axis_name="d")(
        x.reshape(2, 2, *SHAPE), t.reshape(2, 2), np.moveaxis(zs.reshape(2, 2, 2, *SHAPE), 1, 0)
    )
    np.testing.assert_allclose(np.asarray(split).reshape(x.shape), together, rtol=1e-5, atol=1e-6)


# Evaluations, frames, times.


class Counter:
    """Counts how often the score is evaluated when the program runs."""

    def __init__(self, sde: SDE) -> None:
        self.calls = 0
        self.score_fn = gaussians.linear_score(sde, MEAN, STD)

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(self.count)
        return self.score_fn(x, t)

    def count(self) -> None:
        self.calls += 1


@pytest.mark.parametrize(
    ("predictor", "corrector", "per_step"),
    [("reverse_diffusion", "langevin", 3), ("ancestral_sampling", "none", 1), ("none", "ald", 2)],
)
def test_pc_reports_true_evaluations(predictor: str, corrector: str, per_step: int) -> None:
    sde = VESDE(N=7)
    counter = Counter(sde)
    noise = recorded_noise(draws_of(22, 2))
    run = functools.partial(
        sampling.pc_sampler, predictor=predictor, corrector=corrector, n_steps_each=2
    )
    samples = jax.jit(lambda: run(sde, counter, noise))()
    jax.effects_barrier()
    assert samples.nfe == counter.calls == 7 * per_step


@pytest.mark.parametrize("solver", ["Bosh3", "Heun", "Tsit5"])
def test_ode_reports_true_evaluations(solver: str) -> None:
    sde = VPSDE()
    counter = Counter(sde)
    run = functools.partial(sampling.ode_sampler, method=solver, rtol=1e-2, atol=1e-2)
    samples = jax.jit(lambda: run(sde, counter, normal_noise(1, (2, 2, 1)), denoise=True))()
    assert samples.ok.all()
    jax.effects_barrier()
    assert int(samples.nfe[0]) == counter.calls


def test_frames_are_states_of_the_same_run() -> None:
    sde = VESDE(N=12)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    draws = draws_of(25, 2)

    def run(num_frames: int) -> Samples:
        noise = recorded_noise(draws)
        return sampling.pc_sampler(sde, score_fn, noise, num_frames=num_frames, snr=0.1)

    runs = jax.jit(lambda: [run(num_frames) for num_frames in (13, 4, 1, 0, 24)])
    every, some, one, none, more = jax.device_get(runs())
    assert every.trajectory is not None
    assert some.trajectory is not None
    assert one.trajectory is not None
    np.testing.assert_allclose(every.trajectory[0], 50 * draws[0], rtol=1e-6)
    np.testing.assert_allclose(some.trajectory, every.trajectory[[0, 4, 8, 12]], rtol=1e-5)
    np.testing.assert_array_equal(one.trajectory[0], one.x)
    np.testing.assert_array_equal(every.trajectory[-1], every.x)
    assert none.trajectory is None
    np.testing.assert_array_equal(more.trajectory, every.trajectory)
    np.testing.assert_array_equal(more.x, every.x)


def test_denoise_returns_the_mean_of_the_last_update() -> None:
    """The two differ by G z of the last predictor step, at eps."""
    sde = VPSDE(N=24)
    draws = draws_of(25, 2)
    score_fn = gaussians.linear_score(sde, MEAN, STD)

    @jax.jit
    def run(draws: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        run = functools.partial(
            sampling.pc_sampler, sde, score_fn, recorded_noise(draws), corrector="none"
        )
        G = sde.discretize(draws[0], jnp.full(2, 1e-3))[1]
        return run(denoise=True).x, run(denoise=False).x, G[0]

    clean, noisy, G = jax.device_get(run(draws))
    np.testing.assert_allclose(noisy - clean, G * draws[24], atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 1000])
@pytest.mark.parametrize("sde", [VESDE, VPSDE])
def test_each_time_has_its_own_level_of_the_discrete_chain(sde: type[SDE], steps: int) -> None:
    times = grids.sampling_times(sde(N=steps), sde().sampling_eps)
    np.testing.assert_array_equal(sde(N=steps).timestep(jnp.asarray(times)), range(steps)[::-1])
    np.testing.assert_allclose(times, np.linspace(1, sde().sampling_eps, steps), rtol=5e-7)


# Failure.


def test_a_solver_that_gave_up_says_so() -> None:
    sde = VPSDE()
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    x0 = np.array([1.0, 1.0, np.nan], np.float32).reshape(3, 1, 1, 1)

    @functools.partial(jax.jit, static_argnums=0)
    def run(max_steps: int) -> Samples:
        noise = recorded_noise(x0[None])
        return sampling.ode_sampler(sde, score_fn, noise, max_steps=max_steps)

    many = run(100)
    assert many.ok.tolist() == [True, True, False]
    assert np.asarray(many.nfe)[2] < 100  # gives up soon, rather than at max_steps
    assert run(5).ok.tolist() == [False] * 3


def test_pc_marks_images_that_are_not_finite() -> None:
    sde = VESDE(N=3)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    draws = np.ones((10, 2, 1, 1, 1), np.float32)
    draws[2, 1] = np.inf
    samples = jax.jit(lambda: sampling.pc_sampler(sde, score_fn, recorded_noise(draws), snr=0.1))()
    assert samples.ok.tolist() == [True, False]


def config_of(**changes: Any) -> ConfigDict:
    """All defaults, but predictor, corrector and solver, and `changes` in section sampling; the
    objective is one that its method serves."""
    config = schema.base()
    settings = {"predictor": "reverse_diffusion", "corrector": "langevin", "solver": "Tsit5"}
    config.sampling.update(settings | changes)
    maps = flow_maps.SAMPLERS.items()
    for objective in [name for name, served in maps if config.sampling.method in served]:
        config.training.objective = objective
    return config


def test_from_config_passes_every_setting_on() -> None:
    sde = VESDE(N=6)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    keyed, noise = normal_noise(3), recorded_noise(draws_of(19, 3))
    pc = functools.partial(sampling.pc_sampler, sde, score_fn, noise)
    cases: list[tuple[dict[str, Any], Any]] = [
        ({}, pc),
        ({"num_steps": 3}, functools.partial(sampling.pc_sampler, VESDE(N=3), score_fn, noise)),
        ({"predictor": "euler_maruyama"}, functools.partial(pc, predictor="euler_maruyama")),
        ({"corrector": "ald", "snr": 0.1}, functools.partial(pc, corrector="ald", snr=0.1)),
        ({"n_steps_each": 2}, functools.partial(pc, n_steps_each=2)),
        ({"noise_removal": False}, functools.partial(pc, denoise=False)),
        ({"probability_flow": True}, functools.partial(pc, probability_flow=True)),
        ({"corrector_norm": "batch"}, functools.partial(pc, corrector_norm="batch")),
        (
            {"method": "sde", "solver": "SEA", "num_steps": 4, "time_grid": "karras", "eps": 1e-2},
            functools.partial(
                reverse_sde.sde_sampler,
                sde,
                score_fn,
                keyed,
                method="SEA",
                times=grids.time_grid(sde, "karras", 4, 1e-2),
            ),
        ),
        ({"eps": 1e-2}, functools.partial(pc, eps=1e-2)),
        (
            {"method": "ode", "solver": "Bosh3", "rtol": 1e-2, "atol": 1e-3},
            functools.partial(
                sampling.ode_sampler,
                sde,
                score_fn,
                noise,
                method="Bosh3",
                rtol=1e-2,
                atol=1e-3,
                denoise=True,
            ),
        ),
    ]

    def made(changes: dict[str, Any]) -> jax.Array:
        sampler = sampling.from_config(config_of(**changes))
        return sampler(sde, score_fn, keyed if changes.get("method") == "sde" else noise).x

    @jax.jit
    def both() -> Any:
        return [(made(changes), direct().x) for changes, direct in cases]

    results = jax.device_get(both())
    for (changes, _), (by_config, direct) in zip(cases, results, strict=True):
        np.testing.assert_allclose(by_config, direct, rtol=1e-6, err_msg=str(changes))
    assert all(np.abs(by_config - results[0][0]).max() > 1e-4 for by_config, _ in results[1:])


def test_a_new_predictor_is_one_function_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered in PREDICTORS it samples by config; here x is halved at each of N times."""

    def halve(sde: Any, score_fn: Any, x: Any, t: Any, z: Any, probability_flow: bool = False):
        return 0.5 * x, 0.5 * x

    monkeypatch.setitem(sampling.PREDICTORS, "halve", halve)
    config = config_of(predictor="halve", corrector="none")
    sde, draws = VESDE(N=3), draws_of(4, 2)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    sampler = sampling.from_config(config)
    samples = jax.jit(lambda: sampler(sde, score_fn, recorded_noise(draws)))()
    np.testing.assert_allclose(samples.x, sde.prior_sampling(draws[0]) / 8)
    assert samples.nfe == 3


def test_a_corrector_is_made_of_the_settings_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corrector without settings gets none; one that is called without a ratio is refused."""

    def shift() -> langevin.Corrector:
        return lambda sde, score_fn, x, t, zs: (x + len(zs), x)

    monkeypatch.setitem(sampling.CORRECTORS, "shift", shift)
    config = config_of(predictor="none", corrector="shift", n_steps_each=2, noise_removal=False)
    sde, draws = VESDE(N=3), draws_of(7, 2)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    sampler = sampling.from_config(config)
    samples = jax.jit(lambda: sampler(sde, score_fn, recorded_noise(draws)))()
    np.testing.assert_allclose(samples.x, sde.prior_sampling(draws[0]) + 6, rtol=1e-6)
    for factory in (langevin.langevin, langevin.annealed_langevin):
        with pytest.raises(ValueError, match="snr must be positive, not 0"):
            factory(0)


def test_what_follows_an_update_takes_a_draw_of_its_own() -> None:
    """Draws by number: prior 0, then corrector 1 and 2, after it 3, predictor 4, after it 5, ..."""
    sde = VESDE(N=2)
    draws = np.arange(11, dtype=np.float32)[:, None, None] * np.ones((1, 1, 2), np.float32)
    seen = []

    def after_update(x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
        jax.debug.callback(lambda z: seen.append(int(z[0, 0])), z, ordered=True)
        return x

    run = functools.partial(
        sampling.pc_sampler,
        sde,
        gaussians.linear_score(sde, MEAN, STD),
        recorded_noise(draws),
        n_steps_each=2,
        after_update=after_update,
    )
    jax.jit(run)()
    jax.effects_barrier()
    assert seen == [3, 5, 8, 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pcc"}, "unknown sampling.method 'pcc'; known: .*ode.*pc"),
        (
            {"predictor": "rd"},
            "unknown .*predictor 'rd'; known: ancestral_sampling, euler_maruyama",
        ),
        ({"corrector": "mala"}, "unknown .*corrector 'mala'; known: ald, langevin, none"),
        ({"corrector_norm": "device"}, "unknown .*corrector_norm 'device'; known: batch, image"),
        ({"n_steps_each": 0}, "n_steps_each must be at least 1, not 0"),
        ({"snr": 0.0}, "snr must be positive"),
        ({"num_steps": -1}, "num_steps must be 0"),
        ({"predictor": "none", "corrector": "none"}, "both 'none'"),
        ({"method": "ode", "solver": "RK45"}, "unknown .*solver 'RK45'; known: .*Tsit5"),
        ({"method": "ode", "rtol": 0.0}, "rtol and atol must be positive"),
        ({"method": "sde", "solver": "Dopri5"}, "unknown .*solver 'Dopri5'; known: Euler, .*ShARK"),
        ({"num_frames": -1}, "num_frames is -1; it must be 0 or more"),
    ],
)
def test_refusals_name_the_setting_and_the_valid_values(changes: dict, message: str) -> None:
    sde = VESDE(N=2)
    with pytest.raises(ValueError, match=message):
        sampling.from_config(config_of(**changes))(
            sde, gaussians.linear_score(sde, MEAN, STD), normal_noise(1)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "ode"},
            "'ode' asks .*served by ancestral, .*_langevin, ddim, .*heun, pc",
        ),
        ({"method": "sde", "solver": "ShARK"}, "trained with discrete labels"),
        ({"method": "dpm_3"}, "trained with discrete labels"),
        ({"method": "edm", "churn": 1.0}, "trained with discrete labels"),
        ({"num_steps": 7}, "num_steps is 7, but .* has 10 noise levels, and 'pc' takes them all"),
        ({"method": "annealed_langevin", "num_steps": 3}, "has 10 noise levels"),
    ],
)
def test_discrete_labels_are_not_asked_between_their_levels(changes: dict, message: str) -> None:
    config = config_of(**changes)
    config.training.continuous = False
    sde = VESDE(N=10)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    with pytest.raises(ValueError, match=message):
        sampling.from_config(config)(sde, score_fn, normal_noise(1))


@pytest.mark.parametrize(
    ("changes", "flows"),
    [
        ({"method": "ode"}, True),
        ({"method": "sde"}, False),
        ({"method": "annealed_langevin"}, False),
        ({"method": "pc", "predictor": "euler_maruyama", "probability_flow": True}, True),
        ({"method": "pc", "predictor": "euler_maruyama"}, False),
        (
            {"method": "pc", "predictor": "none", "corrector": "ald", "probability_flow": True},
            False,
        ),
        ({"method": "ddim"}, True),
        ({"method": "ddim", "eta": 0.1}, False),
        ({"method": "dpmpp_2m", "churn": 3.0}, True),  # which takes no churn
        ({"method": "dpmpp_2m_sde"}, False),
        ({"method": "heun", "churn": 3.0}, False),
        ({"method": "unipc_3"}, True),
        ({"method": "deis_3"}, True),
        ({"method": "sa_solver_2"}, False),
        ({"method": "sa_solver_2", "tau": 0.0}, True),
        ({"method": "restart"}, False),
        ({"method": "ancestral"}, False),
        ({"method": "ancestral", "variance": "none"}, True),
    ],
)
def test_of_dependent_pairs_the_flow_alone_is_asked(changes: dict[str, Any], flows: bool) -> None:
    config = schema.base()
    config.sampling.update({"solver": "ShARK"} if changes["method"] == "sde" else {})
    config.sampling.update(changes)
    assert sampling.from_config(config)
    config.training.coupling = "minibatch_ot"
    assert sampling.follows_flow(config.sampling) is flows
    with contextlib.nullcontext() if flows else pytest.raises(ValueError, match="a flow alone"):
        sampling.from_config(config)


def test_the_flow_of_the_cosine_chain_is_refused() -> None:
    sde = CosineVPSDE()
    x, t = jnp.ones((1, 2)), jnp.ones(1)
    score_fn = gaussians.linear_score(sde, MEAN, STD)
    with pytest.raises(ValueError, match="does not converge for CosineVPSDE"):
        sampling.reverse_diffusion(sde, score_fn, x, t, x, probability_flow=True)


def test_a_chain_that_does_not_exist_is_refused() -> None:
    """Ancestral sampling of VP needs DDPM's betas, which reach 1 with too few steps."""
    sde = VPSDE(N=10)
    with pytest.raises(ValueError, match="must stay below 1"):
        sampling.pc_sampler(
            sde,
            gaussians.linear_score(sde, MEAN, STD),
            normal_noise(1),
            predictor="ancestral_sampling",
            corrector="none",
        )


# The original code's numbers.

PREDICTOR_TAGS = {
    "em": "euler_maruyama",
    "rd": "reverse_diffusion",
    "anc": "ancestral_sampling",
}
CORRECTOR_TAGS = {"lang": "langevin", "ald": "ald"}


def golden_tags(*prefixes: str) -> list[Any]:
    """(file, tag) for every group of keys `tag/...` whose tag begins with one of `prefixes`."""
    found = []
    for path in golden_cases.about("math", "samplers"):
        tags = dict.fromkeys(k.split("/")[0] for k in golden_cases.load(path) if "/" in k)
        found += [
            pytest.param(
                path,
                tag,
                id=f"{path.stem}-{tag}",
                marks=[pytest.mark.slow] if tag.startswith("odenet") else [],
            )
            for tag in tags
            if tag.split("_")[0] in prefixes
        ]
    return found


def relative_error(value: Any, expected: np.ndarray) -> float:
    """Largest error of an image, relative to the largest entry of that image."""
    axes = tuple(range(1, expected.ndim))
    return float(np.max(np.abs(value - expected).max(axes) / np.abs(expected).max(axes)))


@pytest.mark.golden
@pytest.mark.parametrize(("path", "tag"), golden_tags(*PREDICTOR_TAGS, *CORRECTOR_TAGS))
def test_single_updates_of_the_original(path: pathlib.Path, tag: str) -> None:
    case = golden_cases.load(path)
    method, kind, *tokens = tag.split("_")
    flow = "pf" in tokens
    sde = analytic_models.sde_of(
        kind, case["meta_json"].get(tag, {}), [token for token in tokens if token != "pf"]
    )
    x = jnp.asarray(case["x"]) * (50 if kind == "ve" else 1)
    t = jnp.asarray(case["t"])

    def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        return -x / (1 + t.reshape(-1, 1, 1, 1))

    if method in PREDICTOR_TAGS:
        predict = sampling.PREDICTORS[PREDICTOR_TAGS[method]]
        results = predict(sde, score_fn, x, t, jnp.asarray(case["z1"]), flow)
    else:
        inner = next(token for token in tokens if token.startswith("n"))
        snr = case["meta_json"].get(tag, {}).get("snr", 0.16)
        correct = langevin.corrector_of(CORRECTOR_TAGS[method], snr, "batch", None)
        results = correct(sde, score_fn, x, t, jnp.asarray(case[f"zc_{inner}"]))
    for name, value in zip(("x", "x_mean"), results, strict=True):
        assert relative_error(value, case[f"{tag}/{name}"]) < 1e-5, name


def scaled(x: jax.Array, inverse_scaler: str) -> np.ndarray:
    """Arrays that the original stores: its layout, after its inverse scaler."""
    images = golden_cases.nchw(np.asarray(x))
    return (images + 1) / 2 if inverse_scaler == "(x+1)/2" else images


@pytest.mark.golden
@pytest.mark.parametrize(("path", "tag"), golden_tags("pc", "pcnet"))
def test_predictor_corrector_runs_of_the_original(path: pathlib.Path, tag: str) -> None:
    case = golden_cases.load(path)
    meta = case["meta_json"][tag]
    sde = analytic_models.sde_of(meta["sde"], meta)
    if "weights" in meta:
        score_fn = analytic_models.network_score(sde, meta["weights"], meta["continuous"])
    else:
        score_fn = analytic_models.score_fn(
            sde, meta["model"], meta.get("mix", 0.0), meta["continuous"], case.get(f"{tag}/table")
        )
    noise = jnp.asarray(golden_cases.nhwc(case[f"{tag}/noise"]))

    @jax.jit
    def run(noise: jax.Array) -> Samples:
        return sampling.pc_sampler(
            sde,
            score_fn,
            recorded_noise(noise),
            predictor=meta["predictor"],
            corrector=meta["corrector"],
            snr=meta["snr"],
            n_steps_each=meta["n_steps"],
            denoise=meta["denoise"],
            eps=meta["eps"],
            probability_flow=meta.get("probability_flow", False),
            corrector_norm="batch",
        )

    samples = run(noise)
    tolerance = 1e-4 if "weights" in meta else 1e-5
    if isinstance(sde, VPSDE) and meta["continuous"]:
        # The original's 1 - exp(2 log alpha) is off by half a unit in the last place of 1.
        tolerance += float(2.0**-24 / sde.sigma(jnp.float32(meta["eps"])) ** 2)
    value = scaled(samples.x, meta["inverse_scaler"])
    assert relative_error(value, case[f"{tag}/sample"]) < tolerance
    if "model_calls" in meta:
        assert samples.nfe == meta["model_calls"]
    if "noise_draws" in meta:
        assert len(noise) == meta["noise_draws"]


@functools.cache
def flow_run(sde: SDE, eps: float, denoise: bool, weights: str) -> Any:
    """The compiled sampler of a golden run, from a draw and the analytic network's `mix`."""

    @jax.jit
    def run(z: jax.Array, mix: jax.Array) -> Samples:
        if weights:
            score_fn = analytic_models.network_score(sde, weights)
        else:
            score_fn = analytic_models.score_fn(sde, "ve" if isinstance(sde, VESDE) else "vp", mix)
        return sampling.ode_sampler(
            sde,
            score_fn,
            recorded_noise(z[None] / sde.prior_std),
            rtol=1e-5,
            atol=1e-5,
            method="Dopri5",
            eps=eps,
            max_steps=1000,
            denoise=denoise,
        )

    return run


@pytest.mark.golden
@pytest.mark.parametrize(("path", "tag"), golden_tags("ode", "odenet"))
def test_probability_flow_runs_of_the_original(path: pathlib.Path, tag: str) -> None:
    """Both solve to 1e-5 a step: the largest error of an image is a few times that."""
    case = golden_cases.load(path)
    meta = case["meta_json"][tag]
    kind = meta.get("sde", tag.split("_")[1])
    sde = analytic_models.sde_of(kind, meta)
    run = flow_run(sde, meta["eps"], meta["denoise"], meta.get("weights", ""))
    z = np.asarray(golden_cases.nhwc(case[f"{tag}/z"]))
    samples = jax.device_get(run(z, np.float32(meta.get("mix", 0.0))))
    assert samples.ok.all()
    value = scaled(samples.x, meta.get("inverse_scaler", "identity"))
    assert relative_error(value, case[f"{tag}/sample"]) < (3e-3 if "weights" in meta else 1e-4)
    assert samples.nfe.max() < 1.6 * meta["nfe"]  # Dormand-Prince too, but other step control
