"""Tasks on latent codes and on classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import controllable
import data
import generate
import guides
import latent
import likelihood
import losses
import models
import parallel
import solvers
import train
from problem import (
    Condition,
    Config,
    Guidance,
    Problem,
    ScoreOf,
    inputs,
    numbered,
    pixels_of,
    sampler,
    times,
)
from sde_lib import SDE, ScoreFn, batch_mul, lookup


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
        code = encode(score_of(None), condition["input"])
        again = decode(score_of(None), config.control.temperature * code.x)
        return solvers.Samples(again.x, code.nfe + again.nfe, code.ok & again.ok)

    x = pixels_of(config, parts).to_model(images)
    return Problem(draw, {"input": x}, ["again"], after={"original": images})


def sdedit(config: Config, parts: train.Parts) -> Problem:
    """Images noised to the time `control.start` T, and drawn back."""
    grid = latent.times_from(times(config, parts.sde), config.control.start * parts.sde.T)
    if not config.training.continuous:
        grid = solvers.on_levels(parts.sde, grid)
    images, _ = inputs(config)

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        return latent.sdedit(parts.sde, score_of(None), noise, condition["input"], grid)

    x = pixels_of(config, parts).to_model(images)
    return Problem(draw, {"input": x}, numbered(config), after={"original": images})


def attribute(config: Config, parts: train.Parts) -> Problem:
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
            def one(x: jax.Array) -> solvers.Samples:
                return encode(generate.score_from_params(config, parts, params), x[None])

            found = jax.vmap(one)(x)
            return found.x[:, 0], found.ok[:, 0]

        batch = parallel.fitting_batch(min(config.control.batch_size, len(x)))
        run = parallel.ImageMap(code, batch, "control.batch_size")
        parts_found = [found for _, found in run(params, np.arange(len(x)), x, "latents")]
        z, ok = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts_found)
        generate.refuse(np.flatnonzero(~ok), "could not be encoded")
        found = latent.direction(z, jnp.arange(len(x)) >= len(examples[0]))
        return {"direction": np.asarray(found)[None].repeat(len(images), 0)}

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        share = jnp.asarray(config.control.scale * shares, jnp.float32)[condition["variant"]]
        code = encode(score_of(None), condition["input"])
        edited = decode(score_of(None), code.x + batch_mul(share, condition["direction"]))
        return solvers.Samples(edited.x, code.nfe + edited.nfe, code.ok & edited.ok)

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


# Classes.


def by_class(config: Config, parts: train.Parts) -> Problem:
    """Images of `control.classes`, by one of `CLASS_METHODS`.

    Raises:
      ValueError: unknown method, or what the method refuses.
    """
    make = lookup(CLASS_METHODS, config.control.method, "control.method")
    problem: Problem = make(config, parts)
    asked = problem.conditions["class"][:, None].repeat(len(problem.variants), 1)
    return dataclasses.replace(problem, asked=asked)


def conditional(config: Config, parts: train.Parts) -> Problem:
    """Images from a network that is told the class, without guidance.

    Raises:
      ValueError: a network that is not told classes, or a class that it does not know.
    """
    classes, sample = classes_asked(config, known_labels(config)), sampler(config)

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        return sample(parts.sde, score_of(condition["class"]), noise)

    return Problem(draw, {"class": classes}, numbered(config))


def classifier_free(config: Config, parts: train.Parts) -> Problem:
    """Images by `controllable.classifier_free`, at noise levels in `control.interval`.

    Raises:
      ValueError: a network that is not told classes, or always is; a class that it does not know.
    """
    classes, sample = classes_asked(config, known_labels(config)), sampler(config)
    if not config.training.label_dropout:
        raise ValueError(
            "control.method='classifier_free' needs a network that knows images without a class, "
            "and this one was told every class (training.label_dropout is 0); use conditional"
        )
    scale = scale_of(config, parts.sde, 1.0)

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        told = score_of(condition["class"])
        return sample(parts.sde, controllable.classifier_free(score_of(None), told, scale), noise)

    return Problem(draw, {"class": classes}, numbered(config))


def by_classifier(config: Config, parts: train.Parts) -> Problem:
    """Images guided by the classifier of noisy images in `control.guide` (eq. 14).

    A network that is told classes is told them here too, as Dhariwal and Nichol 2021
    (arXiv:2105.05233) do: guidance then sharpens what it knows of the class.

    Raises:
      ValueError: what `guides.restore` refuses, or a class that the classifier does not know.
    """
    guide = guides.restore(config, parts, losses.CLASSIFIER)
    known, told = guide.config.classifier.num_classes, config.model.num_labels
    if told and told != known:
        raise ValueError(
            f"control.guide={config.control.guide!r} tells {known} classes apart, and the network "
            f"that it is to guide is told one of {told}"
        )
    classes, sample = classes_asked(config, known), sampler(config)
    scale = scale_of(config, parts.sde, 0.0)

    def draw(score_of: ScoreOf, noise: solvers.Noise, condition: Condition) -> solvers.Samples:
        return sample(parts.sde, score_of(condition["class"] if told else None), noise)

    def guided(params: Any, condition: Condition, score: ScoreFn) -> ScoreFn:
        network = functools.partial(guide.parts.module.apply, {"params": params})
        log_prob = models.class_log_prob(parts.sde, network)
        likelihood = controllable.of_class(log_prob, condition["class"])
        return controllable.guided(score, likelihood, scale)

    described = f"{config.control.guide}, step {guide.step}, {guide.label}"
    return Problem(
        draw,
        {"class": classes},
        numbered(config),
        guidance=Guidance(guide.params, guided, described),
    )


CLASS_METHODS: dict[str, Callable[[Config, train.Parts], Problem]] = {
    "classifier_free": classifier_free,
    "classifier": by_classifier,
    "conditional": conditional,
}


def known_labels(config: Config) -> int:
    """The number of classes that the network can be told; refuses one that is told none."""
    if not config.model.num_labels:
        raise ValueError(
            f"control.method={config.control.method!r} needs a network that is told classes, and "
            "this one has model.num_labels=0; control.method=classifier guides it by the "
            "classifier in control.guide"
        )
    return config.model.num_labels


def classes_asked(config: Config, known: int) -> np.ndarray:
    """`control.classes` [n], all `known` ones where it is empty; refuses classes out of range."""
    chosen = config.control.classes
    classes = np.array(chosen or range(known), np.int32)
    if not all(0 <= y < known for y in classes):
        raise ValueError(f"control.classes is {chosen}; classes are 0 to {known - 1}")
    return classes


def scale_of(config: Config, sde: SDE, outside: float) -> controllable.Scale:
    """`control.scale` at noise levels in `control.interval`, and `outside` at others."""
    options = config.control
    if not options.interval:
        return options.scale
    ends = controllable.times_of_noise(sde, *options.interval)
    return controllable.within(*ends, options.scale, outside)
