"""The task "class": images of given classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import controllable
import models
from configs.names import lookup
from control import guides
from control.problem import (
    Condition,
    Config,
    Guidance,
    Problem,
    ScoreOf,
    numbered,
    sampler,
)
from diffusion.noise import Noise
from diffusion.trajectory import Samples
from runtime import experiment
from sde_lib import SDE, ScoreFn

# Classes.


def by_class(config: Config, parts: experiment.Parts) -> Problem:
    """Images of `control.classes`, by one of `CLASS_METHODS`.

    Raises:
      ValueError: unknown method, or what the method refuses.
    """
    make = lookup(CLASS_METHODS, config.control.method, "control.method")
    problem: Problem = make(config, parts)
    asked = problem.conditions["class"][:, None].repeat(len(problem.variants), 1)
    return dataclasses.replace(problem, asked=asked)


def conditional(config: Config, parts: experiment.Parts) -> Problem:
    """Images from a network that is told the class, without guidance.

    Raises:
      ValueError: a network that is not told classes, or a class that it does not know.
    """
    classes, sample = classes_asked(config, known_labels(config)), sampler(config)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        return sample(parts.sde, score_of(condition["class"]), noise)

    return Problem(draw, {"class": classes}, numbered(config))


def classifier_free(config: Config, parts: experiment.Parts) -> Problem:
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

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        told = score_of(condition["class"])
        return sample(parts.sde, controllable.classifier_free(score_of(None), told, scale), noise)

    return Problem(draw, {"class": classes}, numbered(config))


def by_classifier(config: Config, parts: experiment.Parts) -> Problem:
    """Images guided by the classifier of noisy images in `control.guide` (eq. 14).

    A network that is told classes is told them here too, as Dhariwal and Nichol 2021
    (arXiv:2105.05233) do: guidance then sharpens what it knows of the class.

    Raises:
      ValueError: what `guides.load_guide` refuses, or a class that the classifier does not know.
    """
    guide = guides.load_guide(config, parts, models.CLASSIFIER)
    known, told = guide.config.classifier.num_classes, config.model.num_labels
    if told and told != known:
        raise ValueError(
            f"control.guide={config.control.guide!r} tells {known} classes apart, and the network "
            f"that it is to guide is told one of {told}"
        )
    classes, sample = classes_asked(config, known), sampler(config)
    scale = scale_of(config, parts.sde, 0.0)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
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


CLASS_METHODS: dict[str, Callable[[Config, experiment.Parts], Problem]] = {
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
