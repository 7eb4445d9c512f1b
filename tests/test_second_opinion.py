"""Other people's samplers, driven with our score: the same samples from the same noise.

Each test needs a library that is no requirement of the project, and is skipped without it. The
score is the exact one of a mixture of two Gaussians at the levels of DDPM's chain, which diffusers'
schedulers step along; `docs/samplers.md` has the table.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
from diffusion import ancestral, few_steps, grids, langevin, multistep
from diffusion.noise import recorded_noise
from sde_lib import EDMSDE, SDE, VESDE, VPSDE
from tests.gaussians import Mixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the others, in NumPy
]

BATCH, SHAPE, STEPS = 16, (2, 3), 100
MIXTURE = Mixture(
    weights=jnp.array([0.3, 0.7]),
    means=jnp.array([[[-0.8, 0.5, 0.1], [0.2, -0.6, 0.9]], [[0.7, -0.2, 0.3], [-0.5, 0.4, -0.9]]]),
    stds=jnp.array([[[0.2, 0.3, 0.1], [0.4, 0.2, 0.3]], [[0.3, 0.1, 0.2], [0.1, 0.3, 0.2]]]),
)
VP = VPSDE(N=STEPS)
CHAIN = VP.chain
BETAS = {"num_train_timesteps": STEPS, "beta_start": 0.1 / STEPS, "beta_end": 20.0 / STEPS}


def draws(count: int) -> tuple[Any, np.ndarray]:
    """A generator of PyTorch, and the draws [count, B, ...] that it will give."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(5)
    z = np.stack([torch.randn((BATCH, *SHAPE), generator=generator).numpy() for _ in range(count)])
    return torch.Generator().manual_seed(5), z


def as_torch(score: Callable[[Any, Any], Any]) -> Callable[[Any, float], Any]:
    """A score function of ours as a callable of PyTorch's tensors and one time."""
    torch = pytest.importorskip("torch")
    jitted = jax.jit(score)

    def call(x: Any, t: float) -> Any:
        value = jitted(x.numpy().astype(np.float32), np.full(len(x), t, np.float32))
        return torch.from_numpy(np.array(value)).to(x.dtype)

    return call


def noise_of(score: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The noise that a network of diffusers predicts at step k of the chain."""
    call = as_torch(lambda x, t: -CHAIN.sigma(t)[:, None, None] * score(x, t))
    return lambda x, k: call(x, float(k) / (STEPS - 1))


def scheduler_of(name: str, **fields: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    return getattr(diffusers, name)(**{**BETAS, **fields})


def stepped(scheduler: Any, x: Any, **more: Any) -> np.ndarray:
    """The samples to which a scheduler brings x, as the pipelines of diffusers do."""
    predict = noise_of(MIXTURE.score_fn(CHAIN))
    for t in scheduler.timesteps:
        value = predict(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(value, t, x, **more).prev_sample
    return np.asarray(x)


def ours(sampler: Callable[..., Any], sde: SDE, z: np.ndarray, *more: Any, **options: Any) -> Any:
    """Samples of ours, of the same score, from these draws."""
    score = MIXTURE.score_fn(CHAIN if sde in (VP, CHAIN) else sde)
    run = jax.jit(lambda z: sampler(sde, score, recorded_noise(z), *more, **options).x)
    return np.asarray(run(z))


def difference(a: Any, b: Any) -> float:
    """The largest, of the largest sample."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def times_of(scheduler: Any) -> np.ndarray:
    return scheduler.timesteps.numpy() / (STEPS - 1)


def first(scheduler: Any, steps: int, z: np.ndarray) -> Any:
    """Sets the steps of a scheduler; x at its first one."""
    torch = pytest.importorskip("torch")
    scheduler.set_timesteps(steps)
    return torch.from_numpy(z[0])


def test_ddpm() -> None:
    """The reverse chain with the variance beta, and with that of the posterior; clipped, too."""
    generator, z = draws(STEPS + 1)
    generator = after_first(generator)
    large = scheduler_of("DDPMScheduler", variance_type="fixed_large", clip_sample=False)
    theirs = stepped(large, first(large, STEPS, z), generator=generator)
    chain = ours(sampling.pc_sampler, VP, z, predictor="ancestral_sampling", corrector="none")
    assert difference(chain, theirs) < 5e-5

    small = scheduler_of("DDPMScheduler", variance_type="fixed_small", clip_sample=False)
    generator = after_first(draws(1)[0])
    theirs = stepped(small, first(small, STEPS, z), generator=generator)
    posterior = ours(few_steps.ddim, CHAIN, z, times_of(small), eta=1.0)
    assert difference(posterior, theirs) < 5e-5
    assert difference(chain, theirs) > 1e-3, "another variance"

    for clip in (False, True):
        for kind in ("small", "large"):
            options = {"variance": kind, "clip": clip, "num_steps": STEPS, "discrete": True}
            found = ours(ancestral.ancestral, VP, z, **options)
            fields = {"variance_type": f"fixed_{kind}", "clip_sample": clip}
            scheduler = scheduler_of("DDPMScheduler", **fields)
            generator = after_first(draws(1)[0])
            theirs = stepped(scheduler, first(scheduler, STEPS, z), generator=generator)
            assert difference(found, theirs) < 5e-5, (kind, clip)


def after_first(generator: Any) -> Any:
    """The generator without its first draw, which is the prior's."""
    torch = pytest.importorskip("torch")
    torch.randn((BATCH, *SHAPE), generator=generator)
    return generator


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta: float) -> None:
    generator, z = draws(11)
    scheduler = scheduler_of("DDIMScheduler", clip_sample=False, timestep_spacing="trailing")
    x = first(scheduler, 10, z)
    theirs = stepped(scheduler, x, eta=eta, generator=after_first(generator))
    assert difference(ours(few_steps.ddim, CHAIN, z, times_of(scheduler), eta=eta), theirs) < 1e-5


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpm_solver_pp_2m(steps: int, stochastic: bool) -> None:
    generator, z = draws(steps + 1)
    kind = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    scheduler = scheduler_of("DPMSolverMultistepScheduler", algorithm_type=kind)
    theirs = stepped(scheduler, first(scheduler, steps, z), generator=after_first(generator))
    found = ours(few_steps.dpm_solver_pp, CHAIN, z, times_of(scheduler), stochastic=stochastic)
    assert difference(found, theirs) < 2e-5


