"""The optimiser: gradient clipping, weight decay, a direction of descent, a learning rate.

Each is a transformation of optax; `from_config` chains those that `config.optim` names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from configs.names import lookup
from runtime import devices
from training import layout
from training.joined import frozen


class Direction(NamedTuple):
    """A direction of descent.

    Attributes:
      make: from beta1 and eps to the transformation of a gradient into the direction.
      decoupled: weight decay acts on the parameters themselves, not through the gradient.
    """

    make: Callable[[float, float], optax.GradientTransformation]
    decoupled: bool = False


# Second moments decay at 0.999 (Lion's momentum at 0.99); SGD's momentum is beta1.
OPTIMIZERS: dict[str, Direction] = {
    "Adam": Direction(lambda beta1, eps: optax.scale_by_adam(b1=beta1, b2=0.999, eps=eps)),
    "AdamW": Direction(
        lambda beta1, eps: optax.scale_by_adam(b1=beta1, b2=0.999, eps=eps), decoupled=True
    ),
    "NAdam": Direction(
        lambda beta1, eps: optax.scale_by_adam(b1=beta1, b2=0.999, eps=eps, nesterov=True)
    ),
    "RAdam": Direction(lambda beta1, eps: optax.scale_by_radam(b1=beta1, b2=0.999, eps=eps)),
    "Lion": Direction(lambda beta1, eps: optax.scale_by_lion(b1=beta1, b2=0.99), decoupled=True),
    "SGD": Direction(lambda beta1, eps: optax.trace(decay=beta1)),
}


def _inverse_sqrt(length: int, warmup: int, end: float) -> optax.Schedule:
    del warmup, end
    return lambda step: jax.lax.rsqrt(jnp.maximum(step / length, 1.0))


def _after_warmup(
    decay: Callable[[int, float], optax.Schedule],
) -> Callable[[int, int, float], optax.Schedule]:
    """A decay that begins when the warm-up has ended and is over at step `length`."""

    def schedule(length: int, warmup: int, end: float) -> optax.Schedule:
        if length <= warmup:
            raise ValueError(
                f"optim.decay_steps is {length}; it must be larger than optim.warmup ({warmup}), "
                "since the decay follows the warm-up"
            )
        factor = decay(length - warmup, end)
        return lambda step: factor(jnp.maximum(step - warmup, 0))

    return schedule


# From (length, warmup, end) to the factor on the learning rate at a step:
#   cosine        end + (1 - end) (1 + cos(pi p)) / 2   with p from 0 after the warm-up
#   linear        1 - (1 - end) p                       to 1 at step `length`, and 1 from then on
#   inverse_sqrt  1 / sqrt(max(step / length, 1))       Karras et al. 2024 (arXiv:2312.02696)
SCHEDULES: dict[str, Callable[[int, int, float], optax.Schedule]] = {
    "cosine": _after_warmup(lambda n, end: optax.cosine_decay_schedule(1.0, n, alpha=end)),
    "linear": _after_warmup(lambda n, end: optax.linear_schedule(1.0, end, n)),
    "inverse_sqrt": _inverse_sqrt,
}


def learning_rate(
    lr: float, warmup: int = 0, schedule: str = "constant", length: int = 0, end: float = 0.0
) -> optax.Schedule:
    """`lr * min(step / warmup, 1)`, times the factor of `SCHEDULES` unless it is "constant".

    `step` counts from 0, so the first step of a warm-up moves nothing. `length` and `end` are
    `optim.decay_steps` and `optim.decay_to`. A schedule's length is a number of its own and not
    that of the run's steps: a run that is prolonged goes on as it would have.

    Raises:
      ValueError: an unknown schedule; a decay without a length or within the warm-up.
    """
    make = lookup({"constant": None, **SCHEDULES}, schedule, "optim.schedule")

    def warmed_up(step: jax.Array) -> jax.Array:
        return lr * jnp.minimum(step / warmup, 1.0) if warmup > 0 else jnp.asarray(lr)

    if make is None:
        return warmed_up
    if length <= 0:
        raise ValueError(
            f"optim.schedule is {schedule!r}, but optim.decay_steps is {length}; give the steps "
            "that it takes, for example those of the whole training"
        )
    factor = make(length, warmup, end)
    return lambda step: warmed_up(step) * factor(step)


def clip_by_norm(
    limit: float, rule: str, norm: Callable[[Any], jax.Array] = optax.tree.norm
) -> optax.GradientTransformation:
    """Scales gradients whose global norm n exceeds `limit`.

    rule "max": by limit / max(n, limit), the official JAX code;
    rule "add": by min(1, limit / (n + 1e-6)), `torch.nn.utils.clip_grad_norm_`.
    """
    factors = {
        "max": lambda norm: limit / jnp.maximum(norm, limit),
        "add": lambda norm: jnp.minimum(1.0, limit / (norm + 1e-6)),
    }
    factor_of = lookup(factors, rule, "optim.clip_rule")

    def scale(updates: Any) -> Any:
        factor = factor_of(norm(updates))
        return jax.tree.map(lambda g: g * factor, updates)

    return optax.stateless(lambda updates, params: scale(updates))


def make_optimizer(
    lr: float | optax.Schedule,
    beta1: float = 0.9,
    eps: float = 1e-8,
    warmup: int = 0,
    grad_clip: float = -1.0,
    weight_decay: float = 0.0,
    clip_rule: str = "max",
    name: str = "Adam",
    norm: Callable[[Any], jax.Array] = optax.tree.norm,
) -> optax.GradientTransformation:
    """One of `OPTIMIZERS`, by default Adam as the official code runs it.

    In this order: clip the global gradient norm to `grad_clip` (none if negative), add
    `weight_decay` x parameter, the direction, and the learning rate: `lr` of the step, or
    `learning_rate(lr, warmup)`. Where the decay is decoupled it is added after the direction, so
    that it too is multiplied by the learning rate (Loshchilov and Hutter 2019, arXiv:1711.05101).
    `norm` is that of all gradients, of which it may be given a part.

    Raises:
      ValueError: an unknown name or clipping rule.
    """
    direction = lookup(OPTIMIZERS, name, "optim.optimizer")

    def trainable(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda p, leaf: not frozen(p, leaf), params)

    clip = clip_by_norm(grad_clip, clip_rule, norm) if grad_clip >= 0 else optax.identity()
    decay = (
        optax.add_decayed_weights(weight_decay, mask=trainable)
        if weight_decay
        else optax.identity()
    )
    descent = direction.make(beta1, eps)
    rate = optax.scale_by_learning_rate(lr if callable(lr) else learning_rate(lr, warmup))
    middle = (descent, decay) if direction.decoupled else (decay, descent)
    return optax.chain(clip, *middle, rate)


def from_config(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The optimiser that `config.optim` describes.

    Raises:
      ValueError: an unknown name; a schedule without its length.
    """
    optim = config.optim
    sliced_norm = functools.partial(layout.norm, axis_name=devices.AXIS)
    rate = learning_rate(optim.lr, optim.warmup, optim.schedule, optim.decay_steps, optim.decay_to)
    return make_optimizer(
        lr=rate,
        beta1=optim.beta1,
        eps=optim.eps,
        grad_clip=optim.grad_clip,
        weight_decay=optim.weight_decay,
        clip_rule=optim.clip_rule,
        name=optim.optimizer,
        norm=sliced_norm if config.training.shard_state else optax.tree.norm,
    )
