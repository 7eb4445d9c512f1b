"""The state of a training run, on devices and on the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

import models
from runtime import ema, experiment


class TrainState(flax.struct.PyTreeNode):
    """All that training carries from step to step; `step` counts finished optimiser steps."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema_params: Any
    key: jax.Array
    averages: dict[str, Any] = flax.struct.field(default_factory=dict)  # further ones, by name


def new_state(
    module: Any,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, ...],
    averages: Iterable[str] = (),
) -> TrainState:
    """The state before the first step, a function of the seed alone; with `averages` by name."""
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params = models.init(module, init_key, image_shape)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
        key=train_key,
        averages={name: jax.tree.map(jnp.copy, params) for name in averages},
    )


def state_from_config(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state before the first step of a config's training."""
    averages = ema.from_config(config).further
    return new_state(parts.module, optimizer, config.seed, parts.image_shape, averages)


def state_from_host(host: dict[str, Any]) -> TrainState:
    """The state of the NumPy tree that a checkpoint holds."""
    return TrainState(**{**host, "key": jax.random.wrap_key_data(host["key"])})