def their_3m(grid: grids.Levels, second: float) -> multistep.Table:
    """DPM-Solver++ 3M as diffusers writes it: the first steps are of order 1, and 2 by the midpoint
    rule; the second difference has the weight `second`, which is 2 in a Taylor series.
    """
    h = np.diff(grid.lam)
    gains = np.zeros((len(h), 3))
    gains[:, :2] = multistep._dpmpp_2m(grid, False).gains
    for i in range(2, len(h)):
        r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
        early, late = np.array([0.0, 1.0, -1.0]) / r1, np.array([1.0, -1.0, 0.0]) / r0
        slope = late + r0 / (r0 + r1) * (late - early)
        bend = second / (r0 + r1) * (late - early)
        phi = np.expm1(-h[i])
        weights = -phi * np.array([1.0, 0.0, 0.0]) + (phi / h[i] + 1.0) * slope
        gains[i] = grid.alpha[i + 1] * (weights - ((phi + h[i]) / h[i] ** 2 - 0.5) * bend)
    return multistep.Table(grid.sigma[1:] / grid.sigma[:-1], gains, np.zeros(len(h)))


def test_dpm_solver_pp_3m() -> None:
    """diffusers has half of the second difference, and less than order 3; with all of it, the steps
    are those here, which integrate the parabola exactly.
    """
    z = draws(1)[1]
    scheduler = scheduler_of("DPMSolverMultistepScheduler", solver_order=3)
    theirs = stepped(scheduler, first(scheduler, 20, z))
    times = times_of(scheduler)
    same = ours(multistep.multistep, CHAIN, z, times, lambda grid: their_3m(grid, 1.0))
    assert difference(same, theirs) < 5e-5
    assert difference(ours(few_steps.dpm_solver_pp, CHAIN, z, times, order=3), theirs) < 0.05
    levels = grids.levels(CHAIN, times)
    exact, series = multistep._adams(levels, 3, False), their_3m(levels, 2.0)
    np.testing.assert_allclose(exact.gains[2:], series.gains[2:], rtol=1e-6, atol=1e-7)


