"""Samplers: predictor-corrector (algorithm 1), the probability-flow ODE, and the reverse SDE.

Equation and algorithm numbers are those of Song et al. 2021, "Score-Based Generative Modeling
through Stochastic Differential Equations" (arXiv:2011.13456). Images are x [B, ...], times t [B].
All randomness comes from a noise source: a callable that maps i to the i-th standard-normal draw,
[B, ...].
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypedDict, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from configs.names import documented_by, lookup
from diffusion import few_steps, flow_maps, grids, ode, reverse_sde
from diffusion.ancestral import VARIANCES, ancestral
from diffusion.heun import SCALINGS, SCHEDULES
from diffusion.langevin import CORRECTORS as CORRECTORS
from diffusion.langevin import NORMS, Corrector, corrector_of
from diffusion.noise import Noise
from diffusion.times import last_time
from diffusion.trajectory import Samples, denoised, drive, samples_ending_on
from sde_lib import (
    SDE,
    VESDE,
    Images,
    ScoreFn,
    Times,
    VariancePreservingSDE,
    batch_mul,
)
from sde_lib import from_config as sde_from_config

# Predictors: one step of the reverse-time process, from t to the next time.


@runtime_checkable
class Predictor(Protocol):
    """Returns the next x and its mean before noise; `z` [B, ...] is standard normal."""

    def __call__(
        self,
        sde: SDE,
        score_fn: ScoreFn,
        x: Images,
        t: Times,
        z: Images,
        probability_flow: bool = False,
    ) -> tuple[Images, Images]: ...


def euler_maruyama(
    sde: SDE, score_fn: ScoreFn, x: Images, t: Times, z: Images, probability_flow: bool = False
) -> tuple[Images, Images]:
    """Euler-Maruyama on the reverse SDE (eq. 6) or its probability flow (eq. 13).

    x' = x - drift(x, t) dt + g(t) sqrt(dt) z with dt = T / N.
    """
    dt = sde.T / sde.N
    drift, diffusion = sde.reverse(score_fn, probability_flow).sde(x, t)
    x_mean = x - drift * dt
    return x_mean + batch_mul(diffusion * jnp.sqrt(dt), z), x_mean


def reverse_diffusion(
    sde: SDE, score_fn: ScoreFn, x: Images, t: Times, z: Images, probability_flow: bool = False
) -> tuple[Images, Images]:
    """The forward chain's own discretisation, reversed (eq. 46; probability flow eq. 45).

    Raises:
      ValueError: the probability flow of an SDE with a `steep_end`, such as the cosine schedule.
        Its last betas are the same however many the steps, and eq. 45 is wrong by O(beta^2), which
        no noise makes forgotten.
    """
    if probability_flow and sde.steep_end:
        raise ValueError(
            "reverse_diffusion with probability_flow does not converge for "
            f"{type(sde).__name__}, whose last steps stay large; use euler_maruyama or "
            "ancestral_sampling"
        )
    f, G = sde.reverse(score_fn, probability_flow).discretize(x, t)
    x_mean = x - f
    return x_mean + batch_mul(G, z), x_mean


def ancestral_sampling(
    sde: SDE, score_fn: ScoreFn, x: Images, t: Times, z: Images, probability_flow: bool = False
) -> tuple[Images, Images]:
    """Sampling p(x_s | x_t, x_0) with x_0 replaced by its estimate.

    VP: DDPM's chain with noise beta_i (eq. 4). VE: SMLD's levels (eq. 47). Any other SDE: the
    posterior between t and s = t - T/(N-1), the next time of the sampler's grid. With a in
    x_t = a x_s + noise and log-SNR lambda, the probability flow is the member of the same family
    without noise, DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12):
    x_s = (x + sigma_t^2 (1 - exp((lambda_t - lambda_s) / 2)) score) / a.
    """
    score = score_fn(x, t)
    s = jnp.maximum(t - sde.T / max(sde.N - 1, 1), 0.0)
    if probability_flow:
        a, _ = sde.transition(t, s)
        shrink = -jnp.expm1(0.5 * (sde.log_snr(t) - sde.log_snr(s)))
        x = batch_mul(1.0 / a, x + batch_mul(jnp.square(sde.sigma(t)) * shrink, score))
        return x, x
    if isinstance(sde, VariancePreservingSDE):
        beta = sde.discrete_betas[sde.timestep(t)]
        x_mean = batch_mul(jax.lax.rsqrt(1.0 - beta), x + batch_mul(beta, score))
        std = jnp.sqrt(beta)
    elif isinstance(sde, VESDE):
        i = sde.timestep(t)
        sigma = sde.discrete_sigmas[i]
        below = jnp.where(i == 0, 0.0, sde.discrete_sigmas[i - 1])
        variance = (sigma - below) * (sigma + below)
        x_mean = x + batch_mul(variance, score)
        std = jnp.sqrt(variance) * below / sigma
    else:
        x_mean, std = sde.posterior(x, score, t, s)
    return x_mean + batch_mul(std, z), x_mean


def no_predictor(
    sde: SDE, score_fn: ScoreFn, x: Images, t: Times, z: Images, probability_flow: bool = False
) -> tuple[Images, Images]:
    """Leaves x as it is: sampling by the corrector alone."""
    return x, x


PREDICTORS: dict[str, Predictor] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral_sampling": ancestral_sampling,
    "none": no_predictor,
}


# Samplers.


# From x, t and a standard-normal draw to the x that goes on.
AfterUpdate = Callable[[Array, Array, Array], Array]


class Updates(NamedTuple):
    """The two updates at each time, and how often each asks the score."""

    predict: Predictor
    correct: Corrector
    predictions: int
    corrections: int


def _updates(
    predictor: str, corrector: str, n_steps_each: int, snr: float, norm: str, axis_name: str | None
) -> Updates:
    """A predictor and a corrector by their names, whose numbers are checked."""
    predict = lookup(PREDICTORS, predictor, "predictor")
    if predictor == corrector == "none":
        raise ValueError("predictor and corrector are both 'none': choose at least one")
    if corrector != "none" and n_steps_each < 1:
        raise ValueError(f"n_steps_each must be at least 1, not {n_steps_each}")
    correct = corrector_of(corrector, snr, norm, axis_name)
    predictions = 0 if predictor == "none" else 1
    return Updates(predict, correct, predictions, 0 if corrector == "none" else n_steps_each)


class PCOptions(TypedDict, total=False):
    """Options that every form of predictor-corrector sampling shares; see `pc_sampler`."""

    predictor: str
    corrector: str
    snr: float
    n_steps_each: int
    probability_flow: bool
    corrector_norm: str


def pc_sampler(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    *,
    predictor: str = "reverse_diffusion",
    corrector: str = "langevin",
    snr: float = 0.16,
    n_steps_each: int = 1,
    denoise: bool = True,
    eps: float | None = None,
    probability_flow: bool = False,
    corrector_norm: str = "image",
    axis_name: str | None = None,
    num_frames: int = 0,
    start: Images | None = None,
    after_update: AfterUpdate | None = None,
) -> Samples:
    """Predictor-corrector sampling (algorithm 1): correct, predict, at N times from T to eps.

    Draw 0 of `noise` is the prior's; each time then takes `n_steps_each` draws for the corrector
    and one for the predictor ('none' takes none). With `after_update` it takes one more after the
    corrector's and one more after the predictor's, whether or not these are 'none'.

    Args:
      predictor: a name in PREDICTORS.
      corrector: a name in CORRECTORS.
      snr: the corrector's signal-to-noise ratio r.
      n_steps_each: M, corrector steps at each time.
      denoise: return the predictor's last mean instead of its noisy state ('none' has no mean).
      eps: last time; `sde.sampling_eps` if None.
      probability_flow: predict with the deterministic form of the predictor.
      corrector_norm: a name in `langevin.NORMS`: "image" or "batch".
      axis_name: the mapped axis over devices that "batch" includes.
      num_frames: states to keep; all N + 1 where there are no more.
      start: x at time T; None: a draw from the prior.
      after_update: from x, t and a draw z to the x that goes on, after each of the two updates.

    Raises:
      ValueError: unknown name, nothing to do, or a number out of range.
    """
    predict, correct, predictions, corrections = _updates(
        predictor, corrector, n_steps_each, snr, corrector_norm, axis_name
    )
    x = sde.prior_sampling(noise(0)) if start is None else start

    def step(x: Images, x_mean: Images, at: tuple[Array, Array]) -> tuple[Images, Images]:
        time, draw = at
        t = jnp.full(x.shape[0], time)
        if corrections:
            zs = jax.lax.map(noise, draw + jnp.arange(corrections))
            x, _ = correct(sde, score_fn, x, t, zs)
            draw += corrections
        if after_update:
            x = after_update(x, t, noise(draw))
            draw += 1
        noisy = predictions and not probability_flow
        z = noise(draw) if noisy else jnp.zeros_like(x)
        x, x_mean = predict(sde, score_fn, x, t, z, probability_flow)
        if after_update:
            x = after_update(x, t, noise(draw + predictions))
        return x, x_mean

    times = grids.sampling_times(sde, eps)
    per_time = corrections + predictions
    draws = 1 + (per_time + (2 if after_update else 0)) * jnp.arange(sde.N)
    x, x_mean, frames = drive(step, x, x, (jnp.asarray(times), draws), num_frames)
    return samples_ending_on(x_mean if denoise else x, sde.N * per_time, frames)


def ode_sampler(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "Tsit5",
    eps: float | None = None,
    denoise: bool = False,
    max_steps: int = 4096,
    num_frames: int = 0,
) -> Samples:
    """The probability-flow ODE (eq. 13) solved from T to eps, each image with its own steps.

    Draw 0 of `noise` makes the latent. With `denoise`, a last step of reverse diffusion without
    noise is taken at eps.

    Args:
      rtol: relative tolerance of a step.
      atol: absolute tolerance of a step.
      method: a name in `ode.solvers`.
      eps: last time; `sde.sampling_eps` if None.
      max_steps: attempted steps after which an image is given up (`ok` is then False).
      num_frames: states to keep, at equally spaced times.

    Raises:
      ValueError: unknown solver, or a number out of range.
    """
    eps = last_time(sde, eps)
    flow = ode.probability_flow(sde, score_fn)
    solution = ode.solve(
        lambda t, x, _: flow(t, x),
        sde.prior_sampling(noise(0)),
        sde.T,
        eps,
        rtol=rtol,
        atol=atol,
        solver=method,
        max_steps=max_steps,
        num_frames=num_frames,
    )
    x, nfe, frames = solution.y, solution.nfe, solution.frames
    if denoise:
        t = jnp.full(x.shape[0], eps)
        _, x = reverse_diffusion(sde, score_fn, x, t, jnp.zeros_like(x))
        nfe = nfe + 1
    return samples_ending_on(x, nfe, frames, solution.ok)


def annealed_langevin_dynamics(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    *,
    step_size: float = 2e-5,
    n_steps_each: int = 100,
    denoise: bool = True,
    eps: float | None = None,
    num_frames: int = 0,
) -> Samples:
    """SMLD's sampler (Song and Ermon 2019, arXiv:1907.05600, algorithm 1), at N noise levels.

    x' = x + a score / 2 + sqrt(a) z with a = `step_size` (sigma / sigma_last)^2, `n_steps_each`
    times at each level. With `denoise`, the result is E[x_0 | x] at the last level, for one
    evaluation more (Jolicoeur-Martineau et al. 2020, arXiv:2009.05475). Draws as `pc_sampler`.

    Raises:
      ValueError: a number out of range.
    """
    if step_size <= 0:
        raise ValueError(f"step_size must be positive, not {step_size}")
    eps = last_time(sde, eps)
    with jax.ensure_compile_time_eval():
        last = float(sde.sigma(jnp.asarray(eps)))
    samples = pc_sampler(
        sde,
        score_fn,
        noise,
        predictor="none",
        corrector="ald",
        snr=step_size**0.5 / (2.0 * last),
        n_steps_each=n_steps_each,
        eps=eps,
        num_frames=num_frames,
    )
    if not denoise:
        return samples
    x = denoised(sde, score_fn, samples.x, eps)
    return samples_ending_on(x, samples.nfe + 1, samples.trajectory)


@runtime_checkable
class Sampler(Protocol):
    """A map from prior to images, with everything but SDE, score and randomness decided."""

    def __call__(self, sde: SDE, score_fn: ScoreFn, noise: Noise) -> Samples: ...


# Samplers of a config.


def from_config(config: ConfigDict, axis_name: str | None = None) -> Sampler:
    """The sampler that `config.sampling` describes; `method` is a name in SAMPLERS.

    Every sampler reads noise_removal, num_frames and eps (0: the SDE's own), all but "ode" also
    num_steps (0: the SDE's own N, or with "sde" and a solver that has an error estimate adaptive
    steps). "pc" reads predictor, corrector, snr, n_steps_each, probability_flow and corrector_norm;
    "annealed_langevin" n_steps_each and step_size; "ancestral" variance and clip; "ode" and "sde"
    solver, rtol and atol. "sde" and the solvers with few steps take the grid time_grid, a name in
    `grids.GRIDS` (if empty, their own), and the settings that `few_steps.METHODS` names. "euler"
    and "heun" take a name in `grids.NOISE_GRIDS`, rho, sigma_min and sigma_max (0: the SDE's own),
    and their num_steps counts the last step, to no noise. `axis_name` is the mapped axis of
    devices.

    A network that was trained with discrete labels (training.continuous is False) is asked at its
    own noise levels only: "pc" and "annealed_langevin" visit all of them, "ancestral" some, and the
    few-step solvers that evaluate at the times of their grid have these moved to the nearest level,
    with alpha and sigma of `sde.chain`: DDPM's table, by which its network was trained.

    Raises:
      ValueError: unknown method, predictor, corrector or solver, a number out of range, a method
        that asks a network with discrete labels between its levels, or one that asks for the score
        of a network that learned of dependent pairs (training.coupling) or a map along the flow.
    """
    sampling = config.sampling
    factory = lookup(SAMPLERS, sampling.method, "sampling.method")
    last_time(sde_from_config(config), sampling.eps or None)
    flow_maps.refuse_sampler(config.training.objective, sampling.method)
    discrete = not config.training.continuous
    if sampling.method == "ancestral" and sampling.clip and not config.data.centered:
        raise ValueError(
            "sampling.clip=True is for pixels in [-1, 1], and data.centered=False has [0, 1]"
        )
    if discrete and (
        sampling.method in BETWEEN_LEVELS or (sampling.method == "edm" and sampling.churn > 0.0)
    ):
        raise ValueError(
            f"sampling.method {sampling.method!r} asks the network at times of its own choice, but "
            "it was trained with discrete labels (training.continuous is False); such a network is "
            f"served by {', '.join(sorted(SAMPLERS.keys() - BETWEEN_LEVELS - flow_maps.ASKERS))}"
        )
    if config.training.coupling != "independent" and not follows_flow(sampling):
        raise ValueError(
            f"sampling.method {sampling.method!r}, as it is set, asks for the score, but pairs of "
            f"training.coupling={config.training.coupling!r} teach a flow alone; use ode, pc with "
            "probability_flow=True and no corrector, or a solver without noise"
        )
    low = -1.0 if config.data.centered else 0.0
    return factory(sampling, axis_name, Network(discrete, (low, 1.0)))


def follows_flow(sampling: ConfigDict) -> bool:
    """True if the sampler of section `sampling` follows the probability flow and does nothing else.

    Only then may the velocity be that of dependent pairs, see `diffusion.coupling`.
    """
    method = sampling.method
    if method == "pc":
        alone = sampling.corrector == "none" and sampling.predictor != "none"
        return bool(sampling.probability_flow and alone)
    if method in few_steps.METHODS:
        solver = few_steps.METHODS[method]
        return not (solver.stochastic or any(sampling[name] for name in solver.noise))
    return bool(method == "ode" or (method == "ancestral" and sampling.variance == "none"))


class Network(NamedTuple):
    """What a sampler must know of the network.

    Attributes:
      discrete: it knows the noise levels of its chain alone.
      image_range: the smallest and the largest value of its images.
    """

    discrete: bool
    image_range: tuple[float, float]


def pc_options(sampling: ConfigDict) -> PCOptions:
    """The options of `config.sampling` that every form of predictor-corrector sampling shares."""
    return PCOptions(
        predictor=sampling.predictor,
        corrector=sampling.corrector,
        snr=sampling.snr,
        n_steps_each=sampling.n_steps_each,
        probability_flow=sampling.probability_flow,
        corrector_norm=sampling.corrector_norm,
    )


@documented_by(pc_sampler)
def _pc_from_config(sampling: ConfigDict, axis_name: str | None, network: Network) -> Sampler:
    lookup(PREDICTORS, sampling.predictor, "sampling.predictor")
    lookup(CORRECTORS, sampling.corrector, "sampling.corrector")
    lookup(NORMS, sampling.corrector_norm, "sampling.corrector_norm")
    sample = functools.partial(
        pc_sampler,
        **pc_options(sampling),
        denoise=sampling.noise_removal,
        axis_name=axis_name,
        eps=sampling.eps or None,
        num_frames=sampling.num_frames,
    )
    return _with_steps(sampling, sample, network.discrete)


@documented_by(ode_sampler)
def _ode_from_config(sampling: ConfigDict, axis_name: str | None, network: Network) -> Sampler:
    lookup(ode.solvers(), sampling.solver, "sampling.solver")
    return functools.partial(
        ode_sampler,
        rtol=sampling.rtol,
        atol=sampling.atol,
        method=sampling.solver,
        denoise=sampling.noise_removal,
        eps=sampling.eps or None,
        num_frames=sampling.num_frames,
    )


@documented_by(reverse_sde.sde_sampler)
def _sde_from_config(sampling: ConfigDict, axis_name: str | None, network: Network) -> Sampler:
    lookup(reverse_sde.sde_solvers(), sampling.solver, "sampling.solver")
    steps, grid, eps = _num_steps(sampling), sampling.time_grid or "log_snr", sampling.eps or None
    lookup(grids.GRIDS, grid, "sampling.time_grid")

    def sampler(sde: SDE, score_fn: ScoreFn, noise: Noise) -> Samples:
        adaptive = not steps and sampling.solver not in reverse_sde.FIXED_STEPS
        return reverse_sde.sde_sampler(
            sde,
            score_fn,
            noise,
            method=sampling.solver,
            times=None if adaptive else grids.time_grid(sde, grid, steps or sde.N, eps),
            rtol=sampling.rtol,
            atol=sampling.atol,
            eps=eps,
            denoise=sampling.noise_removal,
            num_frames=sampling.num_frames,
        )

    return sampler


@documented_by(annealed_langevin_dynamics)
def _langevin_from_config(sampling: ConfigDict, axis_name: str | None, network: Network) -> Sampler:
    sample = functools.partial(
        annealed_langevin_dynamics,
        step_size=sampling.step_size,
        n_steps_each=sampling.n_steps_each,
        denoise=sampling.noise_removal,
        eps=sampling.eps or None,
        num_frames=sampling.num_frames,
    )
    return _with_steps(sampling, sample, network.discrete)


def _with_steps(sampling: ConfigDict, sample: Sampler, discrete: bool) -> Sampler:
    """`sample` with the SDE's N replaced by `num_steps`, unless that is 0."""
    steps = _num_steps(sampling)

    def sampler(sde: SDE, score_fn: ScoreFn, noise: Noise) -> Samples:
        if discrete and steps not in (0, sde.N):
            raise ValueError(
                f"sampling.num_steps is {steps}, but a network that was trained with discrete "
                f"labels has {sde.N} noise levels, and {sampling.method!r} takes them all: use 0, "
                "or ddim with fewer steps"
            )
        return sample(dataclasses.replace(sde, N=steps) if steps else sde, score_fn, noise)

    return sampler


@documented_by(ancestral)
def _ancestral_from_config(
    sampling: ConfigDict, axis_name: str | None, network: Network
) -> Sampler:
    lookup(dict.fromkeys(VARIANCES), sampling.variance, "sampling.variance")
    steps = _num_steps(sampling)

    def sampler(sde: SDE, score_fn: ScoreFn, noise: Noise) -> Samples:
        return ancestral(
            sde,
            score_fn,
            noise,
            num_steps=steps or sde.N,
            variance=sampling.variance,
            clip=sampling.clip,
            discrete=network.discrete,
            eps=sampling.eps or None,
            denoise=sampling.noise_removal,
            num_frames=sampling.num_frames,
        )

    return sampler


def _few_steps(method: few_steps.Method) -> Factory:
    """The factory of a solver with few steps."""
    if method.noise_levels:
        return _from_noise_levels(method)

    @documented_by(method.solver)
    def factory(sampling: ConfigDict, axis_name: str | None, network: Network) -> Sampler:
        steps, grid = _num_steps(sampling), sampling.time_grid or method.grid
        lookup(grids.GRIDS, grid, "sampling.time_grid")
        settings = {name: sampling[name] for name in method.settings}

        def sampler(sde: SDE, score_fn: ScoreFn, noise: Noise) -> Samples:
            times = grids.time_grid(sde, grid, steps or sde.N, sampling.eps or None)
            return method.solver(
                sde.chain if network.discrete else sde,
                score_fn,
                noise,
                grids.on_levels(sde, times) if network.discrete else times,
                denoise=sampling.noise_removal,
                num_frames=sampling.num_frames,
                **settings,
            )

        return sampler

    return factory


def _from_noise_levels(method: few_steps.Method) -> Factory:
    """The factory of a solver with few steps from noise level to noise level."""

    @documented_by(method.solver)
    def factory(sampling: ConfigDict, axis_name: str | None, network: Network) -> Sampler:
        steps = _num_steps(sampling)
        spread = lookup(grids.NOISE_GRIDS, sampling.time_grid or method.grid, "sampling.time_grid")
        settings = {name: sampling[name] for name in method.settings}
        lookup(SCHEDULES, sampling.schedule, "sampling.schedule")
        lookup(SCALINGS, sampling.scaling, "sampling.scaling")

        def sampler(sde: SDE, score_fn: ScoreFn, noise: Noise) -> Samples:
            largest, smallest = _noise_range(sampling, sde, network)
            share = np.linspace(0.0, 1.0, steps or sde.N)
            unit = 0.5 * (network.image_range[1] - network.image_range[0])
            return method.solver(
                sde,
                score_fn,
                noise,
                unit * spread(share, largest / unit, smallest / unit, sampling.rho),
                denoise=sampling.noise_removal,
                num_frames=sampling.num_frames,
                discrete=network.discrete,
                image_range=network.image_range,
                **settings,
            )

        return sampler

    return factory


def _noise_range(sampling: ConfigDict, sde: SDE, network: Network) -> tuple[float, float]:
    """The first and the last noise level, `sigma_max` and `sigma_min` or the SDE's own.

    Raises:
      ValueError: levels that the SDE does not have, or in the wrong order.
    """
    largest, smallest = grids.noise_range(sde, network.discrete, sampling.eps or None)
    first, last = sampling.sigma_max or largest, sampling.sigma_min or smallest
    if last < smallest:
        smallest = smallest if network.discrete else grids.noise_at(sde, 0.0)
        if last < smallest * (1.0 - grids.END):
            raise ValueError(
                f"sampling.sigma_min={last:g} is below the smallest noise level of "
                f"{type(sde).__name__}, {smallest:g}"
            )
    if first > largest * (1.0 + grids.END):
        raise ValueError(
            f"sampling.sigma_max={first:g} is above the largest noise level of "
            f"{type(sde).__name__}, {largest:g} (sigma / alpha at T)"
        )
    if not last < first:
        raise ValueError(f"sampling.sigma_min={last:g} must be below sampling.sigma_max={first:g}")
    return first, last


def _num_steps(sampling: ConfigDict) -> int:
    if sampling.num_steps < 0:
        raise ValueError(
            f"sampling.num_steps must be 0 (the SDE's own N) or more, not {sampling.num_steps}"
        )
    return int(sampling.num_steps)


# (config.sampling, axis name, what is known of the network) -> Sampler
Factory = Callable[[ConfigDict, str | None, Network], Sampler]

SAMPLERS: dict[str, Factory] = {
    "pc": _pc_from_config,
    "ode": _ode_from_config,
    "sde": _sde_from_config,
    "annealed_langevin": _langevin_from_config,
    "ancestral": _ancestral_from_config,
    **{name: _few_steps(method) for name, method in few_steps.METHODS.items()},
}
# Methods that evaluate at times which are not on a grid given beforehand.
BETWEEN_LEVELS = {
    *("ode", "sde"),
    *(name for name, method in few_steps.METHODS.items() if method.between_levels),
}
