"""Samples beside the training images that are nearest to them, pixel by pixel."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

import data
from data import transforms
from evaluation.metrics import memorisation
from evaluation.metrics.memorisation import Neighbours
from runtime import devices, experiment, figures, files

Results = dict[str, Any]
Batch = dict[str, np.ndarray]

BLOCK = 1000  # training images that are read at a time
PAIRS = 32  # in the picture
COLUMNS = 8
PICTURE = "nearest.png"


class NearestImages:
    """The first `eval.memorisation_images` samples of a seed, and what is nearest to them.

    Test images that are as many, where there are so many, stand for samples that repeat nothing.

    Args:
      options: section `eval` of the config.

    Raises:
      ValueError: examples without pixels, or fewer samples than are to be compared.
    """

    def __init__(self, parts: experiment.Parts, options: ml_collections.ConfigDict) -> None:
        self.count = options.memorisation_images
        self.parts = parts
        if self.count and not parts.levels:
            raise ValueError(
                f"eval.memorisation_images is {self.count}, but {parts.dataset_name} has no "
                "pixels; --config.eval.metrics=\"('memorisation',)\" compares its coordinates"
            )
        if self.count > options.num_samples:
            raise ValueError(
                f"eval.memorisation_images is {self.count}, but eval.num_samples is "
                f"{options.num_samples}"
            )
        self.samples: list[np.ndarray] = []

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of samples as they are, of which the first images are kept for `results`."""
        self.samples = []
        for batch in batches:
            missing = self.count - sum(map(len, self.samples))
            if missing > 0:
                self.samples.append(batch["image"][:missing])
            yield batch

    def results(self, folder: pathlib.Path) -> Results:
        """The numbers of the samples and of test images; their pairs are drawn into `folder`.

        `nearest.npz` there has the distances and the numbers of the training images, `nearest.png`
        the pairs of the smallest ratios.
        """
        if not self.count:
            return {}
        samples = np.concatenate(self.samples)
        pairs, (test, of_test) = self.neighbours(samples), self.of_test_images
        if devices.is_primary():
            with files.whole(folder / "nearest.npz") as temporary:
                np.savez(
                    temporary, distance=pairs.distances, index=pairs.indices, ratio=pairs.ratios
                )
            with files.whole(folder / PICTURE) as temporary:
                self.save_pairs(temporary, samples, pairs)
        return {
            "memorised_pixels": pairs.memorised,
            "memorised_pixels_real": of_test.memorised,
            "nearest_pixels": float(pairs.distances[:, 0].mean()),
            "nearest_pixels_real": float(of_test.distances[:, 0].mean()),
            "memorisation_images": len(samples),
            "memorisation_real_images": len(of_test.distances),
            "memorisation_train_data": self.train.facts(),
            "memorisation_num_train": len(self.train),
            "memorisation_test_data": test.facts(),
        }

    @functools.cached_property
    def train(self) -> data.Dataset:
        return self.parts.dataset("train")

    @functools.cached_property
    def of_test_images(self) -> tuple[data.Dataset, Neighbours]:
        """The test images, and what is nearest to the first ones."""
        test = self.parts.dataset("test")
        images, _ = test.take(np.arange(min(self.count, len(test))))
        return test, self.neighbours(images)

    def neighbours(self, images: np.ndarray) -> Neighbours:
        """The training images nearest to stored `images`, with distances in units of white."""
        starts = range(0, len(self.train), BLOCK)
        blocks = (
            self.train.take(np.arange(first, min(first + BLOCK, len(self.train))))[0]
            for first in devices.each(starts, f"nearest of {self.train.name}")
        )
        pairs = memorisation.nearest(images, blocks)
        return dataclasses.replace(pairs, distances=pairs.distances / (self.parts.levels - 1))

    def save_pairs(self, path: files.Path, samples: np.ndarray, pairs: Neighbours) -> None:
        """Draws the samples of the smallest ratios, each beside its nearest training image."""
        order = np.argsort(pairs.ratios, kind="stable")[:PAIRS]
        originals, _ = self.train.take(pairs.indices[order, 0])
        both = np.stack([samples[order], originals], axis=1)  # [pairs, 2, H, W, C]
        pixels = transforms.to_display(both.reshape(-1, *both.shape[2:]), self.parts.levels)
        labels = [
            text for i in order for text in (f"{pairs.ratios[i]:.2f}", f"#{pairs.indices[i, 0]}")
        ]
        figures.save_grid(path, np.asarray(pixels), COLUMNS, labels=labels)
