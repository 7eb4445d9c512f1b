"""Stochastic differential equations that turn data into noise, and their reversals.

An SDE `dx = f(x, t) dt + g(t) dw` with a drift linear in x is determined by its marginals
`p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I)`:

    f(x, t) = (d log alpha / dt) x,        g(t)^2 = d sigma^2/dt - 2 (d log alpha / dt) sigma^2.

So a new SDE is a frozen dataclass with two methods; everything else follows by differentiation
until a closed form replaces it, and `SDES` gives it the name that configs use. Complete, one that
preserves unit variance, whose noise level is the time, and which ends where alpha would vanish:

    @dataclasses.dataclass(frozen=True)
    class LinearNoiseSDE(SDE):
        @property
        def T(self):
            return 0.999

        def log_alpha(self, t):
            return 0.5 * jnp.log1p(-t * t)

        def sigma(self, t):
            return t

    SDES["linear_noise"] = LinearNoiseSDE

Its constructor fields, if any, are read from `config.model` under their own names. Equation
numbers are those of Song et al. 2021, "Score-Based Generative Modeling through Stochastic
Differential Equations" (arXiv:2011.13456), unless another source is named.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Key
from ml_collections import ConfigDict

from configs.names import lookup

# Shapes, which the tests check at run time. One name has one value within a call: "batch" is the
# same for all arguments and the result, and so is "*image", however many axes an image has.
if TYPE_CHECKING:
    AnyArray = Array
else:
    AnyArray = Array | np.ndarray  # NumPy's arrays do wherever they meet JAX's

Images = Float[AnyArray, "batch *image"]  # [B, ...]: an image of any shape, or a point
Times = Float[AnyArray, "batch"]  # [B]; in [0, T], or another number for each image
AnyTimes = Float[AnyArray, "*times"]  # of any shape, for what acts on each time alone
Keys = Key[Array, "batch"]  # [B], typed: one for each image
Steps = Int[Array, "*times"]  # indices of steps of the discretised process
Levels = Float[Array, "levels"]  # [N], a table of the discretised process
Factors = Float[ArrayLike, "..."]  # [B], or one number
Arrays = Float[AnyArray, "..."]  # of any shape, or of one on which the function itself insists

ScoreFn = Callable[[Images, Times], Images]


def batch_mul(a: Factors, x: Arrays) -> Arrays:
    """Multiplies image b of `x` [B, ...] by the scalar `a[b]` ([B], or one scalar for all)."""
    return jnp.reshape(a, jnp.shape(a) + (1,) * (jnp.ndim(x) - jnp.ndim(a))) * x


@dataclasses.dataclass(frozen=True)
class SDE(abc.ABC):
    """`dx = f(x, t) dt + g(t) dw` (eq. 5) for t in [0, T], with `f` linear in x.

    Images are [B, ...], times [B]. Instances are hashable, hence usable as static arguments.

    Attributes:
      N: number of steps of the discretised process (`discretize`).
      variance_exploding: the data are never scaled, alpha = 1. By convention its networks take
        sigma(t) and are the score itself; all others take 999 t / T and predict the noise.
      steep_end: alpha falls to next to nothing in the last steps of `discretize`, however many
        they are, so that halving their `G^2 score` is no step of the probability flow (eq. 45).

    Raises:
      ValueError: `N` is below 1, or a parameter is outside its range.
    """

    N: int = 1000
    variance_exploding: ClassVar[bool] = False
    steep_end: ClassVar[bool] = False

    @property
    def T(self) -> float:
        """The time at which the data have become noise."""
        return 1.0

    @property
    def sampling_eps(self) -> float:
        """The time at which samplers stop, short of 0, where the score may diverge."""
        return 1e-3

    @property
    def training_eps(self) -> float:
        """The smallest time that training and likelihoods look at."""
        return 1e-5

    def __post_init__(self) -> None:
        if self.N < 1:
            raise ValueError(f"{type(self).__name__}: N (model.num_scales) is {self.N}; use N >= 1")

    # The marginals.

    @abc.abstractmethod
    def log_alpha(self, t: AnyTimes) -> AnyTimes:
        """Logarithm of `alpha(t)`, the factor on the data in `p(x_t | x_0)`."""

    @abc.abstractmethod
    def sigma(self, t: AnyTimes) -> AnyTimes:
        """Standard deviation of the noise in `p(x_t | x_0)`."""

    def alpha(self, t: AnyTimes) -> AnyTimes:
        """The factor on the data: `p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I)` (eq. 29)."""
        return jnp.exp(self.log_alpha(t))

    def log_snr(self, t: AnyTimes) -> AnyTimes:
        """`lambda(t) = log(alpha^2 / sigma^2)`, decreasing in t (Kingma et al. 2021, eq. 4)."""
        return 2.0 * (self.log_alpha(t) - jnp.log(self.sigma(t)))

    def time_of_log_snr(self, log_snr: AnyTimes) -> AnyTimes:
        """Inverse of `log_snr`: the time in [0, T] that has it; by bisection unless overridden."""

        def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            later = self.log_snr(middle) > log_snr
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        start = jnp.zeros_like(log_snr), jnp.full_like(log_snr, self.T)
        bracket: tuple[Array, Array] = jax.lax.fori_loop(0, 60, halve, start)
        return 0.5 * (bracket[0] + bracket[1])

    def marginal_prob(self, x0: Images, t: Times) -> tuple[Images, Times]:
        """Mean [B, ...] and standard deviation [B] of `p(x_t | x_0)` (eq. 29)."""
        return batch_mul(self.alpha(t), x0), self.sigma(t)

    def rates(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """`d alpha / dt` and `d sigma / dt`, which make the velocity of `alpha x_0 + sigma z`."""
        return self.alpha(t) * _derivative(self.log_alpha, t), _derivative(self.sigma, t)

    # The process.

    def drift(self, x: Images, t: Times) -> Images:
        """`f(x, t) = (d log alpha / dt) x` (eq. 5); [B, ...]."""
        return batch_mul(_derivative(self.log_alpha, t), x)

    def diffusion(self, t: AnyTimes) -> AnyTimes:
        """`g(t) = sqrt(d sigma^2/dt - 2 (d log alpha / dt) sigma^2)` (eq. 5); [B]."""
        growth = _derivative(self.sigma, t) - _derivative(self.log_alpha, t) * self.sigma(t)
        return jnp.sqrt(2.0 * self.sigma(t) * growth)

    def sde(self, x: Images, t: Times) -> tuple[Images, Times]:
        """Drift [B, ...] and diffusion coefficient [B] of eq. 5."""
        return self.drift(x, t), self.diffusion(t)

    def timestep(self, t: AnyTimes) -> Steps:
        """Index in 0..N-1 of the discrete step at time t: `t (N - 1) / T` cut to an integer."""
        return jnp.asarray(t * (self.N - 1) / self.T, jnp.int32)

    def discretize(self, x: Images, t: Times) -> tuple[Images, Times]:
        """One step `x_{i+1} = x_i + f_i(x_i) + G_i z_i` (appendix E): f [B, ...] and G [B].

        Euler-Maruyama with step T/N here; VE and VP use the Markov chains of SMLD and DDPM.
        """
        dt = self.T / self.N
        return self.drift(x, t) * dt, self.diffusion(t) * math.sqrt(dt)

    def step_alpha(self, t: AnyTimes) -> AnyTimes:
        """`alpha_i = 1 - beta_i` [B], the factor in the correctors' step size (algorithm 5).

        `beta_i = beta(t)/N` with `beta = -2 d log alpha / dt`: 1 where there is no drift, and 0, a
        step of no size, where N steps are too few for `beta_i < 1`.
        """
        return jnp.maximum(1.0 + 2.0 * _derivative(self.log_alpha, t) * (self.T / self.N), 0.0)

    @property
    def chain(self) -> SDE:
        """The process at its N discrete levels i T / (N - 1), as networks that know no others see
        it: itself, unless a Markov chain with levels of its own stands for it (DDPM)."""
        return self

    def reverse(self, score_fn: ScoreFn, probability_flow: bool = False) -> ReverseSDE:
        """The process run backwards in time: an SDE, or its probability-flow ODE."""
        return ReverseSDE(self, score_fn, probability_flow)

    # Both ends of the process, and the way between two of its times.

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior `N(0, prior_std^2 I)` that stands for p_T."""
        with jax.ensure_compile_time_eval():
            return float(self.sigma(jnp.float32(self.T)))

    def prior_sampling(self, z: Images) -> Images:
        """A draw from the prior, made from the standard-normal `z` of the same shape."""
        return self.prior_std * z

    def prior_logp(self, x: Images) -> Times:
        """Log-density in nats [B] of `x` [B, ...] under the prior."""
        energy = jnp.sum(jnp.square(x / self.prior_std), axis=tuple(range(1, x.ndim)))
        log_norm = math.log(2.0 * math.pi) + 2.0 * math.log(self.prior_std)
        return -0.5 * (math.prod(x.shape[1:]) * log_norm + energy)

    def transition(self, t: AnyTimes, s: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """`p(x_t | x_s) = N(a x_s, v I)` for s <= t: the factor a [B] and the variance v [B]."""
        a = jnp.exp(self.log_alpha(t) - self.log_alpha(s))
        v = -jnp.square(self.sigma(t)) * jnp.expm1(self.log_snr(t) - self.log_snr(s))
        return a, v

    def posterior(self, x: Images, score: Images, t: Times, s: Times) -> tuple[Images, Times]:
        """Ancestral step from t to s < t: mean [B, ...] and std [B] of `p(x_s | x_t, x_0)`.

        With `x_0` replaced by `E[x_0 | x_t] = (x_t + sigma_t^2 score) / alpha_t` and (a, v) of
        `transition`, Bayes' rule gives mean `(x_t + v score) / a` and variance
        `v sigma_s^2 / sigma_t^2`: appendix F for VE, eq. 4 with DDPM's posterior variance for VP.
        """
        a, v = self.transition(t, s)
        mean = batch_mul(1.0 / a, x + batch_mul(v, score))
        return mean, jnp.sqrt(v) * self.sigma(s) / self.sigma(t)


@dataclasses.dataclass(frozen=True)
class ReverseSDE:
    """`dx = [f - g^2 score] dt + g dw` in reverse time (eq. 6), for t from `forward.T` down.

    With `probability_flow`, the ODE `dx = [f - g^2 score / 2] dt` (eq. 13), which has the same
    marginals. Times run downwards, so a step of length dt subtracts `drift * dt`.
    """

    forward: SDE
    score_fn: ScoreFn
    probability_flow: bool = False

    @property
    def score_weight(self) -> float:
        """The factor on `g^2 score`: 1 for the SDE (eq. 6), 1/2 for the ODE (eq. 13)."""
        return 0.5 if self.probability_flow else 1.0

    def drift(self, x: Images, t: Times) -> Images:
        """`f - g^2 score`, or `f - g^2 score / 2` for the probability flow; [B, ...]."""
        g2 = jnp.square(self.forward.diffusion(t))
        return self.forward.drift(x, t) - self.score_weight * batch_mul(g2, self.score_fn(x, t))

    def diffusion(self, t: AnyTimes) -> AnyTimes:
        """`g(t)` [B], zero for the probability flow."""
        return jnp.zeros_like(t) if self.probability_flow else self.forward.diffusion(t)

    def sde(self, x: Images, t: Times) -> tuple[Images, Times]:
        """Drift [B, ...] and diffusion coefficient [B] of eq. 6 or 13."""
        return self.drift(x, t), self.diffusion(t)

    def discretize(self, x: Images, t: Times) -> tuple[Images, Times]:
        """Reverse diffusion `x_i = x_{i+1} - f' + G' z` (appendix E): f' [B, ...] and G' [B].

        `f' = f - G^2 score` and `G' = G`, of the forward process's own discretisation; the
        probability flow halves `G^2 score` and has no noise.
        """
        f, G = self.forward.discretize(x, t)
        f = f - self.score_weight * batch_mul(jnp.square(G), self.score_fn(x, t))
        return f, jnp.zeros_like(G) if self.probability_flow else G


@dataclasses.dataclass(frozen=True)
class BetaSDE(SDE):
    """The drift that VP and sub-VP share, `f = -beta(t) x / 2` (eqs. 11, 12), and DDPM's tables."""

    @abc.abstractmethod
    def beta(self, t: AnyTimes) -> AnyTimes:
        """`beta(t) = -2 d log alpha / dt` [B]."""

    @abc.abstractmethod
    def step_betas(self) -> np.ndarray:
        """`beta_i` of DDPM's chain [N], in float64; ValueError where one would reach 1."""

    @property
    def prior_std(self) -> float:
        return 1.0

    def drift(self, x: Images, t: Times) -> Images:
        """`f(x, t) = -beta(t) x / 2` (eqs. 11 and 12)."""
        return batch_mul(-0.5 * self.beta(t), x)

    @functools.cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        betas = self.step_betas()
        log_cumprod = np.cumsum(np.log1p(-betas))
        tables = {
            "betas": betas,
            "alphas": 1.0 - betas,
            "log_sqrt_alphas_cumprod": 0.5 * log_cumprod,
            "alphas_cumprod": np.exp(log_cumprod),
            "sqrt_alphas_cumprod": np.exp(0.5 * log_cumprod),
            "sqrt_1m_alphas_cumprod": np.sqrt(-np.expm1(log_cumprod)),
        }
        return {name: table.astype(np.float32) for name, table in tables.items()}

    @property
    def discrete_betas(self) -> Levels:
        """`beta_i` of DDPM [N] (appendix C)."""
        return jnp.asarray(self._tables["betas"])

    @property
    def alphas(self) -> Levels:
        """`alpha_i = 1 - beta_i` [N]."""
        return jnp.asarray(self._tables["alphas"])

    @property
    def alphas_cumprod(self) -> Levels:
        """Product of `alpha_j` over j <= i [N]."""
        return jnp.asarray(self._tables["alphas_cumprod"])

    @property
    def sqrt_alphas_cumprod(self) -> Levels:
        """DDPM's factor on the data at step i [N]."""
        return jnp.asarray(self._tables["sqrt_alphas_cumprod"])

    @property
    def sqrt_1m_alphas_cumprod(self) -> Levels:
        """DDPM's noise level at step i [N]."""
        return jnp.asarray(self._tables["sqrt_1m_alphas_cumprod"])

    def step_alpha(self, t: AnyTimes) -> AnyTimes:
        """`alpha_i = 1 - beta_i` of the step at time t (algorithm 5)."""
        return self.alphas[self.timestep(t)]


@dataclasses.dataclass(frozen=True)
class VariancePreservingSDE(BetaSDE):
    """Variance preserving for any beta: `dx = -beta x / 2 dt + sqrt(beta) dw` (eq. 11)."""

    @abc.abstractmethod
    def time_of_beta_integral(self, area: AnyTimes) -> AnyTimes:
        """The time t at which the integral of beta from 0 to t is `area`."""

    def sigma(self, t: AnyTimes) -> AnyTimes:
        """`sqrt(1 - alpha^2)` (eq. 33)."""
        return jnp.sqrt(-jnp.expm1(2.0 * self.log_alpha(t)))

    @property
    def chain(self) -> SDE:
        """DDPM's chain, whose levels are up to half a step of N from those of the process."""
        return DDPMChain(N=self.N, forward=self)

    def time_of_log_snr(self, log_snr: AnyTimes) -> AnyTimes:
        """The root of `1/alpha^2 = 1 + exp(-log_snr)`, whose logarithm is the integral of beta."""
        return self.time_of_beta_integral(jax.nn.softplus(-log_snr))

    def diffusion(self, t: AnyTimes) -> AnyTimes:
        """`g(t) = sqrt(beta(t))` (eq. 11)."""
        return jnp.sqrt(self.beta(t))

    def discretize(self, x: Images, t: Times) -> tuple[Images, Times]:
        """DDPM's chain `x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z` (eq. 10)."""
        beta = self.discrete_betas[self.timestep(t)]
        return batch_mul(jnp.expm1(0.5 * jnp.log1p(-beta)), x), jnp.sqrt(beta)


@dataclasses.dataclass(frozen=True)
class DDPMChain(SDE):
    """A VP SDE seen at the levels of DDPM's chain alone (Ho et al. 2020, arXiv:2006.11239).

    Step i of the chain, `alpha^2 = prod_{j <= i} (1 - beta_j)`, is at the time i T / (N - 1); any
    other time has the levels of the nearest step. What lies between the levels (drift, diffusion,
    discretisation) is that of the process.

    Attributes:
      forward: the process.
    """

    forward: VariancePreservingSDE = dataclasses.field(kw_only=True)

    @property
    def T(self) -> float:
        return self.forward.T

    @property
    def sampling_eps(self) -> float:
        return self.forward.sampling_eps

    @property
    def training_eps(self) -> float:
        return self.forward.training_eps

    @property
    def prior_std(self) -> float:
        return self.forward.prior_std

    def nearest(self, t: AnyTimes) -> Steps:
        """The index in 0..N-1 of the step whose time is nearest to t."""
        return jnp.round(t / self.T * (self.N - 1)).astype(jnp.int32)

    def log_alpha(self, t: AnyTimes) -> AnyTimes:
        """`1/2 sum_{j <= i} log(1 - beta_j)` of the nearest step i."""
        return jnp.asarray(self.forward._tables["log_sqrt_alphas_cumprod"])[self.nearest(t)]

    def sigma(self, t: AnyTimes) -> AnyTimes:
        """`sqrt(1 - alpha^2)` of the nearest step."""
        return self.forward.sqrt_1m_alphas_cumprod[self.nearest(t)]

    def time_of_log_snr(self, log_snr: AnyTimes) -> AnyTimes:
        """That of the process, which is up to half a step off."""
        return self.forward.time_of_log_snr(log_snr)

    def rates(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """Those of the process."""
        return self.forward.rates(t)

    def drift(self, x: Images, t: Times) -> Images:
        """`f(x, t)` of the process."""
        return self.forward.drift(x, t)

    def diffusion(self, t: AnyTimes) -> AnyTimes:
        """`g(t)` of the process."""
        return self.forward.diffusion(t)

    def discretize(self, x: Images, t: Times) -> tuple[Images, Times]:
        """A step of the chain (eq. 10)."""
        return self.forward.discretize(x, t)

    def step_alpha(self, t: AnyTimes) -> AnyTimes:
        """`alpha_i = 1 - beta_i` of the step at time t (algorithm 5)."""
        return self.forward.step_alpha(t)


@dataclasses.dataclass(frozen=True)
class LinearBetaSDE(BetaSDE):
    """An SDE with `beta` linear in t (eq. 32).

    Attributes:
      beta_min: beta(0).
      beta_max: beta(T).

    Raises:
      ValueError: not 0 <= beta_min <= beta_max with beta_max > 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.beta_min <= self.beta_max or not 0.0 < self.beta_max < math.inf:
            raise ValueError(
                f"{type(self).__name__}: beta_min is {self.beta_min} and beta_max {self.beta_max}; "
                "use 0 <= beta_min <= beta_max with beta_max > 0"
            )

    def beta(self, t: AnyTimes) -> AnyTimes:
        """`beta(t) = beta_min + t (beta_max - beta_min)` (eq. 32)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_alpha(self, t: AnyTimes) -> AnyTimes:
        """`-1/2` times the integral of beta from 0 to t (eq. 33)."""
        return -0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def time_of_beta_integral(self, area: AnyTimes) -> AnyTimes:
        """The time t at which the integral of beta from 0 to t is `area`."""
        slope = self.beta_max - self.beta_min
        return 2.0 * area / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * area))

    def check_betas(self) -> None:
        """Refuses an SDE whose `N` steps are too few for DDPM's chain: `beta_max / N` >= 1.

        Raises:
          ValueError: naming the smallest `N` that would do. So do all the tables.
        """
        if self.beta_max >= self.N:
            raise ValueError(
                f"{type(self).__name__}: with N={self.N} steps and beta_max={self.beta_max:g} the "
                f"discrete betas reach beta_max/N={self.beta_max / self.N:g}, but must stay below "
                f"1; use N >= {math.floor(self.beta_max) + 1} (model.num_scales)"
            )

    def step_betas(self) -> np.ndarray:
        """`beta_min/N ... beta_max/N` [N] (appendix C)."""
        self.check_betas()
        return np.linspace(self.beta_min, self.beta_max, self.N) / self.N


