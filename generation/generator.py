"""Samples by number: each a function of (weights, seed, its index) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import sampling
from diffusion.noise import Keys, image_noise
from diffusion.trajectory import all_finite
from generation import guides
from runtime import devices, errors, experiment

BATCH_SIZE = "sampling.batch_size"  # where the size of a batch comes from
CLASS_DRAW = 2**32 - 1  # number of an image's draw that makes its class; noise has those from 0 on


def random_classes(keys: Keys, count: int) -> jax.Array:
    """A class [B] below `count` for each image, all as likely, from its own key [B]."""

    def one(key: jax.Array) -> jax.Array:
        return jax.random.randint(jax.random.fold_in(key, CLASS_DRAW), (), 0, count)

    return jax.vmap(one)(keys)


def batch_for(options: ml_collections.ConfigDict, count: int | None) -> int:
    """The images of one call, where `count` will be drawn: no more than there are.

    Raises:
      ValueError: `options.batch_size` is no multiple of the number of devices.
    """
    devices.per_device(options.batch_size, BATCH_SIZE)
    if count is None or options.corrector_norm == "batch":
        return int(options.batch_size)
    return min(int(options.batch_size), devices.fitting_batch(max(count, 1)))


class Generator:
    """Draws images by number: the image with index i is the same in any batch on any device.

    They are images of no class, or, where the network was told a class with every image or a
    classifier guides (`options.guide`), of classes that are drawn, see `random_classes`. A network
    that is told classes is told them beside guidance too, as Dhariwal and Nichol 2021
    (arXiv:2105.05233) do. A guide that is a weaker network is told what the network is told.

    Args:
      parts: the experiment, whose network it is.
      sampler: see `sampling.from_config`.
      options: section `sampling` of the config.
      count: of the images that will be drawn at once; None: nobody knows. Fewer than
        `options.batch_size` make a smaller batch, unless `corrector_norm` is that of a batch.

    Attributes:
      guide: the classifier or weaker network, or None.

    Raises:
      ValueError: a run that draws no samples; what `guides.load_guide` refuses.
    """

    def __init__(
        self,
        parts: experiment.Parts,
        sampler: sampling.Sampler,
        options: ml_collections.ConfigDict,
        count: int | None = None,
    ) -> None:
        parts.require_samples()
        parts.require_joint()
        guide = guides.of_samples(options, parts)
        labels = 0 if parts.unconditional else parts.num_labels
        labels = (guide and guide.num_classes) or labels
        scale = guide.scale(options.guide_scale, options.guide_interval) if guide else 0.0

        def draw(
            weights: tuple[Any, Any], indices: jax.Array, seeds: jax.Array
        ) -> dict[str, jax.Array]:
            keys = devices.image_keys(jax.random.key(seeds[0]), indices)
            noise = image_noise(keys, parts.image_shape)
            classes = random_classes(keys, labels) if labels else None
            score = parts.for_samplers(weights[0], classes if parts.num_labels else None)
            if guide:
                score = guide.guided(weights[1], score, classes, scale)
            samples = sampler(parts.sde, score, noise)
            to_levels = parts.pixels.to_levels
            results = {
                "image": to_levels(samples.x),
                "nfe": jnp.broadcast_to(samples.nfe, indices.shape),
                "ok": samples.ok,
                "finite": all_finite(samples.x),
            }
            if classes is not None:
                results["label"] = classes
            if samples.trajectory is not None:
                results["frames"] = jnp.moveaxis(to_levels(samples.trajectory), 0, 1)
            return results

        self.options, self.guide = options, guide
        self.draw = devices.ImageMap(draw, batch_for(options, count), BATCH_SIZE)

    def __call__(
        self,
        params: Any,
        indices: np.ndarray,
        description: str = "sampling",
        seed: int | None = None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields `(indices, {"image", "nfe", ["label" [b]], ["frames" [b, K, ...]]})` per batch.

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
        weights = params, self.guide and self.guide.params
        return self.draw(weights, indices, seeds, description)
