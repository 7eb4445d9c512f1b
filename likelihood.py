"""Exact log-likelihood through the probability-flow ODE (Song et al. 2021, section 4.3).

    log p_0(x) = log p_T(z) + integral from 0 to T of div f(x_t, t) dt,

with dx/dt = f(x, t) the probability-flow ODE (eq. 13) that carries x at time eps to its latent z at
time T. The divergence is the Skilling-Hutchinson estimate v' (df/dx) v with fixed probes v,
E[v v'] = I (eq. 40); one Jacobian-vector product gives both f and (df/dx) v.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

import ode
from sde_lib import SDE

Array = jax.Array
ScoreFn = Callable[[Array, Array], Array]


class Likelihood(NamedTuple):
    """Log-likelihoods of a batch.

    Attributes:
      logp: [B], in nats, the density of x in the range that the network sees.
      z: [B, ...], the latents at time T.
      nfe: [B], evaluations of drift and divergence.
      ok: [B], False where the solver gave up: logp and z mean nothing there.
    """

    logp: Array
    z: Array
    nfe: Array
    ok: Array


# Probes: keys [B] (typed, one per image) and the shape of an image -> [K, B, ...].


class Probe(Protocol):
    def __call__(self, keys: Array, shape: tuple[int, ...], num_probes: int = 1) -> Array: ...


def rademacher(keys: Array, shape: tuple[int, ...], num_probes: int = 1) -> Array:
    """Probes with independent entries +1 or -1, [num_probes, B, ...]."""
    draw = functools.partial(jax.random.rademacher, shape=(num_probes, *shape), dtype=jnp.float32)
    return jax.vmap(draw, out_axes=1)(keys)


def gaussian(keys: Array, shape: tuple[int, ...], num_probes: int = 1) -> Array:
    """Probes with independent standard-normal entries, [num_probes, B, ...]."""
    draw = functools.partial(jax.random.normal, shape=(num_probes, *shape))
    return jax.vmap(draw, out_axes=1)(keys)


def exact(keys: Array, shape: tuple[int, ...], num_probes: int = 1) -> Array:
    """The D coordinate directions times sqrt(D), [D, B, ...]: the exact trace, for small D.

    The mean over them of v' J v is the trace of J. `num_probes` changes nothing.
    """
    size = math.prod(shape)
    basis = math.sqrt(size) * jnp.eye(size).reshape(size, 1, *shape)
    return jnp.broadcast_to(basis, (size, len(keys), *shape))


PROBES: dict[str, Probe] = {"rademacher": rademacher, "gaussian": gaussian, "exact": exact}


def log_likelihood(
    sde: SDE,
    score_fn: ScoreFn,
    x: Array,
    probes: Array,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: str = "Tsit5",
    eps: float = 1e-5,
    max_steps: int = 4096,
) -> Likelihood:
    """log p(x) of each image (eq. 39), its divergence averaged over the probes (eq. 40).

    Args:
      x: [B, ...].
      probes: [K, B, ...], used unchanged at every evaluation of the solve.
      rtol: relative tolerance of a step, on image and log-likelihood together.
      atol: absolute tolerance of a step.
      solver: a name in `ode.SOLVERS`.
      eps: the time that stands for 0.
      max_steps: attempted steps after which an image is given up.

    Raises:
      ValueError: unknown solver, a number out of range, or probes that do not fit x.
    """
    if probes.ndim != x.ndim + 1 or probes.shape[1:] != x.shape or not len(probes):
        raise ValueError(f"probes are {probes.shape}; x {x.shape} needs (K, *x.shape), K >= 1")
    flow = ode.probability_flow(sde, score_fn)

    def field(t: Array, state: tuple[Array, Array], probes: Array) -> tuple[Array, Array]:
        def along(v: Array) -> tuple[Array, Array]:
            drift, product = jax.jvp(lambda x: flow(t, x), (state[0],), (v,))
            return drift, jnp.sum(v * product)

        drift, divergence = jax.vmap(along, out_axes=(None, 0))(probes)
        return drift, jnp.mean(divergence)

    solution = ode.solve(
        field,
        (x, jnp.zeros(len(x))),
        eps,
        sde.T,
        args=jnp.moveaxis(probes, 0, 1),
        rtol=rtol,
        atol=atol,
        solver=solver,
        max_steps=max_steps,
    )
    z, gained = solution.y
    logp = sde.prior_logp(z) + gained
    return Likelihood(logp, z, solution.nfe, solution.ok & jnp.isfinite(logp))


def bits_per_dim(logp: Array, x_shape: tuple[int, ...], levels: int, scale: float) -> Array:
    """Bits per dimension [B] of the pixels' integer values, from `logp` [B] of the dequantised x.

    With v = 0 .. levels - 1 and u in [0, 1), x = scale (v + u) / levels + constant, hence
    -logp / (D log 2) + log2(levels / scale). The mean over u bounds -log2 P(v) / D from above.

    Args:
      x_shape: of one image; D is its size.
      levels: number of grey levels, 256 for 8 bits.
      scale: length of the interval that the network sees: 1 for [0, 1], 2 for [-1, 1].
    """
    return -logp / (math.prod(x_shape) * math.log(2.0)) + math.log2(levels / scale)


def encode(
    sde: SDE, score_fn: ScoreFn, x: Array, *, eps: float = 1e-5, **settings: Any
) -> ode.Solution:
    """x at time eps to its latent at time T along the probability flow; see `ode.solve`."""
    flow = ode.probability_flow(sde, score_fn)
    return ode.solve(lambda t, x, _: flow(t, x), x, eps, sde.T, **settings)


def decode(
    sde: SDE, score_fn: ScoreFn, z: Array, *, eps: float = 1e-5, **settings: Any
) -> ode.Solution:
    """A latent at time T to its image at time eps, the inverse of `encode`; see `ode.solve`."""
    flow = ode.probability_flow(sde, score_fn)
    return ode.solve(lambda t, x, _: flow(t, x), z, sde.T, eps, **settings)


def from_config(config: Any) -> Callable[[SDE, ScoreFn, Array, Array], Likelihood]:
    """(sde, score_fn, x [B, ...], keys [B]) -> Likelihood, as `config.eval` describes it.

    Reads bpd_rtol and bpd_atol (1e-5), bpd_solver ("Tsit5"), bpd_num_probes (1) and bpd_probe
    ("rademacher").

    Raises:
      ValueError: unknown probe or solver, fewer than one probe.
    """
    settings = config.eval
    probe = ode.lookup(PROBES, settings.get("bpd_probe", "rademacher"), "eval.bpd_probe")
    num_probes = settings.get("bpd_num_probes", 1)
    if num_probes < 1:
        raise ValueError(f"eval.bpd_num_probes must be at least 1, not {num_probes}")
    solver = settings.get("bpd_solver", "Tsit5")
    ode.lookup(ode.SOLVERS, solver, "eval.bpd_solver")
    compute = functools.partial(
        log_likelihood,
        rtol=settings.get("bpd_rtol", 1e-5),
        atol=settings.get("bpd_atol", 1e-5),
        solver=solver,
    )

    def likelihood(sde: SDE, score_fn: ScoreFn, x: Array, keys: Array) -> Likelihood:
        return compute(sde, score_fn, x, probe(keys, x.shape[1:], num_probes))

    return likelihood
