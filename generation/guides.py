"""Guides: trained networks beside the score's, which say where to go, or where not to.

A guide is named by the folder of its run, or as `folder@step` by one of that run's checkpoints: a
step's number, "latest" or "best". What it does follows from what it was trained for (`kind_of`): a
classifier leads to classes; a network with a score is a weaker one of the same data, and what it
gets wrong is led away from.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections

import models
from diffusion import guidance
from diffusion.guidance import Scale
from runtime import experiment, files
from runtime.workdir import CONFIG, restore, stored_config
from sde_lib import ScoreFn

GUIDE = "sampling.guide"
SCORE = "score"  # in place of an objective: any by which a score is trained


@dataclasses.dataclass(frozen=True)
class Guide:
    """A guide and its weights, which lie on every device.

    Attributes:
      config: of the guide's own run.
      parts: what that config describes.
      params: its weights, as `config.eval` of that run chooses them.
      step, label: where they are from, for tables.
      sha256: their fingerprint.
    """

    config: ml_collections.ConfigDict
    parts: experiment.Parts
    params: Any
    step: int
    label: str
    sha256: str = ""

    def source(self, folder: str) -> str:
        """The origin of the weights, in words; `folder` is the run's, as the config names it."""
        return f"{folder}, step {self.step}, {self.label}"

    @property
    def num_classes(self) -> int:
        """The number of classes that it leads to; 0 where it leads to none."""
        return kind_of(self.parts.objective).num_classes(self)

    def scale(self, scale: float, interval: tuple[float, ...]) -> Scale:
        """The scale at noise levels in the interval, if there is one; none of it elsewhere."""
        outside = kind_of(self.parts.objective).without_effect
        return guidance.scale_in(self.parts.sde, scale, interval, outside)

    def guided(
        self,
        params: Any,
        score: ScoreFn,
        classes: jax.Array | None,
        scale: Scale,
    ) -> ScoreFn:
        """The score guided by these weights, as its kind does (`kind_of`).

        Args:
          params: `self.params`, as a compiled function was handed them.
          classes: [B], that the images are to be of; None: of no class.
        """
        return kind_of(self.parts.objective).guided(self, params, score, classes, scale)


class Kind(NamedTuple):
    """A kind of guides that guides samples.

    Attributes:
      guided: see `Guide.guided`, whose first argument is the guide.
      num_classes: of a guide.
      without_effect: the scale at which such a guide changes nothing.
    """

    guided: Callable[[Guide, Any, ScoreFn, jax.Array | None, Scale], ScoreFn]
    num_classes: Callable[[Guide], int]
    without_effect: float


def towards(
    guide: Guide,
    params: Any,
    score: ScoreFn,
    classes: jax.Array | None,
    scale: Scale,
) -> ScoreFn:
    """`guidance.guided` towards the classes [B], by a classifier with these weights."""
    if classes is None:
        raise ValueError("a classifier guides to classes, and none are given")
    network = functools.partial(guide.parts.module.apply, {"params": params})
    log_prob = models.class_log_prob(guide.parts.sde, network)
    return guidance.guided(score, guidance.of_class(log_prob, classes), scale)


def away_from(
    guide: Guide,
    params: Any,
    score: ScoreFn,
    classes: jax.Array | None,
    scale: Scale,
) -> ScoreFn:
    """`guidance.autoguided` by a weaker network, which is told the classes [B] if it knows any."""
    return guidance.autoguided(score, weak_score(guide, params, classes), scale)


def weak_score(guide: Guide, params: Any, classes: jax.Array | None) -> ScoreFn:
    """The score of a weaker network with these weights, of these classes [B] if it knows any."""
    return guide.parts.score(params, classes if guide.parts.num_labels else None)


CLASSIFIERS = Kind(towards, lambda guide: int(guide.config.classifier.num_classes), 0.0)
NETWORKS = Kind(away_from, lambda guide: 0, 1.0)
KINDS = {models.CLASSIFIER: CLASSIFIERS, SCORE: NETWORKS}


def kind_of(objective: str) -> Kind:
    """The kind of the guides of samples that an objective trains."""
    return KINDS[_trains(objective)]


def _trains(objective: str) -> str:
    """The objective of a network without a score, or SCORE."""
    return objective if objective in {**models.GUIDES, **models.FLOW_MAPS} else SCORE


def load_guide(
    folder: str, prior: experiment.Parts, objective: str, field: str = "control.guide"
) -> Guide:
    """The trained network that the config's `field` names.

    Args:
      folder: of its run, or folder@step.
      prior: what it is to guide.
      objective: the `training.objective` of a guide of the wanted kind, or SCORE.
      field: for messages.

    Raises:
      ValueError: what `described` refuses.
      FileNotFoundError: the run has no checkpoint, or not the one that is named.
    """
    config, parts = described(folder, prior, objective, field)
    trained = restore(config, parts, run_of(folder, field)[0])
    return Guide(config, parts, trained.params, trained.step, trained.label, trained.sha256)


