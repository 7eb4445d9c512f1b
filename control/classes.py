"""The task "class": images of given classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import models
from control.prior import Options, Prior
from control.problem import Condition, Draw, Guidance, Problem, ScoreOf, variant_numbers
from diffusion import feynman_kac, guidance
from diffusion.noise import Noise
from diffusion.trajectory import Samples
from generation import guides
from sde_lib import ScoreFn


class Conditioning(NamedTuple):
    """A conditional draw, of the class in `condition["class"]`, out of `num_classes`."""

    num_classes: int
    draw: Draw
    guidance: Guidance | None = None


Method = Callable[[Prior, Options], Conditioning]


def images_of_classes(prior: Prior, options: Options, method: Method) -> Problem:
    """Images of `control.classes`.

    Raises:
      ValueError: a class out of range, or what the method refuses.
    """
    conditioning = method(prior, options)
    classes = class_numbers(options.classes, conditioning.num_classes)
    return Problem(
        conditioning.draw,
        {"class": classes},
        variant_numbers(options.num_variants),
        guidance=conditioning.guidance,
        target_classes=classes[:, None].repeat(options.num_variants, 1),
    )


def conditional(prior: Prior, options: Options) -> Conditioning:
    """Images from a network that is told the class, without guidance.

    Raises:
      ValueError: a network that is not told classes.
    """
    num_classes, sample = labels_of_network(prior, options), prior.sampler()

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        return sample(prior.sde, score_of(condition["class"]), noise)

    return Conditioning(num_classes, draw)


def classifier_free(prior: Prior, options: Options) -> Conditioning:
    """Images by `guidance.classifier_free`, at noise levels in `control.interval`; by
    `guidance.projected`, where `control.parallel` or `control.limit` says so.

    Raises:
      ValueError: a network that is not told classes, or always is.
    """
    num_classes = labels_and_none(prior, options)
    sample, lead = prior.sampler(), away_from(prior, options)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        score = score_of(condition["class"])
        return sample(prior.sde, lead(score_of(None), score), noise)

    return Conditioning(num_classes, draw)


def corrected(prior: Prior, options: Options) -> Conditioning:
    """Images of p(x)^(1 - scale) p(x | class)^scale: `classifier_free` without its bias, by
    `feynman_kac.sample` with `control.particles` particles of each image.

    Raises:
      ValueError: a network that is not told classes, or always is.
    """
    num_classes, times = labels_and_none(prior, options), prior.times()
    weights, count = (1.0 - options.scale, options.scale), options.particles

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        classes = jnp.repeat(condition["class"], count)
        product = guidance.Product((score_of(None), score_of(classes)), weights)
        return feynman_kac.sample(prior.process, product, noise, times, count)

    return Conditioning(num_classes, draw)


def autoguidance(prior: Prior, options: Options) -> Conditioning:
    """Images of a network that is told the class, led away from those of the weaker network in
    `control.guide`, which is told the class if it knows any.

    Raises:
      ValueError: a network that is not told classes, or what `guides.load_guide` refuses.
    """
    num_classes = labels_of_network(prior, options)
    guide = guides.load_guide(options.guide, prior, guides.SCORE)
    guides.refuse_scale(options.scale, "control.scale", "control.guide")
    sample, lead = prior.sampler(), away_from(prior, options)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        return sample(prior.sde, score_of(condition["class"]), noise)

    def guided(params: Any, condition: Condition, score: ScoreFn) -> ScoreFn:
        return lead(guides.weak_score(guide, params, condition["class"]), score)

    source = guide.source(options.guide)
    return Conditioning(num_classes, draw, Guidance(guide.params, guided, source))


def classifier(prior: Prior, options: Options) -> Conditioning:
    """Images guided by the classifier of noisy images in `control.guide` (eq. 14).

    A network that is told classes is told them here too, as Dhariwal and Nichol 2021
    (arXiv:2105.05233) do: guidance then sharpens what it knows of the class.

    Raises:
      ValueError: what `guides.load_guide` refuses.
    """
    guide = guides.load_guide(options.guide, prior, models.CLASSIFIER)
    sample = prior.sampler()
    scale = guide.scale(options.scale, options.interval)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        score = score_of(condition["class"] if prior.num_labels else None)
        return sample(prior.sde, score, noise)

    def guided(params: Any, condition: Condition, score: ScoreFn) -> ScoreFn:
        return guide.guided(params, score, condition["class"], scale)

    source = guide.source(options.guide)
    return Conditioning(guide.num_classes, draw, Guidance(guide.params, guided, source))


def away_from(prior: Prior, options: Options) -> Callable[[ScoreFn, ScoreFn], ScoreFn]:
    """From a score, and a better one, to that which leads on from the first through the second."""
    scale = guidance.scale_in(prior.sde, options.scale, options.interval, outside=1.0)
    if options.parallel == 1.0 and not options.limit:
        return lambda score_fn, better_fn: guidance.classifier_free(score_fn, better_fn, scale)
    return lambda score_fn, better_fn: guidance.projected(
        *(prior.sde, score_fn, better_fn, scale),
        parallel=options.parallel,
        limit=options.limit or math.inf,
        center=0.0 if prior.pixels.centered else 0.5,
    )


def labels_and_none(prior: Prior, options: Options) -> int:
    """The number of classes that the network can be told, or not.

    Raises:
      ValueError: a network that is not told classes, or always is.
    """
    num_classes = labels_of_network(prior, options)
    if not prior.unconditional:
        raise ValueError(
            f"control.method={options.method!r} needs a network that knows images without a class, "
            "and this one was told every class (training.label_dropout is 0); use conditional"
        )
    return num_classes


def labels_of_network(prior: Prior, options: Options) -> int:
    """The number of classes that the network can be told.

    Raises:
      ValueError: it is told none.
    """
    if not prior.num_labels:
        raise ValueError(
            f"control.method={options.method!r} needs a network that is told classes, and "
            "this one has model.num_labels=0; control.method=classifier guides it by the "
            "classifier in control.guide"
        )
    return prior.num_labels


def class_numbers(classes: tuple[int, ...], num_classes: int) -> np.ndarray:
    """The classes [n] of `control.classes`, all of them where it is empty.

    Raises:
      ValueError: a class out of range.
    """
    numbers = np.array(classes or range(num_classes), np.int32)
    if not all(0 <= y < num_classes for y in numbers):
        raise ValueError(f"control.classes is {classes}; classes are 0 to {num_classes - 1}")
    return numbers
