"""Tasks on latent codes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import data
import likelihood
from control.problem import (
    Condition,
    Config,
    Problem,
    ScoreOf,
    inputs,
    numbered,
    pixels_of,
    times,
)
from diffusion import grids, latent
from diffusion.noise import Noise
from diffusion.trajectory import Samples, all_finite
from runtime import devices, errors, experiment
from sde_lib import SDE, ScoreFn, batch_mul


def coding(config: Config, sde: SDE) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """From images to latents and back by `control.method`: "flow", adaptive, or "ddim".

    Both are `(score_fn, x) -> Samples`.

    Raises:
      ValueError: unknown method, or the flow of a network with discrete labels.
    """
    options = config.sampling
    if config.control.method == "ddim":
        grid = times(config, sde)

        def ddim_encode(score_fn: ScoreFn, x: jax.Array) -> Samples:
            z = latent.ddim_encode(sde, score_fn, x, grid)
            return Samples(z, len(grid) - 1, all_finite(z))

        return ddim_encode, lambda score_fn, z: latent.ddim_decode(sde, score_fn, z, grid)
    if config.control.method != "flow":
        raise ValueError(f"unknown control.method {config.control.method!r}; known: ddim, flow")
    if not config.training.continuous:
        raise ValueError(
            "control.method='flow' asks the network at all times, but it was trained with discrete "
            "labels (training.continuous is False); use ddim"
        )
    settings = {"rtol": options.rtol, "atol": options.atol, "solver": options.solver}
    settings["eps"] = options.eps or None

    def along(solve: Callable[..., Any], score_fn: ScoreFn, x: jax.Array) -> Samples:
        solution = solve(sde, score_fn, x, **settings)
        return Samples(solution.y, solution.nfe, solution.ok)

    return functools.partial(along, likelihood.encode), functools.partial(along, likelihood.decode)


def interpolate(config: Config, parts: experiment.Parts) -> Problem:
    """Spherical interpolation between the latents of each image and the next.

    Raises:
      ValueError: fewer than two images.
    """
    encode, decode = coding(config, parts.sde)
    count, temperature = config.control.num_variants, config.control.temperature
    if config.control.num_images < 2:
        raise ValueError("control.task='interpolate' needs control.num_images of 2 or more")
    weights = np.linspace(0.0, 1.0, count + 2)[1:-1]
    images, _ = inputs(config)
    x = pixels_of(config, parts).to_model(images)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        first, last = (encode(score_of(None), condition[name]) for name in ("first", "last"))
        weight = jnp.asarray(weights, x.dtype)[condition["variant"]]
        between = decode(score_of(None), temperature * latent.slerp(first.x, last.x, weight))
        ok = first.ok & last.ok & between.ok
        return Samples(between.x, first.nfe + last.nfe + between.nfe, ok)

    return Problem(
        draw,
        {"first": x[:-1], "last": x[1:]},
        [f"{weight:.2f}" for weight in weights],
        {"first": images[:-1]},
        {"last": images[1:]},
    )


def reconstruct(config: Config, parts: experiment.Parts) -> Problem:
    """Images from their own latents times `control.temperature`; one variant of each."""
    encode, decode = coding(config, parts.sde)
    images, _ = inputs(config)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        code = encode(score_of(None), condition["input"])
        again = decode(score_of(None), config.control.temperature * code.x)
        return Samples(again.x, code.nfe + again.nfe, code.ok & again.ok)

    x = pixels_of(config, parts).to_model(images)
    return Problem(draw, {"input": x}, ["again"], after={"original": images})


def sdedit(config: Config, parts: experiment.Parts) -> Problem:
    """Images noised to the time `control.start` T, and drawn back."""
    grid = latent.times_from(times(config, parts.sde), config.control.start * parts.sde.T)
    if not config.training.continuous:
        grid = grids.on_levels(parts.sde, grid)
    images, _ = inputs(config)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        return latent.sdedit(parts.sde, score_of(None), noise, condition["input"], grid)

    x = pixels_of(config, parts).to_model(images)
    return Problem(draw, {"input": x}, numbered(config), after={"original": images})


def attribute(config: Config, parts: experiment.Parts) -> Problem:
    """Images of one class made into another by a step in their latents, `latent.direction`.

    `control.classes` are the class that they have and the one that they should get. The step is
    `control.scale` times the mean latent of `control.num_examples` training images of the latter,
    less that of the former; the variants go there in equal parts.

    Raises:
      ValueError: not two different classes of the data set, or too few images of them.
    """
    encode, decode = coding(config, parts.sde)
    count, pixels = config.control.num_variants, pixels_of(config, parts)
    chosen, dataset = config.control.classes, data.from_config(config, "train")
    if len(set(chosen)) != 2 or len(chosen) != 2 or max(chosen) >= dataset.num_classes:
        raise ValueError(
            f"control.task='attribute' needs two classes of 0 to {dataset.num_classes - 1} in "
            f"control.classes, the one to start from and the one to go to, not {chosen}"
        )
    shares = np.linspace(0.0, 1.0, count + 1)[1:]
    split, number = config.control.split, config.control.num_images
    images = of_class(data.from_config(config, split), chosen[0], number, "control.num_images")
    examples = [
        pixels.to_model(of_class(dataset, y, config.control.num_examples, "control.num_examples"))
        for y in chosen
    ]

    def step(params: Any) -> dict[str, np.ndarray]:
        """The direction, once for each input."""
        x = np.concatenate(examples)

        def code(params: Any, numbers: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            def one(x: jax.Array) -> Samples:
                return encode(experiment.score_from_params(config, parts, params), x[None])

            found = jax.vmap(one)(x)
            return found.x[:, 0], found.ok[:, 0]

        batch = devices.fitting_batch(min(config.control.batch_size, len(x)))
        run = devices.ImageMap(code, batch, "control.batch_size")
        parts_found = [found for _, found in run(params, np.arange(len(x)), x, "latents")]
        z, ok = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts_found)
        errors.refuse(np.flatnonzero(~ok), "could not be encoded")
        found = latent.direction(z, jnp.arange(len(x)) >= len(examples[0]))
        return {"direction": np.asarray(found)[None].repeat(len(images), 0)}

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        share = jnp.asarray(config.control.scale * shares, jnp.float32)[condition["variant"]]
        code = encode(score_of(None), condition["input"])
        edited = decode(score_of(None), code.x + batch_mul(share, condition["direction"]))
        return Samples(edited.x, code.nfe + edited.nfe, code.ok & edited.ok)

    asked = np.full((len(images), count), -1)
    asked[:, -1] = chosen[1]
    return Problem(
        draw,
        {"input": pixels.to_model(images)},
        [f"{share:.2f}" for share in shares],
        {"original": images},
        asked=asked,
        prepare=step,
    )


def of_class(dataset: data.Dataset, y: int, count: int, setting: str) -> np.ndarray:
    """The first `count` images of class y.

    Raises:
      ValueError: there are not as many; names the `setting` that asked for them.
    """
    rows = np.flatnonzero(np.asarray(dataset.labels[:]) == y)
    if count > len(rows):
        raise ValueError(
            f"{setting} is {count}, but {dataset.name}/{dataset.split} has {len(rows)} images of "
            f"class {y}"
        )
    return dataset.take(rows[:count])[0]
