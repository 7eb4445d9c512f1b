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
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from configs.names import lookup
from diffusion import few_steps, grids, ode, reverse_sde
from diffusion.noise import Noise
from diffusion.trajectory import Array, Samples, all_finite, denoised, drive
from sde_lib import SDE, VESDE, CosineVPSDE, ScoreFn, VariancePreservingSDE, batch_mul

# Predictors: one step of the reverse-time process, from t to the next time.


class Predictor(Protocol):
    """Returns the next x and its mean before noise; `z` [B, ...] is standard normal."""

    def __call__(
        self,
        sde: SDE,
        score_fn: ScoreFn,
        x: Array,
        t: Array,
        z: Array,
        probability_flow: bool = False,
    ) -> tuple[Array, Array]: ...


def euler_maruyama(
    sde: SDE, score_fn: ScoreFn, x: Array, t: Array, z: Array, probability_flow: bool = False
) -> tuple[Array, Array]:
    """Euler-Maruyama on the reverse SDE (eq. 6) or its probability flow (eq. 13).

    x' = x - drift(x, t) dt + g(t) sqrt(dt) z with dt = T / N.
    """
    dt = sde.T / sde.N
    drift, diffusion = sde.reverse(score_fn, probability_flow).sde(x, t)
    x_mean = x - drift * dt
    return x_mean + batch_mul(diffusion * jnp.sqrt(dt), z), x_mean


def reverse_diffusion(
    sde: SDE, score_fn: ScoreFn, x: Array, t: Array, z: Array, probability_flow: bool = False
) -> tuple[Array, Array]:
    """The forward chain's own discretisation, reversed (eq. 46; probability flow eq. 45).

    Raises:
      ValueError: the probability flow of the cosine schedule. Its last betas are the same however
        many the steps, and eq. 45 is wrong by O(beta^2), which no noise makes forgotten.
    """
    if probability_flow and isinstance(sde, CosineVPSDE):
        raise ValueError(
            "reverse_diffusion with probability_flow does not converge for the cosine schedule, "
            "whose last steps stay large; use euler_maruyama or ancestral_sampling"
        )
    f, G = sde.reverse(score_fn, probability_flow).discretize(x, t)
    x_mean = x - f
    return x_mean + batch_mul(G, z), x_mean


def ancestral_sampling(
    sde: SDE, score_fn: ScoreFn, x: Array, t: Array, z: Array, probability_flow: bool = False
) -> tuple[Array, Array]:
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
    sde: SDE, score_fn: ScoreFn, x: Array, t: Array, z: Array, probability_flow: bool = False
) -> tuple[Array, Array]:
    """Leaves x as it is: sampling by the corrector alone."""
    return x, x


PREDICTORS: dict[str, Predictor] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral_sampling": ancestral_sampling,
    "none": no_predictor,
}


# Correctors: steps of Langevin dynamics at one time t, whose stationary law is p_t.


class Corrector(Protocol):
    """Returns x after `len(zs)` steps and the last mean before noise; zs [n, B, ...]."""

    def __call__(
        self,
        sde: SDE,
        score_fn: ScoreFn,
        x: Array,
        t: Array,
        zs: Array,
        snr: float,
        norm: str = "image",
        axis_name: str | None = None,
    ) -> tuple[Array, Array]: ...


NORMS = ("image", "batch")


