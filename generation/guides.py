"""Guides: trained networks beside the score's, whose gradients say where to go."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import ml_collections

import controllable
import models
from runtime import experiment, files
from runtime.workdir import CONFIG, restore, stored_config
from sde_lib import ScoreFn

GUIDE = "sampling.guide"


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
        """The origin of the weights, in words; `folder` is the run's."""
        return f"{folder}, step {self.step}, {self.label}"

    @property
    def num_classes(self) -> int:
        """The number of classes that a classifier tells apart."""
        return int(self.config.classifier.num_classes)

    def towards(
        self, params: Any, score: ScoreFn, classes: jax.Array, scale: controllable.Scale
    ) -> ScoreFn:
        """`controllable.guided` towards the classes [B], by a classifier with these weights.

        Args:
          params: `self.params`, as a compiled function was handed them.
        """
        network = functools.partial(self.parts.module.apply, {"params": params})
        log_prob = models.class_log_prob(self.parts.sde, network)
        return controllable.guided(score, controllable.of_class(log_prob, classes), scale)


def load_guide(
    folder: str, prior: experiment.Parts, objective: str, field: str = "control.guide"
) -> Guide:
    """The trained network of the run in a folder, the config's `field`.

    Args:
      prior: what it is to guide.
      objective: the `training.objective` of a guide of the wanted kind.
      field: for messages.

    Raises:
      ValueError: what `described` refuses.
      FileNotFoundError: the run has no checkpoint.
    """
    config, parts = described(folder, prior, objective, field)
    trained = restore(config, parts, files.as_path(folder, field))
    return Guide(config, parts, trained.params, trained.step, trained.label, trained.sha256)


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
    if not folder:
        raise ValueError(
            f"this control.task with this control.method needs a guide: {field}, the folder "
            f"of a run that was trained with training.objective={objective!r}"
        )
    workdir = files.as_path(folder, field)
    if not (workdir / CONFIG).is_file():
        raise ValueError(f"{field}={folder!r} holds no run: there is no {workdir / CONFIG}")
    config = stored_config(workdir)
    if config.training.objective != objective:
        raise ValueError(
            f"{field}={folder!r} was trained with training.objective="
            f"{config.training.objective!r}; needed is {objective!r}"
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
    return config, parts


def of_samples(sampling: ml_collections.ConfigDict, prior: experiment.Parts) -> Guide | None:
    """The classifier in `sampling.guide`, or None where none is named.

    Raises:
      ValueError, FileNotFoundError: what `load_guide` refuses.
    """
    if not sampling.guide:
        return None
    return load_guide(sampling.guide, prior, models.CLASSIFIER, GUIDE)


def check(sampling: ml_collections.ConfigDict, prior: experiment.Parts) -> None:
    """Refuses a `sampling.guide` that `of_samples` would refuse, before any weights are read."""
    if sampling.guide:
        described(sampling.guide, prior, models.CLASSIFIER, GUIDE)