def their_unipc(grid: grids.Levels, order: int) -> multistep.Table:
    """UniPC as diffusers writes it: a predictor of order 2 by the midpoint rule, a corrector of
    order 1 by the trapezium rule, all others exact; the last steps are of lower order.
    """
    steps = len(grid.lam) - 1
    midpoint = multistep._dpmpp_2m(grid, False).gains
    gains, correct = np.zeros((steps, order + 1)), np.zeros((steps, order + 3))
    correct[0, 0] = 1.0
    ratio = grid.sigma[1:] / grid.sigma[:-1]
    orders = [min(order, i + 1, steps + 1 - i) for i in range(steps)]
    for i, used in enumerate(orders):
        gains[i, :2] = midpoint[i]
        if used > 2:
            nodes = grid.lam[i + 1 - used : i + 1][::-1]
            weights = multistep._weights(nodes, grid.lam[i], grid.lam[i + 1])
            gains[i, :used] = grid.alpha[i + 1] * weights
        if i:
            before, correct[i, 1] = orders[i - 1], ratio[i - 1]
            nodes = grid.lam[i - before : i + 1][::-1]
            weights = multistep._weights(nodes, grid.lam[i - 1], grid.lam[i])
            if before == 1:
                weights = np.full(2, -0.5 * np.expm1(grid.lam[i - 1] - grid.lam[i]))
            correct[i, 2 : 3 + before] = grid.alpha[i] * weights
    return multistep.Table(ratio, gains, np.zeros(steps), correct)


@pytest.mark.parametrize("order", [2, 3])
def test_unipc(order: int) -> None:
    """diffusers takes simple rules where the coefficients are solved for here."""
    z = draws(1)[1]
    scheduler = scheduler_of("UniPCMultistepScheduler", solver_order=order)
    theirs = stepped(scheduler, first(scheduler, 11, z))
    times = times_of(scheduler)
    same = ours(multistep.multistep, CHAIN, z, times, lambda grid: their_unipc(grid, order))
    assert difference(same, theirs) < 5e-5
    assert difference(ours(few_steps.unipc, CHAIN, z, times, order=order), theirs) < 0.2


def to_the_first_level(scheduler: Any) -> np.ndarray:
    """The times of a scheduler whose last step ends at the chain's first level."""
    return np.append(times_of(scheduler), 0.0)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order: int) -> None:
    """The polynomials of diffusers are in log rho."""
    z = draws(1)[1]
    scheduler = scheduler_of("DEISMultistepScheduler", solver_order=order)
    theirs = stepped(scheduler, first(scheduler, 20, z))
    times = to_the_first_level(scheduler)
    options = {"order": order, "variable": "lambda", "denoise": False}
    found = ours(few_steps.deis, CHAIN, z, times, **options)
    assert difference(found, theirs) < (1e-5 if order < 3 else 1e-3)  # their weights are in float32


def their_sa_solver(grid: grids.Levels, order: int, tau: float) -> multistep.Table:
    """SA-Solver as diffusers writes it: with two predictions a term of third order in h is added to
    the weights, which are exact here."""
    table = multistep._stochastic_adams(grid, order, tau)
    rate, lam = 1.0 + tau**2, grid.lam
    assert table.correct is not None
    for i in range(len(lam) - 1):
        h = lam[i + 1] - lam[i]
        exact = (rate * h - 1.0 + np.exp(-rate * h)) / (rate**2 * h)
        if min(order, i + 1) == 2:
            before = lam[i] - lam[i - 1]
            change = rate * grid.alpha[i + 1] * (h / 2 - exact) * h / before
            table.gains[i, :2] += np.array([1.0, -1.0]) * change
            if i + 1 < len(lam) - 1:
                table.correct[i + 1, 3:5] -= np.array([1.0, -1.0]) * change
        if min(order + 1, i + 2) == 2 and i + 1 < len(lam) - 1:
            change = rate * grid.alpha[i + 1] * (h / 2 - exact)
            table.correct[i + 1, 2:4] += np.array([1.0, -1.0]) * change
    return table


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_sa_solver(order: int, tau: float) -> None:
    generator, z = draws(21)
    scheduler = scheduler_of(
        "SASolverScheduler",
        predictor_order=order,
        corrector_order=order + 1,
        tau_func=lambda t: tau,
        lower_order_final=False,
    )
    theirs = stepped(scheduler, first(scheduler, 20, z), generator=after_first(generator))
    times = to_the_first_level(scheduler)

    def table(grid: grids.Levels) -> multistep.Table:
        return their_sa_solver(grid, order, tau)

    same = ours(multistep.multistep, CHAIN, z, times, table, denoise=False)
    assert difference(same, theirs) < (1e-5 if order < 3 else 1e-3)  # their weights are in float32
    if order != 2:
        found = ours(few_steps.sa_solver, CHAIN, z, times, order=order, tau=tau, denoise=False)
        assert difference(found, theirs) < 0.01


