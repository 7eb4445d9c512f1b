"""The standardisation of real-valued data, so that a network sees mean 0 and variance 1.

The last axis of an example counts channels: the entries of a vector, the quantities of a series or
a field. Each channel c has one mean m_c and one standard deviation s_c, of all of its values in the
training examples, and the network sees

    z = (x - m_c) / s_c.

Samples are mapped back, x = m_c + s_c z. A density in the data's own units is p_x(x) = p_z(z) /
prod s_c, the product over all entries; per entry that is log p_x = log p_z - mean_c log s_c.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.datasets import Dataset, load

_ROWS = 4096  # examples that are looked at a time


class Standard(NamedTuple):
    """Mean and standard deviation of each channel; both are empty where values stay as they are."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def to_model(self, x: Any) -> jax.Array:
        """Values [..., C] in the data's units to those that the network sees."""
        x = jnp.asarray(x, jnp.float32)
        return (x - jnp.array(self.mean)) / jnp.array(self.std) if self.std else x

    def to_data(self, z: Any) -> jax.Array:
        """The inverse of `to_model`."""
        z = jnp.asarray(z)
        return jnp.array(self.mean) + jnp.array(self.std) * z if self.std else z

    @property
    def mean_log_std(self) -> float:
        """log |dx/dz| per entry, in nats."""
        return float(np.mean(np.log(self.std))) if self.std else 0.0


AS_IT_IS = Standard()


def checked(mean: tuple[float, ...], std: tuple[float, ...], shape: tuple[int, ...]) -> Standard:
    """The standardisation that a config gives, for examples of this shape.

    Raises:
      ValueError: as many numbers as there are channels, of both, are not given.
    """
    channels = shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"config.data.mean has {len(mean)} number(s) and config.data.std {len(std)}, and "
            f"examples of data.shape={shape} have {channels} channel(s); give as many of both, or "
            "neither: they are then those of the training examples"
        )
    return Standard(tuple(map(float, mean)), tuple(map(float, std)))


def of_examples(dataset: Dataset) -> Standard:
    """The standardisation by the mean and the deviation of each channel, in two passes.

    Raises:
      ValueError: a channel has the same value everywhere, so that its data have no density.
    """
    channels, count = dataset.image_shape[-1], len(dataset)
    starts = range(0, count, _ROWS)

    def rows(start: int) -> np.ndarray:
        examples, _ = dataset.take(np.arange(start, min(start + _ROWS, count)))
        return np.asarray(examples, np.float64).reshape(-1, channels)

    values = count * int(np.prod(dataset.image_shape[:-1]))
    mean = np.sum([rows(start).sum(0) for start in starts], 0) / values
    square = np.sum([np.square(rows(start) - mean).sum(0) for start in starts], 0) / values
    std = np.sqrt(square).astype(np.float32)
    constant = np.flatnonzero(std <= 1e-6 * np.abs(mean))
    if len(constant):
        raise ValueError(
            f"{dataset.name}/{dataset.split}: channel {constant[0]} is {mean[constant[0]]:g} in "
            f"all {count} examples ({len(constant)} such channel(s)); what does not vary has no "
            "density: leave it out"
        )
    return Standard(tuple(mean.astype(np.float32).tolist()), tuple(std.tolist()))


def standard(section: Any) -> Standard | None:
    """The standardisation that `config.data` asks for; None: of images, and of points of the plane.

    Where it gives no numbers they are those of the training examples, which are read for it.

    Raises:
      ValueError: numbers that do not fit the shape; whatever is wrong with the examples.
    """
    if not section.shape:
        return None
    if section.mean or section.std:
        return checked(section.mean, section.std, tuple(section.shape))
    folder, shape = section.data_dir or None, tuple(section.shape)
    return of_examples(load(section.dataset, "train", folder, shape=shape))