def run_of(folder: str, field: str) -> tuple[pathlib.Path, str]:
    """The folder of a guide's run, and its checkpoint, if one is named; else "".

    Raises:
      ValueError: there is no run, or what is named is no checkpoint.
    """
    workdir = files.as_path(folder, field)
    if (workdir / CONFIG).is_file():
        return workdir, ""
    name, _, checkpoint = folder.rpartition("@")
    if not name or not (files.as_path(name, field) / CONFIG).is_file():
        raise ValueError(f"{field}={folder!r} holds no run: there is no {workdir / CONFIG}")
    if not (checkpoint.isdecimal() or checkpoint in ("latest", "best")):
        raise ValueError(
            f"{field}={folder!r} names the checkpoint {checkpoint!r}; valid values are a step's "
            "number, 'latest', 'best'"
        )
    return files.as_path(name, field), checkpoint


def described(
    folder: str, prior: experiment.Parts, objective: str, field: str = "control.guide"
) -> tuple[ml_collections.ConfigDict, experiment.Parts]:
    """The config of a guide's run and its parts, for `load_guide`, without its weights.

    A guide looks at the noisy images of one process at a time t, so it guides only in the process,
    and the range of pixels, that it was trained in.

    Raises:
      ValueError: no guide is named, there is no run, or it is another objective's, or it knows
        other images, another SDE, or other classes than the network is told.
    """
    prior.require_score()
    needed = "one of a score" if objective == SCORE else repr(objective)
    if not folder:
        raise ValueError(
            f"this control.task with this control.method needs a guide: {field}, the folder "
            f"of a run that was trained with training.objective={needed}"
        )
    workdir, checkpoint = run_of(folder, field)
    config = stored_config(workdir)
    if checkpoint:
        config.eval.checkpoint = checkpoint
    if _trains(config.training.objective) != objective:
        raise ValueError(
            f"{field}={folder!r} was trained with training.objective="
            f"{config.training.objective!r}; needed is {needed}"
        )
    parts = experiment.build(config)
    for what, of_guide, of_score in (
        ("images of shape", parts.image_shape, prior.image_shape),
        ("pixels in", parts.pixels, prior.pixels),
        ("the SDE", parts.sde, prior.sde),
    ):
        if of_guide != of_score:
            raise ValueError(
                f"{field}={folder!r} knows {what} {of_guide}, and the score network {of_score}"
            )
    classes = config.classifier.num_classes
    if objective == models.CLASSIFIER and prior.num_labels not in (0, classes):
        raise ValueError(
            f"{field}={folder!r} tells {classes} classes apart, and the network that it is to "
            f"guide is told one of {prior.num_labels}"
        )
    if objective == SCORE:
        _check_weak(folder, parts, prior, field)
    return config, parts


def _check_weak(folder: str, parts: experiment.Parts, prior: experiment.Parts, field: str) -> None:
    """Refuses a weaker network that could not be told what the stronger one is told."""
    if parts.num_labels and parts.num_labels != prior.num_labels:
        raise ValueError(
            f"{field}={folder!r} is told one of {parts.num_labels} classes, and the network that "
            f"it is to guide one of {prior.num_labels} (0: none)"
        )
    if prior.unconditional and not parts.unconditional:
        raise ValueError(
            f"{field}={folder!r} was told the class of every image (training.label_dropout is 0), "
            "and the network that it is to guide was not"
        )
    if parts.continuous != prior.continuous:
        known = {True: "all times", False: "the levels of its chain alone"}
        raise ValueError(
            f"{field}={folder!r} knows {known[parts.continuous]}, and the score network "
            f"{known[prior.continuous]} (training.continuous)"
        )


def of_samples(sampling: ml_collections.ConfigDict, prior: experiment.Parts) -> Guide | None:
    """The guide in `sampling.guide`, or None where none is named.

    Raises:
      ValueError, FileNotFoundError: what `load_guide` refuses.
    """
    if not sampling.guide:
        return None
    return load_guide(sampling.guide, prior, _objective_in(sampling), GUIDE)


def check(sampling: ml_collections.ConfigDict, prior: experiment.Parts) -> None:
    """Refuses a `sampling.guide` that `of_samples` would refuse, before any weights are read."""
    if sampling.guide:
        described(sampling.guide, prior, _objective_in(sampling), GUIDE)


def _objective_in(sampling: ml_collections.ConfigDict) -> str:
    """The objective of the guide in `sampling.guide`, or SCORE.

    Raises:
      ValueError: there is no run, it is no guide of samples, or it would change nothing.
    """
    folder, scale = sampling.guide, sampling.guide_scale
    objective = stored_config(run_of(folder, GUIDE)[0]).training.objective
    if _trains(objective) not in KINDS:
        raise ValueError(
            f"{GUIDE}={folder!r} was trained with training.objective={objective!r}; samples are "
            "guided by a classifier, or by a weaker network with a score"
        )
    if _trains(objective) == SCORE:
        refuse_scale(scale, "sampling.guide_scale", GUIDE)
    return _trains(objective)


def refuse_scale(scale: float, name: str, field: str) -> None:
    """Refuses the scale at which a weaker network, the config's `field`, would change nothing.

    Raises:
      ValueError: says which field has it, and what would do.
    """
    if scale == NETWORKS.without_effect:
        raise ValueError(
            f"{field} is a network with a score, which images are led away from, and {name}="
            f"{scale:g} does not do so: 2, for instance, does"
        )
