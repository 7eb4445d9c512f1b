"""Features by which examples are compared: a network's, a classifier's, coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import data
from configs.names import lookup
from data import transforms
from evaluation.feature_networks import NETWORKS
from evaluation.metrics import classifier, sliced
from evaluation.metrics.feature_set import FeatureSet
from runtime import devices, experiment

PER_DEVICE = 32  # images in one call of a network

# The values of eval.features: the key of `NETWORKS`, "" for the data set's own features, by the
# number of channels of images.
FEATURES: dict[str, Callable[[int], str]] = {
    "auto": lambda channels: "inception" if channels == 3 else "",
    "classifier": lambda channels: "",
    **{name: lambda channels, name=name: name for name in NETWORKS},  # type: ignore[misc]
}


def network_of(parts: experiment.Parts, options: ml_collections.ConfigDict) -> str:
    """The key of `NETWORKS` by whose features generated images are compared; "": the data set's.

    Raises:
      ValueError: an unknown `eval.features`, or one that this data set cannot have.
    """
    choice = options.features
    by_channels = lookup(FEATURES, choice, "eval.features")
    if parts.levels:
        return by_channels(parts.image_shape[-1])
    if choice != "auto":
        raise ValueError(
            f"eval.features is {choice!r}, but {parts.dataset_name} has points, which are compared "
            "as they are; it must be 'auto'"
        )
    return ""


class FeatureExtractor(Protocol):
    """The map from stored examples to the features [n, d] that a Fréchet distance compares."""

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
    """Real-valued examples as their own features, in the units that the network sees."""

    def __init__(self, standard: data.Standard | None) -> None:
        self.standard = standard or data.Standard()
        self.label = "standardised entries" if standard else "coordinates of the points"

    def features(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self.standard.to_model(images)).reshape(len(images), -1)

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


def of_dataset(
    train: data.Dataset, test: data.Dataset, standard: data.Standard | None
) -> FeatureExtractor:
    """The data set's own features: a classifier's of images, or the numbers themselves."""
    return ClassifierFeatures(train, test) if train.levels else Coordinates(standard)


class NetworkExtractor:
    """Images of the experiment's data set to a network's outputs, batch by batch, on all devices.

    Args:
      name: a key of `NETWORKS`.

    Attributes:
      outputs: the names of the outputs.
      origin: the network, its weights and the resize.
      num_features: of the output "pool".

    Raises:
      FileNotFoundError: the network's weights are not here and cannot be downloaded.
      ValueError: they are damaged; what the network cannot be; grey images without
        `eval.repeat_grey`.
    """

    def __init__(
        self, name: str, parts: experiment.Parts, options: ml_collections.ConfigDict
    ) -> None:
        channels, levels = parts.image_shape[-1], parts.levels
        network = NETWORKS[name]
        if channels != 3 and not (channels == 1 and options.repeat_grey):
            raise ValueError(
                f"{network.title or 'Inception'} sees colour images, and those of "
                f"{parts.dataset_name} have {channels} channel(s); "
                "--config.eval.repeat_grey=True repeats one"
            )
        loaded = network.load(options)
        self.outputs, self.origin = network.outputs, loaded.origin
        self.num_features = loaded.num_features
        self.params = devices.replicate(loaded.params)

        def outputs(params: Any, indices: jax.Array, images: jax.Array) -> dict[str, jax.Array]:
            del indices
            pixels = transforms.to_display(images, levels)
            if pixels.shape[-1] == 1:
                pixels = jnp.repeat(pixels, 3, axis=-1)
            return loaded.apply(params, pixels)

        self.run = devices.ImageMap(outputs, PER_DEVICE * jax.device_count(), "images")
        self.title = network.title or "Inception"

    @property
    def label(self) -> str:
        """Words on the features, to stand beside every number made with them."""
        return (
            f"features: {self.origin.network}, weights {self.origin.weights_sha256[:8]}, "
            f"{self.origin.resize} resize"
        )

    def __call__(self, images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Outputs [b, ...] by name of stored images [n, H, W, C], in order."""
        for _, outputs in self.run(self.params, np.arange(len(images)), images):
            yield outputs

    def see(self, dataset: data.Dataset, count: int, features: FeatureSet) -> None:
        """Adds the outputs of the first `count` images of a data set to `features`."""
        with devices.progress(count, f"{self.title} of {dataset.name}", "img") as bar:
            for start in range(0, count, self.run.batch_size):
                rows = np.arange(start, min(start + self.run.batch_size, count))
                for outputs in self(dataset.take(rows)[0]):
                    features.add(outputs)
                bar.update(len(rows))