@dataclasses.dataclass(frozen=True)
class VPSDE(LinearBetaSDE, VariancePreservingSDE):
    """Variance preserving with linear beta (eqs. 11 and 32), from DDPM."""


@dataclasses.dataclass(frozen=True)
class CosineVPSDE(VariancePreservingSDE):
    """Variance preserving with the cosine schedule (Nichol and Dhariwal 2021, arXiv:2102.09672).

    `alpha(t) = cos(w (t + s)) / cos(w s)` with `w = pi / (2 (1 + s))`, s = 0.008; their alpha-bar
    is `alpha^2`. It vanishes at t = 1, where `beta(t) = 2 w tan(w (t + s))` diverges. Their chain
    of 1000 steps clips `beta_i` at 0.999; so beta(t) is clipped at 999 here: it is constant after
    t = 0.998, where alpha = 0.003, and alpha(1) = 0.001.
    """

    steep_end: ClassVar[bool] = True
    OFFSET: ClassVar[float] = 0.008  # s
    RATE: ClassVar[float] = math.pi / (2.0 * (1.0 + 0.008))  # w
    BETA_MAX: ClassVar[float] = 999.0
    # From here to t = 1 beta is constant, and the angle that is left to pi/2 is w CLIPPED.
    CLIPPED: ClassVar[float] = math.atan(2.0 * RATE / BETA_MAX) / RATE

    def _left(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """`pi/2 - w (t + s)` where beta is not clipped, and the time since it is; for t >= 1/2."""
        rest = 1.0 - jnp.where(t < 0.5, 0.5, t)  # exact
        clipped = rest < self.CLIPPED
        angle = self.RATE * jnp.where(clipped, self.CLIPPED, rest)
        return angle, jnp.where(clipped, self.CLIPPED - rest, 0.0)

    def beta(self, t: AnyTimes) -> AnyTimes:
        """`min(2 w tan(w (t + s)), 999)`."""
        late = 1.0 / jnp.tan(self._left(t)[0])
        early = jnp.tan(self.RATE * (jnp.minimum(t, 0.5) + self.OFFSET))
        return 2.0 * self.RATE * jnp.where(t < 0.5, early, late)

    def log_alpha(self, t: AnyTimes) -> AnyTimes:
        """`log(cos(w (t + s)) / cos(w s))`, and a line of slope -999/2 where beta is clipped."""
        angle = self.RATE * jnp.where(t < 0.5, t, 0.5)
        start = self.RATE * self.OFFSET
        # cos(start + angle) / cos(start) = 1 - (2 sin^2(angle / 2) + tan(start) sin(angle))
        loss = 2.0 * jnp.square(jnp.sin(0.5 * angle)) + math.tan(start) * jnp.sin(angle)
        left, since = self._left(t)
        late = jnp.log(jnp.sin(left) / math.cos(start)) - 0.5 * self.BETA_MAX * since
        return jnp.where(t < 0.5, jnp.log1p(-loss), late)

    def time_of_beta_integral(self, area: AnyTimes) -> AnyTimes:
        """The root of `cos(w (t + s)) = alpha cos(w s)` by half-angle formulas; then the line."""
        start, last = self.RATE * self.OFFSET, self.RATE * self.CLIPPED
        at_clip = -2.0 * math.log(math.sin(last) / math.cos(start))
        loss = -jnp.expm1(-0.5 * jnp.minimum(area, at_clip))
        tan = math.tan(start)
        half = loss / (tan + jnp.sqrt(tan**2 + loss * (2.0 - loss)))  # tan(w t / 2)
        beyond = jnp.maximum(area - at_clip, 0.0) / self.BETA_MAX
        return 2.0 / self.RATE * jnp.arctan(half) + beyond

    def step_betas(self) -> np.ndarray:
        """`min(1 - alpha(i/N)^2 / alpha((i-1)/N)^2, 0.999)` for i = 1..N."""
        cos = np.cos(self.RATE * (np.arange(self.N + 1) / self.N + self.OFFSET))
        return np.minimum(1.0 - np.square(cos[1:] / cos[:-1]), 0.999)


@dataclasses.dataclass(frozen=True)
class SubVPSDE(LinearBetaSDE):
    """Sub-VP: VP's drift, with a variance below VP's at every time (eq. 12)."""

    def sigma(self, t: AnyTimes) -> AnyTimes:
        """`1 - alpha^2`, the square of VP's (eq. 29)."""
        return -jnp.expm1(2.0 * self.log_alpha(t))

    def time_of_log_snr(self, log_snr: AnyTimes) -> AnyTimes:
        """The root of `sigma/alpha = 1/alpha - alpha = 2 sinh(area / 2)`, area that of beta."""
        return self.time_of_beta_integral(2.0 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr)))

    def diffusion(self, t: AnyTimes) -> AnyTimes:
        """`g(t) = sqrt(beta(t) (1 - alpha(t)^4))` (eq. 12)."""
        return jnp.sqrt(-self.beta(t) * jnp.expm1(4.0 * self.log_alpha(t)))


