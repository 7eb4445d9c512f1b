"""Guidance: score functions made of score functions, and of what density each is the score.

Every one of them is exact at its own time t: it is the score of the density that is named there.
None but the score of a true posterior is that of a density that is diffused: a sampler that follows
it draws the named density at t = 0 with a bias, which the weights of `feynman_kac` take away.
Images are x [B, ...], times t [B].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion.ancestral import ScoreAndVariance
from diffusion.parametrisation import convert
from sde_lib import SDE, Images, ScoreFn, Times, batch_mul

LogLikelihood = Callable[[Array, Array], Array]  # (x [B, ...], t [B]) -> log p_t(y | x) [B]
Scale = float | Callable[[Array], Array]  # of guidance: a number, or a function of t [B]
TINY = 1e-30  # in place of 0 below a fraction


def guided(score_fn: ScoreFn, log_likelihood: LogLikelihood, scale: Scale = 1.0) -> ScoreFn:
    """The score of p_t(x | y): score(x, t) + scale grad_x log p_t(y | x) (eq. 14).

    With the exact likelihood and scale 1 this is the score of the posterior. Another scale is that
    of p_t(x) p_t(y | x)^scale, which sharpens the condition (Dhariwal and Nichol 2021,
    arXiv:2105.05233).

    Args:
      log_likelihood: row b must depend on row b of x and t alone.
    """

    slope = jax.grad(lambda x, t: jnp.sum(log_likelihood(x, t)))

    def gradient(x: Images, t: Times) -> Images:
        return batch_mul(_at(scale, t), slope(x, t))

    if isinstance(score_fn, ScoreAndVariance):
        return score_fn.guided(gradient)
    return lambda x, t: score_fn(x, t) + gradient(x, t)


def of_class(class_log_prob: Callable[[Array, Array], Array], y: Array) -> LogLikelihood:
    """log p_t(y | x) of the classes y [B], from that of all classes [B, K].

    `models.class_log_prob` makes the latter of a classifier.
    A class out of range has the likelihood NaN.

    Raises:
      ValueError: (when it is called) there are not as many classes as images.
    """

    def log_likelihood(x: Images, t: Times) -> Times:
        log_probs = class_log_prob(x, t)
        if len(y) != len(log_probs):
            raise ValueError(f"{len(y)} classes for {len(log_probs)} images")
        index = jnp.where(y < 0, log_probs.shape[1], y)[:, None]
        return jnp.take_along_axis(log_probs, index, axis=1, mode="fill", fill_value=jnp.nan)[:, 0]

    return log_likelihood


def classifier_free(score_fn: ScoreFn, conditional_fn: ScoreFn, scale: Scale) -> ScoreFn:
    """score + scale (conditional - score): Ho and Salimans 2022 (arXiv:2207.12598).

    Scale 0 is the unconditional score, 1 the conditional one; their weight w is scale - 1. With
    exact scores it is `guided` by the likelihood p_t(y | x). A variance that the conditional score
    tells is told on.
    """

    def combined(x: Images, t: Times, told: Images) -> Images:
        free = score_fn(x, t)
        return free + batch_mul(_at(scale, t), told - free)

    return _changed(conditional_fn, combined)


def autoguided(score_fn: ScoreFn, weak_fn: ScoreFn, scale: Scale) -> ScoreFn:
    """weak + scale (score - weak): Karras et al. 2024 (arXiv:2406.02507), equation 5.

    It leads away from what a weaker network of the same data (smaller, or trained for less time)
    gets wrong more than the stronger one does. It is the score of p_t (p_t / weak p_t)^(scale - 1);
    scale 1 is the stronger score alone.
    """
    return classifier_free(weak_fn, score_fn, scale)


def projected(
    sde: SDE,
    score_fn: ScoreFn,
    conditional_fn: ScoreFn,
    scale: Scale,
    *,
    parallel: float = 0.0,
    limit: float = math.inf,
    center: float = 0.0,
) -> ScoreFn:
    """Adaptive projected guidance: Sadat et al. 2024 (arXiv:2410.02416), algorithm 1.

    With D = E[x_0 | x, y] and the difference d = D - E[x_0 | x] of the two estimates of x_0,

        D + (scale - 1) (d' - (1 - parallel) <d', D> D / |D|^2),    d' = d min(1, limit / |d|).

    The part of d along D makes colours garish and adds little else. With `parallel` 1 and no limit
    it is `classifier_free`. The momentum of the paper's algorithm is a memory from step to step,
    which a function of x and t does not have, and is left out (momentum 0).

    Args:
      parallel: the paper's eta, the share of the parallel part that is kept.
      limit: the paper's r, the largest length of d, in the network's range of pixels.
      center: the middle of that range, from which D is measured in the projection.

    Raises:
      ValueError: a limit that is not positive.
    """
    if not limit > 0:
        raise ValueError(f"the limit of the guidance's length is {limit:g}; it must be positive")

    def combined(x: Images, t: Times, told: Images) -> Images:
        per_score = jnp.square(sde.sigma(t)) / sde.alpha(t)
        difference = batch_mul(per_score, told - score_fn(x, t))
        length = jnp.sqrt(_dot(difference, difference))
        short = batch_mul(jnp.minimum(1.0, limit / jnp.maximum(length, TINY)), difference)
        estimate = convert(sde, x, t, told, "score", "x0") - center
        share = _dot(short, estimate) / jnp.maximum(_dot(estimate, estimate), TINY)
        kept = short - (1.0 - parallel) * batch_mul(share, estimate)
        return told + batch_mul((_at(scale, t) - 1.0) / per_score, kept)

    return _changed(conditional_fn, combined)


@dataclasses.dataclass(frozen=True)
class Product:
    """The score of a product of experts, prod_i p_i,t(x)^w_i (Hinton 2002; Du et al. 2023,
    arXiv:2302.11552): the sum of their scores times their weights.

    Its members are classifier-free guidance, (1 - w, w) of the free and the conditional score;
    autoguidance, the same of the weak and the strong one; a temperature, (1 / tau) of one score;
    "this and that", (1, 1) or, given one free score, (1, 1, -1).

    Attributes:
      experts: score functions of the same SDE.
      weights: of each, any real numbers; their sum is positive, or there is no such density.

    Raises:
      ValueError: no experts, not as many weights, or weights whose sum is not positive.
    """

    experts: tuple[ScoreFn, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.experts or len(self.experts) != len(self.weights):
            raise ValueError(f"{len(self.experts)} experts have {len(self.weights)} weights")
        if not self.total > 0:
            raise ValueError(
                f"the weights {self.weights} of the experts sum to {self.total:g}; a density needs "
                "a positive sum"
            )

    @property
    def total(self) -> float:
        """The sum of the weights."""
        return math.fsum(self.weights)

    def __call__(self, x: Images, t: Times) -> Images:
        return self.with_excess(x, t)[0]

    def with_excess(self, x: Images, t: Times) -> tuple[Images, Times]:
        """The score S [B, ...], and |S|^2 - sum_i w_i |s_i|^2 [B].

        The latter is computed from the differences to the first score, as the squares are large
        where there is little noise, and nearly cancel.
        """
        first = self.experts[0](x, t)
        beyond, spread = jnp.zeros_like(first), jnp.zeros(len(first), first.dtype)
        for expert, weight in zip(self.experts[1:], self.weights[1:], strict=True):
            difference = expert(x, t) - first
            beyond += weight * difference
            spread += weight * _dot(difference, difference)
        more = self.total - 1.0
        excess = _dot(beyond, beyond) - spread
        if more:
            excess += more * (self.total * _dot(first, first) + 2.0 * _dot(first, beyond))
        return self.total * first + beyond, excess


def within(low: float, high: float, scale: float, outside: float) -> Callable[[Array], Array]:
    """A scale that acts at times low < t <= high only, and is `outside` elsewhere.

    Kynkäänniemi et al. 2024 (arXiv:2404.07724) guide at middle noise levels only; `outside` is 1
    for `classifier_free`, where the conditional score remains, and 0 for `guided`.

    Raises:
      ValueError: not low < high.
    """
    if not low < high:
        raise ValueError(f"the guidance interval ({low:g}, {high:g}] is empty; use low < high")
    return lambda t: jnp.where((t > low) & (t <= high), scale, outside)


def scale_in(sde: SDE, scale: float, interval: tuple[float, ...], outside: float) -> Scale:
    """`scale` at noise levels sigma / alpha in the interval, if there is one; else `outside`."""
    if not interval:
        return scale
    return within(*times_of_noise(sde, *interval), scale, outside)


def times_of_noise(sde: SDE, low: float, high: float) -> tuple[float, float]:
    """The times in [0, T] at which the noise level sigma / alpha is `low` and `high`."""
    with jax.ensure_compile_time_eval():
        levels = jnp.maximum(jnp.array([low, high], jnp.float32), 1e-12)
        first, last = np.asarray(sde.time_of_log_snr(-2.0 * jnp.log(levels)))
    return max(float(first), 0.0), min(float(last), sde.T)


def _at(scale: Scale, t: Times) -> Times:
    return scale(t) if callable(scale) else jnp.full_like(t, scale)


def _changed(score_fn: ScoreFn, rule: Callable[[Images, Times, Images], Images]) -> ScoreFn:
    """rule(x, t, score) as a score function, which tells the variance that `score_fn` tells."""
    if not isinstance(score_fn, ScoreAndVariance):
        return lambda x, t: rule(x, t, score_fn(x, t))

    def both(x: Images, t: Times) -> tuple[Images, Images]:
        score, share = score_fn.both(x, t)
        return rule(x, t, score), share

    return dataclasses.replace(score_fn, both=both)


def _dot(a: Images, b: Images) -> Times:
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))