def langevin(
    sde: SDE,
    score_fn: ScoreFn,
    x: Array,
    t: Array,
    zs: Array,
    snr: float,
    norm: str = "image",
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """Langevin dynamics with a step size set by the signal-to-noise ratio (algorithms 4 and 5).

    x' = x + e score + sqrt(2 e) z with e = 2 alpha_i (snr |z| / |score|)^2. The two norms are
    those of each image, or with norm="batch" their means over the batch, and over the devices of
    `axis_name` if given, as the published numbers were made. (In a handful of dimensions the score
    of one image may vanish, and its step explode: the rule is meant for images.)
    """
    alpha = sde.step_alpha(t)

    def length(v: Array) -> Array:
        lengths = jnp.sqrt(jnp.sum(jnp.square(v), axis=tuple(range(1, v.ndim))))
        if norm == "image":
            return lengths
        mean = jnp.mean(lengths)
        return mean if axis_name is None else jax.lax.pmean(mean, axis_name)

    def step(score: Array, z: Array) -> Array:
        return 2.0 * alpha * jnp.square(snr * length(z) / length(score))

    return _langevin_steps(score_fn, x, t, zs, step)


def annealed_langevin(
    sde: SDE,
    score_fn: ScoreFn,
    x: Array,
    t: Array,
    zs: Array,
    snr: float,
    norm: str = "image",
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """Langevin dynamics with the step size of annealed Langevin dynamics.

    e = 2 alpha_i (snr sigma(t))^2: Song and Ermon 2019 (arXiv:1907.05600), algorithm 1. The step
    size does not look at x, so that `norm` changes nothing.
    """
    size = 2.0 * sde.step_alpha(t) * jnp.square(snr * sde.sigma(t))
    return _langevin_steps(score_fn, x, t, zs, lambda score, z: size)


def no_corrector(
    sde: SDE,
    score_fn: ScoreFn,
    x: Array,
    t: Array,
    zs: Array,
    snr: float,
    norm: str = "image",
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """Leaves x as it is: sampling by the predictor alone."""
    return x, x


def _langevin_steps(
    score_fn: ScoreFn, x: Array, t: Array, zs: Array, step_size: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    def step(carry: tuple[Array, Array], z: Array) -> tuple[tuple[Array, Array], None]:
        x = carry[0]
        score = score_fn(x, t)
        size = step_size(score, z)
        x_mean = x + batch_mul(size, score)
        return (x_mean + batch_mul(jnp.sqrt(2.0 * size), z), x_mean), None

    return jax.lax.scan(step, (x, x), zs)[0]


CORRECTORS: dict[str, Corrector] = {
    "langevin": langevin,
    "ald": annealed_langevin,
    "none": no_corrector,
}


# Samplers.


def sampling_times(sde: SDE, eps: float) -> np.ndarray:
    """N times [N] from T down to `eps`, equally spaced, in float32.

    They are late by 3e-7 of themselves: `sde.timestep` cuts to an integer, and a time rounded down
    would repeat one level of the discrete chain and skip another.

    Raises:
      ValueError: not 0 < eps < T.
    """
    if not 0.0 < eps < sde.T:
        raise ValueError(f"eps must lie between 0 and {sde.T}, not {eps}")
    times = np.linspace(sde.T, eps, sde.N)
    return np.minimum(times * (1.0 + 3e-7), sde.T).astype(np.float32)


class Moves(NamedTuple):
    """What happens at each time: the functions, and how often each asks the score."""

    predict: Predictor
    correct: Corrector
    predictions: int
    corrections: int


def moves(predictor: str, corrector: str, n_steps_each: int, snr: float, norm: str) -> Moves:
    """A predictor and a corrector by their names, whose numbers are checked.

    Raises:
      ValueError: unknown name, nothing to do, or a number out of range.
    """
    predict = lookup(PREDICTORS, predictor, "predictor")
    correct = lookup(CORRECTORS, corrector, "corrector")
    if norm not in NORMS:
        raise ValueError(f"unknown corrector_norm {norm!r}; known: {', '.join(NORMS)}")
    if predictor == corrector == "none":
        raise ValueError("predictor and corrector are both 'none': choose at least one")
    if corrector != "none" and n_steps_each < 1:
        raise ValueError(f"n_steps_each must be at least 1, not {n_steps_each}")
    if corrector != "none" and snr <= 0:
        raise ValueError(f"snr must be positive, not {snr}")
    predictions = 0 if predictor == "none" else 1
    return Moves(predict, correct, predictions, 0 if corrector == "none" else n_steps_each)


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
) -> Samples:
    """Predictor-corrector sampling (algorithm 1): correct, predict, at N times from T to eps.

    Draw 0 of `noise` is the prior's; each time then takes `n_steps_each` draws for the corrector
    and one for the predictor ('none' takes none).

    Args:
      predictor: a name in PREDICTORS.
      corrector: a name in CORRECTORS.
      snr: the corrector's signal-to-noise ratio r.
      n_steps_each: M, corrector steps at each time.
      denoise: return the predictor's last mean instead of its noisy state ('none' has no mean).
      eps: last time; `sde.sampling_eps` if None.
      probability_flow: predict with the deterministic form of the predictor.
      corrector_norm: "image" or "batch", see `langevin`.
      axis_name: the mapped axis over devices that "batch" includes.
      num_frames: states to keep, 0 to N + 1.

    Raises:
      ValueError: unknown name, nothing to do, or a number out of range.
    """
    predict, correct, predictions, corrections = moves(
        predictor, corrector, n_steps_each, snr, corrector_norm
    )
    x = sde.prior_sampling(noise(0))

    def step(x: Array, x_mean: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        time, draw = at
        t = jnp.full(x.shape[0], time)
        if corrections:
            zs = jax.lax.map(noise, draw + jnp.arange(corrections))
            x, _ = correct(sde, score_fn, x, t, zs, snr, corrector_norm, axis_name)
        noisy = predictions and not probability_flow
        z = noise(draw + corrections) if noisy else jnp.zeros_like(x)
        return predict(sde, score_fn, x, t, z, probability_flow)

    times = jnp.asarray(sampling_times(sde, sde.sampling_eps if eps is None else eps))
    draws = 1 + (corrections + predictions) * jnp.arange(sde.N)
    x, x_mean, frames = drive(step, x, x, (times, draws), num_frames)
    x = x_mean if denoise else x
    if frames is not None:
        frames = frames.at[-1].set(x)
    return Samples(x, sde.N * (corrections + predictions), all_finite(x), frames)


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
      method: a name in `ode.SOLVERS`.
      eps: last time; `sde.sampling_eps` if None.
      max_steps: attempted steps after which an image is given up (`ok` is then False).
      num_frames: states to keep, at equally spaced times.

    Raises:
      ValueError: unknown solver, or a number out of range.
    """
    eps = sde.sampling_eps if eps is None else eps
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
    if frames is not None:
        frames = frames.at[-1].set(x)
    return Samples(x, nfe, solution.ok & all_finite(x), frames)


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
    eps = sde.sampling_eps if eps is None else eps
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
    x, trajectory = denoised(sde, score_fn, samples.x, eps), samples.trajectory
    if trajectory is not None:
        trajectory = trajectory.at[-1].set(x)
    return Samples(x, samples.nfe + 1, all_finite(x), trajectory)


class Sampler(Protocol):
    """From prior to images, with everything but SDE, score and randomness decided."""

    def __call__(self, sde: SDE, score_fn: ScoreFn, noise: Noise) -> Samples: ...


def from_config(config: Any, axis_name: str | None = None) -> Sampler:
    """The sampler that `config.sampling` describes; `method` is a name in SAMPLERS.

    "pc" reads predictor, corrector, snr, n_steps_each, noise_removal, probability_flow,
    corrector_norm and num_steps (0: the SDE's own N); "ode" reads rtol, atol, solver and
    noise_removal; "annealed_langevin" reads n_steps_each, noise_removal, num_steps and step_size.
    "sde" reads solver, noise_removal, and either num_steps and time_grid, or if num_steps is 0 and
    the solver has an error estimate rtol and atol. The solvers with few steps read num_steps,
    noise_removal (a last evaluation) and time_grid (a name in solvers.GRIDS; if empty "karras" for
    "edm", "uniform" for "ddim", else "log_snr"); "ddim" reads eta, "edm" churn, churn_min,
    churn_max and churn_noise. All read eps (0: the SDE's own) and num_frames. What is absent takes
    its sampler's default. `axis_name` is the mapped axis of devices.

    A network that was trained with discrete labels (training.continuous is False) is asked at its
    own noise levels only: "pc" and "annealed_langevin" visit all of them, and the few-step solvers
    that evaluate at the times of their grid have these moved to the nearest level.

    Raises:
      ValueError: unknown method, predictor, corrector or solver, a number out of range, or a method
        that asks a network with discrete labels between its levels.
    """
    sampling = config.sampling
    make = lookup(SAMPLERS, sampling.method, "sampling.method")
    discrete = not config.training.continuous
    if discrete and (
        sampling.method in BETWEEN_LEVELS
        or (sampling.method == "edm" and sampling.get("churn", 0.0) > 0.0)
    ):
        raise ValueError(
            f"sampling.method {sampling.method!r} asks the network at times of its own choice, but "
            "it was trained with discrete labels (training.continuous is False); such a network is "
            f"served by {', '.join(sorted(SAMPLERS.keys() - BETWEEN_LEVELS))}"
        )
    return make(sampling, axis_name, discrete)


def _eps(sampling: Any) -> float | None:
    return sampling.get("eps", 0.0) or None


def _pc_from_config(sampling: Any, axis_name: str | None, discrete: bool) -> Sampler:
    lookup(PREDICTORS, sampling.predictor, "sampling.predictor")
    lookup(CORRECTORS, sampling.corrector, "sampling.corrector")
    sample = functools.partial(
        pc_sampler,
        predictor=sampling.predictor,
        corrector=sampling.corrector,
        snr=sampling.snr,
        n_steps_each=sampling.n_steps_each,
        denoise=sampling.noise_removal,
        probability_flow=sampling.probability_flow,
        corrector_norm=sampling.corrector_norm,
        axis_name=axis_name,
        eps=_eps(sampling),
        num_frames=sampling.num_frames,
    )
    return _with_steps(sampling, sample, discrete)


def _ode_from_config(sampling: Any, axis_name: str | None, discrete: bool) -> Sampler:
    lookup(ode.SOLVERS, sampling.solver, "sampling.solver")
    return functools.partial(
        ode_sampler,
        rtol=sampling.rtol,
        atol=sampling.atol,
        method=sampling.solver,
        denoise=sampling.noise_removal,
        eps=_eps(sampling),
        num_frames=sampling.num_frames,
    )


def _sde_from_config(sampling: Any, axis_name: str | None, discrete: bool) -> Sampler:
    lookup(reverse_sde.SDE_SOLVERS, sampling.solver, "sampling.solver")
    steps = _num_steps(sampling)
    grid = sampling.get("time_grid", "") or "log_snr"
    lookup(grids.GRIDS, grid, "sampling.time_grid")
    eps = _eps(sampling)

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


def _langevin_from_config(sampling: Any, axis_name: str | None, discrete: bool) -> Sampler:
    sample = functools.partial(
        annealed_langevin_dynamics,
        step_size=sampling.get("step_size", 2e-5),
        n_steps_each=sampling.n_steps_each,
        denoise=sampling.noise_removal,
        eps=_eps(sampling),
        num_frames=sampling.num_frames,
    )
    return _with_steps(sampling, sample, discrete)


def _with_steps(sampling: Any, sample: Sampler, discrete: bool) -> Sampler:
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


def _num_steps(sampling: Any) -> int:
    if sampling.num_steps < 0:
        raise ValueError(
            f"sampling.num_steps must be 0 (the SDE's own N) or more, not {sampling.num_steps}"
        )
    return sampling.num_steps


def _few_steps(
    solver: Callable[..., Samples],
    *,
    grid: str = "log_snr",
    optional: tuple[str, ...] = (),
    **fixed: Any,
) -> Factory:
    """Factory of `solver` on a time grid; it reads the `optional` settings where present."""

    def make(sampling: Any, axis_name: str | None, discrete: bool) -> Sampler:
        name = sampling.get("time_grid", "") or grid
        lookup(grids.GRIDS, name, "sampling.time_grid")
        steps = _num_steps(sampling)
        options = {key: sampling[key] for key in optional if key in sampling}
        options |= {"denoise": sampling.noise_removal, "num_frames": sampling.num_frames, **fixed}

        def sampler(sde: SDE, score_fn: ScoreFn, noise: Noise) -> Samples:
            times = grids.time_grid(sde, name, steps or sde.N, _eps(sampling))
            times = grids.on_levels(sde, times) if discrete else times
            return solver(sde, score_fn, noise, times, **options)

        return sampler

    return make


# (config.sampling, axis name, whether the network knows its own noise levels only) -> Sampler
Factory = Callable[[Any, str | None, bool], Sampler]

_CHURN = ("churn", "churn_min", "churn_max", "churn_noise")

SAMPLERS: dict[str, Factory] = {
    "pc": _pc_from_config,
    "ode": _ode_from_config,
    "sde": _sde_from_config,
    "annealed_langevin": _langevin_from_config,
    "ddim": _few_steps(few_steps.ddim, grid="uniform", optional=("eta",)),
    "dpm_1": _few_steps(few_steps.dpm_solver, order=1),
    "dpm_2": _few_steps(few_steps.dpm_solver, order=2),
    "dpm_3": _few_steps(few_steps.dpm_solver, order=3),
    "dpmpp_2m": _few_steps(few_steps.dpm_solver_pp, order=2),
    "dpmpp_3m": _few_steps(few_steps.dpm_solver_pp, order=3),
    "dpmpp_2m_sde": _few_steps(few_steps.dpm_solver_pp, order=2, stochastic=True),
    "edm": _few_steps(few_steps.edm, grid="karras", optional=_CHURN),
    "unipc_2": _few_steps(few_steps.unipc, order=2),
    "unipc_3": _few_steps(few_steps.unipc, order=3),
}
# Methods that evaluate at times which are not on a grid given beforehand.
BETWEEN_LEVELS = {"ode", "sde", "dpm_2", "dpm_3"}
