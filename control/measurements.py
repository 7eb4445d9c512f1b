"""Tasks that hide or measure images, y = A x_0 + noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import controllable
from configs.names import lookup
from control import masks, methods
from control.problem import (
    Condition,
    Config,
    Problem,
    inputs,
    numbered,
    pixels_of,
)
from diffusion import inverse
from diffusion.noise import image_noise
from runtime import devices, experiment

HIDDEN = 0.5  # grey of unknown pixels in pictures, as a share of white
MEASUREMENT = 2**31 - 1  # the number of the measurement's noise, beside those of variants


def measuring(
    config: Config,
    parts: experiment.Parts,
    operator: inverse.Operator,
    show: Callable[[np.ndarray], np.ndarray],
    known: Callable[[Condition], controllable.Constraint] | None,
    extra: dict[str, np.ndarray] | None = None,
) -> Problem:
    """The problem of images of which y = A x_0 + noise was measured.

    Args:
      show: y [n, ...] as images in the network's range.
      extra: further columns of the picture.
    """
    options, pixels = config.control, pixels_of(config, parts)
    method = lookup(methods.METHODS, options.method, "control.method")
    if options.official and options.method != "replace":
        raise ValueError("control.official is a way of control.method=replace")
    inverse.check_adjoint(operator, parts.image_shape)
    draw = method(config, parts.sde, methods.Measurement(operator, parts.image_shape, known))
    images, _ = inputs(config)
    x0 = jnp.asarray(pixels.to_model(images))
    y = operator(x0)
    keys = devices.image_keys(jax.random.key(options.seed), jnp.arange(len(images)))
    z = image_noise(keys, y.shape[1:])(MEASUREMENT)
    y = y + options.noise_std * z

    def error(x: jax.Array, condition: Condition) -> jax.Array:
        return jnp.mean(jnp.square(operator(x) - condition["y"]))[None]

    return Problem(
        draw,
        {"y": np.asarray(y)},
        numbered(config),
        {"measured": np.asarray(pixels.to_levels(show(np.asarray(y)))), **(extra or {})},
        {"original": images},
        error=error,
    )


def smallest(
    operator: inverse.Operator, shape: tuple[int, int, int]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How y is shown, as A^+ y, and what is known, for operators with a well-conditioned A A'."""

    def show(y: np.ndarray) -> np.ndarray:
        return np.asarray(inverse.pseudo_inverse(operator, shape, jnp.asarray(y)))

    return show, lambda condition: inverse.constraint_of(operator, condition["y"], shape)


def inpaint(config: Config, parts: experiment.Parts) -> Problem:
    """Unknown pixels, by `control.mask`."""
    shape, pixels = parts.image_shape, pixels_of(config, parts)
    mask = jnp.asarray(masks.make_mask(config.control, shape))
    grey = HIDDEN if not config.data.centered else 2.0 * HIDDEN - 1.0
    count = config.control.num_images
    white = np.broadcast_to(np.asarray(mask) * (pixels.levels - 1), (count, *shape))
    return measuring(
        config,
        parts,
        inverse.masking(mask),
        lambda y: np.where(mask > 0, y, grey),
        lambda condition: controllable.in_painting(condition["y"], mask),
        {"mask": white.astype(np.uint8)},
    )


def colorize(config: Config, parts: experiment.Parts) -> Problem:
    """Unknown colours: the mean of red, green and blue is known.

    Levels of the answers are rounded so that it is kept: exactly, by the methods that do.

    Raises:
      ValueError: grey images.
    """
    if parts.image_shape[-1] != 3:
        raise ValueError(
            f"control.task='colorize' needs colour: {config.data.dataset} has "
            f"{parts.image_shape[-1]} channel(s)"
        )

    def mean(x: jax.Array) -> jax.Array:
        return jnp.mean(x, -1, keepdims=True)

    posed = measuring(
        config,
        parts,
        mean,
        lambda y: y.repeat(3, -1),
        lambda condition: controllable.colourisation(condition["y"]),
    )
    return dataclasses.replace(posed, to_levels=pixels_of(config, parts).to_levels_of_grey)


def super_resolution(config: Config, parts: experiment.Parts) -> Problem:
    """Means of blocks of `control.factor` pixels a side."""
    operator = inverse.average_pool(config.control.factor)
    operator(jnp.zeros((1, *parts.image_shape)))
    return measuring(config, parts, operator, *smallest(operator, parts.image_shape))


def deblur(config: Config, parts: experiment.Parts) -> Problem:
    """A Gaussian blur of `control.blur_std` pixels, too ill-conditioned to be taken as exact."""
    return measuring(
        config, parts, inverse.gaussian_blur(config.control.blur_std), lambda y: y, None
    )


def compressed_sensing(config: Config, parts: experiment.Parts) -> Problem:
    """`control.num_measurements` random functionals; 0: a quarter of the number of entries."""
    count = config.control.num_measurements or max(1, math.prod(parts.image_shape) // 4)
    operator = inverse.random_measurements(count, parts.image_shape, config.control.seed)
    return measuring(config, parts, operator, *smallest(operator, parts.image_shape))


def denoise(config: Config, parts: experiment.Parts) -> Problem:
    """Noise of standard deviation `control.noise_std`, and nothing else.

    Raises:
      ValueError: no noise.
    """
    if config.control.noise_std <= 0:
        raise ValueError("control.task='denoise' needs a positive control.noise_std")
    return measuring(config, parts, inverse.identity, lambda y: y, None)
