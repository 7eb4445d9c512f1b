"""From a network to the score: which labels it reads, and what its output means."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Int

from configs.names import lookup
from diffusion.ancestral import ScoreAndVariance
from diffusion.parametrisation import PREDICTIONS, convert, input_std
from sde_lib import SDE, VESDE, AnyArray, Images, ScoreFn, Times, VariancePreservingSDE, batch_mul

Labels = Int[AnyArray, "batch"]  # [B], indices of discrete noise levels
Network = Callable[[jax.Array, jax.Array], jax.Array]  # (x [B, ...], labels [B]) -> [B, ...]


def continuous_labels(sde: SDE, t: Times) -> Times:
    """The labels [B] by which a network trained at all times knows the times t [B].

    They are sigma(t) where the variance explodes (VE, EDM), else 999 t / T.
    """
    return sde.sigma(t) if sde.variance_exploding else t / sde.T * 999


def discrete_labels(sde: SDE, t: Times) -> Labels:
    """The indices in 0 .. N - 1 of the noise levels nearest to the times t [B], int32.

    SMLD counts from the highest level down, (T - t)(N - 1) / T; DDPM upwards, t (N - 1) / T.
    """
    elapsed = sde.T - t if isinstance(sde, VESDE) else t
    return jnp.round(elapsed / sde.T * (sde.N - 1)).astype(jnp.int32)


def class_log_prob(sde: SDE, classifier: Network) -> Network:
    """The logarithms log p_t(y | x) of all K classes, (x [B, ...], t [B]) -> [B, K].

    `classifier(x, labels)` gives logits [B, K] for the `continuous_labels` of t, whatever the
    labels of the score network that it is to guide.
    """
    return lambda x, t: jax.nn.log_softmax(classifier(x, continuous_labels(sde, t)))


def score_fn(
    sde: SDE,
    network: Network,
    continuous: bool,
    official_labels: bool = False,
    prediction: str = "",
    sigma_data: float = 0.5,
) -> ScoreFn:
    """The score grad_x log p_t(x) that `network` stands for, (x [B, ...], t [B]) -> [B, ...].

    By default a network of an SDE whose variance explodes is the score itself. Any other predicts
    the noise z in x = alpha x_0 + std z, so the score is -network / std (Song et al. 2021,
    appendix C, eq. 33). A network trained at all times may predict anything else that
    `parametrisation.PREDICTIONS` has; for "edm" its input is x / sqrt(alpha^2 sigma_data^2 +
    sigma^2), of unit variance.

    Args:
      continuous: the network was trained at all times, not at the N levels of SMLD or DDPM.
        Only VE and VP have a discrete version; other SDEs are continuous always.
      official_labels: for discrete VP, label with t (N - 1) unrounded and cut the index of std to
        an integer, as the original code does, instead of rounding both to the nearest index.
      prediction: a name in `parametrisation.PREDICTIONS`; "": the SDE's usual one, as above.
      sigma_data: standard deviation of the data, for "edm".

    Raises:
      ValueError: an unknown prediction, or one that a discrete network does not make.
    """
    usual = usual_prediction(sde)
    discrete = not continuous and isinstance(sde, VESDE | VariancePreservingSDE)
    prediction = prediction or usual
    lookup(PREDICTIONS, prediction, "model.prediction")
    if discrete and prediction != usual:
        raise ValueError(
            f"model.prediction is {prediction!r}; with training.continuous=False a network of "
            f"{type(sde).__name__} predicts the {usual}"
        )
    if prediction == "score":
        labels_of = discrete_labels if discrete else continuous_labels
        return lambda x, t: network(x, labels_of(sde, t))

    def predicts_noise(x: Images, t: Times) -> Images:
        if continuous or not isinstance(sde, VariancePreservingSDE):
            labels, std = continuous_labels(sde, t), sde.sigma(t)
        elif official_labels:
            labels, std = t * (sde.N - 1), sde.sqrt_1m_alphas_cumprod[sde.timestep(t)]
        else:
            labels = discrete_labels(sde, t)
            std = sde.sqrt_1m_alphas_cumprod[labels]
        return batch_mul(-1.0 / std, network(x, labels))

    if prediction == "noise":
        return predicts_noise

    return _predicting(sde, network, prediction, "score", sigma_data)


def denoiser(sde: SDE, network: Network, prediction: str = "", sigma_data: float = 0.5) -> Network:
    """The estimate of x_0 that `network` stands for, (x [B, ...], t [B]) -> [B, ...].

    It is what `score_fn` says of a network trained at all times, without the way by the score,
    whose rounding grows with sigma / alpha.

    Raises:
      ValueError: an unknown prediction.
    """
    prediction = prediction or usual_prediction(sde)
    lookup(PREDICTIONS, prediction, "model.prediction")
    return _predicting(sde, network, prediction, "x0", sigma_data)


def usual_prediction(sde: SDE) -> str:
    """What networks of an SDE predict where `model.prediction` is empty."""
    return "score" if sde.variance_exploding else "noise"


def _predicting(
    sde: SDE, network: Network, prediction: str, wanted: str, sigma_data: float
) -> ScoreFn:
    """The `wanted` prediction of a network trained at all times, which makes another one."""

    def predicts(x: Images, t: Times) -> Images:
        scaled = x
        if prediction == "edm":
            scaled = batch_mul(1.0 / input_std(sde.alpha(t), sde.sigma(t), sigma_data), x)
        value = network(scaled, continuous_labels(sde, t))
        return convert(sde, x, t, value, prediction, wanted, sigma_data)

    return predicts


def score_and_variance(network: Network, score_of: Callable[[Network], ScoreFn]) -> ScoreFn:
    """The score of a `network` with learned variance, and the share of that: `ScoreAndVariance`.

    Args:
      network: gives [B, ..., 2 C], what a usual network gives, and behind it the share.
      score_of: from a usual network to its score, `score_fn` with all else decided.
    """

    def both(x: Images, t: Times) -> tuple[Images, Images]:
        shares: list[jax.Array] = []

        def usual(x: jax.Array, labels: jax.Array) -> jax.Array:
            output, share = jnp.split(network(x, labels), 2, axis=-1)
            shares.append(share)
            return output

        return score_of(usual)(x, t), shares[0]

    return ScoreAndVariance(both)
