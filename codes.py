"""Tasks on latent codes and on classes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import controllable
import latent
import likelihood
import solvers
import train
from problem import Condition, Config, Problem, ScoreOf, inputs, numbered, pixels_of, sampler, times
from sde_lib import SDE, ScoreFn


def coding(config: Config, sde: SDE) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """From images to latents and back by `control.method`: "flow", adaptive, or "ddim".

    Both are `(score_fn, x) -> Samples`.

    Raises:
      ValueError: unknown method, or the flow of a network with discrete labels.
    """
    options = config.sampling
    if config.control.method == "ddim":
        grid = times(config, sde)

        def ddim_encode(score_fn: ScoreFn, x: jax.Array) -> solvers.Samples:
            z = latent.ddim_encode(sde, score_fn, x, grid)
            return solvers.Samples(z, len(grid) - 1, solvers.all_finite(z))

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

    def along(solve: Callable[..., Any], score_fn: ScoreFn, x: jax.Array) -> solvers.Samples:
        solution = solve(sde, score_fn, x, **settings)
        return solvers.Samples(solution.y, solution.nfe, solution.ok)

    return functools.partial(along, likelihood.encode), functools.partial(along, likelihood.decode)


def interpolate(config: Config, parts: train.Parts) -> Problem:
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

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        first, last = (encode(score_of(None), condition[name]) for name in ("first", "last"))
        weight = jnp.asarray(weights, x.dtype)[condition["variant"]]
        between = decode(score_of(None), temperature * latent.slerp(first.x, last.x, weight))
        ok = first.ok & last.ok & between.ok
        return solvers.Samples(between.x, first.nfe + last.nfe + between.nfe, ok)

    return Problem(
        draw,
        {"first": x[:-1], "last": x[1:]},
        [f"{weight:.2f}" for weight in weights],
        {"first": images[:-1]},
        {"last": images[1:]},
    )


def reconstruct(config: Config, parts: train.Parts) -> Problem:
    """Images from their own latents times `control.temperature`; one variant of each."""
    encode, decode = coding(config, parts.sde)
    images, _ = inputs(config)

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        code = encode(score_of(None), condition["x"])
        again = decode(score_of(None), config.control.temperature * code.x)
        return solvers.Samples(again.x, code.nfe + again.nfe, code.ok & again.ok)

    x = pixels_of(config, parts).to_model(images)
    return Problem(draw, {"x": x}, ["again"], after={"original": images})


def sdedit(config: Config, parts: train.Parts) -> Problem:
    """Images noised to the time `control.start` T, and drawn back."""
    grid = latent.times_from(times(config, parts.sde), config.control.start * parts.sde.T)
    if not config.training.continuous:
        grid = solvers.on_levels(parts.sde, grid)
    images, _ = inputs(config)

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        return latent.sdedit(parts.sde, score_of(None), noise, condition["x"], grid)

    x = pixels_of(config, parts).to_model(images)
    return Problem(draw, {"x": x}, numbered(config), after={"original": images})


# Classes.


def by_class(config: Config, parts: train.Parts) -> Problem:
    """Images of `control.classes`, classifier-free, at noise levels in `control.interval`.

    Raises:
      ValueError: a network that is not told classes, or a class that it does not know.
    """
    options, known = config.control, config.model.num_labels
    if not known:
        raise ValueError(
            "control.task='class' needs a network that is told classes, and this one has "
            "model.num_labels=0"
        )
    classes = np.array(options.classes or range(known), np.int32)
    if not all(0 <= y < known for y in classes):
        raise ValueError(f"control.classes is {options.classes}; classes are 0 to {known - 1}")
    sample = sampler(config)
    scale: controllable.Scale = options.scale
    if options.interval:
        ends = controllable.times_of_noise(parts.sde, *options.interval)
        scale = controllable.within(*ends, options.scale, 1.0)

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        told = score_of(condition["class"])
        return sample(parts.sde, controllable.classifier_free(score_of(None), told, scale), noise)

    return Problem(draw, {"class": classes}, numbered(config))
