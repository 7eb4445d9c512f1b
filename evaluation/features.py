"""Features by which images are compared: the outputs of Inception, and their moments."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import data
from data import transforms
from evaluation.metrics import classifier, inception, sliced
from evaluation.metrics.frechet import Gaussian, Moments
from evaluation.metrics.statistics import Origin
from runtime import devices

Results = dict[str, Any]

FEATURES = ("auto", "inception", "classifier")
PER_DEVICE = 32  # images in one call of Inception
PENDING = 1024  # images whose features are summed up together


def uses_inception(config: ml_collections.ConfigDict) -> bool:
    """Whether generated images are compared by Inception's features; else by the data set's own.

    Raises:
      ValueError: an unknown `eval.features`, or one that this data set cannot have.
    """
    choice, dataset = config.eval.features, config.data.dataset
    if choice not in FEATURES:
        raise ValueError(f"unknown eval.features {choice!r}: it is one of {', '.join(FEATURES)}")
    if not data.grey_levels(dataset):
        if choice != "auto":
            raise ValueError(
                f"eval.features is {choice!r}, but {dataset} has points, which are compared as "
                "they are; it must be 'auto'"
            )
        return False
    return choice == "inception" or (choice == "auto" and config.data.num_channels == 3)


# --- metrics ---


class Collected:
    """Outputs of a network for one set of images: their moments, and those that are kept whole."""

    def __init__(self, moments: Collection[str], keep: Collection[str]) -> None:
        self.summed: dict[str, Moments | None] = dict.fromkeys(moments)
        self.kept: dict[str, list[np.ndarray]] = {name: [] for name in keep}
        self.pending: list[dict[str, np.ndarray]] = []
        self.count = 0

    def add(self, outputs: dict[str, np.ndarray]) -> None:
        """Takes in outputs [b, ...] of the next b images."""
        before = self.count // PENDING
        self.pending.append({name: outputs[name] for name in {*self.summed, *self.kept}})
        self.count += len(outputs["pool"])
        if self.count // PENDING > before:
            self.sum_up()

    def sum_up(self) -> None:
        """Moments of what has come since the last time: large sums are cheaper than many."""
        if not self.pending:
            return
        for name, so_far in self.summed.items():
            moments = Moments.of(np.concatenate([outputs[name] for outputs in self.pending]))
            self.summed[name] = so_far.merge(moments) if so_far else moments
        for name, parts in self.kept.items():
            parts += [outputs[name] for outputs in self.pending]
        self.pending = []

    def gaussian(self, name: str) -> Gaussian:
        """Mean and covariance of an output."""
        self.sum_up()
        moments = self.summed[name] or Moments.empty(0)
        return Gaussian(moments.mean, moments.covariance)

    def array(self, name: str) -> np.ndarray:
        """An output that was kept, [n, ...]."""
        self.sum_up()
        return np.concatenate(self.kept[name])


# --- Inception on all devices ---


class FeatureExtractor(Protocol):
    """From stored examples to the features [n, d] of which a Fréchet distance is taken."""

    @property
    def label(self) -> str: ...

    def features(self, images: np.ndarray) -> np.ndarray: ...

    def compare(
        self, generated: np.ndarray, train: np.ndarray, test: data.Dataset
    ) -> dict[str, Any]:
        """More numbers on generated and real examples than the Fréchet distance."""
        ...


class ClassifierFeatures:
    """Features of images by a classifier of the data set itself."""

    def __init__(self, train: data.Dataset, test: data.Dataset) -> None:
        self.judge = classifier.load(train, test)
        self.label = self.judge.label

    def features(self, images: np.ndarray) -> np.ndarray:
        return self.judge.features(images)

    def compare(
        self, generated: np.ndarray, train: np.ndarray, test: data.Dataset
    ) -> dict[str, Any]:
        del train, test
        return {"class_shares": self.judge.class_shares(generated).round(4).tolist()}


class Coordinates:
    """Points as their own features."""

    label = "coordinates of the points"

    def features(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)

    def compare(
        self, generated: np.ndarray, train: np.ndarray, test: data.Dataset
    ) -> dict[str, Any]:
        real, (held_out, _) = self.features(train), test.take(np.arange(len(test)))
        distance = sliced.sliced_wasserstein
        return {
            "sliced_wasserstein": distance(self.features(generated), real),
            "sliced_wasserstein_real": distance(self.features(held_out), real),
            "num_test": len(held_out),
        }


def of_dataset(train: data.Dataset, test: data.Dataset) -> FeatureExtractor:
    """The features of the data set's own: a classifier's of images, coordinates of points."""
    return ClassifierFeatures(train, test) if train.levels else Coordinates()


class InceptionExtractor:
    """Images of the config's data set to Inception's outputs, batch by batch, on all devices.

    Raises:
      FileNotFoundError: the network's weights are not here and cannot be downloaded.
      ValueError: they are damaged; an unknown resize; grey images without `eval.repeat_grey`.
    """

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        options, section = config.eval, config.data
        inception.check_resize(options.resize)
        if section.num_channels != 3 and not (section.num_channels == 1 and options.repeat_grey):
            raise ValueError(
                f"Inception sees colour images, and those of {section.dataset} have "
                f"{section.num_channels} channel(s); --config.eval.repeat_grey=True repeats one"
            )
        weights = inception.load_weights(options.inception_path)
        self.origin = Origin(inception.NAME, weights.sha256, options.resize)
        self.params = devices.replicate(weights.params)
        levels = data.grey_levels(section.dataset)

        def outputs(params: Any, indices: jax.Array, images: jax.Array) -> dict[str, jax.Array]:
            del indices
            pixels = transforms.to_display(images, levels)
            if pixels.shape[-1] == 1:
                pixels = jnp.repeat(pixels, 3, axis=-1)
            return inception.apply(params, pixels, options.resize)._asdict()

        self.run = devices.ImageMap(outputs, PER_DEVICE * jax.device_count(), "images")

    @property
    def label(self) -> str:
        """What must stand beside every number made with these features."""
        return (
            f"features: {self.origin.network}, weights {self.origin.weights_sha256[:8]}, "
            f"{self.origin.resize} resize"
        )

    def __call__(self, images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Outputs [b, ...] by name of stored images [n, H, W, C], in order."""
        for _, outputs in self.run(self.params, np.arange(len(images)), images):
            yield outputs

    def see(self, dataset: data.Dataset, count: int, collected: Collected) -> None:
        """Adds the first `count` images of a data set to `collected`."""
        with devices.progress(count, f"Inception of {dataset.name}", "img") as bar:
            for start in range(0, count, self.run.batch_size):
                rows = np.arange(start, min(start + self.run.batch_size, count))
                for outputs in self(dataset.take(rows)[0]):
                    collected.add(outputs)
                bar.update(len(rows))
