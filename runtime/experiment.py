"""The experiment that a config describes: its SDE, its network, the images, and the score."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import ml_collections

import configs
import data
import models
import sde_lib
from data import captions
from runtime import ema


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config describes without its data set; shared by training, evaluation, sampling.

    Attributes:
      sde: the process from data to noise.
      module: the network, whose parameters are elsewhere.
      image_shape: (H, W, C).
      levels: grey levels of the images, see `data.grey_levels`.
    """

    sde: sde_lib.SDE
    module: nn.Module
    image_shape: tuple[int, int, int]
    levels: int


def build(config: ml_collections.ConfigDict) -> Parts:
    """Reads the config at its seams; refuses what it cannot serve before anything is compiled.

    No data set is opened: to sample, none needs to be there. For losses, see `training.objective`.
    """
    configs.check(config)
    data.check_points(config)
    sde = sde_lib.from_config(config)
    return Parts(sde, _network(config), image_shape(config), data.grey_levels(config.data.dataset))


def _network(config: ml_collections.ConfigDict) -> nn.Module:
    """The network that the run trains: of a score, or of a guide."""
    if config.training.objective == models.CLASSIFIER:
        return models.classifier_from_config(config)
    if config.training.objective == models.CLIP_OBJECTIVE:
        return models.clip_from_config(config, captions.VOCABULARY, captions.END)
    return models.from_config(config)


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) by the config alone; a data set of another shape is refused when it is opened."""
    return (config.data.image_size, config.data.image_size, config.data.num_channels)


def score_from_params(
    config: ml_collections.ConfigDict,
    parts: Parts,
    params: ema.Params,
    classes: jax.Array | None = None,
) -> sde_lib.ScoreFn:
    """The score function of the trained network with these weights, without dropout.

    A network with `model.num_labels` sees the `classes` [B], or else the null class.
    """
    labels = {} if classes is None else {"y": classes}
    network: Any = functools.partial(parts.module.apply, {"params": params}, **labels)
    return models.score_fn(
        parts.sde,
        network,
        config.training.continuous,
        prediction=config.model.prediction,
        sigma_data=config.model.sigma_data,
    )


def refuse_guides(config: ml_collections.ConfigDict) -> None:
    """Refuses to draw images, or to measure likelihoods, without a score."""
    if not models.has_score(config):
        objective = config.training.objective
        raise ValueError(
            f"this run trained {models.GUIDES[objective]} of noisy images (training.objective is "
            f"{objective!r}), which has no score: neither samples nor likelihoods; its loss can be "
            "evaluated"
        )


def refuse_always_told(config: ml_collections.ConfigDict) -> None:
    """Refuses images of no class, where the network saw the class of every image."""
    if config.model.num_labels and not config.training.label_dropout:
        raise ValueError(
            "this network was told the class of every image (training.label_dropout is 0), so "
            "it draws images of a class only: --mode=control --config.control.task=class"
        )
