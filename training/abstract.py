"""The training step of a config on shapes alone: no data set is opened, no weight is drawn."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import data
import losses
from runtime import experiment
from training import layout, optimizers
from training.objective import objective_from_config
from training.state import TrainState, state_from_config
from training.step import Step, step_from_config

POINTS = 50000  # training images that an objective compares with, where all are and none is here


class AbstractStep(NamedTuple):
    """A training step and the shapes that it takes, `jax.ShapeDtypeStruct`s.

    Attributes:
      step: see `training.step`; `batches` are one step's.
    """

    step: Step
    state: TrainState
    batches: dict[str, Any]


def abstract_step(config: ml_collections.ConfigDict, images: int) -> AbstractStep:
    """The step that training would take, of so many images.

    Raises:
      ValueError: a config that cannot be served.
    """
    parts = experiment.build(config)
    points = _stand_in(config, parts) if losses.wants_points(config) else None
    objective = objective_from_config(config, parts, points)
    optimizer = optimizers.from_config(config)
    state = jax.eval_shape(functools.partial(state_from_config, config, parts, optimizer))
    batches = {
        "image": jax.ShapeDtypeStruct((1, images, *parts.image_shape), stored_type(parts)),
        "label": jax.ShapeDtypeStruct((1, images), jnp.int32),
    }
    if not config.training.shard_state:
        join = functools.partial(layout.Whole(state.params).joined, concatenate=jnp.concatenate)
        state = jax.eval_shape(join, state)
    return AbstractStep(step_from_config(config, objective, optimizer), state, batches)


def stored_type(parts: experiment.Parts) -> Any:
    """The type of examples in a batch: levels of images, or coordinates of points."""
    return jnp.uint8 if parts.levels else jnp.float32


def _stand_in(config: ml_collections.ConfigDict, parts: experiment.Parts) -> data.Dataset:
    """As many black images as the objective takes for its points."""
    count = config.training.kde_points or POINTS
    images = np.zeros((count, *parts.image_shape), stored_type(parts))
    labels = np.zeros(count, np.int32)
    return data.Dataset(
        *(config.data.dataset, "train", images, labels, parts.levels, parts.image_shape, 1)
    )
