"""Log-likelihood: exact through the probability-flow ODE, and a bound through the SDE.

Exact (Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential
Equations", section 4.3):

    log p_0(x) = log p_T(z) + integral from 0 to T of div f(x_t, t) dt,

with dx/dt = f(x, t) the probability-flow ODE (eq. 13) that carries x at time eps to its latent z at
time T. The divergence is the Skilling-Hutchinson estimate v' (df/dx) v with fixed probes v,
E[v v'] = I (eq. 40); one Jacobian-vector product gives both f and (df/dx) v.

The bound, `elbo`, is that of score flow (Song et al. 2021, "Maximum Likelihood Training of
Score-Based Diffusion Models", arXiv:2101.09258, theorem 3). It belongs to the density of the
reverse-time SDE, which with an imperfect score is not quite that of the ODE. Both take x for a
sample at time eps: they speak of the same log p_eps(x).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from configs.names import lookup
from diffusion import ode
from diffusion.probes import PROBES, gaussian
from diffusion.times import first_time, likelihood_times, low_discrepancy, noise_share
from sde_lib import SDE, AnyTimes, Arrays, Images, Keys, ScoreFn, Times, batch_mul

LOG_DENSITY_WEIGHT = 4.0  # of a step's error in the log-likelihood, beside that in the image
AT_ONCE = 64  # probes of one image whose products are computed together

Counts = Int[Array, "batch"]  # [B]
Flags = Bool[Array, "batch"]  # [B]


class Likelihood(NamedTuple):
    """Log-likelihoods of a batch.

    Attributes:
      logp: [B], in nats, the density of x in the range that the network sees.
      z: [B, ...], the latents at time T.
      nfe: [B], evaluations of drift and divergence.
      ok: [B], False where the solver gave up: logp and z mean nothing there.
    """

    logp: Times
    z: Images
    nfe: Counts
    ok: Flags


def log_likelihood(
    sde: SDE,
    score_fn: ScoreFn,
    x: Images,
    probes: Arrays,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: str = "Dopri5",
    eps: float | None = None,
    max_steps: int = 4096,
) -> Likelihood:
    """The log-likelihood log p(x) of each image (eq. 39), its divergence estimated (eq. 40).

    Args:
      x: [B, ...].
      probes: [K, B, ...], the same at every evaluation; the estimate is the mean over K.
      rtol: relative tolerance of a step, on the image and on its log-likelihood: see `step_error`.
      atol: absolute tolerance of a step.
      solver: a name in `ode.solvers`.
      eps: the time that stands for 0; None: `sde.training_eps`.
      max_steps: attempted steps after which an image is given up.

    Raises:
      ValueError: unknown solver, a number out of range, or probes that do not fit x.
    """
    if probes.ndim != x.ndim + 1 or probes.shape[1:] != x.shape or not len(probes):
        raise ValueError(f"probes are {probes.shape}; x {x.shape} needs (K, *x.shape), K >= 1")
    flow = ode.probability_flow(sde, score_fn)
    size = math.prod(x.shape[1:])

    def field(t: ArrayLike, state: tuple[Array, Array], probes: Array) -> tuple[Array, Array]:
        drift, divergence = drift_and_divergence(flow, t, state[0], probes)
        return drift, divergence / size

    solution = ode.solve(
        field,
        (x, jnp.zeros(len(x))),
        first_time(sde, eps),
        sde.T,
        args=jnp.moveaxis(probes, 0, 1),
        rtol=rtol,
        atol=atol,
        solver=solver,
        max_steps=max_steps,
        error_norm=step_error,
    )
    z, nats_per_dim = solution.y
    logp = sde.prior_logp(z) + size * nats_per_dim
    return Likelihood(logp, z, solution.nfe, solution.ok & jnp.isfinite(logp))


def step_error(error: tuple[Array, Array]) -> Array:
    """The larger of the image's root mean square error and the log-likelihood's, weighted.

    Both are relative to the tolerances of a step, the second in nats per dimension. In the mean
    square of all D + 1 numbers the last one would go unseen, and with it the error of bits/dim.
    """
    image, nats_per_dim = error
    return jnp.maximum(ode.norm(image), LOG_DENSITY_WEIGHT * ode.norm(nats_per_dim))


def drift_and_divergence(
    flow: Callable[[Any, Array], Array], t: ArrayLike, x: Array, probes: Array
) -> tuple[Array, Array]:
    """The drift f(x, t) of one image x, and the estimate of its divergence, a number (eq. 40).

    Args:
      flow: f, of (t, x).
      probes: [K, ...], over which the estimate is the mean; of many, as of an exact trace, no more
        than `AT_ONCE` are in memory.
    """

    def along(v: Array) -> tuple[Array, Array]:
        drift, product = jax.jvp(lambda x: flow(t, x), (x,), (v,))
        return drift, jnp.sum(v * product)

    if len(probes) <= AT_ONCE:
        drift, divergence = jax.vmap(along, out_axes=(None, 0))(probes)
        return drift, jnp.mean(divergence)
    drift, product = jax.linearize(lambda x: flow(t, x), x)
    divergence = jax.lax.map(lambda v: jnp.sum(v * product(v)), probes, batch_size=AT_ONCE)
    return drift, jnp.mean(divergence)


class Bound(NamedTuple):
    """A lower bound on the log-likelihoods of a batch, in nats, and what it is made from.

    Attributes:
      ends: [B], what stands outside the integral over time.
      integrand: [K, B], the integrand at each time over the density of times; the mean over K is
        the integral, which lowers the bound.
    """

    ends: Times
    integrand: Arrays

    @property
    def logp(self) -> Times:
        """The bound [B]: the ends less the integral."""
        return self.ends - jnp.mean(self.integrand, 0)

    def parts(self, num: int) -> Arrays:
        """The parts [num, B] of the integral that times one after the other give.

        Of `bound_from_config` they belong to the intervals between `bound_levels`.
        """
        draws, count = self.integrand.shape
        return self.integrand.reshape(num, draws // num, count).sum(1) / draws


def elbo(
    sde: SDE,
    score_fn: ScoreFn,
    x: Images,
    t: Arrays,
    weight: Arrays,
    z: Arrays,
    *,
    eps: float | None = None,
) -> Bound:
    """A lower bound on log p_eps(x) of each image, estimated from K times and noises per image.

    With x_t = a x + v z, p(x_t | x_eps = x) = N(a x, v^2 I), and z standard normal,

        log p_eps(x) >= E[log p_T(x_T)] + D log a_T
                        - integral from eps to T of g^2 / 2 E[|s(x_t, t)|^2 + 2 s(x_t, t) z / v] dt,

    and the estimate of the right side is unbiased. That is theorem 3 of arXiv:2101.09258 with its
    squares `|s - grad log p(x_t | x)|^2 - |grad log p(x_t | x)|^2` written out, where
    `grad log p(x_t | x) = -z / v`, and `D log a_T` for the integral of the drift's divergence. The
    integral starts at eps with x itself, as that of `log_likelihood` does, hence (a, v) lead from
    eps to t. The first expectation is exact; the noise of |z|^2 is taken out of the second by a
    control variate. Its coefficient comes from the draw before, so that the mean stays, by way of
    r = -sigma s z / |z|^2, the share of the noise that the score knows. For the score of the data r
    lies between 0 and 1 on average, and is kept there: on the line and in the plane, where |z|^2
    may be next to nothing, r would else have no finite variance. With the score of the data the
    bound is short of log p_eps by no more than what the prior is off p_T.

    Args:
      x: [B, ...], taken for a sample at time eps.
      t: [K, B], times in (eps, T].
      weight: [K, B], 1 / the density of each time; see `likelihood_times`.
      z: [K, B, ...], standard normal, independent of each other.

    Raises:
      ValueError: draws that do not fit x.
    """
    if z.ndim != x.ndim + 1 or z.shape[1:] != x.shape or not t.shape == weight.shape == z.shape[:2]:
        raise ValueError(
            f"t is {t.shape}, weight {weight.shape}, z {z.shape}; x {x.shape} needs t and weight "
            f"(K, {len(x)}) and z (K, *x.shape)"
        )
    size = math.prod(x.shape[1:])
    first = first_time(sde, eps)
    start, end = (jnp.full(len(x), time, x.dtype) for time in (first, sde.T))

    def transition(t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """(a, v) from eps to t."""
        factor = jnp.exp(sde.log_alpha(t) - sde.log_alpha(start))
        return factor, sde.sigma(t) * noise_share(sde, t, first)

    def products(draw: tuple[Times, Images]) -> tuple[Times, Times, Times]:
        """|s|^2, s z and |z|^2 of one draw for every image."""
        t, z = draw
        factor, std = transition(t)
        score = score_fn(batch_mul(factor, x) + batch_mul(std, z), t)
        axes = tuple(range(1, x.ndim))
        return jnp.sum(score**2, axes), jnp.sum(score * z, axes), jnp.sum(z**2, axes)

    score_square, score_noise, noise_square = jax.lax.map(products, (t, z))
    sigma, std = sde.sigma(t), transition(t)[1]
    # Where s = -r z / sigma, the integrand varies with |z|^2 alone, whose mean is known.
    r = jnp.clip(-sigma * score_noise / noise_square, 0.0, 1.0)
    r = jnp.concatenate([jnp.zeros_like(r[:1]), r[:-1]])
    control = r / sigma * (2.0 / std - r / sigma) * (noise_square - size)
    integrand = score_square + 2.0 * score_noise / std + control
    factor, std = transition(end)
    spread = 0.5 * size * jnp.square(std / sde.prior_std)
    ends = sde.prior_logp(batch_mul(factor, x)) - spread + size * jnp.log(factor)
    return Bound(ends, 0.5 * weight * jnp.square(sde.diffusion(t)) * integrand)


def bound_levels(sde: SDE, num: int, eps: float | None = None) -> Times:
    """The log-SNRs [num + 1], from eps to T, between which `num` equal shares of the times of
    `likelihood_times` lie."""
    t, _ = likelihood_times(sde, jnp.linspace(0.0, 1.0, num + 1), eps)
    return sde.log_snr(t)


def bits_per_dim(logp: AnyTimes, x_shape: tuple[int, ...], levels: int, scale: float) -> AnyTimes:
    """Bits per dimension [B] of the pixels' integer values, from `logp` [B] of the dequantised x.

    With v = 0 .. levels - 1 and u in [0, 1), x = scale (v + u) / levels + constant, hence
    -logp / (D log 2) + log2(levels / scale). The mean over u bounds -log2 P(v) / D from above.

    Args:
      x_shape: the shape of one image; D is its size.
      levels: number of grey levels, 256 for 8 bits.
      scale: length of the interval that the network sees: 1 for [0, 1], 2 for [-1, 1].
    """
    return -logp / (math.prod(x_shape) * math.log(2.0)) + math.log2(levels / scale)


def encode(
    sde: SDE, score_fn: ScoreFn, x: Images, *, eps: float | None = None, **settings: Any
) -> ode.Solution:
    """Carries x at time eps to its latent at time T along the probability flow.

    The settings are those of `ode.solve`, and the latent is its solution's `y`.
    """
    flow = ode.probability_flow(sde, score_fn)
    return ode.solve(lambda t, x, _: flow(t, x), x, first_time(sde, eps), sde.T, **settings)


def decode(
    sde: SDE, score_fn: ScoreFn, z: Images, *, eps: float | None = None, **settings: Any
) -> ode.Solution:
    """Carries a latent at time T to its image at time eps: the inverse of `encode`."""
    flow = ode.probability_flow(sde, score_fn)
    return ode.solve(lambda t, x, _: flow(t, x), z, sde.T, first_time(sde, eps), **settings)


# The seam to configs: (sde, score_fn, x [B, ...], keys [B]), all settings decided.
LogLikelihood = Callable[[SDE, ScoreFn, Images, Keys], Likelihood]
LowerBound = Callable[[SDE, ScoreFn, Images, Keys], Bound]


def from_config(config: ConfigDict) -> LogLikelihood:
    """The `log_likelihood` that `config.eval` describes, its probes drawn from keys [B].

    It reads bpd_rtol, bpd_atol, bpd_solver, bpd_num_probes and bpd_probe.

    Raises:
      ValueError: unknown probe or solver, fewer than one probe.
    """
    settings = config.eval
    probe = lookup(PROBES, settings.bpd_probe, "eval.bpd_probe")
    num_probes = settings.bpd_num_probes
    if num_probes < 1:
        raise ValueError(f"eval.bpd_num_probes must be at least 1, not {num_probes}")
    lookup(ode.solvers(), settings.bpd_solver, "eval.bpd_solver")
    compute = functools.partial(
        log_likelihood,
        rtol=settings.bpd_rtol,
        atol=settings.bpd_atol,
        solver=settings.bpd_solver,
    )

    def likelihood(sde: SDE, score_fn: ScoreFn, x: Images, keys: Keys) -> Likelihood:
        return compute(sde, score_fn, x, probe(keys, x.shape[1:], num_probes))

    return likelihood


def bound_from_config(config: ConfigDict) -> LowerBound:
    """The `elbo` that `config.eval` describes, its times and noises drawn from keys [B].

    It reads bpd_bound_draws, how many of both an image has; their times are `likelihood_times`, one
    in each of as many equal shares of them, in their order.

    Raises:
      ValueError: fewer than one draw, draws that bpd_bound_levels does not share out evenly, or a
        network without a score.
    """
    coupling, num_draws = config.training.coupling, config.eval.bpd_bound_draws
    if coupling != "independent":
        raise ValueError(
            f"eval.bpd_bound is a bound by the score, which a flow of dependent pairs "
            f"(training.coupling={coupling!r}) does not tell; eval.enable_bpd is exact for it"
        )
    if num_draws < 1:
        raise ValueError(f"eval.bpd_bound_draws must be at least 1, not {num_draws}")
    num_levels = config.eval.bpd_bound_levels
    if num_levels and num_draws % num_levels:
        raise ValueError(
            f"eval.bpd_bound_levels is {num_levels}; it must be a divisor of "
            f"eval.bpd_bound_draws, {num_draws}, or 0"
        )

    def bound(sde: SDE, score_fn: ScoreFn, x: Images, keys: Keys) -> Bound:
        time_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        t, weight = likelihood_times(sde, low_discrepancy(time_keys, num_draws))
        return elbo(sde, score_fn, x, t, weight, gaussian(noise_keys, x.shape[1:], num_draws))

    return bound
