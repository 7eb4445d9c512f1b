"""What a controlled generation is: a problem, posed by a task of `run.TASKS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import ml_collections
import numpy as np

import data
import sampling
from data import transforms
from diffusion import grids
from diffusion.noise import Noise
from diffusion.trajectory import Samples
from runtime import experiment
from sde_lib import SDE, ScoreFn

Config: TypeAlias = ml_collections.ConfigDict
Condition = dict[str, jax.Array]  # of one image: leaves [1, ...]
ScoreOf = Callable[[jax.Array | None], ScoreFn]  # from classes [B], or None, to a score
Draw = Callable[[ScoreOf, Noise, Condition], Samples]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """What guides every score that a problem's draw asks for.

    Attributes:
      weights: of the guide, on every device; an argument of the compiled draw.
      score: from these weights, the condition of one image and a score to the guided score.
      label: where the weights are from, for tables.
    """

    weights: Any
    score: Callable[[Any, Condition, ScoreFn], ScoreFn]
    label: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be drawn.

    Attributes:
      draw: one image from its condition and noise.
      conditions: arrays [n, ...], one row for each of n inputs.
      variants: the names of the variants of each input.
      before: pictures by column, uint8 levels [n, H, W, C], shown before the variants.
      after: the same, shown behind them; "original" is what they are compared with.
      titles: of the inputs, written below their rows in place of the variants' names.
      guidance: of the scores that `draw` is given, whatever it does with them.
      prepare: from the network's weights to further conditions [n, ...] that depend on them.
      asked: [n, variants], the class that each image should be taken for; -1: none.
      to_levels: how an image becomes levels, where that is not `Pixels.to_levels`.
      error: mean square of A x - y [1] for an image and its condition, where something is measured.
    """

    draw: Draw
    conditions: dict[str, np.ndarray]
    variants: list[str]
    before: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    after: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    titles: list[str] | None = None
    guidance: Guidance | None = None
    prepare: Callable[[Any], dict[str, np.ndarray]] | None = None
    asked: np.ndarray | None = None
    to_levels: Callable[[jax.Array], jax.Array] | None = None
    error: Callable[[jax.Array, Condition], jax.Array] | None = None


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
        return transforms.inverse_scale(x, self.levels, self.centered, self.dequantized)

    def to_levels_of_grey(self, x: Any) -> jax.Array:
        """As `to_levels`; the sums of red, green and blue are those of x."""
        return transforms.inverse_scale_of_grey(x, self.levels, self.centered, self.dequantized)


def pixels_of(config: Config, parts: experiment.Parts) -> Pixels:
    """How this config's network sees pixels."""
    return Pixels(parts.levels, config.data.centered, config.data.uniform_dequantization)


def numbered(config: Config) -> list[str]:
    return [str(k + 1) for k in range(config.control.num_variants)]


def inputs(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The first `control.num_images` images of `control.split`, with their classes.

    Raises:
      ValueError: there are not as many.
    """
    dataset = data.from_config(config, config.control.split)
    count = config.control.num_images
    if count > len(dataset):
        raise ValueError(
            f"control.num_images is {count}, but {dataset.name}/{dataset.split} has {len(dataset)}"
        )
    return dataset.take(np.arange(count))


def times(config: Config, sde: SDE, grid: str = "log_snr") -> np.ndarray:
    """The time grid that `config.sampling` gives to solvers with few steps."""
    options = config.sampling
    steps, name = options.num_steps or sde.N, options.time_grid or grid
    found = grids.time_grid(sde, name, steps, options.eps or None)
    return found if config.training.continuous else grids.on_levels(sde, found)


def sampler(config: Config) -> sampling.Sampler:
    """The sampler of `config.sampling`, for one image at a time and without frames."""
    alone = config.copy_and_resolve_references()
    alone.sampling.num_frames = 0
    return sampling.from_config(alone)