@dataclasses.dataclass(frozen=True)
class DriftlessSDE(SDE):
    """`dx = g(t) dw`: the data are never scaled, so that the variance explodes."""

    variance_exploding: ClassVar[bool] = True

    def log_alpha(self, t: AnyTimes) -> AnyTimes:
        """Zero: the data are never scaled (eq. 29)."""
        return jnp.zeros_like(t)

    def drift(self, x: Images, t: Times) -> Images:
        """Zero: there is noise alone (eq. 9)."""
        return jnp.zeros_like(x)


@dataclasses.dataclass(frozen=True)
class VarianceExplodingSDE(DriftlessSDE):
    """`dx = g(t) dw` whose sigma grows from `sigma_min` to `sigma_max`.

    Attributes:
      sigma_min: the smallest noise level.
      sigma_max: the largest, at T.

    Raises:
      ValueError: not 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"{type(self).__name__}: sigma_min is {self.sigma_min} and sigma_max "
                f"{self.sigma_max}; use 0 < sigma_min < sigma_max"
            )

    @property
    def prior_std(self) -> float:
        return self.sigma_max


@dataclasses.dataclass(frozen=True)
class VESDE(VarianceExplodingSDE):
    """Variance exploding: `dx = sqrt(d sigma^2/dt) dw`, sigma geometric (eqs. 9, 30), from SMLD.

    As in the original, `sigma(0)` is `sigma_min`, so that the data at t = 0 carry that noise.
    """

    @property
    def sampling_eps(self) -> float:
        return 1e-5

    @property
    def log_ratio(self) -> float:
        """`log(sigma_max / sigma_min)`."""
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    def sigma(self, t: AnyTimes) -> AnyTimes:
        """`sigma_min (sigma_max / sigma_min)^t` (eq. 30)."""
        return self.sigma_min * jnp.exp(t * self.log_ratio)

    def time_of_log_snr(self, log_snr: AnyTimes) -> AnyTimes:
        """`log(sigma / sigma_min) / log(sigma_max / sigma_min)`."""
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self.log_ratio

    def diffusion(self, t: AnyTimes) -> AnyTimes:
        """`g(t) = sigma(t) sqrt(2 log(sigma_max / sigma_min))` (eq. 30)."""
        return self.sigma(t) * math.sqrt(2.0 * self.log_ratio)

    @functools.cached_property
    def _sigmas(self) -> np.ndarray:
        return np.geomspace(self.sigma_min, self.sigma_max, self.N)

    @property
    def discrete_sigmas(self) -> Levels:
        """SMLD's noise levels [N], geometric from `sigma_min` up to `sigma_max`."""
        return jnp.asarray(self._sigmas.astype(np.float32))

    def discretize(self, x: Images, t: Times) -> tuple[Images, Times]:
        """SMLD's chain `x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z` (eq. 8).

        The level below the lowest is 0: the first step back ends at the data.
        """
        below = np.concatenate([[0.0], self._sigmas[:-1]])
        steps = np.sqrt((self._sigmas - below) * (self._sigmas + below))
        return jnp.zeros_like(x), jnp.asarray(steps.astype(np.float32))[self.timestep(t)]


