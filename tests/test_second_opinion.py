"""Other people's samplers, driven with our score: the same samples from the same noise.

Each test needs a library that is no requirement of the project, and is skipped without it. The
score is the exact one of a mixture of two Gaussians at the levels of DDPM's chain, which diffusers'
schedulers step along; `docs/samplers.md` has the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
from diffusion import few_steps, grids
from diffusion.noise import recorded_noise
from sde_lib import EDMSDE, SDE, VESDE, VPSDE
from tests.chains import chain_of
from tests.gaussians import Mixture

pytestmark = pytest.mark.slow

BATCH, SHAPE, STEPS = 16, (2, 3), 100
MIXTURE = Mixture(
    weights=jnp.array([0.3, 0.7]),
    means=jnp.array([[[-0.8, 0.5, 0.1], [0.2, -0.6, 0.9]], [[0.7, -0.2, 0.3], [-0.5, 0.4, -0.9]]]),
    stds=jnp.array([[[0.2, 0.3, 0.1], [0.4, 0.2, 0.3]], [[0.3, 0.1, 0.2], [0.1, 0.3, 0.2]]]),
)
VP = VPSDE(N=STEPS)
CHAIN = chain_of(VP)
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
    return CHAIN.times(scheduler.timesteps.numpy())


def first(scheduler: Any, steps: int, z: np.ndarray) -> Any:
    """Sets the steps of a scheduler; x at its first one."""
    torch = pytest.importorskip("torch")
    scheduler.set_timesteps(steps)
    return torch.from_numpy(z[0])


def test_ddpm() -> None:
    """The reverse chain with the variance beta, and with that of the posterior."""
    generator, z = draws(STEPS + 1)
    generator = after_first(generator)
    large = scheduler_of("DDPMScheduler", variance_type="fixed_large", clip_sample=False)
    theirs = stepped(large, first(large, STEPS, z), generator=generator)
    chain = ours(sampling.pc_sampler, VP, z, predictor="ancestral_sampling", corrector="none")
    assert difference(chain, theirs) < 1e-5

    small = scheduler_of("DDPMScheduler", variance_type="fixed_small", clip_sample=False)
    generator = after_first(draws(1)[0])
    theirs = stepped(small, first(small, STEPS, z), generator=generator)
    posterior = ours(few_steps.ddim, CHAIN, z, times_of(small), eta=1.0)
    assert difference(posterior, theirs) < 1e-5
    assert difference(chain, theirs) > 1e-3, "another variance"


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


def test_ddim_of_a_run_takes_the_levels_of_the_continuous_process() -> None:
    """As `sampling.from_config` does: up to half a step of the chain from those of its table."""
    scheduler = scheduler_of("DDIMScheduler", clip_sample=False, timestep_spacing="trailing")
    z = draws(1)[1]
    theirs = stepped(scheduler, first(scheduler, 10, z))
    times = times_of(scheduler)
    assert 1e-3 < difference(ours(few_steps.ddim, VP, z, times), theirs) < 0.1


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpm_solver_pp_2m(steps: int, stochastic: bool) -> None:
    generator, z = draws(steps + 1)
    kind = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    scheduler = scheduler_of("DPMSolverMultistepScheduler", algorithm_type=kind)
    theirs = stepped(scheduler, first(scheduler, steps, z), generator=after_first(generator))
    found = ours(few_steps.dpm_solver_pp, CHAIN, z, times_of(scheduler), stochastic=stochastic)
    assert difference(found, theirs) < 2e-5


def test_dpm_solver_pp_3m() -> None:
    """diffusers lowers the order of the last steps where there are fewer than 15."""
    z = draws(1)[1]
    scheduler = scheduler_of("DPMSolverMultistepScheduler", solver_order=3)
    theirs = stepped(scheduler, first(scheduler, 20, z))
    found = ours(few_steps.dpm_solver_pp, CHAIN, z, times_of(scheduler), order=3)
    assert difference(found, theirs) < 1e-2


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_is_solved_exactly_here(order: int) -> None:
    """diffusers takes 1/2 for the weight of a predictor of order 2 and a corrector of order 1.

    Both are of the same order of convergence, and the difference goes as a power of the step.
    """
    z = draws(1)[1]
    gaps = []
    for steps in (11, 33, 99):
        scheduler = scheduler_of("UniPCMultistepScheduler", solver_order=order)
        theirs = stepped(scheduler, first(scheduler, steps, z))
        found = ours(few_steps.unipc, CHAIN, z, times_of(scheduler), order=order)
        gaps.append(difference(found, theirs))
    assert gaps[0] < 0.1
    assert gaps[1] < gaps[0] / 3
    assert gaps[2] < gaps[1] / 3


def test_heun() -> None:
    """Their prior has the deviation sigma_max in the variable x / alpha, ours sqrt(1 + that^2)."""
    torch = pytest.importorskip("torch")
    z = draws(1)[1]
    scheduler = scheduler_of("HeunDiscreteScheduler")
    scheduler.set_timesteps(12)
    x = torch.from_numpy(z[0] / np.asarray(CHAIN.alpha(jnp.ones(1))))
    theirs = stepped(scheduler, x)
    times = CHAIN.times(np.arange(STEPS - 1, -1, -9))
    assert difference(ours(few_steps.edm, CHAIN, z, times), theirs) < 2e-5


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


@pytest.mark.parametrize("method", ["edm", "dpmpp_2m_sde", "dpmpp_2m"])
def test_k_diffusion(method: str) -> None:
    """Heun and DPM-Solver++ on EDM's process and grid, with recorded noise."""
    torch = pytest.importorskip("torch")
    k_diffusion = pytest.importorskip("k_diffusion.sampling")
    sde, steps = EDMSDE(), 12
    z = draws(steps + 1)[1]
    times = grids.time_grid(sde, "karras", steps)
    score = as_torch(MIXTURE.score_fn(sde))
    record = iter(torch.from_numpy(z[1:]))

    def denoise(x: Any, sigma: Any) -> Any:
        return x + sigma[0] ** 2 * score(x, float(sigma[0]))

    sigmas = torch.from_numpy(np.append(times, 0.0).astype(np.float32))
    x = torch.from_numpy(z[0]) * sde.prior_std
    more: dict[str, Any] = {"noise_sampler": lambda a, b: next(record)}
    name = {"edm": "sample_heun", "dpmpp_2m_sde": "sample_dpmpp_2m_sde"}.get(
        method, "sample_dpmpp_2m"
    )
    if method != "dpmpp_2m_sde":
        more = {}
    theirs = getattr(k_diffusion, name)(denoise, x, sigmas, disable=True, **more)
    found = ours(few_steps.METHODS[method].solver, sde, z, times)
    assert difference(found, theirs.numpy()) < 1e-4
