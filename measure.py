"""Tasks that hide or measure images, y = A x_0 + noise, and the methods that answer them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, UnidentifiedImageError

import controllable
import inverse
import parallel
import sampling
import solvers
import train
from problem import (
    Condition,
    Config,
    Draw,
    Problem,
    ScoreOf,
    inputs,
    numbered,
    pixels_of,
    sampler,
    times,
)
from sde_lib import SDE, lookup

HIDDEN = 0.5  # grey of unknown pixels in pictures, as a share of white
MEASUREMENT = 2**31 - 1  # the number of the measurement's noise, beside those of variants


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What the methods of inverse problems need.

    Attributes:
      operator: A.
      shape: of an image.
      known: from a condition to what is known exactly; None where nothing is (A A' is singular).
    """

    operator: inverse.Operator
    shape: tuple[int, int, int]
    known: Callable[[Condition], controllable.Known] | None


def exactly(config: Config, measurement: Measurement) -> Callable[[Condition], controllable.Known]:
    """What is known exactly; refuses tasks and measurements of which that cannot be said."""
    if measurement.known is None or config.control.noise_std > 0:
        raise ValueError(
            f"control.method={config.control.method!r} takes a measurement as exact; with "
            f"control.noise_std={config.control.noise_std:g} control.task={config.control.task!r} "
            "is served by posterior and dps"
        )
    return measurement.known


def infill(config: Config, sde: SDE, measurement: Measurement) -> Draw:
    """`controllable.infilled`, with any sampler."""
    known, sample = exactly(config, measurement), sampler(config)

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        given = known(condition)
        samples = sample(sde, controllable.infilled(sde, score_of(None), given), noise)
        return samples._replace(x=given.impose(samples.x, given.values))

    return draw


def replace(config: Config, sde: SDE, measurement: Measurement) -> Draw:
    """`controllable.pc_infill`, with the predictor and corrector of `config.sampling`."""
    known, options = exactly(config, measurement), config.sampling
    if options.predictor == options.corrector == "none":
        raise ValueError(
            "control.method='replace' is predictor-corrector sampling, and sampling.predictor and "
            "sampling.corrector are both 'none'; try --config.sampling.predictor=ancestral_sampling"
        )
    if options.num_steps not in (0, sde.N) and not config.training.continuous:
        raise ValueError(
            f"sampling.num_steps is {options.num_steps}, but a network that was trained with "
            f"discrete labels has {sde.N} noise levels, and 'replace' takes them all: use 0"
        )
    sde = dataclasses.replace(sde, N=options.num_steps) if options.num_steps else sde
    sample = functools.partial(
        controllable.pc_infill,
        predictor=options.predictor,
        corrector=options.corrector,
        snr=options.snr,
        n_steps_each=options.n_steps_each,
        denoise=options.noise_removal,
        eps=options.eps or None,
        probability_flow=options.probability_flow,
        official=config.control.official,
    )
    return lambda score_of, noise, condition: sample(sde, score_of(None), noise, known(condition))


def repaint(config: Config, sde: SDE, measurement: Measurement) -> Draw:
    """`controllable.repaint`."""
    known, grid = exactly(config, measurement), times(config, sde)
    jump, repeats = config.control.jump, config.control.repeats
    controllable.travel(len(grid) - 1, jump, repeats)
    return lambda score_of, noise, condition: controllable.repaint(
        sde, score_of(None), noise, grid, known(condition), jump=jump, repeats=repeats
    )


def posterior(config: Config, sde: SDE, measurement: Measurement) -> Draw:
    """`inverse.posterior_guided`, with any sampler."""
    sample, options = sampler(config), config.control

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        guided = inverse.posterior_guided(
            sde,
            score_of(None),
            measurement.operator,
            condition["y"],
            noise_std=options.noise_std,
            iterations=options.iterations,
            damping=options.damping,
            scale=options.scale,
        )
        return sample(sde, guided, noise)

    return draw


def dps(config: Config, sde: SDE, measurement: Measurement) -> Draw:
    """`inverse.dps`."""
    grid, scale = times(config, sde), config.control.scale
    return lambda score_of, noise, condition: inverse.dps(
        sde, score_of(None), noise, grid, measurement.operator, condition["y"], scale=scale
    )


Method = Callable[[Config, SDE, Measurement], Draw]

