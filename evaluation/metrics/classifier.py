"""A small classifier of a data set's own classes, whose features stand in for Inception's.

Inception was trained on photographs of 299x299 pixels; of digits of 8x8 its features say little. In
those of a classifier trained on the data set itself a Fréchet distance separates good samples from
bad ones, but the numbers compare within one data set and recipe only: `Classifier.label` stands
beside them, always. Its predictions tell which share of the samples each class has.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from data import Batches, Dataset, default_folder, eval_batches
from data.transforms import scale
from runtime import arrays, devices, errors, files

NUM_FEATURES = 64
_CHUNK = 500  # images per call


class Network(nn.Module):
    """Three convolutions (strides 1, 2, 2), 64 features after a ReLU, and the logits.

    No normalisation: it would make the features blind to contrast and to noise in the pixels.
    `mask` [B, 64] multiplies the features on their way to the logits: dropout in training.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | float = 1.0) -> tuple[jax.Array, jax.Array]:
        """Scaled images [B, H, W, C] to logits [B, num_classes] and features [B, 64]."""
        for width, stride in ((32, 1), (64, 2), (64, 2)):
            x = nn.relu(nn.Conv(width, (3, 3), strides=stride)(x))
        features = nn.relu(nn.Dense(NUM_FEATURES)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(features * mask), features


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a training: AdamW with cosine decay, no augmentation, a fixed seed."""

    version: int = 1
    epochs: int = 30
    max_steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    seed: int = 0

    def num_steps(self, num_examples: int) -> int:
        return min(self.max_steps, self.epochs * -(-num_examples // self.batch_size))


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network.

    Attributes:
      params: of `Network`.
      dataset: the name of the data set it was trained on.
      levels, num_classes: of that data set.
      accuracy: on its test split, in [0, 1].
    """

    params: Any
    dataset: str
    levels: int
    num_classes: int
    accuracy: float

    @property
    def label(self) -> str:
        """Words on the features, to stand beside every number made with them."""
        return f"features: classifier trained on {self.dataset}, not Inception"

    def features(self, images: np.ndarray) -> np.ndarray:
        """Levels uint8 [n, H, W, C] to features float32 [n, 64]."""
        return self._outputs(images)[1]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Levels uint8 [n, H, W, C] to classes int32 [n]."""
        return self._outputs(images)[0].argmax(axis=1).astype(np.int32)

    def class_shares(self, images: np.ndarray) -> np.ndarray:
        """The share of the images that is taken for each class, [num_classes], summing to 1."""
        return np.bincount(self.predict(images), minlength=self.num_classes) / len(images)

    def _outputs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(images):
            raise ValueError("no images to classify")
        parts = []
        for start in range(0, len(images), _CHUNK):
            rows = np.minimum(np.arange(start, start + _CHUNK), len(images) - 1)
            parts.append(_forward(self.params, images[rows], self.levels, self.num_classes))
        logits, features = (
            np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True)
        )
        return logits, features


@functools.partial(jax.jit, static_argnums=(2, 3))
def _forward(params: Any, images: jax.Array, levels: int, num_classes: int) -> Any:
    return Network(num_classes).apply({"params": params}, scale(images, levels, centered=True))


def load(
    train: Dataset,
    test: Dataset,
    cache_dir: str | os.PathLike[str] | None = None,
    recipe: Recipe = Recipe(),
) -> Classifier:
    """The classifier of a data set, from the cache, or trained now and put there.

    The cache file's name depends on the training examples, the recipe and the network's version; an
    unreadable file is replaced.

    Args:
      train, test: the two splits.
      cache_dir: by default `classifiers` beside the prepared data sets.
      recipe: the settings of its training.

    Raises:
      ValueError: all images have the same label.
    """
    if train.num_classes < 2:
        raise ValueError(
            f"{train.name} has no labels, and features of its own classes cannot be learned: sort "
            "its images into sub-folders, or compare them by --config.eval.features=inception"
        )
    folder = pathlib.Path(cache_dir) if cache_dir else default_folder() / "classifiers"
    key = json.dumps([train.fingerprint, test.fingerprint, dataclasses.asdict(recipe)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = folder / f"{train.name}-{digest}.npz"
    cached = _read(path, train)
    if cached is not None:
        return cached
    params = fit(train, recipe)
    untested = Classifier(params, train.name, train.levels, train.num_classes, float("nan"))
    classifier = dataclasses.replace(untested, accuracy=accuracy(untested, test))
    _write(path, classifier)
    return classifier


def fit(train: Dataset, recipe: Recipe) -> Any:
    """Trains a network and returns its parameters (numpy); the same ones at every call.

    Random numbers are NumPy's: compiling JAX's would take longer than the training on the digits.
    """
    network = Network(train.num_classes)
    num_steps = recipe.num_steps(len(train))
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, num_steps)
    optimizer = optax.adamw(schedule, weight_decay=recipe.weight_decay)
    rng = np.random.default_rng(recipe.seed)

    def loss(params: Any, images: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
        x = scale(images, train.levels, centered=True)
        logits, _ = network.apply({"params": params}, x, mask)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, *batch: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    params = _initial_params(network, train.image_shape, rng)
    state = optimizer.init(params)
    batches = Batches(train, recipe.batch_size, recipe.seed)
    for _ in devices.each(range(num_steps), "classifier"):
        batch = next(batches)
        mask = rng.integers(0, 2, (recipe.batch_size, NUM_FEATURES)).astype(np.float32) * 2
        params, state = step(params, state, batch["image"][0], batch["label"][0], mask)
    batches.close()
    return jax.tree.map(np.asarray, params)


def _initial_params(
    network: Network, image_shape: tuple[int, ...], rng: np.random.Generator
) -> Any:
    """Kernels N(0, 2 / fan-in) (He et al., arXiv:1502.01852), biases 0."""
    images = jnp.zeros((1, *image_shape))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "bias":
            return jnp.zeros(leaf.shape)
        deviation = np.sqrt(2.0 / np.prod(leaf.shape[:-1]))
        return jnp.asarray(rng.standard_normal(leaf.shape) * deviation, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def accuracy(classifier: Classifier, dataset: Dataset) -> float:
    """The share of the data set's images whose class is predicted right."""
    correct = 0
    for batch in eval_batches(dataset, _CHUNK):
        correct += int(
            ((classifier.predict(batch["image"]) == batch["label"]) & batch["mask"]).sum()
        )
    return correct / len(dataset)


def _write(path: pathlib.Path, classifier: Classifier) -> None:
    """Writes one npz file of arrays, whole or not at all."""
    params = flax.traverse_util.flatten_dict(classifier.params, sep="/")
    with files.whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, accuracy=classifier.accuracy, **params)


def _read(path: pathlib.Path, train: Dataset) -> Classifier | None:
    """The classifier in the file, or None if there is none that can be read."""
    if not path.is_file():
        return None
    images = jax.ShapeDtypeStruct((1, *train.image_shape), jnp.float32)
    init = Network(train.num_classes).init
    template = jax.eval_shape(init, jax.random.key(0), images)["params"]
    try:
        stored = arrays.read_archive(path)
        test_accuracy = float(stored.pop("accuracy"))
        params = arrays.unflatten(template, stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = errors.one_line(error, 200)
        logging.warning("%s is no classifier: %s; it is trained again", path, why)
        return None
    return Classifier(params, train.name, train.levels, train.num_classes, test_accuracy)
