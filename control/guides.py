"""Guides: trained networks beside the score's, whose gradients say where to go."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import configs
from control.problem import Config, pixels_of
from runtime import experiment
from runtime.workdir import restore


@dataclasses.dataclass(frozen=True)
class Guide:
    """A guide and its weights, which lie on every device.

    Attributes:
      config: of the guide's own run.
      parts: what that config describes.
      params: its weights, as `config.eval` of that run chooses them.
      step, label: where they are from, for tables.
    """

    config: Config
    parts: experiment.Parts
    params: Any
    step: int
    label: str


def load_guide(config: Config, parts: experiment.Parts, objective: str) -> Guide:
    """The trained network of the run in `config.control.guide`.

    A guide looks at the noisy images of one process at a time t, so it guides only in the process,
    and the range of pixels, that it was trained in.

    Args:
      config, parts: of the score network that it is to guide.
      objective: the `training.objective` of a guide of the wanted kind.

    Raises:
      ValueError: no guide is named, there is no run, or it is another objective's, or it knows
        other images or another SDE.
      FileNotFoundError: the run has no checkpoint.
    """
    name = config.control.guide
    if not name:
        raise ValueError(
            f"control.task={config.control.task!r} with this control.method needs a guide: "
            "control.guide, the folder of a run that was trained with "
            f"training.objective={objective!r}"
        )
    workdir = pathlib.Path(name)
    stored = workdir / "config.json"
    if not stored.is_file():
        raise ValueError(f"control.guide={name!r} holds no run: there is no {stored}")
    own = configs.from_stored(json.loads(stored.read_text()))
    if own.training.objective != objective:
        raise ValueError(
            f"control.guide={name!r} was trained with training.objective="
            f"{own.training.objective!r}; needed is {objective!r}"
        )
    theirs = experiment.build(own)
    for what, guide, score in (
        ("images of shape", theirs.image_shape, parts.image_shape),
        ("pixels in", pixels_of(own, theirs), pixels_of(config, parts)),
        ("the SDE", theirs.sde, parts.sde),
    ):
        if guide != score:
            raise ValueError(
                f"control.guide={name!r} knows {what} {guide}, and the score network {score}"
            )
    found = restore(own, theirs, workdir)
    return Guide(own, theirs, found.params, found.step, found.label)