def test_heun() -> None:
    """Their prior has the deviation sigma_max in the variable x / alpha, ours sqrt(1 + that^2)."""
    torch = pytest.importorskip("torch")
    z = draws(1)[1]
    scheduler = scheduler_of("HeunDiscreteScheduler")
    scheduler.set_timesteps(12)
    x = torch.from_numpy(z[0] / np.asarray(CHAIN.alpha(jnp.ones(1))))
    theirs = stepped(scheduler, x)
    times = np.arange(STEPS - 1, -1, -9) / (STEPS - 1)
    assert difference(ours(few_steps.edm, CHAIN, z, times), theirs) < 1e-4


def test_predictor_corrector_of_ve() -> None:
    torch = pytest.importorskip("torch")
    sde = VESDE(N=30, sigma_max=20.0)
    generator, z = draws(1 + 3 * sde.N)
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.ScoreSdeVeScheduler(
        num_train_timesteps=sde.N, sigma_max=20.0, snr=0.16, correct_steps=2
    )
    scheduler.set_timesteps(sde.N)
    scheduler.set_sigmas(sde.N)
    score, generator = as_torch(MIXTURE.score_fn(sde)), after_first(generator)
    x = torch.from_numpy(z[0]) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        for _ in range(2):
            x = scheduler.step_correct(score(x, float(t)), x, generator=generator).prev_sample
        output = scheduler.step_pred(score(x, float(t)), t, x, generator=generator)
        x = output.prev_sample
    options = {"predictor": "reverse_diffusion", "corrector": "langevin", "n_steps_each": 2}
    found = ours(sampling.pc_sampler, sde, z, corrector_norm="batch", **options)
    assert difference(found, output.prev_sample_mean.numpy()) < 2e-5


@pytest.mark.parametrize("late", [False, True])
def test_annealed_langevin(late: bool) -> None:
    """diffusers-ncsn's steps at ten levels, and at ours, whose times are late by 3e-7 of themselves
    (see `grids.sampling_times`) and end at `eps`: 2e-6 of a sigma, 1e-4 of a sample after 50 steps.
    """
    torch = pytest.importorskip("torch")
    ncsn = pytest.importorskip("ncsn.scheduler")
    sde, each, eps = VESDE(N=10, sigma_max=5.0), 5, 1e-7
    torch.manual_seed(5)
    z = np.stack([torch.randn((BATCH, *SHAPE)).numpy() for _ in range(1 + each * sde.N)])
    torch.manual_seed(5)
    x = sde.prior_std * torch.randn((BATCH, *SHAPE))
    scheduler = ncsn.AnnealedLangevinDynamicsScheduler(
        num_train_timesteps=sde.N,
        num_annealed_steps=each,
        sigma_min=sde.sigma_min,
        sigma_max=sde.sigma_max,
        sampling_eps=2e-5,
    )
    times = 1.0 - np.arange(sde.N) / (sde.N - 1)
    if late:
        times = grids.sampling_times(sde, eps)
        sigmas = np.array(sde.sigma(jnp.asarray(times)) / sde.sigma(jnp.float32(eps)))
        scheduler._step_size = 2e-5 * torch.from_numpy(sigmas) ** 2
    score = as_torch(MIXTURE.score_fn(sde))
    for k in range(sde.N):
        for _ in range(each):
            x = scheduler.step(score(x, times[k]), k, x).prev_sample
    options = {"step_size": 2e-5, "n_steps_each": each, "denoise": False, "eps": eps}
    found = ours(sampling.annealed_langevin_dynamics, sde, z, **options)
    assert difference(found, x.numpy()) < (5e-5 if late else 5e-4)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
