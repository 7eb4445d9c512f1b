"""Networks of flow maps: what they stand for, and their losses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from diffusion import parametrisation, training_draws
from diffusion.flow_maps import (
    Between,
    Denoiser,
    FlowMap,
    consistency_error,
    mean_flow_error,
)
from diffusion.times import times_from_config
from diffusion.weighting import Losses, refuse_weighting, weighted
from models.score import Network, denoiser, usual_prediction
from models.two_times import CAN_BE_TOLD
from sde_lib import SDE, Images, Keys, Times, batch_mul

LABELS = 16.0  # that a network of two times is told of T
Step = Array | None  # the number of the training step; None: of no training
Loss = Callable[..., Losses]


def consistency_map(
    sde: SDE, network: Network, prediction: str = "", sigma_data: float = 0.5
) -> FlowMap:
    """The consistency function of a network: what its prediction says of x_0.

    Whatever it predicts but x_0 itself, f(x, t) is x where there is no noise, as it has to be.
    """
    return FlowMap(denoiser(sde, network, prediction, sigma_data))


def mean_velocity(sde: SDE, network: Callable[..., Array]) -> Between:
    """u(x, t, s) of a network that is told t and t - s.

    They are labels from 0 to `LABELS`, few enough for sinusoids whose rates in time stay bounded.
    """

    def u(x: Images, t: Times, s: Times) -> Images:
        return network(x, LABELS / sde.T * t, LABELS / sde.T * (t - s))

    return u


def mean_flow_map(
    sde: SDE, network: Callable[..., Array], prediction: str = "", sigma_data: float = 0.5
) -> FlowMap:
    """The map `x - (t - s) u(x, t, s)` of a network of the mean velocity."""
    del prediction, sigma_data
    u = mean_velocity(sde, network)

    def between(x: Images, t: Times, s: Times) -> Images:
        return x - batch_mul(t - s, u(x, t, s))

    return FlowMap(lambda x, t: between(x, t, jnp.zeros_like(t)), between)


MAPS: dict[str, Callable[..., FlowMap]] = {
    "consistency": consistency_map,
    "mean_flow": mean_flow_map,
}


def flow_map(objective: str, sde: SDE, network: Network, **settings: Any) -> FlowMap:
    """The flow map that a network of this objective stands for, see `MAPS`."""
    return MAPS[objective](sde, network, **settings)


def consistency_loss(config: ConfigDict, sde: SDE, teacher: Denoiser | None = None) -> Loss:
    """The loss of a consistency function, in continuous time: `flow_maps.consistency_error`.

    With a teacher, x goes along the teacher's flow (distillation, sCD), without one along the path
    of its own image and noise (training, sCT). The part `tangent` is the squared tangent, which is
    the loss but for its unit.

    Raises:
      ValueError: settings that it does not suit.
    """
    training, model = config.training, config.model
    _refuse(config, teacher)
    prediction = model.prediction or usual_prediction(sde)
    if prediction == "x0":
        raise ValueError(
            "config.model.prediction is 'x0', whose estimate at t = 0 is not x itself; "
            "config.training.objective 'consistency' needs another, such as 'edm' or 'velocity'"
        )
    times = times_from_config(config, sde)
    warmup, reduce_mean = training.tangent_warmup, bool(training.reduce_mean)
    error = functools.partial(consistency_error, sde, softening=training.tangent_norm)

    def loss(
        network: Network, x0: Images, keys: Keys, u: Times, y: Any = None, step: Step = None
    ) -> Losses:
        del y  # the network sees the classes by itself, if at all
        t, _ = times(u)
        z = training_draws.noise(keys, x0.shape[1:])
        x = batch_mul(sde.alpha(t), x0) + batch_mul(sde.sigma(t), z)
        level = parametrisation.level(sde, t, model.sigma_data)
        square = error(
            denoiser(sde, network, prediction, model.sigma_data),
            x,
            t,
            teacher(x, t) if teacher else x0,
            parametrisation.coefficients(level, prediction, "x0"),
            share=1.0 if step is None or not warmup else jnp.minimum(step / warmup, 1.0),
        )
        per_image, parts = weighted(square, x0[0].size, reduce_mean=reduce_mean)
        return per_image, {"tangent": parts["noise_mse"], "t": t}

    return loss


def mean_flow_loss(config: ConfigDict, sde: SDE, teacher: Denoiser | None = None) -> Loss:
    """The loss of a mean velocity: `flow_maps.mean_flow_error`, between two times of the config's.

    Of two draws the later is t and the earlier s; all but `training.mean_flow_share` of the images
    have s = t. With a teacher x goes along its flow. The part `velocity_mse` is the error.

    Raises:
      ValueError: settings that it does not suit.
    """
    training, model = config.training, config.model
    _refuse(config, teacher)
    for name, only in (("prediction", "flow"), ("embedding_type", "positional")):
        if model[name] != only:
            raise ValueError(
                f"config.model.{name} is {model[name]!r}; config.training.objective 'mean_flow' "
                f"needs {only!r}"
            )
    if not model.conditional or model.name not in CAN_BE_TOLD:
        raise ValueError(
            "config.training.objective 'mean_flow' needs model.conditional=True and a network that "
            f"can be told two times: model.name {', '.join(CAN_BE_TOLD)}"
        )
    times = times_from_config(config, sde)
    share, reduce_mean = training.mean_flow_share, bool(training.reduce_mean)

    def loss(
        network: Callable[..., Array],
        x0: Images,
        keys: Keys,
        u: Times,
        y: Any = None,
        step: Step = None,
    ) -> Losses:
        del y, step
        draws = training_draws.uniform(keys, 2)
        first, second = times(u)[0], times(draws[:, 0])[0]
        t = jnp.maximum(first, second)
        s = jnp.where(draws[:, 1] < share, jnp.minimum(first, second), t)
        x = batch_mul(sde.alpha(t), x0)
        x += batch_mul(sde.sigma(t), training_draws.noise(keys, x0.shape[1:]))
        start = teacher(x, t) if teacher else x0
        velocity = mean_velocity(sde, network)
        error = mean_flow_error(sde, velocity, x, t, s, start, training.mean_flow_power)
        per_image, parts = weighted(error, x0[0].size, reduce_mean=reduce_mean)
        return per_image, {"velocity_mse": parts["noise_mse"], "t": t}

    return loss


def _refuse(config: ConfigDict, teacher: Denoiser | None) -> None:
    """Refuses settings that no flow map suits."""
    training = config.training
    given = f"config.training.objective is {training.objective!r}, which needs "
    refuse_weighting(training)
    if not training.continuous:
        raise ValueError(f"{given}training.continuous=True")
    for name, only in (("coupling", "independent"), ("known", "")):
        if training[name] != only:
            raise ValueError(f"{given}training.{name}={only!r}, not {training[name]!r}")
    if config.model.scale_by_sigma:
        raise ValueError(f"{given}model.scale_by_sigma=False")
    if config.model.learned_variance:
        raise ValueError(f"{given}model.learned_variance=False")
    if teacher:
        for name, value in (
            ("model.num_labels", config.model.num_labels),
            ("training.augment", training.augment),
        ):
            if value:
                raise ValueError(
                    f"config.{name} is {value:g}, but the flow of training.teacher is told nothing "
                    "of it; it must be 0"
                )


LOSSES: dict[str, Callable[..., Loss]] = {
    "consistency": consistency_loss,
    "mean_flow": mean_flow_loss,
}