METHODS: dict[str, Method] = {
    "infill": infill,
    "replace": replace,
    "repaint": repaint,
    "posterior": posterior,
    "dps": dps,
}


def measuring(
    config: Config,
    parts: train.Parts,
    operator: inverse.Operator,
    show: Callable[[np.ndarray], np.ndarray],
    known: Callable[[Condition], controllable.Known] | None,
    extra: dict[str, np.ndarray] | None = None,
) -> Problem:
    """The problem of images of which y = A x_0 + noise was measured.

    Args:
      show: y [n, ...] as images in the network's range.
      extra: further columns of the picture.
    """
    options, pixels = config.control, pixels_of(config, parts)
    method = lookup(METHODS, options.method, "control.method")
    if options.official and options.method != "replace":
        raise ValueError("control.official is a way of control.method=replace")
    inverse.check_adjoint(operator, parts.image_shape)
    draw = method(config, parts.sde, Measurement(operator, parts.image_shape, known))
    images, _ = inputs(config)
    x0 = jnp.asarray(pixels.to_model(images))
    y = operator(x0)
    keys = parallel.image_keys(jax.random.key(options.seed), jnp.arange(len(images)))
    z = sampling.image_noise(keys, y.shape[1:])(MEASUREMENT)
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

    return show, lambda condition: inverse.measured(operator, condition["y"], shape)


def inpaint(config: Config, parts: train.Parts) -> Problem:
    """Unknown pixels, by `control.mask`."""
    shape, pixels = parts.image_shape, pixels_of(config, parts)
    mask = jnp.asarray(make_mask(config.control, shape))
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


def make_mask(options: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """The mask [H, W, 1] that `control.mask` names: 1 is known.

    "half": the lower half is unknown. "box": a box in the middle with the share
    `control.mask_share` of the pixels; "random": as many pixels by chance, of `control.seed`.
    Anything else is a picture file of the images' size, black where unknown, white where known.

    Raises:
      ValueError: a file that cannot be read, of another size, or with other values.
    """
    height, width, _ = shape
    share = options.mask_share
    mask = np.ones((height, width, 1), np.float32)
    if options.mask == "half":
        mask[height // 2 :] = 0.0
    elif options.mask == "box":
        sides = [max(1, round(side * math.sqrt(share))) for side in (height, width)]
        top, left = ((side - hidden) // 2 for side, hidden in zip(shape, sides, strict=False))
        mask[top : top + sides[0], left : left + sides[1]] = 0.0
    elif options.mask == "random":
        order = np.random.RandomState(options.seed).permutation(height * width)
        mask.reshape(-1)[order[: max(1, round(share * height * width))]] = 0.0
    else:
        try:
            with Image.open(options.mask) as picture:
                mask = np.asarray(picture.convert("L"), np.float32)[..., None] / 255.0
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(
                f"control.mask={options.mask!r} is none of half, box, random, nor a picture that "
                "can be read"
            ) from error
        controllable.check_mask(mask, shape)
    return mask


def colorize(config: Config, parts: train.Parts) -> Problem:
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


def super_resolution(config: Config, parts: train.Parts) -> Problem:
    """Means of blocks of `control.factor` pixels a side."""
    operator = inverse.average_pool(config.control.factor)
    operator(jnp.zeros((1, *parts.image_shape)))
    return measuring(config, parts, operator, *smallest(operator, parts.image_shape))


def deblur(config: Config, parts: train.Parts) -> Problem:
    """A Gaussian blur of `control.blur_std` pixels, too ill-conditioned to be taken as exact."""
    return measuring(
        config, parts, inverse.gaussian_blur(config.control.blur_std), lambda y: y, None
    )


def compressed_sensing(config: Config, parts: train.Parts) -> Problem:
    """`control.num_measurements` random functionals; 0: a quarter of the number of entries."""
    count = config.control.num_measurements or max(1, math.prod(parts.image_shape) // 4)
    operator = inverse.random_measurements(count, parts.image_shape, config.control.seed)
    return measuring(config, parts, operator, *smallest(operator, parts.image_shape))


def denoise(config: Config, parts: train.Parts) -> Problem:
    """Noise of standard deviation `control.noise_std`, and nothing else.

    Raises:
      ValueError: no noise.
    """
    if config.control.noise_std <= 0:
        raise ValueError("control.task='denoise' needs a positive control.noise_std")
    return measuring(config, parts, inverse.identity, lambda y: y, None)
