"""Guides: trained networks beside the score's, whose gradients say where to go."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from control.prior import Prior
from runtime import experiment, files
from runtime.workdir import CONFIG, restore, stored_config


@dataclasses.dataclass(frozen=True)
class Guide:
    """A guide and its weights, which lie on every device.

    Attributes:
      config: of the guide's own run.
      parts: what that config describes.
      params: its weights, as `config.eval` of that run chooses them.
      step, label: where they are from, for tables.
    """

    config: ml_collections.ConfigDict
    parts: experiment.Parts
    params: Any
    step: int
    label: str

    def source(self, folder: str) -> str:
        """The origin of the weights, in words; `folder` is the run's."""
        return f"{folder}, step {self.step}, {self.label}"


def load_guide(folder: str, prior: Prior, objective: str) -> Guide:
    """The trained network of the run in a folder, `control.guide`.

    A guide looks at the noisy images of one process at a time t, so it guides only in the process,
    and the range of pixels, that it was trained in.

    Args:
      prior: what it is to guide.
      objective: the `training.objective` of a guide of the wanted kind.

    Raises:
      ValueError: no guide is named, there is no run, or it is another objective's, or it knows
        other images or another SDE.
      FileNotFoundError: the run has no checkpoint.
    """
    if not folder:
        raise ValueError(
            "this control.task with this control.method needs a guide: control.guide, the folder "
            f"of a run that was trained with training.objective={objective!r}"
        )
    workdir = files.as_path(folder, "control.guide")
    if not (workdir / CONFIG).is_file():
        raise ValueError(f"control.guide={folder!r} holds no run: there is no {workdir / CONFIG}")
    config = stored_config(workdir)
    if config.training.objective != objective:
        raise ValueError(
            f"control.guide={folder!r} was trained with training.objective="
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
                f"control.guide={folder!r} knows {what} {of_guide}, and the score network "
                f"{of_score}"
            )
    trained = restore(config, parts, workdir)
    return Guide(config, parts, trained.params, trained.step, trained.label)
