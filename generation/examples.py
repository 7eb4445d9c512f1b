"""The two kinds of examples: images of grey levels, and points.

`from_config` chooses one of the two; the loops know no other difference.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from PIL import Image

import data
import likelihood
from data import transforms
from generation import point_figures
from runtime import figures

Drawn = dict[str, np.ndarray]


class Kind(Protocol):
    """A kind of examples.

    Attributes:
      examples: what they are called.
      unit: of likelihoods, "bits" or "nats".
      overview: name of the picture of a folder of samples.
      described: what a likelihood is of, in words.
    """

    examples: ClassVar[str]
    unit: ClassVar[str]
    overview: ClassVar[str]

    @property
    def described(self) -> str: ...

    def continuous(self, stored: jax.Array, keys: jax.Array) -> jax.Array:
        """Stored examples [B, ...] in the model's range, with a density; noise from keys [B]."""
        ...

    def per_dim(self, logp: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Negative log-likelihood per dimension [B] in `unit`, from `logp` [B] in nats."""
        ...

    def save_pictures(self, folder: pathlib.Path, name: str, drawn: Drawn) -> None:
        """Writes `<name>.png`, and where there are frames the GIF of how the samples came about."""
        ...

    def save_each(self, folder: pathlib.Path, indices: np.ndarray, samples: np.ndarray) -> None:
        """Writes every sample as a file of its own, where that makes sense."""
        ...


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of integer grey levels: dequantised for likelihoods, which count the levels."""

    levels: int
    centered: bool

    examples: ClassVar[str] = "images"
    unit: ClassVar[str] = "bits"
    overview: ClassVar[str] = "grid"
    in_picture: ClassVar[int] = 64

    @property
    def described(self) -> str:
        return f"{self.levels} levels, uniform dequantisation"

    def continuous(self, stored: jax.Array, keys: jax.Array) -> jax.Array:
        return transforms.uniform_dequantize(stored, keys, self.levels, self.centered)

    def per_dim(self, logp: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return likelihood.bits_per_dim(logp, shape, self.levels, 2.0 if self.centered else 1.0)

    def save_pictures(self, folder: pathlib.Path, name: str, drawn: Drawn) -> None:
        display = functools.partial(transforms.to_display, levels=self.levels)
        first = drawn["image"][: self.in_picture]
        figures.save_grid(folder / f"{name}.png", np.asarray(display(first)))
        if "frames" in drawn:
            frames = np.asarray(display(drawn["frames"][: self.in_picture])).swapaxes(0, 1)
            figures.save_gif(folder / "reverse_process.gif", frames)

    def save_each(self, folder: pathlib.Path, indices: np.ndarray, samples: np.ndarray) -> None:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        shown = np.asarray(transforms.to_display(samples, self.levels))
        for index, picture in zip(indices, shown, strict=True):
            Image.fromarray(picture.squeeze()).save(folder / "images" / f"{index:06d}.png")


class Points:
    """Real-valued vectors [1, 1, D], compared as they are; likelihoods in nats.

    Pictures show the first two coordinates.
    """

    examples: ClassVar[str] = "points"
    unit: ClassVar[str] = "nats"
    overview: ClassVar[str] = "scatter"
    described = "real-valued"

    def continuous(self, stored: jax.Array, keys: jax.Array) -> jax.Array:
        del keys
        return stored

    def per_dim(self, logp: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return -logp / math.prod(shape)

    def save_pictures(self, folder: pathlib.Path, name: str, drawn: Drawn) -> None:
        points = self.plane(drawn["image"])
        point_figures.save_scatter(folder / f"{name}.png", points)
        if "frames" in drawn:
            half = point_figures.half_width(points)
            steps = self.plane(drawn["frames"]).swapaxes(0, 1)
            frames = np.stack([point_figures.raster(step, half) for step in steps])
            figures.save_gif(folder / "reverse_process.gif", frames[:, None])

    def save_each(self, folder: pathlib.Path, indices: np.ndarray, samples: np.ndarray) -> None:
        """Nothing: the shards hold the points."""

    @staticmethod
    def plane(points: np.ndarray) -> np.ndarray:
        """The first two coordinates of points [..., 1, 1, D]: [..., 2]."""
        return points[..., 0, 0, :2]


def from_config(config: Any) -> Kind:
    """The kind of examples of `config.data.dataset`."""
    levels = data.grey_levels(config.data.dataset)
    return Images(levels, config.data.centered) if levels else Points()
