"""The reverse SDE solved by stochastic Runge-Kutta, each image on a Brownian path of its own."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from configs.names import lookup
from diffusion import ode
from diffusion.noise import ImageNoise, Noise
from diffusion.parametrisation import convert
from diffusion.times import last_time
from diffusion.trajectory import Samples, denoised, samples_ending_on
from sde_lib import SDE, ScoreFn, batch_mul

if TYPE_CHECKING:  # they take a second, and are imported where an equation is solved
    import diffrax
    import lineax

    BrownianPath: TypeAlias = diffrax.AbstractBrownianPath[Any]

FIXED_STEPS = ("Euler", "SEA")  # no error estimate
PATH_DEPTH = 14  # a Brownian path is resolved to 2^-14 of the interval


@functools.cache
def sde_solvers() -> dict[str, tuple[type[diffrax.AbstractSolver[Any]], int]]:
    """diffrax's solvers that suit additive noise, by name, and how often each evaluates the score
    in a step."""
    import diffrax

    return {
        "Euler": (diffrax.Euler, 1),
        "Heun": (diffrax.Heun, 2),
        "SEA": (diffrax.SEA, 1),
        "SRA1": (diffrax.SRA1, 2),
        "ShARK": (diffrax.ShARK, 2),
    }


@dataclasses.dataclass(frozen=True)
class LogSNRForm:
    """The reverse SDE (eq. 6) of one image in the log-SNR lambda, which grows from prior to data.

    With r = sqrt(alpha^2 + sigma^2), in y = x / r eq. 6 is the same for every SDE (VP's own, whose
    r is 1):

        dy = (s^2 y / 2 - s noise(x, t)) dlambda + s dw,    s = sigma / r,  noise = -sigma score,

    since g^2 dt = -sigma^2 dlambda and s^2 = 1 / (1 + exp(lambda)). Its noise does not depend on y,
    so that Ito and Stratonovich agree.
    """

    sde: SDE
    score_fn: ScoreFn

    def norm(self, t: Array) -> Array:
        """r of the times t."""
        return jnp.hypot(self.sde.alpha(t), self.sde.sigma(t))

    def noise_share(self, lam: Array) -> Array:
        """s at the log-SNR `lam`."""
        return jnp.sqrt(jax.nn.sigmoid(-lam))

    def drift(self, lam: ArrayLike, y: Array, _: None) -> Array:
        """The factor on dlambda, at y [...]."""
        lam = jnp.asarray(lam)
        t = jnp.reshape(self.sde.time_of_log_snr(lam), (1,))
        x, s = self.norm(t) * y[None], self.noise_share(lam)
        noise = convert(self.sde, x, t, self.score_fn(x, t), "score", "noise")[0]
        return 0.5 * s**2 * y - s * noise

    def diffusion(self, lam: ArrayLike, y: Array, _: None) -> lineax.AbstractLinearOperator:
        """The factor on dw, at y [...]."""
        import lineax

        share = self.noise_share(jnp.asarray(lam))
        return lineax.DiagonalLinearOperator(jnp.full_like(y, share))

    def terms(self, path: BrownianPath) -> diffrax.MultiTerm[Any]:
        """The equation on a Brownian path."""
        import diffrax

        return diffrax.MultiTerm(
            diffrax.ODETerm(self.drift), diffrax.ControlTerm(self.diffusion, path)
        )


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a solver from the log-SNR `start` to `end`, the same for all images or adaptive.

    Attributes:
      nodes: the log-SNR [M + 1] at which fixed steps end; None: adaptive, of each image.
      rtol: relative tolerance of an adaptive step.
      atol: absolute tolerance of an adaptive step.
      max_steps: attempted adaptive steps after which an image is given up.
    """

    start: float
    end: float
    nodes: np.ndarray | None
    rtol: float
    atol: float
    max_steps: int

    @property
    def resolution(self) -> float:
        """The length to which a Brownian path is resolved."""
        return (self.end - self.start) * 2.0**-PATH_DEPTH

    def control(self) -> diffrax.AbstractStepSizeController[Any, Any]:
        """The step control of diffrax."""
        import diffrax

        if self.nodes is not None:
            return diffrax.StepTo(ts=jnp.asarray(self.nodes))
        return diffrax.PIDController(
            rtol=self.rtol,
            atol=self.atol,
            pcoeff=0.1,
            icoeff=0.3,
            norm=ode.norm,
            dtmin=2.0 * self.resolution,
            force_dtmin=False,
        )

    def brownian_path(self, shape: tuple[int, ...], key: Array) -> BrownianPath:
        """The Brownian path of an image of this shape: a tree where steps may be rejected."""
        import diffrax

        area = diffrax.SpaceTimeLevyArea
        path: BrownianPath
        if self.nodes is None:
            ends = self.start, self.end
            path = diffrax.VirtualBrownianTree(*ends, self.resolution, shape, key, levy_area=area)
        else:
            path = diffrax.UnsafeBrownianPath(shape, key, levy_area=area)
        return path

    @property
    def first(self) -> float | None:
        """The length of the first step; None where steps are fixed."""
        return None if self.nodes is not None else ode.FIRST_STEP * (self.end - self.start)

    @property
    def limit(self) -> int:
        """The largest number of attempted steps."""
        return self.max_steps if self.nodes is None else len(self.nodes) - 1


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

    It is solved in the log-SNR, forwards (`LogSNRForm`), since diffrax's stochastic Runge-Kutta
    methods are wrong if run backwards in time.

    Draw 0 of `noise` makes the latent, and the keys of draw 1 the Brownian paths. With `denoise`,
    the result is E[x_0 | x] at the last time, for one evaluation more.

    Args:
      noise: an `ImageNoise`: a Brownian path needs keys.
      method: a name in `sde_solvers`.
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
    import diffrax

    solver, per_step = lookup(sde_solvers(), method, "SDE solver")
    if not isinstance(noise, ImageNoise):
        raise ValueError("the SDE sampler draws Brownian paths: its noise must be an ImageNoise")
    if times is None and method in FIXED_STEPS:
        raise ValueError(f"{method} has no error estimate: give its number of steps")
    if times is None and (rtol <= 0 or atol <= 0):
        raise ValueError(f"rtol and atol must be positive, not {rtol} and {atol}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, not {max_steps}")
    ends = times if times is not None else [sde.T, last_time(sde, eps)]
    with jax.ensure_compile_time_eval():
        nodes = np.asarray(sde.log_snr(jnp.asarray(ends)))
    start, end = float(nodes[0]), float(nodes[-1])
    steps = Steps(start, end, None if times is None else nodes, rtol, atol, max_steps)
    form = LogSNRForm(sde, score_fn)
    frame_at = jnp.linspace(start, end, num_frames) if num_frames else None

    def one(z: Array, key: Array) -> tuple[Array, Array, Array]:
        solution = diffrax.diffeqsolve(
            form.terms(steps.brownian_path(z.shape, key)),
            solver(),
            t0=start,
            t1=end,
            dt0=steps.first,
            y0=z,
            stepsize_controller=steps.control(),
            saveat=diffrax.SaveAt(ts=frame_at, t1=True),
            adjoint=diffrax.ForwardMode(),  # nothing is differentiated
            max_steps=steps.limit,
            throw=False,
        )
        solved = solution.result == diffrax.RESULTS.successful
        return solution.ys, per_step * solution.stats["num_steps"], solved

    first, last = (jnp.asarray(t, jnp.float32) for t in (ends[0], ends[-1]))
    z = sde.prior_sampling(noise(0)) / form.norm(first)
    ys, nfe, ok = jax.vmap(one)(z, noise.keys_of(1))
    x, frames = form.norm(last) * ys[:, -1], None
    if denoise:
        x, nfe = denoised(sde, score_fn, x, last), nfe + 1
    if frame_at is not None:
        scale = form.norm(sde.time_of_log_snr(frame_at))
        frames = batch_mul(scale, jnp.moveaxis(ys[:, :-1], 1, 0))
    return samples_ending_on(x, nfe, frames, ok)
