"""The prior of controlled generation: what a network has learnt, and how it is sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import ml_collections
import numpy as np

import sampling
from diffusion import grids
from runtime.experiment import Parts
from sde_lib import SDE

Options: TypeAlias = ml_collections.ConfigDict  # one section of a config


@dataclasses.dataclass(frozen=True)
class Prior(Parts):
    """The distribution of images that a network has learnt, and the sampler that draws from it.

    Attributes:
      sampler: () -> the sampler of one image, without frames, or its refusal.
      options: section `sampling`.
    """

    sampler: Callable[[], sampling.Sampler]
    options: Options

    @property
    def process(self) -> SDE:
        """The process whose levels the network knows: the SDE, or its chain."""
        return self.sde if self.continuous else self.sde.chain

    def times(self) -> np.ndarray:
        """The decreasing time grid [M + 1] that `sampling` gives to solvers with few steps."""
        steps, name = self.options.num_steps or self.sde.N, self.options.time_grid or "log_snr"
        times = grids.time_grid(self.sde, name, steps, self.options.eps or None)
        return times if self.continuous else grids.on_levels(self.sde, times)


def prior_from_config(config: ml_collections.ConfigDict, parts: Parts) -> Prior:
    """The prior that a config and its parts describe; here the config is read for all tasks."""

    def sampler() -> sampling.Sampler:
        frameless = config.copy_and_resolve_references()
        frameless.sampling.num_frames = 0
        return sampling.from_config(frameless)

    return Prior(**vars(parts), sampler=sampler, options=config.sampling)
