"""A problem of controlled generation, posed by a task of `run.TASKS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import data
from data import transforms
from diffusion.noise import Noise
from diffusion.trajectory import Samples
from evaluation.batch_cache import Store
from sde_lib import ScoreFn

Condition = dict[str, jax.Array]  # of one image: leaves [1, ...]
ScoreOf = Callable[..., ScoreFn]  # from classes [B], or None, and perhaps given entries to a score
Draw = Callable[[ScoreOf, Noise, Condition], Samples]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """The guidance of every score that a problem's draw asks for.

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
    """A conditional draw, an inverse problem for instance, of several variants for each input.

    Attributes:
      draw: one image from its condition and noise.
      conditions: arrays [n, ...], one row for each of n inputs.
      variants: the names of the variants of each input.
      columns_before: pictures by name, uint8 levels [n, H, W, C], shown before the variants.
      columns_after: the same, shown behind them; the variants are compared with "original".
      titles: of the inputs, written below their rows in place of the variants' names.
      guidance: of the scores that `draw` is given, whatever it does with them.
      prepare: from the network's weights to further conditions [n, ...] that depend on them; it
        keeps its finished batches in the store.
      target_classes: [n, variants], the class that each image should be taken for; -1: none.
      to_levels: how an image becomes levels, where that is not `Pixels.to_levels`.
      error: mean square of A x - y [1] for an image and its condition, where something is measured.
      reward: of an image [1, ...], [1], where one is asked for.
      sources: hashes of files that the draw depends on, by their names in `results.json`.
    """

    draw: Draw
    conditions: dict[str, np.ndarray]
    variants: list[str]
    columns_before: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    columns_after: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    titles: list[str] | None = None
    guidance: Guidance | None = None
    prepare: Callable[[Any, Store], dict[str, np.ndarray]] | None = None
    target_classes: np.ndarray | None = None
    to_levels: Callable[[jax.Array], jax.Array] | None = None
    error: Callable[[jax.Array, Condition], jax.Array] | None = None
    reward: Callable[[jax.Array], jax.Array] | None = None
    sources: dict[str, str] = dataclasses.field(default_factory=dict)


def variant_numbers(count: int) -> list[str]:
    """The names "1", "2", ... of variants that differ by their noise alone."""
    return [str(k + 1) for k in range(count)]


def input_images(dataset: data.Dataset, count: int) -> np.ndarray:
    """The first `count` images [count, H, W, C] of a data set, in whole levels.

    Raises:
      ValueError: there are not as many.
    """
    if count > len(dataset):
        raise ValueError(
            f"control.num_images is {count}, but {dataset.name}/{dataset.split} has {len(dataset)}"
        )
    return images_of(dataset, np.arange(count))


def images_of(dataset: data.Dataset, rows: np.ndarray) -> np.ndarray:
    """The images [k, H, W, C] of `rows` [k], in whole levels; real-valued examples as they are."""
    images, _ = dataset.take(rows)
    return np.asarray(transforms.whole_levels(images, dataset.levels) if dataset.levels else images)
