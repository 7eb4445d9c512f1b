"""The experiment that a config describes: its SDE, its network, the images, and the score."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

import configs
import data
import models
import sde_lib
from configs.shapes import example_shape
from data import captions, entries, transforms
from diffusion.flow_maps import FlowMap
from runtime import devices, ema

# Fields on where images come from: where no training goes on, others may serve as well.
SOURCE = ("data.dataset", "data.data_dir", "data.cache", "data.crop", "data.resize")


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Between the levels of a data set and the range that the network sees.

    Attributes:
      standard: of real-valued examples but points of the plane, which have no levels either.
    """

    levels: int
    centered: bool
    dequantized: bool
    standard: data.Standard | None = None

    def to_model(self, images: np.ndarray) -> np.ndarray:
        """uint8 levels to floats; a level's bin is represented by its middle."""
        if not self.dequantized:
            return np.asarray(transforms.scale(images, *self._range, self._standard))
        y = (np.asarray(images, np.float32) + 0.5) / self.levels
        return 2.0 * y - 1.0 if self.centered else y

    def to_levels(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Floats of the network's range to uint8 levels, or to numbers in the data's own units."""
        return transforms.inverse_scale(x, *self._range, self.dequantized, self._standard)

    @property
    def _range(self) -> tuple[int, bool]:
        return self.levels, self.centered

    @property
    def _standard(self) -> data.Standard:
        return self.standard or data.Standard()

    def to_levels_of_grey(self, x: jax.Array | np.ndarray) -> jax.Array:
        """`to_levels` that keeps the sums of red, green and blue of x."""
        return transforms.inverse_scale_of_grey(x, self.levels, self.centered, self.dequantized)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of an experiment: SDE, network, images; shared by training, evaluation, sampling.

    Attributes:
      sde: the process from data to noise.
      module: the network, a Flax module, whose `apply` takes parameters.
      image_shape: (H, W, C) of images, `data.shape` of other examples.
      pixels: the range in which the network sees images.
      dataset_name: of the images that the network learns, or is compared with.
      dataset_folder: where a user's own images of that data set are; "" for other sets.
      dataset: from the name of a split to these images.
      objective: the name of the training objective, which decides whether there is a score.
      continuous: True if the network knows all times in [0, T], not the SDE's N noise levels alone.
      prediction: what the network predicts, a name in `parametrisation.PREDICTIONS`; "": a default.
      sigma_data: the standard deviation of the data, for EDM's preconditioning.
      num_labels: the number of classes that the network can be given; 0: none.
      unconditional: True if the network also knows images without a class.
      known: the mask of the entries that the network is given, and that it does not draw
        (`training.known`); None: there are none.
    """

    sde: sde_lib.SDE
    module: Any
    image_shape: tuple[int, ...]
    pixels: Pixels
    dataset_name: str
    dataset_folder: str
    dataset: Callable[[str], data.Dataset]
    objective: str
    continuous: bool
    prediction: str
    sigma_data: float
    num_labels: int
    unconditional: bool
    known: np.ndarray | None

    @property
    def levels(self) -> int:
        """Grey levels of the images, see `data.grey_levels`."""
        return self.pixels.levels

    def score(
        self,
        params: ema.Params,
        classes: jax.Array | None = None,
        given: jax.Array | None = None,
    ) -> sde_lib.ScoreFn:
        """The score function of the network with these weights, without dropout.

        A network with labels sees the `classes` [B], or else the null class. One that was trained
        with `known` entries is told them by `given` [B, ...]; of these its output is 0.
        """
        network = self._network(params, classes)
        if given is not None and self.known is not None:
            network = entries.telling(network, self.known, given)
        score_of = functools.partial(
            models.score_fn,
            self.sde,
            continuous=self.continuous,
            prediction=self.prediction,
            sigma_data=self.sigma_data,
        )
        if isinstance(self.module, models.ADM) and self.module.learned_variance:
            return models.score_and_variance(functools.partial(network, variance=True), score_of)
        return score_of(network)

    def for_samplers(
        self, params: ema.Params, classes: jax.Array | None = None
    ) -> sde_lib.ScoreFn | FlowMap:
        """What samplers ask: `score`, or the map along the flow, if that is what was trained."""
        if self.objective not in models.FLOW_MAPS:
            return self.score(params, classes)
        network = self._network(params, classes)
        settings = {"prediction": self.prediction, "sigma_data": self.sigma_data}
        return models.flow_map(self.objective, self.sde, network, **settings)

    def _network(self, params: ema.Params, classes: jax.Array | None) -> Callable[..., jax.Array]:
        """The network with these weights, told the `classes` [B], as (x, labels) -> [B, ...]."""
        labels = {} if classes is None else {"y": classes}
        return functools.partial(self.module.apply, {"params": params}, **labels)

    def require_score(self) -> None:
        """Refuses likelihoods, guidance and whatever else asks for a score, where there is none."""
        self.require_samples()
        if self.objective in models.FLOW_MAPS:
            raise ValueError(
                f"this run trained {models.FLOW_MAPS[self.objective]} (training.objective is "
                f"{self.objective!r}), which has no score: neither likelihoods nor guidance nor "
                "control; it draws samples (--mode=sample, --mode=eval)"
            )

    def require_samples(self) -> None:
        """Refuses to draw images, or to measure likelihoods, of a network that is a guide."""
        if self.objective in models.GUIDES:
            raise ValueError(
                f"this run trained {models.GUIDES[self.objective]} of noisy images "
                f"(training.objective is {self.objective!r}), which has no score: neither samples "
                "nor likelihoods; its loss can be evaluated"
            )

    def require_joint(self) -> None:
        """Refuses to draw whole examples, or their likelihoods, where some entries are given."""
        if self.known is not None:
            raise ValueError(
                "this network is given some entries of every example (training.known), so it draws "
                "the others alone: --mode=control --config.control.task=inpaint "
                "--config.control.method=conditional, with these in control.mask"
            )

    def require_unconditional(self) -> None:
        """Refuses images of no class, where the network saw the class of every image."""
        if not self.unconditional:
            raise ValueError(
                "this network was told the class of every image (training.label_dropout is 0), so "
                "it draws images of a class only: --mode=control --config.control.task=class"
            )


def build(config: ml_collections.ConfigDict) -> Parts:
    """Reads the config at its seams; refuses what it cannot serve before anything is compiled.

    No data set is opened: to sample, none needs to be there. For losses, see `training.objective`.
    """
    configs.check(config)
    data.check_points(config)
    images, model = config.data, config.model
    levels = data.grey_levels(images.dataset, images.shape)
    return Parts(
        sde=sde_lib.from_config(config),
        module=network(config),
        image_shape=image_shape(config),
        pixels=Pixels(
            *(levels, images.centered, images.uniform_dequantization), data.standard(images)
        ),
        dataset_name=images.dataset,
        dataset_folder=images.data_dir if data.is_users_own(images.dataset) else "",
        dataset=_opener(config),
        objective=config.training.objective,
        continuous=config.training.continuous,
        prediction=model.prediction,
        sigma_data=model.sigma_data,
        num_labels=model.num_labels,
        unconditional=not model.num_labels or config.training.label_dropout > 0,
        known=entries.known_of(config.training.known, image_shape(config)),
    )


def _opener(config: ml_collections.ConfigDict) -> Callable[[str], data.Dataset]:
    """From the name of a split to the config's data set; prints its summary the first time."""
    printed: set[str] = set()

    def opened(split: str) -> data.Dataset:
        dataset = data.from_config(config, split)
        if dataset.summary and dataset.summary not in printed and devices.is_primary():
            printed.add(dataset.summary)
            print(dataset.summary, flush=True)
        return dataset

    return opened


def network(config: ml_collections.ConfigDict) -> Any:
    """The network that the run trains: of a score, of a map along its flow, or of a guide."""
    if config.training.objective == models.CLASSIFIER:
        return models.classifier_from_config(config)
    if config.training.objective == models.CLIP_OBJECTIVE:
        return models.clip_from_config(config, captions.VOCABULARY, captions.END)
    module = models.from_config(config)
    return models.TwoTimes(module) if config.training.objective == models.MEAN_FLOW else module


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """The shape of an example by the config alone; a data set of another shape is refused when it
    is opened."""
    return example_shape(config.data)


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The settings beside the sampler's that samples of the same weights depend on.

    They do not depend on where images come from.
    """
    images, training = config.data.to_dict(), config.training
    return {
        "data": {name: value for name, value in images.items() if f"data.{name}" not in SOURCE},
        "model": config.model.to_dict(),
        "training": {name: training[name] for name in ("sde", "continuous", "objective")},
    }