def test_probability_flow(sde: SDE) -> None:
    """torchdiffeq's Dopri5, which has one step for all images, to its tolerance of 1e-5."""
    torch = pytest.importorskip("torch")
    torchdiffeq = pytest.importorskip("torchdiffeq")
    z = draws(1)[1]
    drift = as_torch(sde.reverse(MIXTURE.score_fn(sde), probability_flow=True).drift)
    x = torch.from_numpy(z[0]).double() * sde.prior_std
    times = torch.tensor([sde.T, sde.sampling_eps], dtype=torch.float64)
    theirs = torchdiffeq.odeint(
        lambda t, x: drift(x, float(t)),
        x,
        times,
        rtol=1e-5,
        atol=1e-5,
        options={"step_t": times[1:]},  # or it would look beyond the end, where t < 0
    )[-1]
    found = ours(sampling.ode_sampler, sde, z, rtol=1e-6, atol=1e-6, method="Dopri5")
    assert difference(found, theirs.numpy()) < 1e-3


# Of k-diffusion, whose stochastic sampler is given recorded noise.
K_DIFFUSION = {
    "edm": "sample_heun",
    "dpmpp_2m": "sample_dpmpp_2m",
    "dpmpp_2m_sde": "sample_dpmpp_2m_sde",
}


def k_diffusion_sampling(patch: pytest.MonkeyPatch) -> Any:
    """The module `k_diffusion.sampling`, without what training with k-diffusion needs.

    Of `k_diffusion.utils`, which reads images, it uses `append_dims` alone.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k_diffusion is not installed")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or ())
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, ndim: x.reshape(x.shape + (1,) * (ndim - x.ndim))  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    for module in (package, utils):
        patch.setitem(sys.modules, module.__name__, module)
    return pytest.importorskip("k_diffusion.sampling")


@pytest.mark.parametrize("method", K_DIFFUSION)
def test_k_diffusion(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heun and DPM-Solver++ on EDM's process and grid."""
    torch = pytest.importorskip("torch")
    module = k_diffusion_sampling(monkeypatch)
    sde, steps = EDMSDE(), 12
    z = draws(steps + 1)[1]
    times = grids.time_grid(sde, "karras", steps)
    score, record = as_torch(MIXTURE.score_fn(sde)), iter(torch.from_numpy(z[1:]))

    def denoise(x: Any, sigma: Any) -> Any:
        return x + sigma[0] ** 2 * score(x, float(sigma[0]))

    sigmas = torch.from_numpy(np.append(times, 0.0).astype(np.float32))
    x = torch.from_numpy(z[0]) * sde.prior_std
    stochastic = {"noise_sampler": lambda start, end: next(record)} if "sde" in method else {}
    theirs = getattr(module, K_DIFFUSION[method])(denoise, x, sigmas, disable=True, **stochastic)
    found = ours(few_steps.METHODS[method].solver, sde, z, times)
    assert difference(found, theirs.numpy()) < 2e-5


# Of azula, at equally spaced times; its `eta` is the square of ours.
AZULA: dict[str, tuple[Callable[..., Any], dict[str, Any], str, dict[str, Any]]] = {
    "ddim": (few_steps.ddim, {}, "DDIMSampler", {}),
    "ddim, eta 0.5": (few_steps.ddim, {"eta": 0.5}, "DDIMSampler", {"eta": 0.25}),
    "ddim, eta 1": (few_steps.ddim, {"eta": 1.0}, "DDPMSampler", {}),
    "edm": (few_steps.edm, {}, "HeunSampler", {}),
    "dpmpp_3m": (few_steps.dpm_solver_pp, {"order": 3}, "xEABSampler", {"order": 3}),
}


def azula_denoiser(azula: Any, sde: SDE) -> Any:
    """Our score as a denoiser of azula, with our alpha and sigma."""
    torch = pytest.importorskip("torch")
    score, levels = as_torch(MIXTURE.score_fn(sde)), jax.jit(lambda t: (sde.alpha(t), sde.sigma(t)))

    def schedule(t: Any) -> Any:
        return [torch.from_numpy(np.array(x)) for x in levels(t.numpy())]

    class Denoiser(azula.denoise.Denoiser):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, t: Any) -> Any:
            alpha, sigma = schedule(t)
            return azula.denoise.DiracPosterior((x + sigma**2 * score(x, float(t))) / alpha)

    denoiser = Denoiser()
    denoiser.schedule = schedule
    return denoiser


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", AZULA)
def test_azula(name: str, sde: SDE) -> None:
    torch = pytest.importorskip("torch")
    azula = pytest.importorskip("azula")
    solver, options, their_name, their_options = AZULA[name]
    denoiser = azula_denoiser(azula, sde)
    steps = 20
    times = grids.time_grid(sde, "uniform", steps)
    torch.manual_seed(5)
    z = np.stack([torch.randn((BATCH, *SHAPE)).numpy() for _ in range(steps + 1)])
    torch.manual_seed(5)
    x = sde.prior_std * torch.randn((BATCH, *SHAPE))
    span = {"start": sde.T, "stop": float(times[-1]), "steps": steps, "silent": True}
    theirs = getattr(azula.sample, their_name)(denoiser, **span, **their_options)(x)
    found = ours(solver, sde, z, times, denoise=False, **options)
    assert difference(found, theirs.numpy()) < 2e-5


