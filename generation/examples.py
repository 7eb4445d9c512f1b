"""The kinds of examples: images of grey levels, points of the plane, and other real numbers.

`kind_of` chooses one of them; the loops know no other difference. Samples are as the data set
stores them: uint8 levels [B, H, W, C], float32 points [B, 1, 1, D], or float32 values [B, *shape].
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import ClassVar, Protocol

import jax
import numpy as np
from PIL import Image

import data
import likelihood
from data import transforms
from generation import point_figures, value_figures
from runtime import figures, files
from runtime.arrays import Row
from runtime.experiment import Pixels

LARGEST_SIDE = 128  # of an image in `strip`, in pixels
Batch = Mapping[str, np.ndarray]  # of samples: "image", perhaps "frames" [B, K, ...], and others


class Kind(Protocol):
    """A kind of examples.

    Attributes:
      examples: the plural of what they are called.
      unit: of likelihoods, "bits" or "nats".
      overview: name of the picture of a folder of samples.
      in_picture: the number of samples that such a picture needs, and
      in_strip: the number that `strip` needs of each step.
      described: the examples whose likelihood is meant, in words.
    """

    examples: ClassVar[str]
    unit: ClassVar[str]
    overview: ClassVar[str]
    in_picture: ClassVar[int]
    in_strip: ClassVar[int]

    @property
    def described(self) -> str: ...

    def row(self, shape: tuple[int, ...]) -> Row:
        """A stored sample of this shape, as a row of a shard."""
        ...

    def continuous(self, stored: jax.Array, keys: jax.Array) -> jax.Array:
        """Stored examples [B, ...] in the model's range, with a density; noise from keys [B]."""
        ...

    def per_dim(self, logp: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Negative log-likelihood per dimension [B] in `unit`, from `logp` [B] in nats."""
        ...

    def save_pictures(self, folder: pathlib.Path, name: str, batch: Batch) -> None:
        """Writes `<name>.png`, and where there are frames the GIF of how the samples came about."""
        ...

    def save_each(self, folder: pathlib.Path, indices: np.ndarray, samples: np.ndarray) -> None:
        """Writes every sample as a file of its own, where that makes sense."""
        ...

    def strip(self, samples: Mapping[int, np.ndarray]) -> np.ndarray:
        """A picture, uint8 [height, width] or [height, width, 3], of samples at several steps of
        training, the number of the step beside them."""
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
    in_strip: ClassVar[int] = 8

    @property
    def described(self) -> str:
        return f"{self.levels} levels, uniform dequantisation"

    def row(self, shape: tuple[int, ...]) -> Row:
        return "u", shape

    def continuous(self, stored: jax.Array, keys: jax.Array) -> jax.Array:
        return transforms.uniform_dequantize(stored, keys, self.levels, self.centered)

    def per_dim(self, logp: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return likelihood.bits_per_dim(logp, shape, self.levels, 2.0 if self.centered else 1.0)

    def save_pictures(self, folder: pathlib.Path, name: str, batch: Batch) -> None:
        with files.whole(folder / f"{name}.png") as path:
            figures.save_grid(path, self._display(batch["image"][: self.in_picture]))
        if "frames" in batch:
            frames = self._display(batch["frames"][: self.in_picture]).swapaxes(0, 1)
            with files.whole(folder / "reverse_process.gif") as path:
                figures.save_gif(path, frames)

    def save_each(self, folder: pathlib.Path, indices: np.ndarray, samples: np.ndarray) -> None:
        with files.filled(folder / "images") as images:
            for index, picture in zip(indices, self._display(samples), strict=True):
                with files.whole(images / f"{index:06d}.png") as path:
                    Image.fromarray(picture.squeeze()).save(path)

    def strip(self, samples: Mapping[int, np.ndarray]) -> np.ndarray:
        """A row of images for each step, its number below the first one."""
        width = min(self.in_strip, *map(len, samples.values()))
        rows = [self._display(images[:width]) for images in samples.values()]
        labels = [f"step {step}" if i == 0 else "" for step in samples for i in range(width)]
        return figures.grid(_reduced(np.concatenate(rows), LARGEST_SIDE), width, labels=labels)

    def _display(self, samples: np.ndarray) -> np.ndarray:
        return np.asarray(transforms.to_display(samples, self.levels))


class Points:
    """Real-valued vectors [1, 1, D], compared as they are; likelihoods in nats.

    Pictures show the first two coordinates.
    """

    examples: ClassVar[str] = "points"
    unit: ClassVar[str] = "nats"
    overview: ClassVar[str] = "scatter"
    in_picture: ClassVar[int] = 5000
    in_strip: ClassVar[int] = 5000
    described = "real-valued"

    def row(self, shape: tuple[int, ...]) -> Row:
        return "f", shape

    def continuous(self, stored: jax.Array, keys: jax.Array) -> jax.Array:
        del keys
        return stored

    def per_dim(self, logp: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return -logp / math.prod(shape)

    def save_pictures(self, folder: pathlib.Path, name: str, batch: Batch) -> None:
        points = self.plane(batch["image"])
        with files.whole(folder / f"{name}.png") as path:
            point_figures.save_scatter(path, points)
        if "frames" in batch:
            half = point_figures.half_width(points)
            steps = self.plane(batch["frames"]).swapaxes(0, 1)
            frames = np.stack([point_figures.raster(step, half) for step in steps])
            with files.whole(folder / "reverse_process.gif") as path:
                figures.save_gif(path, frames[:, None])

    def save_each(self, folder: pathlib.Path, indices: np.ndarray, samples: np.ndarray) -> None:
        """Writes nothing: the shards hold the points."""

    def strip(self, samples: Mapping[int, np.ndarray]) -> np.ndarray:
        """A scatter for each step, all of the same part of the plane: that of the last one."""
        steps = {f"step {step}": self.plane(points) for step, points in samples.items()}
        return point_figures.scatters(steps, point_figures.half_width([*steps.values()][-1]))

    @staticmethod
    def plane(points: np.ndarray) -> np.ndarray:
        """The first two coordinates of points [..., 1, 1, D]: [..., 2]."""
        return points[..., 0, 0, :2]


@dataclasses.dataclass(frozen=True)
class Values:
    """Real numbers of any shape in the data's own units, which a network sees standardised.

    Likelihoods are of the numbers themselves, in nats: the standardisation's Jacobian counts.
    """

    standard: data.Standard

    examples: ClassVar[str] = "examples"
    unit: ClassVar[str] = "nats"
    overview: ClassVar[str] = "overview"
    in_picture: ClassVar[int] = 5000
    in_strip: ClassVar[int] = 1000
    described = "real-valued, in the data's own units"

    def row(self, shape: tuple[int, ...]) -> Row:
        return "f", shape

    def continuous(self, stored: jax.Array, keys: jax.Array) -> jax.Array:
        del keys
        return self.standard.to_model(stored)

    def per_dim(self, logp: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return -logp / math.prod(shape) + self.standard.mean_log_std

    def save_pictures(self, folder: pathlib.Path, name: str, batch: Batch) -> None:
        values = batch["image"][: self.in_picture]
        with files.whole(folder / f"{name}.png") as path:
            value_figures.save(path, value_figures.raster(values))
        if "frames" in batch:
            limits = value_figures.limits_of(values)
            steps = batch["frames"][: self.in_picture].swapaxes(0, 1)
            frames = np.stack([value_figures.raster(step, "", limits) for step in steps])
            with files.whole(folder / "reverse_process.gif") as path:
                figures.save_gif(path, frames[:, None], max_side=640)

    def save_each(self, folder: pathlib.Path, indices: np.ndarray, samples: np.ndarray) -> None:
        """Writes nothing: the shards hold the numbers."""

    def strip(self, samples: Mapping[int, np.ndarray]) -> np.ndarray:
        """A picture for each step, one below the other, all in the limits of the last one."""
        limits = value_figures.limits_of([*samples.values()][-1])
        return value_figures.stacked(
            [value_figures.raster(x, f"step {step}", limits) for step, x in samples.items()]
        )


def _reduced(images: np.ndarray, side: int) -> np.ndarray:
    """Images uint8 [B, H, W, C] whose sides are divided by the whole number that makes them fit."""
    factor = -(-max(images.shape[1:3]) // side)
    if factor == 1:
        return images
    pictures = [Image.fromarray(image.squeeze()).reduce(factor) for image in images]
    return np.stack([np.asarray(picture) for picture in pictures])


def kind_of(pixels: Pixels) -> Kind:
    """The kind of the examples whose pixels these are; points and values have no grey levels."""
    if pixels.standard is not None:
        return Values(pixels.standard)
    return Images(pixels.levels, pixels.centered) if pixels.levels else Points()
