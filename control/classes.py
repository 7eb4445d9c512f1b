"""The task "class": images of given classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import controllable
import models
from control.prior import Options, Prior
from control.problem import Condition, Draw, Guidance, Problem, ScoreOf, variant_numbers
from diffusion.noise import Noise
from diffusion.trajectory import Samples
from generation import guides
from sde_lib import SDE, ScoreFn


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
    """Images by `controllable.classifier_free`, at noise levels in `control.interval`.

    Raises:
      ValueError: a network that is not told classes, or always is.
    """
    num_classes = labels_of_network(prior, options)
    if not prior.unconditional:
        raise ValueError(
            "control.method='classifier_free' needs a network that knows images without a class, "
            "and this one was told every class (training.label_dropout is 0); use conditional"
        )
    sample = prior.sampler()
    scale = guidance_scale(prior.sde, options.scale, options.interval, outside=1.0)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        score = score_of(condition["class"])
        guided = controllable.classifier_free(score_of(None), score, scale)
        return sample(prior.sde, guided, noise)

    return Conditioning(num_classes, draw)


def classifier(prior: Prior, options: Options) -> Conditioning:
    """Images guided by the classifier of noisy images in `control.guide` (eq. 14).

    A network that is told classes is told them here too, as Dhariwal and Nichol 2021
    (arXiv:2105.05233) do: guidance then sharpens what it knows of the class.

    Raises:
      ValueError: what `guides.load_guide` refuses.
    """
    guide = guides.load_guide(options.guide, prior, models.CLASSIFIER)
    sample = prior.sampler()
    scale = guidance_scale(prior.sde, options.scale, options.interval, outside=0.0)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        score = score_of(condition["class"] if prior.num_labels else None)
        return sample(prior.sde, score, noise)

    def guided(params: Any, condition: Condition, score: ScoreFn) -> ScoreFn:
        return guide.towards(params, score, condition["class"], scale)

    guidance = Guidance(guide.params, guided, guide.source(options.guide))
    return Conditioning(guide.num_classes, draw, guidance)


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


def guidance_scale(
    sde: SDE, scale: float, interval: tuple[float, ...], outside: float
) -> controllable.Scale:
    """`scale` at noise levels sigma / alpha in the interval, if there is one; else `outside`."""
    if not interval:
        return scale
    low, high = controllable.times_of_noise(sde, *interval)
    return controllable.within(low, high, scale, outside)
