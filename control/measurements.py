"""Tasks that hide or measure images, y = A(x_0) + noise: each one is an operator A."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import controllable
from control import masks, operators
from control.methods import Measurement, Method
from control.prior import Options, Prior
from control.problem import Condition, Problem, input_images, variant_numbers
from diffusion import inverse, svd
from diffusion.noise import image_noise
from runtime import devices

HIDDEN = 0.5  # grey of unknown pixels in pictures, as a share of white
MEASUREMENT = 2**31 - 1  # the number of the measurement's noise, beside those of variants


def inverse_problem(
    prior: Prior,
    options: Options,
    method: Method,
    measurement: Measurement,
    show: Callable[[np.ndarray], np.ndarray],
    columns: dict[str, np.ndarray] | None = None,
    conditions: dict[str, np.ndarray] | None = None,
) -> Problem:
    """The problem of the images of which y = A(x_0) + noise was measured.

    Args:
      show: y [n, ...] as images in the network's range.
      columns: further columns of the picture.
      conditions: further conditions, [n, ...].

    Raises:
      ValueError: what the method, the operator or the data set refuses.
    """
    operator, pixels = measurement.operator, prior.pixels
    if options.official and options.method != "replace":
        raise ValueError("control.official is a way of control.method=replace")
    if measurement.linear:
        inverse.check_adjoint(operator, prior.image_shape)
    draw = method(prior, options, measurement)
    images = input_images(prior.dataset(options.split), options.num_images)
    y = operator(jnp.asarray(pixels.to_model(images)))
    keys = devices.image_keys(jax.random.key(options.seed), jnp.arange(len(images)))
    z = image_noise(keys, y.shape[1:])(MEASUREMENT)
    y = y + options.noise_std * z

    def error(x: jax.Array, condition: Condition) -> jax.Array:
        return jnp.mean(jnp.square(operator(x) - condition["y"]))[None]

    return Problem(
        draw,
        {"y": np.asarray(y), **(conditions or {})},
        variant_numbers(options.num_variants),
        {"measured": np.asarray(pixels.to_levels(show(np.asarray(y)))), **(columns or {})},
        {"original": images},
        error=error,
    )


def row_space_problem(
    prior: Prior, options: Options, method: Method, operator: inverse.Operator
) -> Problem:
    """`inverse_problem` of an operator whose A A' is well-conditioned.

    An exact y determines the component A^+ y of x_0, in the row space of A; y is shown as that.
    """
    shape = prior.image_shape

    def constraint(condition: Condition) -> controllable.Constraint:
        return inverse.constraint_of(operator, condition["y"], shape)

    def show(y: np.ndarray) -> np.ndarray:
        return np.asarray(inverse.pseudo_inverse(operator, shape, jnp.asarray(y)))

    return inverse_problem(prior, options, method, Measurement(operator, constraint), show)


def inpaint(prior: Prior, options: Options, method: Method) -> Problem:
    """Unknown pixels, or entries of real-valued examples, by `control.mask`."""
    shape, pixels = prior.image_shape, prior.pixels
    make_mask = masks.make_mask if pixels.levels else masks.make_mask_of_values
    mask = jnp.asarray(make_mask(options.mask, options.mask_share, options.seed, shape))
    grey = 2.0 * HIDDEN - 1.0 if pixels.centered else HIDDEN
    white = np.asarray(mask) * (pixels.levels - 1)
    picture = np.broadcast_to(white, (options.num_images, *shape)).astype(np.uint8)
    hidden = grey if pixels.levels else np.nan

    def constraint(condition: Condition) -> controllable.Constraint:
        return controllable.in_painting(condition["y"], condition["mask"])

    return inverse_problem(
        prior,
        options,
        method,
        Measurement(inverse.masking(mask), constraint),
        lambda y: np.where(mask > 0, y, hidden),
        {"mask": picture} if pixels.levels else {},
        {"mask": np.broadcast_to(np.asarray(mask), (options.num_images, *mask.shape))},
    )


def colorize(prior: Prior, options: Options, method: Method) -> Problem:
    """Unknown colours: the mean of red, green and blue is known.

    Levels of the answers are rounded so that it is kept: exactly, by the methods that do.

    Raises:
      ValueError: grey images.
    """
    if prior.image_shape[-1] != 3:
        raise ValueError(
            f"control.task='colorize' needs colour: {prior.dataset_name} has "
            f"{prior.image_shape[-1]} channel(s)"
        )

    def mean(x: jax.Array) -> jax.Array:
        return jnp.mean(x, -1, keepdims=True)

    def constraint(condition: Condition) -> controllable.Constraint:
        return controllable.colourisation(condition["y"])

    problem = inverse_problem(
        prior, options, method, Measurement(mean, constraint), lambda y: y.repeat(3, -1)
    )
    return dataclasses.replace(problem, to_levels=prior.pixels.to_levels_of_grey)


def super_resolution(prior: Prior, options: Options, method: Method) -> Problem:
    """Means of blocks of `control.factor` pixels a side."""
    operator = inverse.average_pool(options.factor)
    operator(jnp.zeros((1, *prior.image_shape)))
    return row_space_problem(prior, options, method, operator)


def deblur(prior: Prior, options: Options, method: Method) -> Problem:
    """A Gaussian blur of `control.blur_std` pixels, too ill-conditioned to be taken as exact."""
    measurement = Measurement(inverse.gaussian_blur(options.blur_std), None)
    return inverse_problem(prior, options, method, measurement, lambda y: y)


def compressed_sensing(prior: Prior, options: Options, method: Method) -> Problem:
    """`control.num_measurements` random functionals; 0: a quarter of the number of entries."""
    count = options.num_measurements or max(1, math.prod(prior.image_shape) // 4)
    operator = inverse.random_measurements(count, prior.image_shape, options.seed)
    return row_space_problem(prior, options, method, operator)


def denoise(prior: Prior, options: Options, method: Method) -> Problem:
    """Noise of standard deviation `control.noise_std`, and nothing else.

    Raises:
      ValueError: no noise.
    """
    if options.noise_std <= 0:
        raise ValueError("control.task='denoise' needs a positive control.noise_std")
    measurement = Measurement(inverse.identity, None)
    return inverse_problem(prior, options, method, measurement, lambda y: y)


def by_operator(prior: Prior, options: Options, method: Method) -> Problem:
    """What `control.operator` makes of the images: a name, or file.py:function of your own."""
    source = operators.operator_of(prior, options)
    operator, shape = source.operator, prior.image_shape
    linear = operators.is_linear(operator, shape)

    def constraint(condition: Condition) -> controllable.Constraint:
        return inverse.constraint_of(operator, condition["y"], shape)

    problem = inverse_problem(
        prior,
        options,
        method,
        Measurement(
            operator, constraint if linear and invertible(operator, shape) else None, linear
        ),
        lambda y: shown(y, prior),
    )
    return dataclasses.replace(
        problem, sources={"operator_sha256": source.sha256} if source.sha256 else {}
    )


def invertible(operator: inverse.Operator, shape: tuple[int, ...]) -> bool:
    """Whether A A' is well-conditioned where it is not 0: singular values within a factor of 30."""
    try:
        values = svd.decomposition(operator, shape).values
    except ValueError:
        return False
    return bool(values.max() < 30.0 * values.min())


def shown(y: np.ndarray, prior: Prior) -> np.ndarray:
    """Measurements [n, ...] as images in the network's range: themselves where they are images.

    Others of four axes are resized, and brought into the range; what is no picture is mid-grey.
    """
    height, width, channels = prior.image_shape
    low, high = operators.ends(prior)
    if y.shape[1:] == prior.image_shape:
        return y
    if y.ndim != 4 or y.shape[-1] not in (1, channels):
        return np.full((len(y), height, width, channels), 0.5 * (low + high), np.float32)
    resized = jax.image.resize(y, (len(y), height, width, y.shape[-1]), "linear")
    pictures = np.asarray(jnp.broadcast_to(resized, (len(y), height, width, channels)))
    if pictures.min() < low or pictures.max() > high:
        brightest = np.maximum(np.quantile(pictures, 0.99, axis=(1, 2, 3), keepdims=True), 1e-6)
        pictures = low + (high - low) * np.clip(pictures / brightest, 0.0, 1.0)
    return pictures