def test_azula_predictor_corrector() -> None:
    """Step by step: DDIM, and before it a corrector that takes the share sqrt(1 - delta) of the
    noise in x and adds sqrt(delta) sigma z. Langevin dynamics of that drift adds a little more.
    """
    torch = pytest.importorskip("torch")
    azula = pytest.importorskip("azula")
    sde, delta, corrections = VESDE(N=21), 0.2, 2
    theirs = azula.sample.PCSampler(azula_denoiser(azula, sde), corrections, delta)
    shrink = 1.0 - np.sqrt(1.0 - delta)
    corrector, score = langevin.annealed_langevin(np.sqrt(shrink / 2.0)), MIXTURE.score_fn(sde)
    noise = np.sqrt(delta / (2.0 * shrink))  # of theirs, in units of Langevin dynamics'
    assert 0.9 < noise < 1.0

    @jax.jit
    def step(x: Any, t: Any, zs: Any) -> Any:
        x, _ = corrector(sde, score, x, t, noise * zs)
        return sampling.ancestral_sampling(sde, score, x, t, zs[0], probability_flow=True)[0]

    torch.manual_seed(5)
    z = np.stack([torch.randn((BATCH, *SHAPE)).numpy() for _ in range(1 + 20 * corrections)])
    torch.manual_seed(5)
    y = sde.prior_std * torch.randn((BATCH, *SHAPE))
    x, times = jnp.asarray(y.numpy()), np.linspace(1.0, 0.0, sde.N, dtype=np.float32)
    for k, (start, end) in enumerate(itertools.pairwise(times)):
        y = theirs.step(y, torch.tensor(start), torch.tensor(end))
        zs = z[1 + corrections * k : 1 + corrections * (k + 1)]
        x = step(x, jnp.full(BATCH, start), zs)
    assert difference(x, y.numpy()) < 1e-4


# Of hackable-diffusion, which is JAX's own (Python 3.12): its steps, one by one.


