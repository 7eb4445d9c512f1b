"""The training step: gradients, optimiser and averages, several steps in one scan."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

import models
from runtime import devices, ema
from training import joined, layout
from training.objective import Objective
from training.state import TrainState

Step = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def apply_gradients(
    state: TrainState,
    grads: Any,
    optimizer: optax.GradientTransformation,
    averaging: ema.Averaging,
) -> TrainState:
    """The state after one optimiser step with these (already averaged) gradients."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    return state.replace(
        step=step,
        params=params,
        opt_state=opt_state,
        ema_params=ema.update(state.ema_params, params, averaging.primary(step)),
        averages={
            name: ema.update(state.averages[name], params, rule(step))
            for name, rule in averaging.further.items()
        },
    )


def mean_over_parts(function: Callable[[Any], Any], arrays: Any, parts: int) -> Any:
    """The mean of `function` over equal consecutive parts of the rows of `arrays`, one at a time.

    Where `function` is itself a mean over rows, it is that over all of them, in less memory.
    """
    if parts == 1:
        return function(arrays)
    split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), arrays)
    shapes = jax.eval_shape(function, jax.tree.map(lambda a: a[0], split))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    total, _ = jax.lax.scan(add, zeros, split)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    averaging: ema.Averaging,
    flip: bool,
    axis_name: str | None,
    accumulation: int = 1,
    in_slices: bool = False,
    constraint: Callable[[Any], Any] | None = None,
) -> Step:
    """`(state, batches) -> (state, metrics of [n])`: n steps in one scan.

    `batches` are {"image": uint8 [n, b, H, W, C], "label": int32 [n, b]}. Image j of device d draws
    its randomness from (state.key, step, d b + j), so the gradient of a global batch depends
    neither on how many devices share it nor on the number of parts, `accumulation`, in which a
    device computes its share. `in_slices`: of moments and averages a device has slices, see
    `training.layout`; where they are `Joined`, the optimiser acts on what is joined. A step first
    applies the `constraint`, if any, to the parameters.
    """

    def one_step(
        state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if constraint is not None:
            state = state.replace(params=constraint(state.params))
        count = len(batch["label"])
        first = jax.lax.axis_index(axis_name) * count if axis_name else 0
        total = count * (jax.lax.axis_size(axis_name) if axis_name else 1)
        step_key = jax.random.fold_in(state.key, state.step)

        def mean_loss(params: Any, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            examples, numbers = part
            per_image, terms = objective(
                params, examples["image"], examples["label"], step_key, numbers, total,
                train=True, flip=flip, axis_name=axis_name, step=state.step,
            )  # fmt: skip
            metrics = {"loss": per_image, **terms}
            means = {name: jnp.mean(values) for name, values in metrics.items() if name != "t"}
            return means["loss"], means

        grads, metrics = mean_over_parts(
            functools.partial(jax.grad(mean_loss, has_aux=True), state.params),
            (batch, first + jnp.arange(count)),
            accumulation,
        )
        apply = functools.partial(apply_gradients, optimizer=optimizer, averaging=averaging)
        if axis_name and in_slices:
            metrics = jax.lax.pmean(metrics, axis_name)
            grads = jax.tree.map(functools.partial(layout.mean_part, axis_name=axis_name), grads)
            metrics["gradient_norm"] = layout.norm(grads, axis_name)
            return layout.apply_in_slices(apply, state, grads, axis_name), metrics
        if isinstance(state.ema_params, joined.Joined):
            grads = joined.join(grads)
        if axis_name:
            metrics, grads = devices.mean((metrics, grads), axis_name)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        if isinstance(grads, joined.Joined):
            return layout.apply_to_joined(apply, state, grads), metrics
        return apply(state, grads), metrics

    return lambda state, batches: jax.lax.scan(one_step, state, batches)


def step_from_config(
    config: ml_collections.ConfigDict,
    objective: Objective,
    optimizer: optax.GradientTransformation,
) -> Step:
    """`make_train_step` as the config describes it, for `pmap` over `devices.AXIS`."""
    return make_train_step(
        objective,
        optimizer,
        ema.from_config(config),
        config.data.random_flip,
        devices.AXIS,
        config.training.accumulation,
        config.training.shard_state,
        models.constraint(config),
    )


def check_batch(training: ml_collections.ConfigDict, count: int) -> int:
    """The images of a step for each of `count` devices.

    Raises:
      ValueError: a batch that they cannot share, or whose share `training.accumulation` cannot.
    """
    share = devices.per_device(training.batch_size, "training.batch_size", count)
    if share % training.accumulation:
        raise ValueError(
            f"training.accumulation={training.accumulation} does not divide the {share} images of "
            f"a device (training.batch_size={training.batch_size} on {count} devices)"
        )
    return share
