"""Moving averages of the parameters: constant rates, and averages of any length after training.

The average after update n (from 1) is `a_n = a_(n-1) + w(n) (theta_n - a_(n-1))`; a rule is w, the
weight of the newest parameters. With the power-function profiles of Karras et al. 2024, "Analyzing
and Improving the Training Dynamics of Diffusion Models" (arXiv:2312.02696),

    a(t) = integral_0^t p(tau) theta(tau) dtau,    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),

so its length grows with training, and is named by its relative width sigma_rel, the standard
deviation of p in units of t. Parameters that are constant between updates make this exactly the
rule w(n) = 1 - (1 - 1/n)^(gamma + 1). Averages of a few profiles, stored at several steps, combine
to that of any other profile at any step: `combination` finds the coefficients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

Params = Any  # a pytree of arrays
Rule = Callable[[ArrayLike], ArrayLike]  # from the number of an update, from 1, to its weight
Numbers = npt.NDArray[np.float64] | np.float64 | float

# The standard deviation of p at gamma = 0, where every step weighs the same: 1 / sqrt(12).
WIDEST = 12**-0.5


def constant(rate: float, warmup: bool = False) -> Rule:
    """The rule 1 - rate, or with `warmup` 1 - min(rate, (1 + n) / (10 + n)) of the PyTorch code."""
    if not warmup:
        return lambda n: 1 - rate
    return lambda n: 1 - jnp.minimum(rate, (1 + n) / (10 + n))


def half_life(images: float, batch_size: int, ramp_up: float = 0.0) -> Rule:
    """The rule 1 - 2^(-batch_size / h) of an average that forgets half within h images.

    h is `images` or, with `ramp_up`, at most that times the images of the updates before (Karras et
    al. 2022, arXiv:2206.00364, appendix F.2), so that the first update takes the parameters over.
    """

    def rule(n: ArrayLike) -> ArrayLike:
        seen = ramp_up * batch_size * (jnp.asarray(n, jnp.float32) - 1)
        h = jnp.minimum(images, seen) if ramp_up else images
        return -jnp.expm1(-math.log(2.0) * batch_size / jnp.maximum(h, 1e-8))

    return rule


def power(sigma_rel: float) -> Rule:
    """The rule 1 - (1 - 1/n)^(gamma + 1), without the cancellation of float32 at large n."""
    gamma = gamma_of(sigma_rel)
    return lambda n: -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(n, jnp.float32)))


def update(average: Params, params: Params, weight: ArrayLike) -> Params:
    """The average after one update, `average + weight (params - average)`, leaf by leaf."""
    return jax.tree.map(lambda old, new: old + weight * (new - old), average, params)


@dataclasses.dataclass(frozen=True)
class Averaging:
    """The rule of the average that everything uses, and those of further ones, by name."""

    primary: Rule
    further: dict[str, Rule] = dataclasses.field(default_factory=dict)


def rate_name(rate: float) -> str:
    """The name of the average of a constant rate in checkpoints: "rate_0.9999"."""
    return f"rate_{float(rate)!r}"


def profile_name(sigma_rel: float) -> str:
    """The name of the average of a profile in checkpoints and snapshots: "sigma_rel_0.1"."""
    return f"sigma_rel_{float(sigma_rel)!r}"


def width_in(name: str) -> float | None:
    """The inverse of `profile_name`; None for other names."""
    kind, _, value = name.rpartition("_")
    return float(value) if kind == "sigma_rel" else None


def from_config(config: ml_collections.ConfigDict) -> Averaging:
    """The averages that a config describes.

    The primary one has `model.ema_half_life` and `model.ema_ramp_up`, or else `model.ema_rate` and
    `model.ema_warmup`; further ones are of `training.ema_rates` and `training.ema_profiles`.
    """
    model, training = config.model, config.training
    further = {rate_name(rate): constant(rate) for rate in training.ema_rates}
    further |= {profile_name(width): power(width) for width in training.ema_profiles}
    if model.ema_half_life:
        primary = half_life(model.ema_half_life, training.batch_size, model.ema_ramp_up)
    else:
        primary = constant(model.ema_rate, model.ema_warmup)
    return Averaging(primary, further)


def width_of(gamma: float) -> float:
    """The relative width sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def gamma_of(sigma_rel: float) -> float:
    """The inverse of `width_of` at gamma >= 0.

    The largest root of `g^3 + 7 g^2 + (16 - s) g + 12 - s` with s = 1 / sigma_rel^2.

    Raises:
      ValueError: a width that no such profile has.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(
            f"the relative width of an average is {sigma_rel:g}; it must be positive and at most "
            f"{WIDEST:.3f}"
        )
    s = sigma_rel**-2
    return max(float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max()), 0.0)


class Combination(NamedTuple):
    """A weighted sum of stored averages, and its distance from the wanted average."""

    coefficients: np.ndarray  # [n], of sum 1
    error: float  # |combined profile - wanted one| / |wanted one|, in the L2 norm over steps


def combination(
    steps: npt.ArrayLike, widths: npt.ArrayLike, step: float, sigma_rel: float
) -> Combination:
    """The coefficients with which stored averages make that of width `sigma_rel` at `step`.

    They minimise the L2 distance between the combined profile and the wanted one, as section 3.2
    of the paper has it, under the condition that they add up to 1, so that what does not change in
    training is kept as it is. All inner products of profiles are known in closed form.

    Args:
      steps, widths: step and sigma_rel of each stored average, [n] each.
    """
    t = np.asarray(steps, float)
    gamma = np.array([gamma_of(width) for width in np.asarray(widths)])
    wanted = gamma_of(sigma_rel)
    norms = np.sqrt(inner_product(t, gamma, t, gamma))
    scale = norms[:, None] * norms
    gram = inner_product(t[:, None], gamma[:, None], t, gamma) / scale
    target_norm = math.sqrt(inner_product(step, wanted, step, wanted))
    target = inner_product(t, gamma, step, wanted) / (norms * target_norm)

    # In units of the profiles' norms: minimise |sum y_i e_i - e|^2 under sum y_i u_i = 1, where u_i
    # are the integrals of the unit profiles, in units of that of the wanted one.
    integrals = target_norm / norms
    n = len(t)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n], system[:n, n], system[n, :n] = gram, integrals, integrals
    y = np.linalg.lstsq(system, np.append(target, 1.0), rcond=1e-14)[0][:n]
    squared = y @ gram @ y - 2 * y @ target + 1
    return Combination(y * integrals, math.sqrt(max(squared, 0.0)))


def inner_product(
    t1: Numbers, gamma1: Numbers, t2: Numbers, gamma2: Numbers
) -> npt.NDArray[np.float64]:
    """The integral of p1 p2 over all steps, of profiles that end at t1 and t2.

    (g1 + 1)(g2 + 1) / (g1 + g2 + 1) * min(t1, t2)^(g1 + g2 + 1) / (t1^(g1 + 1) t2^(g2 + 1)).
    """
    first = np.asarray(t1) <= np.asarray(t2)
    ratio = np.where(first, t1, t2) / np.where(first, t2, t1)
    late = np.where(first, gamma2, gamma1)
    factor = (gamma1 + 1.0) * (gamma2 + 1.0) / (gamma1 + gamma2 + 1.0)
    return factor * ratio**late / np.where(first, t2, t1)
