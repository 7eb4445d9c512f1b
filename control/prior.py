"""The prior of controlled generation: what a network has learnt, and how it is sampled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import ml_collections
import numpy as np

import data
import sampling
from data import transforms
from diffusion import grids
from runtime import experiment
from sde_lib import SDE, ScoreFn

Options: TypeAlias = ml_collections.ConfigDict  # one section of a config


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Between the levels of a data set and the range that the network sees."""

    levels: int
    centered: bool
    dequantized: bool

    def to_model(self, images: np.ndarray) -> np.ndarray:
        """uint8 levels to floats; a level's bin is represented by its middle."""
        if not self.dequantized:
            return np.asarray(transforms.scale(images, self.levels, self.centered))
        y = (np.asarray(images, np.float32) + 0.5) / self.levels
        return 2.0 * y - 1.0 if self.centered else y

    def to_levels(self, x: Any) -> jax.Array:
        """Floats of the network's range to uint8 levels."""
        return transforms.inverse_scale(x, self.levels, self.centered, self.dequantized)

    def to_levels_of_grey(self, x: Any) -> jax.Array:
        """As `to_levels`; the sums of red, green and blue are those of x."""
        return transforms.inverse_scale_of_grey(x, self.levels, self.centered, self.dequantized)


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

    def score(params: Any, classes: jax.Array | None) -> ScoreFn:
        return experiment.score_from_params(config, parts, params, classes)

    def sampler() -> sampling.Sampler:
        frameless = config.copy_and_resolve_references()
        frameless.sampling.num_frames = 0
        return sampling.from_config(frameless)

    return Prior(
        sde=parts.sde,
        continuous=config.training.continuous,
        image_shape=parts.image_shape,
        pixels=pixels_from_config(config, parts.levels),
        num_labels=config.model.num_labels,
        unconditional=not config.model.num_labels or config.training.label_dropout > 0,
        score=score,
        sampler=sampler,
        options=config.sampling,
        dataset_name=config.data.dataset,
        dataset=functools.partial(data.from_config, config),
    )


def pixels_from_config(config: ml_collections.ConfigDict, levels: int) -> Pixels:
    """The range of pixels that the network of a config sees."""
    return Pixels(levels, config.data.centered, config.data.uniform_dequantization)