def hackable(name: str) -> Any:
    """A module of hackable-diffusion, whose imports warn of what they will lack."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(f"hackable_diffusion.lib.{name}")


def hackable_process(sde: SDE) -> Any:
    """Their process with our alpha and sigma, whose derivatives they take themselves."""
    gaussian, schedules = hackable("corruption.gaussian"), hackable("corruption.schedules")

    class Schedule(schedules.GaussianSchedule):  # type: ignore[misc, name-defined]
        def alpha(self, time: Any) -> Any:
            return sde.alpha(time)

        def sigma(self, time: Any) -> Any:
            return sde.sigma(time)

    return gaussian.GaussianProcess(schedule=Schedule())


def hackable_steps(
    step: Any, sde: SDE, x: Any, starts: np.ndarray, ends: np.ndarray, keys: Any
) -> np.ndarray:
    """Their samples from x, by steps from each of `starts` to each of `ends`."""
    info, score = hackable("sampling.base").StepInfo, MIXTURE.score_fn(sde)

    def at(number: Any, time: Any, key: Any) -> Any:
        times = jnp.full((BATCH, 1, 1), time, jnp.float32)
        return info(step=jnp.asarray(number, jnp.int32), time=times, rng=key)

    def advance(method: Any, state: Any, number: Any, start: Any, end: Any, key: Any) -> Any:
        state = state.replace(step_info=at(number, start, key))
        prediction = {"score": score(state.xt, jnp.full(BATCH, start, jnp.float32))}
        return method(prediction, state, at(number + 1, end, key))

    update = jax.jit(functools.partial(advance, step.update))
    last = jax.jit(functools.partial(advance, step.finalize))
    state = step.initialize(jnp.asarray(x), at(0, starts[0], keys[0]))
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        method = last if i + 1 == len(starts) else update
        state = method(state, i, start, end, keys[i + 1])
    return np.asarray(state.xt)


def hackable_draws(count: int) -> tuple[Any, np.ndarray]:
    """Keys, and the draws that their steps make of them."""
    keys = jax.random.split(jax.random.key(5), count)
    return keys, np.stack([jax.random.normal(key, (BATCH, *SHAPE)) for key in keys])


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_hackable_diffusion_ddim(sde: SDE, share: float) -> None:
    """Their coefficient is on the mean of the two ends, DDIM and ancestral; `eta` at both ends."""
    steps = hackable("sampling.gaussian_step_sampler")
    keys, z = hackable_draws(21)
    times = grids.time_grid(sde, "uniform", 20)

    def between(grid: grids.Levels) -> multistep.Table:
        h = np.diff(grid.lam)
        rest = share * np.exp(-h) + 1.0 - share
        gains = grid.alpha[1:] * (1.0 - np.exp(-h) * rest)
        noise = np.sqrt(1.0 - rest**2) * grid.sigma[1:]
        return multistep.Table(grid.sigma[1:] / grid.sigma[:-1] * rest, gains[:, None], noise)

    step = steps.DDIMStep(
        corruption_process=hackable_process(sde), stoch_coeff=share, stochastic_last_step=True
    )
    theirs = hackable_steps(step, sde, sde.prior_std * z[0], times[:-1], times[1:], keys)
    same = ours(multistep.multistep, sde, z, times, between, denoise=False)
    assert difference(same, theirs) < 2e-5
    if share in (0.0, 1.0):
        found = ours(few_steps.ddim, sde, z, times, eta=share, denoise=False)
        assert difference(found, theirs) < 2e-5


@pytest.mark.parametrize("sde", [VPSDE(N=40), VESDE(N=40)], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", ["SdeStep", "VelocityStep"])
@pytest.mark.parametrize("flow", [False, True])
def test_hackable_diffusion_euler(sde: SDE, name: str, flow: bool) -> None:
    """Euler-Maruyama of the reverse SDE and Euler of the flow, by drift or by velocity."""
    steps = hackable("sampling.gaussian_step_sampler")
    keys, z = hackable_draws(sde.N + 1)
    times = grids.sampling_times(sde)
    noise = {"churn" if name == "SdeStep" else "stoch_coeff": 0.0 if flow else 1.0}
    step = getattr(steps, name)(corruption_process=hackable_process(sde), **noise)
    theirs = hackable_steps(step, sde, sde.prior_std * z[0], times, times - 1.0 / sde.N, keys)
    options = {"predictor": "euler_maruyama", "corrector": "none", "probability_flow": flow}
    assert difference(ours(sampling.pc_sampler, sde, z, **options), theirs) < 2e-4


def test_hackable_diffusion_heun() -> None:
    """In the time of EDM's process, where both step in sigma; each step of ours is two of theirs,
    of which the first looks at the second's end."""
    steps, base = hackable("sampling.gaussian_step_sampler"), hackable("sampling.base")
    sde, count = EDMSDE(), 12
    keys, z = hackable_draws(2 * count + 1)
    times = grids.time_grid(sde, "karras", count)
    twice = np.repeat(times, 2)[: 2 * count + 1]

    class Schedule:
        def all_step_infos(self, rng: Any, num_steps: int, data_spec: Any) -> Any:
            shape = (len(twice), BATCH, 1, 1)
            time = jnp.broadcast_to(jnp.asarray(twice, jnp.float32).reshape(-1, 1, 1, 1), shape)
            return base.StepInfo(step=jnp.arange(len(twice)), time=time, rng=keys)

    step = steps.HeunStep(
        corruption_process=hackable_process(sde), time_schedule=Schedule(), num_steps=2 * count
    )
    starts = np.stack([times[:-1], times[1:]], 1).reshape(-1)
    ends = np.repeat(times[1:], 2)
    theirs = hackable_steps(step, sde, sde.prior_std * z[0], starts, ends, keys)
    found = ours(few_steps.edm, sde, z, times, denoise=False)
    assert difference(found, theirs) < 2e-5
