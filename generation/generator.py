"""Samples by number: each a function of (weights, seed, its index) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import sampling
from diffusion.noise import image_noise
from diffusion.trajectory import all_finite
from runtime import devices, errors, experiment


class Generator:
    """Draws images by number: the image with index i is the same in any batch on any device.

    They are images of no class.

    Args:
      parts: the experiment, whose network it is.
      sampler: see `sampling.from_config`.
      options: section `sampling` of the config.

    Raises:
      ValueError: a run without a score, or whose network was told a class with every image.
    """

    def __init__(
        self, parts: experiment.Parts, sampler: sampling.Sampler, options: ml_collections.ConfigDict
    ) -> None:
        parts.require_score()
        parts.require_unconditional()

        def draw(params: Any, indices: jax.Array, seeds: jax.Array) -> dict[str, jax.Array]:
            keys = devices.image_keys(jax.random.key(seeds[0]), indices)
            noise = image_noise(keys, parts.image_shape)
            samples = sampler(parts.sde, parts.score(params), noise)
            to_levels = parts.pixels.to_levels
            results = {
                "image": to_levels(samples.x),
                "nfe": jnp.broadcast_to(samples.nfe, indices.shape),
                "ok": samples.ok,
                "finite": all_finite(samples.x),
            }
            if samples.trajectory is not None:
                results["frames"] = jnp.moveaxis(to_levels(samples.trajectory), 0, 1)
            return results

        self.options = options
        self.draw = devices.ImageMap(draw, options.batch_size, "sampling.batch_size")

    def __call__(
        self,
        params: Any,
        indices: np.ndarray,
        description: str = "sampling",
        seed: int | None = None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields `(indices, {"image", "nfe", ["frames" [b, K, ...]]})` per batch.

        The images are as the data set stores them: uint8 levels, or float32 points. They belong to
        `seed`, or else to `sampling.seed`; the program is the same for all seeds.

        Raises:
          ValueError: a sample is not finite, or its solver gave up; says which images.
        """
        for numbers, batch in self.unchecked(params, indices, description, seed):
            finite, failed = batch.pop("finite"), ~batch.pop("ok")
            errors.refuse(numbers[~finite], "are not finite; is the training stable?")
            options = self.options
            tolerances = ("sampling.rtol", options.rtol), ("sampling.atol", options.atol)
            errors.refuse(
                numbers[failed], errors.gave_up(options.solver, batch["nfe"][failed], *tolerances)
            )
            yield numbers, batch

    def unchecked(
        self,
        params: Any,
        indices: np.ndarray,
        description: str = "sampling",
        seed: int | None = None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields failed samples too, which "ok" (solved) and "finite", [b] each, tell apart."""
        seeds = np.full(len(indices), self.options.seed if seed is None else seed, np.uint32)
        return self.draw(params, indices, seeds, description)
