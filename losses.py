"""Objectives whose minimiser is the score.

Each is a function of a network or score function, images `x0` [B, ...] and its random draws, and
returns the loss of every image [B] with its named parts, also [B]. The part `noise_mse` is the
mean squared error per dimension of the noise that the network predicts: it is 1 for a network that
predicts nothing, and comparable across objectives, weightings and image sizes.

Equation numbers are those of Song et al. 2021 (arXiv:2011.13456).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import models
from sde_lib import SDE, VESDE, ScoreFn, VariancePreservingSDE, batch_mul

Losses = tuple[Array, dict[str, Array]]
Network = Callable[[Array, Array], Array]
ClassLogProb = Callable[[Array, Array], Array]  # (x [B, ...], t [B]) -> [B, classes]


def dsm(
    sde: SDE,
    score_fn: ScoreFn,
    x0: Array,
    t: Array,
    z: Array,
    reduce_mean: bool = False,
    likelihood_weighting: bool = False,
) -> Losses:
    """Denoising score matching (eq. 7) at times t [B], with the standard-normal draw z [B, ...].

    `lambda(t) |s(x_t, t) - grad log p(x_t | x_0)|^2 / 2` with `x_t = alpha x_0 + sigma z`, where
    the target is `-z / sigma`. The weight lambda is `sigma^2`, as in section 3.3; with
    `likelihood_weighting` it is `g^2`, which bounds the likelihood (theorem 1 of Song et al. 2021,
    "Maximum Likelihood Training of Score-Based Diffusion Models", arXiv:2101.09258).
    `reduce_mean` takes the mean over dimensions, without the factor 1/2, in place of the sum.
    """
    mean, std = sde.marginal_prob(x0, t)
    error = batch_mul(std, score_fn(mean + batch_mul(std, z), t)) + z
    weight = jnp.square(sde.diffusion(t) / std) if likelihood_weighting else jnp.ones_like(std)
    return _reduce(error, weight, reduce_mean)


def continuous_dsm(
    sde: SDE,
    score_fn: ScoreFn,
    x0: Array,
    keys: Array,
    reduce_mean: bool = False,
    likelihood_weighting: bool = False,
) -> Losses:
    """`dsm` at times uniform in [`sde.training_eps`, T]; image b draws t and z from `keys[b]`."""
    t, z = _draw(keys, x0.shape[1:], _uniform_time(sde))
    return dsm(sde, score_fn, x0, t, z, reduce_mean, likelihood_weighting)


def smld(
    sde: VESDE, network: Network, x0: Array, labels: Array, z: Array, reduce_mean: bool = False
) -> Losses:
    """NCSN's objective (eq. 1) at noise levels `labels` [B], counted from the largest sigma down.

    `sigma_i^2 |s(x_0 + sigma_i z, i) + z / sigma_i|^2 / 2`; `network(x, labels)` is the score
    itself.
    """
    sigma = sde.discrete_sigmas[::-1][labels]
    error = batch_mul(sigma, network(x0 + batch_mul(sigma, z), labels)) + z
    return _reduce(error, jnp.ones_like(sigma), reduce_mean)


def ddpm(
    sde: VariancePreservingSDE,
    network: Network,
    x0: Array,
    labels: Array,
    z: Array,
    reduce_mean: bool = False,
) -> Losses:
    """DDPM's objective (eq. 3; `L_simple` of Ho et al. 2020, eq. 14) at steps `labels` [B].

    `|e(sqrt(abar_i) x_0 + sqrt(1 - abar_i) z, i) - z|^2 / 2`; `network(x, labels)` predicts the
    noise. ValueError where the SDE has no discrete betas (one would reach 1).
    """
    std = sde.sqrt_1m_alphas_cumprod[labels]
    x = batch_mul(sde.sqrt_alphas_cumprod[labels], x0) + batch_mul(std, z)
    return _reduce(network(x, labels) - z, jnp.ones_like(std), reduce_mean)


def discrete_dsm(
    sde: VESDE | VariancePreservingSDE,
    network: Network,
    x0: Array,
    keys: Array,
    reduce_mean: bool = False,
) -> Losses:
    """`smld` for VE, `ddpm` for VP, at uniform labels; image b draws from `keys[b]`."""
    labels, z = _draw(keys, x0.shape[1:], lambda key: jax.random.randint(key, (), 0, sde.N))
    if isinstance(sde, VESDE):
        return smld(sde, network, x0, labels, z, reduce_mean)
    return ddpm(sde, network, x0, labels, z, reduce_mean)


def classifier_cross_entropy(
    sde: SDE, class_log_prob: ClassLogProb, x0: Array, y: Array, t: Array, z: Array
) -> Losses:
    """The negative log-likelihood -log q(y | x_t, t) of the classes y [B] of noisy images.

    `x_t = alpha x_0 + sigma z` at times t [B], with the standard-normal draw z [B, ...];
    `class_log_prob` is as `models.class_log_prob` gives it. The minimiser is the posterior
    p_t(y | x_t), whose gradient in x turns the score into that of a class (eq. 14). A class out of
    range has the loss NaN. The part `accuracy` is 1 where y is the likeliest class, else 0.
    """
    mean, std = sde.marginal_prob(x0, t)
    log_prob = class_log_prob(mean + batch_mul(std, z), t)
    y = jnp.where(y < 0, log_prob.shape[1], y)  # out of range, where NumPy would count backwards
    told = jnp.take_along_axis(log_prob, y[:, None], axis=1, mode="fill", fill_value=jnp.nan)
    correct = jnp.argmax(log_prob, axis=1) == y
    return -told[:, 0], {"accuracy": correct.astype(jnp.float32)}


def continuous_cross_entropy(
    sde: SDE, class_log_prob: ClassLogProb, x0: Array, y: Array, keys: Array
) -> Losses:
    """`classifier_cross_entropy` at times uniform in [`sde.training_eps`, T]; image b draws t and
    z from `keys[b]`, as in `continuous_dsm`."""
    t, z = _draw(keys, x0.shape[1:], _uniform_time(sde))
    return classifier_cross_entropy(sde, class_log_prob, x0, y, t, z)


def from_config(config: Any, sde: SDE) -> Callable[[Network, Array, Array], Losses]:
    """The loss that `config.training` describes, `loss(network, x0 [B, ...], keys [B])`.

    `continuous` trains at all times, otherwise at the N levels of SMLD (VE) or DDPM (VP);
    `reduce_mean` and `likelihood_weighting` are those of `dsm`.

    Raises:
      ValueError: discrete training of an SDE that has no discrete objective, or with likelihood
        weighting, or with discrete betas that reach 1.
    """
    training = config.training
    reduce_mean, weighted = bool(training.reduce_mean), bool(training.likelihood_weighting)
    if training.continuous:

        def continuous(network: Network, x0: Array, keys: Array) -> Losses:
            score_fn = models.score_fn(sde, network, continuous=True)
            return continuous_dsm(sde, score_fn, x0, keys, reduce_mean, weighted)

        return continuous

    if not isinstance(sde, VESDE | VariancePreservingSDE):
        raise ValueError(
            f"config.training.continuous is False, but {type(sde).__name__} has no discrete "
            "objective; vesde (SMLD), vpsde and cosine_vpsde (DDPM) have one"
        )
    if weighted:
        raise ValueError(
            "config.training.likelihood_weighting needs config.training.continuous=True; "
            "SMLD and DDPM have their own weights"
        )
    if isinstance(sde, VariancePreservingSDE):
        sde.step_betas()

    def discrete(network: Network, x0: Array, keys: Array) -> Losses:
        return discrete_dsm(sde, network, x0, keys, reduce_mean)

    return discrete


def _uniform_time(sde: SDE) -> Callable[[Array], Array]:
    """From a key to a time at which the SDE is trained."""
    return lambda key: jax.random.uniform(key, (), jnp.float32, sde.training_eps, sde.T)


def _draw(
    keys: Array, shape: tuple[int, ...], draw_time: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """For each key a time (or label) and standard-normal noise of the given shape."""

    def one(key: Array) -> tuple[Array, Array]:
        time_key, noise_key = jax.random.split(key)
        return draw_time(time_key), jax.random.normal(noise_key, shape)

    return jax.vmap(one)(keys)


def _reduce(error: Array, weight: Array, reduce_mean: bool) -> Losses:
    """Weighted squared error of the noise, per image: averaged, or half the sum."""
    axes = tuple(range(1, error.ndim))
    noise_mse = jnp.mean(jnp.square(error), axes)
    half_sum = 0.5 * (error.size // error.shape[0])
    return weight * noise_mse * (1.0 if reduce_mean else half_sum), {"noise_mse": noise_mse}
