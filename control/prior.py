"""The prior of controlled generation: what a network has learnt, and how it is sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import ml_collections
import numpy as np

import data
import sampling
from diffusion import grids
from runtime import experiment
from runtime.experiment import Pixels
from sde_lib import SDE, ScoreFn

Options: TypeAlias = ml_collections.ConfigDict  # one section of a config


@dataclasses.dataclass(frozen=True)
class Prior:
    """The distribution of images that a network has learnt, and the sampler that draws from it.

    Attributes:
      sde: the process of the network's training.
      continuous: True if the network knows all times in [0, T], not the SDE's N noise levels alone.
      image_shape: (H, W, C).
      pixels: the range in which the network sees images.
      num_labels: the number of classes that the network can be given; 0: none.
      unconditional: True if the network also knows images without a class.
      score: (params, classes [B] or None) -> score function.
      sampler: () -> the sampler of one image, without frames, or its refusal.
      options: section `sampling`.
      dataset_name: of the images that the network has learnt.
      dataset: the name of a split -> these images.
    """

    sde: SDE
    continuous: bool
    image_shape: tuple[int, int, int]
    pixels: Pixels
    num_labels: int
    unconditional: bool
    score: Callable[[Any, jax.Array | None], ScoreFn]
    sampler: Callable[[], sampling.Sampler]
    options: Options
    dataset_name: str
    dataset: Callable[[str], data.Dataset]

    def times(self) -> np.ndarray:
        """The decreasing time grid [M + 1] that `sampling` gives to solvers with few steps."""
        steps, name = self.options.num_steps or self.sde.N, self.options.time_grid or "log_snr"
        times = grids.time_grid(self.sde, name, steps, self.options.eps or None)
        return times if self.continuous else grids.on_levels(self.sde, times)


def prior_from_config(config: ml_collections.ConfigDict, parts: experiment.Parts) -> Prior:
    """The prior that a config and its parts describe; here the config is read for all tasks."""

    def sampler() -> sampling.Sampler:
        frameless = config.copy_and_resolve_references()
        frameless.sampling.num_frames = 0
        return sampling.from_config(frameless)

    return Prior(
        sde=parts.sde,
        continuous=parts.continuous,
        image_shape=parts.image_shape,
        pixels=parts.pixels,
        num_labels=parts.num_labels,
        unconditional=parts.unconditional,
        score=parts.score,
        sampler=sampler,
        options=config.sampling,
        dataset_name=parts.dataset_name,
        dataset=parts.dataset,
    )
