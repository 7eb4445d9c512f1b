"""The reverse SDE solved by stochastic Runge-Kutta, each image on a Brownian path of its own."""

from __future__ import annotations

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np

from configs.names import lookup
from diffusion import ode
from diffusion.noise import ImageNoise, Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Array, Samples, all_finite, denoised
from sde_lib import SDE, ScoreFn, batch_mul

# diffrax's solvers that suit additive noise, and how often each evaluates the score in a step.
SDE_SOLVERS: dict[str, tuple[type[diffrax.AbstractSolver], int]] = {
    "Euler": (diffrax.Euler, 1),
    "Heun": (diffrax.Heun, 2),
    "SEA": (diffrax.SEA, 1),
    "SRA1": (diffrax.SRA1, 2),
    "ShARK": (diffrax.ShARK, 2),
}
FIXED_STEPS = ("Euler", "SEA")  # no error estimate
PATH_DEPTH = 14  # a Brownian path is resolved to 2^-14 of the interval


def sde_sampler(
    sde: SDE,
    score_fn: ScoreFn,
    noise: Noise,
    *,
    method: str = "ShARK",
    times: np.ndarray | None = None,
    rtol: float = 1e-2,
    atol: float = 1e-2,
    eps: float | None = None,
    denoise: bool = True,
    max_steps: int = 4096,
    num_frames: int = 0,
) -> Samples:
    """The reverse SDE (eq. 6) solved by stochastic Runge-Kutta, each image on a path of its own.

    With r = sqrt(alpha^2 + sigma^2), in y = x / r and the log-SNR lambda, which grows from prior to
    data, eq. 6 is the same for every SDE (VP's own, whose r is 1):

        dy = (s^2 y / 2 - s noise(x, t)) dlambda + s dw,    s = sigma / r,  noise = -sigma score,

    since g^2 dt = -sigma^2 dlambda and s^2 = 1 / (1 + exp(lambda)). Its noise does not depend on y,
    so that Ito and Stratonovich agree; and it is solved forwards, since diffrax's stochastic
    Runge-Kutta methods are wrong if run backwards in time.

    Draw 0 of `noise` makes the latent, and the keys of draw 1 the Brownian paths. With `denoise`,
    the result is E[x_0 | x] at the last time, for one evaluation more.

    Args:
      noise: an `ImageNoise`: a Brownian path needs keys.
      method: a name in SDE_SOLVERS.
      times: the steps, decreasing from T to eps (`grids.time_grid`); None: adaptive, per image.
      rtol: relative tolerance of an adaptive step, in y.
      atol: absolute tolerance of an adaptive step, in y.
      eps: last time of an adaptive solve; `sde.sampling_eps` if None.
      max_steps: attempted adaptive steps after which an image is given up (`ok` is then False).
      num_frames: states to keep, at equally spaced lambda.

    Raises:
      ValueError: unknown solver, one without an error estimate and no `times`, a noise source
        without keys, or a number out of range.
    """
    solver, per_step = lookup(SDE_SOLVERS, method, "SDE solver")
    if not isinstance(noise, ImageNoise):
        raise ValueError("the SDE sampler draws Brownian paths: its noise must be an ImageNoise")
    if times is None and method in FIXED_STEPS:
        raise ValueError(f"{method} has no error estimate: give its number of steps")
    if times is None and (rtol <= 0 or atol <= 0):
        raise ValueError(f"rtol and atol must be positive, not {rtol} and {atol}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, not {max_steps}")
    ends = times if times is not None else [sde.T, sde.sampling_eps if eps is None else eps]
    with jax.ensure_compile_time_eval():
        nodes = np.asarray(sde.log_snr(jnp.asarray(ends)))
    start, end = float(nodes[0]), float(nodes[-1])
    smallest = (end - start) * 2.0**-PATH_DEPTH

    control: diffrax.AbstractStepSizeController
    if times is None:
        control = diffrax.PIDController(
            rtol=rtol,
            atol=atol,
            pcoeff=0.1,
            icoeff=0.3,
            norm=ode.norm,
            dtmin=2.0 * smallest,
            force_dtmin=False,
        )
    else:
        control, max_steps = diffrax.StepTo(ts=jnp.asarray(nodes)), len(times) - 1

    frame_at = jnp.linspace(start, end, num_frames) if num_frames else None

    def norm(t: Array) -> Array:
        return jnp.hypot(sde.alpha(t), sde.sigma(t))

    def share(lam: Array) -> Array:
        return jnp.sqrt(jax.nn.sigmoid(-lam))

    def drift(lam: Any, y: Array, _: Any) -> Array:
        t = jnp.reshape(sde.time_of_log_snr(lam), (1,))
        x, s = norm(t) * y[None], share(lam)
        return 0.5 * s**2 * y - s * convert(sde, x, t, score_fn(x, t), "score", "noise")[0]

    def diffusion(lam: Any, y: Array, _: Any) -> lineax.AbstractLinearOperator:
        return lineax.DiagonalLinearOperator(jnp.full_like(y, share(lam)))

    def one(z: Array, key: Array) -> tuple[Array, Array, Array]:
        area = diffrax.SpaceTimeLevyArea
        path: diffrax.AbstractBrownianPath
        if times is None:
            path = diffrax.VirtualBrownianTree(start, end, smallest, z.shape, key, levy_area=area)
        else:
            path = diffrax.UnsafeBrownianPath(z.shape, key, levy_area=area)
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)),
            solver(),
            t0=start,
            t1=end,
            dt0=None if times is not None else ode.FIRST_STEP * (end - start),
            y0=z,
            stepsize_controller=control,
            saveat=diffrax.SaveAt(ts=frame_at, t1=True),
            adjoint=diffrax.ForwardMode(),  # nothing is differentiated
            max_steps=max_steps,
            throw=False,
        )
        solved = solution.result == diffrax.RESULTS.successful
        return solution.ys, per_step * solution.stats["num_steps"], solved

    first, last = (jnp.asarray(t, jnp.float32) for t in (ends[0], ends[-1]))
    z = sde.prior_sampling(noise(0)) / norm(first)
    ys, nfe, ok = jax.vmap(one)(z, noise.keys_of(1))
    x, frames = norm(last) * ys[:, -1], None
    if denoise:
        x, nfe = denoised(sde, score_fn, x, last), nfe + 1
    if frame_at is not None:
        scale = norm(sde.time_of_log_snr(frame_at))
        frames = batch_mul(scale, jnp.moveaxis(ys[:, :-1], 1, 0)).at[-1].set(x)
    return Samples(x, nfe, ok & all_finite(x), frames)
