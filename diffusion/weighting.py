"""Weightings: how much the squared error of the noise counts at each time.

An objective measures its error in units of the noise, as `noise_mse` [B]: the mean squared error
per dimension of the noise that the network predicts. Here it is weighted and becomes the loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from ml_collections import ConfigDict

from configs.names import lookup
from diffusion import parametrisation
from sde_lib import SDE, Times

Losses = tuple[Times, dict[str, Times]]  # the loss of every image [B], and its named parts [B]


def _in_space(prediction: str, sde: SDE, t: Times, sigma_data: float) -> Times:
    level = parametrisation.level(sde, t, sigma_data)
    return jnp.square(parametrisation.coefficients(level, "noise", prediction)[1])


def _likelihood(sde: SDE, t: Times, sigma_data: float) -> Times:
    del sigma_data
    return jnp.square(sde.diffusion(t) / sde.sigma(t))


WEIGHTINGS: dict[str, Callable[[SDE, Times, float], Times]] = {
    **{name: functools.partial(_in_space, name) for name in parametrisation.PREDICTIONS},
    "noise": lambda sde, t, sigma_data: jnp.ones_like(t),  # without rounding
    "likelihood": _likelihood,
}


def weight(sde: SDE, t: Times, weighting: str = "noise", sigma_data: float = 0.5) -> Times:
    """The factor [B] on the squared error of the noise at times t [B].

    `lambda(t) / sigma^2`, where lambda is the weight of the score's squared error. A name of
    `parametrisation.PREDICTIONS` means the squared error in that space: "noise" is `lambda =
    sigma^2` of section 3.3; "edm" is the weight `(r^2 + sigma_data^2) / (r sigma_data)^2` of x_0's
    error, r = sigma / alpha (Karras et al. 2022, arXiv:2206.00364, table 1), and "flow" the plain
    squared error of flow matching (Lipman et al. 2022, arXiv:2210.02747, eq. 9). "likelihood" is
    `lambda = g^2`, which bounds the likelihood (theorem 1 of Song et al. 2021, "Maximum Likelihood
    Training of Score-Based Diffusion Models", arXiv:2101.09258).

    Raises:
      ValueError: unknown weighting.
    """
    return lookup(WEIGHTINGS, weighting, "training.weighting")(sde, t, sigma_data)


def weighted(
    noise_mse: Times, size: int, weight: Times | None = None, reduce_mean: bool = False
) -> Losses:
    """The loss [B] of an error `noise_mse` [B], which becomes the loss's part of this name.

    `weight D / 2 noise_mse`, half the sum over the D dimensions of an image, as theorems on the
    likelihood have it.

    Args:
      size: D.
      weight: [B], see the function of this name; None: 1.
      reduce_mean: the mean over dimensions, without the factor 1/2, in place of half the sum.
    """
    weight = jnp.ones_like(noise_mse) if weight is None else weight
    return weight * noise_mse * (1.0 if reduce_mean else 0.5 * size), {"noise_mse": noise_mse}


def weighting_from_config(training: ConfigDict) -> str:
    """The name of the weighting that `config.training` asks for, by either of its two fields.

    Raises:
      ValueError: unknown weighting, or one that does not suit how the times are drawn.
    """
    field = training.weighting
    if field not in ("", "likelihood") and training.likelihood_weighting:
        raise ValueError(
            f"config.training.weighting is {field!r}; it contradicts likelihood_weighting=True"
        )
    weighting: str = field or ("likelihood" if training.likelihood_weighting else "noise")
    lookup(WEIGHTINGS, weighting, "training.weighting")
    if training.time == "likelihood" and weighting != "likelihood":
        raise ValueError(
            "config.training.time 'likelihood' is for training.weighting 'likelihood', "
            f"not {weighting!r}"
        )
    if weighting == "likelihood" and training.time not in ("uniform", "likelihood"):
        raise ValueError(
            "config.training.weighting 'likelihood' bounds the likelihood with training.time "
            f"'uniform' or 'likelihood', not {training.time!r}"
        )
    return weighting


def refuse_weighting(training: ConfigDict) -> None:
    """Refuses what weights the errors of a score, for an objective that has none.

    Raises:
      ValueError: a weighting, or times of one.
    """
    for name, only in (("weighting", ""), ("likelihood_weighting", False)):
        if training[name] != only:
            raise ValueError(
                f"config.training.{name} is {training[name]!r}, which weighs errors of a "
                f"score; config.training.objective {training.objective!r} needs {only!r}"
            )
    if training.time == "likelihood":
        raise ValueError(
            "config.training.time 'likelihood' is for training.weighting 'likelihood', not for "
            f"config.training.objective {training.objective!r}"
        )