@dataclasses.dataclass(frozen=True)
class EDMSDE(VarianceExplodingSDE):
    """`dx = sqrt(2 t) dw`, hence sigma(t) = t (Karras et al. 2022, arXiv:2206.00364, section 3).

    T is `sigma_max`; samplers and training stop at `sigma_min`.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def T(self) -> float:
        return self.sigma_max

    @property
    def sampling_eps(self) -> float:
        return self.sigma_min

    @property
    def training_eps(self) -> float:
        return self.sigma_min

    def sigma(self, t: AnyTimes) -> AnyTimes:
        """The time itself, `sigma(t) = t`."""
        return t

    def time_of_log_snr(self, log_snr: AnyTimes) -> AnyTimes:
        """The noise level `exp(-log_snr / 2)`, which is the time."""
        return jnp.exp(-0.5 * log_snr)

    def diffusion(self, t: AnyTimes) -> AnyTimes:
        """`g(t) = sqrt(2 t)`."""
        return jnp.sqrt(2.0 * t)

    def discretize(self, x: Images, t: Times) -> tuple[Images, Times]:
        """SMLD's chain (eq. 8), its levels T / (N - 1) apart; below the lowest is 0."""
        below = jnp.maximum(t - self.T / max(self.N - 1, 1), 0.0)
        return jnp.zeros_like(x), jnp.sqrt((t - below) * (t + below))


