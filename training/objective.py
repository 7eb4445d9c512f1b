"""The training objective: from uint8 images and their classes to a loss per image."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

import data
import losses
import models
from data import augmentation, captions, entries, transforms
from data.standardisation import AS_IT_IS
from diffusion import coupling, times
from runtime import devices, experiment
from training import teachers


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss per image, from uint8 images and their classes; an image draws from its own key.

    Attributes:
      apply: the network's, `({"params"}, x, labels, ...)`.
      loss: an objective of `losses`.
      levels, centered, dequantize: how images become what the network sees.
      time_draws: a name in `diffusion.times`.
      num_labels: the number of classes of the network; 0: it sees none.
      label_dropout: probability of the null class in training.
      across_images: the loss of an image compares it with the others.
      told_step: the loss is told the number of the training step.
      couple: how images and noise are paired, in training those of the whole batch; None: each
        image with its own draw.
      augment: probability of each augmentation, of which the network is told.
      standard: how real-valued examples become what the network sees.
      known: 1 in entries that the network is told, and does not learn; None: there are none.
    """

    apply: Callable[..., Any]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    levels: int
    centered: bool
    dequantize: bool
    time_draws: str = "independent"
    num_labels: int = 0
    label_dropout: float = 0.0
    across_images: bool = False
    told_step: bool = False
    couple: coupling.Coupling | None = None
    augment: float = 0.0
    standard: data.Standard = AS_IT_IS
    known: np.ndarray | None = None

    def __call__(
        self,
        params: Any,
        images: jax.Array,
        classes: jax.Array,
        step_key: jax.Array,
        numbers: jax.Array,
        total: int,
        *,
        train: bool,
        flip: bool,
        axis_name: str | None = None,
        step: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses [B] and their terms, for images [B, H, W, C] uint8 and their classes [B].

        They are the images `numbers` [B] of a global batch of `total`; the key of each is that of
        the step with its number folded in. Where the loss is `across_images`, or pairs are made in
        a batch, that is so across all devices of `axis_name`. `step` is that of training, of which
        the loss of a flow map is told; None: it is measured as at the end.
        """
        keys = devices.image_keys(step_key, numbers)
        split = jax.vmap(functools.partial(jax.random.split, num=5))(keys)
        loss_keys, dropout_keys, flip_keys, dequantize_keys, class_keys = split.T
        if flip:
            images = transforms.random_flip(images, flip_keys)
        if self.dequantize:
            x = transforms.uniform_dequantize(images, dequantize_keys, self.levels, self.centered)
        else:
            x = transforms.scale(images, self.levels, self.centered, self.standard)

        conditions: dict[str, Any] = {"dropout_keys": dropout_keys} if train else {}
        if self.num_labels:
            conditions["y"] = self._withheld(classes, class_keys) if train else classes
        if self.augment and train:
            augment_keys = jax.vmap(jax.random.fold_in, (0, None))(flip_keys, 1)
            x, conditions["augment"] = augmentation.augment(x, augment_keys, self.augment)

        def network(x: jax.Array, labels: jax.Array, *more: jax.Array) -> Any:
            return self.apply({"params": params}, x, labels, *more, **conditions)

        told = network if self.known is None else entries.telling(network, self.known, x)
        u = times.time_draws(self.time_draws, step_key, numbers, total)
        shared: dict[str, Any] = {}
        gather = functools.partial(_of_all_devices, axis_name=axis_name)
        if self.across_images:
            shared["gather"] = gather
        if self.told_step:
            shared["step"] = step
        if self.couple:
            batch = coupling.Batch(gather, numbers) if train else None
            shared["pair"] = functools.partial(self.couple, batch=batch)
        return self.loss(told, x, loss_keys, u, classes, **shared)

    def _withheld(self, classes: jax.Array, keys: jax.Array) -> jax.Array:
        """The classes, some of them replaced by the null class, whose number is `num_labels`
        (classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598, algorithm 1)."""
        if not self.label_dropout:
            return classes
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, self.label_dropout))(keys)
        return jnp.where(drop, self.num_labels, classes)


def _of_all_devices(rows: jax.Array, axis_name: str | None) -> jax.Array:
    return jax.lax.all_gather(rows, axis_name, tiled=True) if axis_name else rows


def objective_from_config(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    dataset: data.Dataset | None = None,
) -> Objective:
    """The objective that `config.training` describes, for training on `dataset`.

    Without a data set there are no training images that `esm` could take as its points.

    Raises:
      ValueError: an objective that cannot be served, or classes that the network does not have.
    """
    if config.training.label_dropout and not config.model.num_labels:
        raise ValueError(
            f"training.label_dropout is {config.training.label_dropout:g}, but model.num_labels is "
            "0: there is no class to withhold"
        )
    _check_augmentation(config, parts)
    if dataset is not None:
        _check_classes(config, dataset)
    if config.model.learned_variance and models.has_samples(config):
        logging.warning(
            "config.model.learned_variance=True: the objective is the error of the noise alone, so "
            "what the network tells of the variance is not trained"
        )
    clip = config.training.objective == models.CLIP_OBJECTIVE
    maps = config.training.objective in models.FLOW_MAPS
    wants_points = losses.wants_points(config)
    return Objective(
        apply=parts.module.apply,
        loss=losses.from_config(
            config,
            parts.sde,
            points=_points(config, parts, dataset) if dataset and wants_points else None,
            captions=_captions(config) if clip else None,
            teacher=teachers.denoiser(config.training, parts) if maps else None,
        ),
        levels=parts.levels,
        centered=parts.pixels.centered,
        dequantize=parts.pixels.dequantized,
        time_draws=config.training.time_draws,
        num_labels=config.model.num_labels if models.has_samples(config) else 0,
        label_dropout=config.training.label_dropout,
        across_images=clip,
        told_step=maps,
        couple=_couple(config, parts),
        augment=config.training.augment,
        standard=parts.pixels.standard or AS_IT_IS,
        known=parts.known,
    )


def _couple(config: ml_collections.ConfigDict, parts: experiment.Parts) -> coupling.Coupling | None:
    """The coupling of a score's objective; None where pairs are independent."""
    name = config.training.coupling
    if not models.has_samples(config) or name == "independent":
        return None
    coupling.from_config(config)  # refuses before a teacher is read
    if parts.known is not None:
        raise ValueError(
            f"config.training.coupling is {name!r}, which pairs what the network is told with some "
            "of the noise; a network that knows some entries (training.known) needs 'independent'"
        )
    teacher = teachers.pairs(config.training, parts) if name == "reflow" else None
    return coupling.from_config(config, teacher)


def _points(
    config: ml_collections.ConfigDict, parts: experiment.Parts, dataset: data.Dataset
) -> jax.Array:
    """The first `training.kde_points` training images (0: all), as the network sees them."""
    count = min(config.training.kde_points or len(dataset), len(dataset))
    images, _ = dataset.take(np.arange(count))
    standard = parts.pixels.standard or AS_IT_IS
    return transforms.scale(images, dataset.levels, config.data.centered, standard)


def _captions(config: ml_collections.ConfigDict) -> jax.Array:
    """The tokens of each class's captions, int32 [K, captions, length]."""
    names = data.class_names(config.data.dataset, config.data.data_dir)
    return jnp.asarray(captions.table(names, config.clip.text_length))


def _check_augmentation(config: ml_collections.ConfigDict, parts: experiment.Parts) -> None:
    """Refuses augmentation of which the network cannot be told, or of points."""
    if not config.training.augment:
        return
    text = f"training.augment is {config.training.augment:g}"
    if getattr(parts.module, "augment_dim", 0) != augmentation.NUM_LABELS:
        raise ValueError(
            f"{text}, but the network is not told of augmentation; it takes model.name=ncsnpp or "
            f"adm with model.augment_dim={augmentation.NUM_LABELS}"
        )
    if not parts.levels:
        raise ValueError(f"{text}, but data.dataset={config.data.dataset!r} has points, no images")


def _check_classes(config: ml_collections.ConfigDict, dataset: data.Dataset) -> None:
    """Refuses more classes in the data set than the network has."""
    count, labels = dataset.num_classes, config.model.num_labels
    if config.training.objective == models.CLASSIFIER:
        if count > config.classifier.num_classes:
            raise ValueError(
                f"classifier.num_classes is {config.classifier.num_classes}, but {dataset.name} "
                f"has {count} classes; valid values: {count} or more"
            )
    elif models.has_samples(config) and labels > 1 and count == 1:
        logging.warning(
            "model.num_labels is %d, but all examples of %s are of one class: there is nothing to "
            "tell the network",
            labels,
            dataset.name,
        )
    elif models.has_samples(config) and labels and count > labels:
        raise ValueError(
            f"model.num_labels is {labels}, but {dataset.name} has {count} classes; "
            f"valid values: 0, {count} or more"
        )
