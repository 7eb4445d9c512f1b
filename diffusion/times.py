"""Times of training and of likelihood bounds, and how a batch draws them.

Times come from numbers u in [0, 1). How a batch draws its u (`time_draws`) and what becomes of them
(`uniform_times`, ...) are two independent choices; every map from u to t also says by what density
it draws, so that a mean over the drawn times can be turned into an integral over time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Float, Int, Key

from configs.names import lookup
from sde_lib import SDE, AnyTimes, Keys, Times

StepKey = Key[Array, ""]  # of a training step
Numbers = Int[Array, "batch"]  # [B], of the images of a batch
Draws = Float[Array, "draws batch"]  # [K, B]

LARGEST_MODE_SCALE = 2.0 / (math.pi - 2.0)  # above it `mode_times` would turn back

# Numbers u of a training step: for the images `numbers` [B] of a batch of `total`, from its key.


@runtime_checkable
class TimeDraws(Protocol):
    def __call__(self, step_key: StepKey, numbers: Numbers, total: int) -> Times: ...


def independent(step_key: StepKey, numbers: Numbers, total: int) -> Times:
    """Every image from its own key, `fold_in(step_key, number)`.

    Of an image's sub-keys (`objective.Objective`) the first is its loss's, and of that one's two
    halves (`losses.from_config`) the first its time's.
    """
    del total

    def one(number: Array) -> Array:
        loss_key = jax.random.split(jax.random.fold_in(step_key, number))[0]
        return jax.random.uniform(jax.random.split(loss_key)[0])

    return jax.vmap(one)(numbers)


def antithetic(step_key: StepKey, numbers: Numbers, total: int) -> Times:
    """Pairs: image 2k draws u as in `independent`, and image 2k + 1 has 1 - u."""
    u = independent(step_key, numbers - numbers % 2, total)
    return jnp.where(numbers % 2 == 1, jnp.mod(1.0 - u, 1.0), u)


def stratified(step_key: StepKey, numbers: Numbers, total: int) -> Times:
    """One image in each of `total` equal parts of [0, 1), at a random place there.

    The parts are dealt out from a random one on, so that every image alone is uniform.
    """
    shift = jax.random.uniform(jax.random.fold_in(step_key, total))
    first = jnp.minimum((shift * total).astype(jnp.int32), total - 1)
    u = ((numbers + first) % total + independent(step_key, numbers, total)) / total
    return jnp.minimum(u, 1.0 - 2.0**-24)  # the last part's end may have been rounded up


TIME_DRAWS: dict[str, TimeDraws] = {
    "independent": independent,
    "antithetic": antithetic,
    "stratified": stratified,
}


def time_draws(kind: str, step_key: StepKey, numbers: Numbers, total: int) -> Times:
    """u [B] in [0, 1) of the images `numbers` [B] in a global batch of `total` images.

    A function of (step_key, number, total): how the batch is split among devices does not matter.

    Raises:
      ValueError: unknown kind.
    """
    return lookup(TIME_DRAWS, kind, "training.time_draws")(step_key, numbers, total)


def low_discrepancy(keys: Keys, num_draws: int) -> Draws:
    """[num_draws, B]: for each key equally spaced numbers in [0, 1), at one random shift.

    Each alone is uniform, so means stay unbiased; together they cover the interval evenly (Kingma
    et al. 2021, "Variational Diffusion Models", arXiv:2107.00630, do so over the batch).
    """
    shift = jax.vmap(jax.random.uniform)(keys)
    return (jnp.arange(num_draws)[:, None] + shift) / num_draws


# Times: u in [0, 1) -> times and, for each, 1 / their density; `eps` is the first time that counts,
# by default `sde.training_eps`.


def uniform_times(sde: SDE, u: AnyTimes, eps: float | None = None) -> tuple[AnyTimes, AnyTimes]:
    """Times uniform in [eps, T], and T - eps; of the shape of `u`."""
    start, end = jnp.float32(first_time(sde, eps)), jnp.float32(sde.T)
    t = jnp.maximum(u * (end - start) + start, start)
    return t, jnp.full_like(u, end - start)


def log_snr_times(sde: SDE, u: AnyTimes, eps: float | None = None) -> tuple[AnyTimes, AnyTimes]:
    """Times with density proportional to `g^2 / sigma^2`, in closed form for every SDE.

    For every linear SDE `g^2 / sigma^2 = -d log_snr / dt`, so the times are uniform in log-SNR,
    with the normaliser `log_snr(eps) - log_snr(T)`. This is the importance sampling of Song et al.
    2021 (arXiv:2101.09258): a likelihood-weighted error of the noise divided by this density is the
    plain squared error, but for a constant.
    """
    first = first_time(sde, eps)
    start, end = sde.log_snr(jnp.array([first, sde.T], u.dtype))
    t, rate = _at_log_snr(sde, start + (end - start) * u, first)
    return t, (start - end) / rate


def likelihood_times(sde: SDE, u: AnyTimes, eps: float | None = None) -> tuple[AnyTimes, AnyTimes]:
    """`log_snr_times` for the bound on log p_eps, whose noise is only what was added since eps.

    Near eps, where that is little, their density would leave `likelihood.elbo` an infinite
    variance; h = arccosh(exp((log_snr(eps) - log_snr(t)) / 2)), half the log-SNR but for a constant
    as soon as sigma(t) has doubled, and like sqrt(t - eps) before, does not. So h is uniform here:
    `dh = g^2 / (2 sigma^2 tanh h) dt`.
    """
    first = first_time(sde, eps)
    start, end = sde.log_snr(jnp.array([first, sde.T], u.dtype))
    longest = jnp.arccosh(jnp.exp(0.5 * (start - end)))
    h = longest * u
    # log(cosh h), without overflow.
    log_cosh = h + jnp.log1p(jnp.exp(-2.0 * h)) - math.log(2.0)
    t, rate = _at_log_snr(sde, start - 2.0 * log_cosh, first)
    return t, longest / rate * 2.0 * noise_share(sde, t, first)


def noise_share(sde: SDE, t: AnyTimes, eps: float) -> AnyTimes:
    """Share of sigma(t) that came after eps: sqrt(1 - SNR(t) / SNR(eps)), tanh of h above.

    A log-SNR carries float32 rounding of 1e-6, below which a difference from that of eps is noise.
    """
    lost = sde.log_snr(jnp.full_like(t, eps)) - sde.log_snr(t)
    return jnp.sqrt(-jnp.expm1(-jnp.maximum(lost, 1e-6)))


def _at_log_snr(sde: SDE, log_snr: AnyTimes, first: float) -> tuple[AnyTimes, AnyTimes]:
    """The times in [first, T] that have these log-SNRs, and -d log_snr / dt = g^2 / sigma^2."""
    t = jnp.clip(sde.time_of_log_snr(log_snr), first, sde.T)
    return t, jnp.square(sde.diffusion(t) / sde.sigma(t))


def first_time(sde: SDE, eps: float | None = None) -> float:
    """`eps`, or the SDE's own first time of training and likelihoods.

    Raises:
      ValueError: not 0 < eps < T.
    """
    return _between_ends(sde, sde.training_eps if eps is None else eps)


def last_time(sde: SDE, eps: float | None = None) -> float:
    """`eps`, or the SDE's own last time of samplers, all of which ask here.

    Raises:
      ValueError: not 0 < eps < T.
    """
    return _between_ends(sde, sde.sampling_eps if eps is None else eps)


def _between_ends(sde: SDE, eps: float) -> float:
    if not 0.0 < np.float32(eps) < np.float32(sde.T):
        raise ValueError(f"eps must lie between 0 and T = {sde.T:g}, not {eps:g} (sampling.eps)")
    return eps


def log_normal_times(sde: SDE, u: AnyTimes, mean: float, std: float) -> AnyTimes:
    """Times whose noise level relative to the data, sigma / alpha, has a normal logarithm.

    `log(sigma / alpha) ~ N(mean, std^2)` (Karras et al. 2022, arXiv:2206.00364, table 1, where
    alpha = 1), restricted to the levels of [`sde.training_eps`, T]: the normal distribution is
    truncated there, so that no time is drawn more often than another for lying at an end.
    """
    low, high = log_normal_range(sde, mean, std)
    log_sigma = mean + std * ndtri(low + (high - low) * u)
    return jnp.clip(sde.time_of_log_snr(-2.0 * log_sigma), sde.training_eps, sde.T)


def logit_normal_times(
    sde: SDE, u: AnyTimes, mean: float, std: float, eps: float | None = None
) -> tuple[AnyTimes, AnyTimes]:
    """Times whose share of the way from eps to T has a normal logit, and 1 / their density.

    `log(s / (1 - s)) ~ N(mean, std^2)` for `t = eps + (T - eps) s` (Esser et al. 2024,
    arXiv:2403.03206, eq. 19): the middle of the way is drawn most often.
    """
    first = first_time(sde, eps)
    # Within what float32 tells from 0 and 1, where the density has its limit 0.
    logit = mean + std * ndtri(jnp.clip(u, 1e-7, 1.0 - 1e-7))
    share = jax.nn.sigmoid(logit)
    normal = jnp.exp(-0.5 * jnp.square((logit - mean) / std)) / (std * math.sqrt(2.0 * math.pi))
    inverse_density = (sde.T - first) * share * jax.nn.sigmoid(-logit) / normal
    return _on_the_way(sde, share, first), inverse_density


def mode_times(
    sde: SDE, u: AnyTimes, scale: float, eps: float | None = None
) -> tuple[AnyTimes, AnyTimes]:
    """Times with most weight in the middle (scale above 0) or at the ends, and 1 / their density.

    `t = eps + (T - eps) s` with `s = 1 - u - scale (cos^2(pi u / 2) - 1 + u)` (Esser et al. 2024,
    arXiv:2403.03206, eq. 20), which falls from 1 to 0; scale 0 makes them uniform.

    Raises:
      ValueError: a scale for which s does not fall: outside [-1, 2 / (pi - 2)].
    """
    if not -1.0 <= scale <= LARGEST_MODE_SCALE:
        raise ValueError(
            f"config.training.mode_scale is {scale:g}; it must lie between -1 and "
            f"2 / (pi - 2) = {LARGEST_MODE_SCALE:.4g}"
        )
    first = first_time(sde, eps)
    share = 1.0 - u - scale * (jnp.square(jnp.cos(0.5 * math.pi * u)) - 1.0 + u)
    fall = 1.0 + scale * (1.0 - 0.5 * math.pi * jnp.sin(math.pi * u))
    return _on_the_way(sde, share, first), (sde.T - first) * fall


def _on_the_way(sde: SDE, share: AnyTimes, first: float) -> AnyTimes:
    """The times at a share [0, 1] of the way from the first time to T."""
    return jnp.clip(first + (sde.T - first) * share, first, sde.T)


def log_normal_range(sde: SDE, mean: float, std: float) -> tuple[Array, Array]:
    """The share of N(mean, std^2) below log(sigma / alpha) at the first time and at T."""
    low, high = ndtr((jnp.log(noise_range(sde)) - mean) / std)
    return low, high


def noise_range(sde: SDE) -> Array:
    """Noise levels relative to the data, sigma / alpha, at [`sde.training_eps`, T]."""
    return jnp.exp(-0.5 * sde.log_snr(jnp.array([sde.training_eps, sde.T], jnp.float32)))


def time_of_noise(sde: SDE, sigma: float) -> Array:
    """The time in [`sde.training_eps`, T] at which sigma / alpha is nearest to `sigma`."""
    return jnp.clip(
        sde.time_of_log_snr(jnp.float32(-2.0 * math.log(sigma))), sde.training_eps, sde.T
    )


# Times of a training config: from u [B] to times [B] and the factors on their losses [B].

TrainingTimes = Callable[[Times], tuple[Times, Times]]


def _uniform(training: Any, sde: SDE) -> TrainingTimes:
    del training

    def times(u: Times) -> tuple[Times, Times]:
        return uniform_times(sde, u)[0], jnp.ones_like(u)

    return times


def _likelihood(training: Any, sde: SDE) -> TrainingTimes:
    """`log_snr_times`; the factor leaves the mean over uniform times as it is."""
    del training

    def times(u: Times) -> tuple[Times, Times]:
        t, inverse_density = log_snr_times(sde, u)
        return t, inverse_density / (sde.T - sde.training_eps)

    return times


def _log_normal(training: Any, sde: SDE) -> TrainingTimes:
    """`log_normal_times`, which are part of the objective: no factor."""
    mean, std = training.log_sigma_mean, training.log_sigma_std
    low, high = log_normal_range(sde, mean, std)
    if high - low < 0.1:
        ends = noise_range(sde)
        raise ValueError(
            f"config.training.log_sigma_mean is {mean:g} and log_sigma_std {std:g}: more than 90 % "
            f"of these noise levels are outside of {ends[0]:.2g} to {ends[1]:.4g}, those of "
            f"{type(sde).__name__}"
        )
    return lambda u: (log_normal_times(sde, u, mean, std), jnp.ones_like(u))


def _logit_normal(training: Any, sde: SDE) -> TrainingTimes:
    """`logit_normal_times`, which are part of the objective: no factor."""
    mean, std = training.logit_mean, training.logit_std
    return lambda u: (logit_normal_times(sde, u, mean, std)[0], jnp.ones_like(u))


def _mode(training: Any, sde: SDE) -> TrainingTimes:
    """`mode_times`, which are part of the objective: no factor."""
    scale = training.mode_scale
    mode_times(sde, jnp.zeros(1), scale)  # refuses a scale
    return lambda u: (mode_times(sde, u, scale)[0], jnp.ones_like(u))


def _fixed(training: Any, sde: SDE) -> TrainingTimes:
    """One noise level, `training.sigma`, relative to the data."""
    low, high = (float(end) for end in noise_range(sde))
    if not (1 - 1e-3) * low <= training.sigma <= (1 + 1e-3) * high:  # rounding at the ends
        raise ValueError(
            f"config.training.sigma is {training.sigma:g}; training.time='fixed' needs a noise "
            f"level relative to the data from {low:.4g} to {high:.4g}, those of "
            f"{type(sde).__name__}"
        )
    t = time_of_noise(sde, training.sigma)
    return lambda u: (jnp.full_like(u, t), jnp.ones_like(u))


TIMES: dict[str, Callable[[Any, SDE], TrainingTimes]] = {
    "uniform": _uniform,
    "likelihood": _likelihood,
    "log_normal": _log_normal,
    "logit_normal": _logit_normal,
    "mode": _mode,
    "fixed": _fixed,
}


def times_from_config(config: Any, sde: SDE) -> TrainingTimes:
    """The times that `config.training.time` describes, u [B] -> (t [B], factors [B]).

    Raises:
      ValueError: unknown name; noise levels that the SDE does not have.
    """
    return lookup(TIMES, config.training.time, "training.time")(config.training, sde)