@dataclasses.dataclass(frozen=True)
class Interpolant(SDE):
    """Paths `x_t = alpha(t) x_0 + sigma(t) z` that lead from data to noise in one unit of time.

    They are given by alpha, sigma and their rates, with alpha(1) = 0 and sigma(1) = 1: stochastic
    interpolants (Albergo et al. 2023, arXiv:2303.08797) and flow matching (Lipman et al. 2022,
    arXiv:2210.02747), whose times run the other way. The velocity `alpha' x_0 + sigma' z` is finite
    at t = 1; drift and log-SNR are not, nor can a score there tell x_0. So the process ends at the
    T < 1 where alpha is `ALPHA_END`, and the prior `N(0, sigma(T)^2 I)` is off p_T by at most
    `alpha(T)^2 E|x_0|^2 / (2 sigma(T)^2)` nats of relative entropy.
    """

    steep_end: ClassVar[bool] = True
    ALPHA_END: ClassVar[float] = 1e-3

    @abc.abstractmethod
    def alpha(self, t: AnyTimes) -> AnyTimes:
        """The factor on the data, which vanishes at t = 1."""

    @abc.abstractmethod
    def rates(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """`d alpha / dt` and `d sigma / dt` in closed form."""

    def drift(self, x: Images, t: Times) -> Images:
        """`f(x, t) = alpha' / alpha x`."""
        return batch_mul(self.rates(t)[0] / self.alpha(t), x)

    def diffusion(self, t: AnyTimes) -> AnyTimes:
        """`g(t) = sqrt(2 sigma (sigma' - sigma alpha' / alpha))`."""
        (fall, rise), sigma = self.rates(t), self.sigma(t)
        return jnp.sqrt(2.0 * sigma * (rise - sigma * fall / self.alpha(t)))

    def _step_back(self, t: AnyTimes) -> AnyTimes:
        """The time of the level below, T / (N - 1) earlier; below the lowest is 0."""
        return jnp.maximum(t - self.T / max(self.N - 1, 1), 0.0)

    def discretize(self, x: Images, t: Times) -> tuple[Images, Times]:
        """The chain of its levels, `x_i = a x_{i-1} + sqrt(v) z` with (a, v) of `transition`.

        A step of Euler-Maruyama near T, where `alpha' / alpha` is `1 / ALPHA_END` or so, would be
        unstable for fewer steps than that.
        """
        a, v = self.transition(t, self._step_back(t))
        return batch_mul(a - 1.0, x), jnp.sqrt(v)

    def step_alpha(self, t: AnyTimes) -> AnyTimes:
        """`a^2` of the step of the chain to time t, which for DDPM's is `alpha_i = 1 - beta_i`."""
        return jnp.square(self.transition(t, self._step_back(t))[0])


@dataclasses.dataclass(frozen=True)
class RectifiedSDE(Interpolant):
    """Straight paths from data to noise, of rectified flow: `x_t = (1 - t) x_0 + t z`.

    Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024, arXiv:2403.03206, have the same times.
    """

    @property
    def T(self) -> float:
        return 1.0 - self.ALPHA_END

    def alpha(self, t: AnyTimes) -> AnyTimes:
        """`1 - t`."""
        return 1.0 - t

    def log_alpha(self, t: AnyTimes) -> AnyTimes:
        """`log(1 - t)`."""
        return jnp.log1p(-t)

    def sigma(self, t: AnyTimes) -> AnyTimes:
        """The time itself, `sigma(t) = t`."""
        return t

    def rates(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """-1 and 1."""
        return -jnp.ones_like(t), jnp.ones_like(t)

    def time_of_log_snr(self, log_snr: AnyTimes) -> AnyTimes:
        """`r / (1 + r)` with r = sigma / alpha."""
        return jax.nn.sigmoid(-0.5 * log_snr)


@dataclasses.dataclass(frozen=True)
class FlowOTSDE(Interpolant):
    """Flow matching's paths of optimal transport, where a little noise stays in the data.

    `x_t = (1 - t) x_0 + (sigma_min + (1 - sigma_min) t) z` (Lipman et al. 2022, arXiv:2210.02747,
    eq. 20 and 22, whose time is 1 - t).

    Attributes:
      sigma_min: the noise level at t = 0.

    Raises:
      ValueError: not 0 <= sigma_min < 1.
    """

    sigma_min: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.sigma_min < 1.0:
            raise ValueError(
                f"{type(self).__name__}: sigma_min is {self.sigma_min}; use 0 <= sigma_min < 1"
            )

    @property
    def T(self) -> float:
        return 1.0 - self.ALPHA_END

    def alpha(self, t: AnyTimes) -> AnyTimes:
        """`1 - t`."""
        return 1.0 - t

    def log_alpha(self, t: AnyTimes) -> AnyTimes:
        """`log(1 - t)`."""
        return jnp.log1p(-t)

    def sigma(self, t: AnyTimes) -> AnyTimes:
        """`sigma_min + (1 - sigma_min) t`."""
        return self.sigma_min + (1.0 - self.sigma_min) * t

    def rates(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """-1 and `1 - sigma_min`."""
        return -jnp.ones_like(t), jnp.full_like(t, 1.0 - self.sigma_min)

    def time_of_log_snr(self, log_snr: AnyTimes) -> AnyTimes:
        """`(r - sigma_min) / (r + 1 - sigma_min)` with r = sigma / alpha."""
        r = jnp.exp(-0.5 * log_snr)
        return (r - self.sigma_min) / (r + (1.0 - self.sigma_min))


@dataclasses.dataclass(frozen=True)
class TrigonometricSDE(Interpolant):
    """Paths on a quarter of a circle, which preserve unit variance: `cos(w t) x_0 + sin(w t) z`.

    w = pi / 2 (Albergo and Vanden-Eijnden 2022, arXiv:2209.15571, section 2). The velocity,
    divided by w, is that of v-prediction.
    """

    RATE: ClassVar[float] = 0.5 * math.pi

    @property
    def T(self) -> float:
        return 1.0 - math.asin(self.ALPHA_END) / self.RATE

    def alpha(self, t: AnyTimes) -> AnyTimes:
        """`cos(w t)`, as the sine of what is left of the way, which keeps its digits near T."""
        return jnp.sin(self.RATE * (1.0 - t))

    def log_alpha(self, t: AnyTimes) -> AnyTimes:
        """`log cos(w t)`, early of `1 - sin(w t)^2`, late of alpha."""
        early = 0.5 * jnp.log1p(-jnp.square(self.sigma(jnp.minimum(t, 0.5))))
        return jnp.where(t < 0.5, early, jnp.log(self.alpha(jnp.maximum(t, 0.5))))

    def sigma(self, t: AnyTimes) -> AnyTimes:
        """`sin(w t)`."""
        return jnp.sin(self.RATE * t)

    def rates(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """`-w sigma` and `w alpha`."""
        return -self.RATE * self.sigma(t), self.RATE * self.alpha(t)

    def time_of_log_snr(self, log_snr: AnyTimes) -> AnyTimes:
        """`arctan(r) / w` with r = sigma / alpha."""
        return jnp.arctan(jnp.exp(-0.5 * log_snr)) / self.RATE


@dataclasses.dataclass(frozen=True)
class PowerInterpolant(Interpolant):
    """A family of paths with powers of the time: `x_t = (1 - t^a)^b x_0 + t^c z`.

    a = b = c = 1 are the straight ones. By a and b the data stay for longer or fade sooner; c above
    1 leaves more of the time to small noise. With powers of 1 or more, alpha and sigma have bounded
    rates in all of [0, 1].

    Attributes:
      time_power: a.
      data_power: b.
      noise_power: c.

    Raises:
      ValueError: a power below 1.
    """

    time_power: float = 2.0
    data_power: float = 1.0
    noise_power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("time_power", "data_power", "noise_power"):
            power = getattr(self, name)
            if not 1.0 <= power < math.inf:
                raise ValueError(
                    f"{type(self).__name__}: {name} is {power}; powers are 1 or more, so that the "
                    "velocity of the paths is finite"
                )

    @property
    def T(self) -> float:
        power = 1.0 - math.pow(self.ALPHA_END, 1.0 / self.data_power)
        return math.pow(power, 1.0 / self.time_power)

    def _left(self, t: AnyTimes) -> AnyTimes:
        """`1 - t^a`, late by way of log t, which keeps its digits near 1."""
        late = -jnp.expm1(self.time_power * jnp.log(jnp.maximum(t, 0.5)))
        return jnp.where(t < 0.5, 1.0 - t**self.time_power, late)

    def alpha(self, t: AnyTimes) -> AnyTimes:
        """`(1 - t^a)^b`."""
        return self._left(t) ** self.data_power

    def log_alpha(self, t: AnyTimes) -> AnyTimes:
        """`b log(1 - t^a)`."""
        early = jnp.log1p(-(jnp.minimum(t, 0.5) ** self.time_power))
        late = jnp.log(self._left(jnp.maximum(t, 0.5)))
        return self.data_power * jnp.where(t < 0.5, early, late)

    def sigma(self, t: AnyTimes) -> AnyTimes:
        """`t^c`."""
        return t**self.noise_power

    def rates(self, t: AnyTimes) -> tuple[AnyTimes, AnyTimes]:
        """`-a b t^(a-1) (1 - t^a)^(b-1)` and `c t^(c-1)`."""
        a, b, c = self.time_power, self.data_power, self.noise_power
        return -a * b * t ** (a - 1.0) * self._left(t) ** (b - 1.0), c * t ** (c - 1.0)


@dataclasses.dataclass(frozen=True)
class SigmaPowerSDE(DriftlessSDE):
    """`dx = sigma^t dw`, the SDE of the paper's tutorial, whose noise begins at 0.

    Attributes:
      sigma_base: the base of the power, "sigma" there, where it is 25.

    Raises:
      ValueError: `sigma_base` not above 1.
    """

    sigma_base: float = 25.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1.0 < self.sigma_base < math.inf:
            raise ValueError(f"{type(self).__name__}: sigma_base is {self.sigma_base}; use above 1")

    @property
    def log_base(self) -> float:
        """`log sigma_base`."""
        return math.log(self.sigma_base)

    def sigma(self, t: AnyTimes) -> AnyTimes:
        """`sqrt((sigma_base^(2 t) - 1) / (2 log sigma_base))`, the integral of `g^2` from 0."""
        return jnp.sqrt(jnp.expm1(2.0 * self.log_base * t) / (2.0 * self.log_base))

    def time_of_log_snr(self, log_snr: AnyTimes) -> AnyTimes:
        """`log(1 + 2 log(sigma_base) sigma^2) / (2 log sigma_base)`."""
        return jnp.log1p(2.0 * self.log_base * jnp.exp(-log_snr)) / (2.0 * self.log_base)

    def diffusion(self, t: AnyTimes) -> AnyTimes:
        """`g(t) = sigma_base^t`."""
        return jnp.exp(self.log_base * t)


SDES: dict[str, type[SDE]] = {
    "vpsde": VPSDE,
    "subvpsde": SubVPSDE,
    "vesde": VESDE,
    "cosine_vpsde": CosineVPSDE,
    "edm": EDMSDE,
    "rectified": RectifiedSDE,
    "flow_ot": FlowOTSDE,
    "trigonometric": TrigonometricSDE,
    "interpolant": PowerInterpolant,
    "sigma_power": SigmaPowerSDE,
}


def from_config(config: ConfigDict) -> SDE:
    """The SDE named by `config.training.sde`.

    N is `config.model.num_scales`; every other field is read from `config.model` by its name.

    Raises:
      ValueError: unknown name, missing field or value out of range.
    """
    name = str(config.training.sde).lower()
    sde = lookup(SDES, name, "training.sde")
    parameters = {}
    for field in dataclasses.fields(sde):
        key = "num_scales" if field.name == "N" else field.name
        if key not in config.model:
            raise ValueError(f"config.model.{key} is missing; {name} needs it for its {field.name}")
        parameters[field.name] = config.model[key]
    return sde(**parameters)


def _derivative(function: Callable[[AnyTimes], AnyTimes], t: AnyTimes) -> AnyTimes:
    """Elementwise derivative of `function` at the times t."""
    slope: Array = jax.jvp(function, (t,), (jnp.ones_like(t),))[1]
    return slope
