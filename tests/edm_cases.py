"""Networks of EDM with the numbers of its own code: from pickles, or with weights by a rule."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import models
import sde_lib
from diffusion import grids
from interop import convert, edm, edm_pickle
from tests import golden_cases

PICKLES = golden_cases.files("edm", "*.pkl")
RULES = golden_cases.files("edm", "rule_*.npz")


def numbers(path: pathlib.Path) -> Any:
    """The arrays that EDM's own code computed with the network of a pickle, or of a rule."""
    name = f"{path.stem.removesuffix('_old')}.npz"
    (found,) = [p for p in golden_cases.files("edm") if p.name == name]
    return np.load(found)


def channels_last(x: Any) -> jax.Array:
    return jnp.asarray(np.moveaxis(x, -3, -1), jnp.float32)


def network_of(description: dict[str, Any], tensors: dict[str, np.ndarray]) -> edm_pickle.Network:
    """The network that a pickle with these constructor arguments and tensors would have."""
    own = dict(description)
    preconditioning, architecture = own.pop("class_name").rpartition(".")[2], own.pop("model_type")
    channels = own["img_channels"]
    outputs = 2 * channels if preconditioning == "iDDPMPrecond" else channels
    inner = own | {"in_channels": channels, "out_channels": outputs}
    return edm_pickle.Network(preconditioning, architecture, own, inner, tensors, [])


def weights_by_rule(entries: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Tensors by the rule of the golden data, each from a generator seeded by its name."""
    tensors = {}
    for entry in entries:
        name, shape = entry["name"], tuple(entry["shape"])
        if name.endswith("resample_filter"):
            continue
        random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
        z = random.standard_normal(shape).astype(np.float32)
        if "norm" in name.split(".")[-2]:
            array = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
        elif name.endswith("bias"):
            array = 0.1 * z
        else:
            array = z / np.sqrt(math.prod(shape[1:]))
        tensors[name] = array.astype(np.float32)
        assert zlib.crc32(tensors[name].tobytes()) == entry["crc32"], name
    return tensors


@dataclasses.dataclass(frozen=True)
class Case:
    """A network of EDM as one of ours.

    Attributes:
      path: the pickle, or the file of a rule's numbers.
      network: what was read.
      config: that describes it, with all else as the schema has it.
    """

    path: pathlib.Path
    network: edm_pickle.Network
    config: ConfigDict

    @functools.cached_property
    def numbers(self) -> Any:
        return numbers(self.path)

    @functools.cached_property
    def meta(self) -> Any:
        return json.loads(str(self.numbers["meta_json"]))

    @functools.cached_property
    def module(self) -> Any:
        return models.from_config(self.config)

    @functools.cached_property
    def sde(self) -> Any:
        return sde_lib.from_config(self.config)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        side = self.config.data.image_size
        return side, side, self.config.data.num_channels

    @functools.cached_property
    def params(self) -> Any:
        return edm.params(self.network, self.module, self.image_shape, str(self.path))

    @functools.cached_property
    def labels(self) -> jax.Array | None:
        """The classes of the images, None for a network without."""
        return (
            jnp.argmax(self.numbers["class_labels"], -1) if self.config.model.num_labels else None
        )

    def score(
        self, params: Any, y: jax.Array | None, augment: jax.Array | None = None
    ) -> sde_lib.ScoreFn:
        return models.score_fn(
            self.sde,
            lambda x, labels: self.module.apply({"params": params}, x, labels, None, y, augment),
            continuous=self.config.training.continuous,
            prediction=self.config.model.prediction,
            sigma_data=self.config.model.sigma_data,
        )

    def told(self, sigma: np.ndarray, c_noise: np.ndarray) -> tuple[jax.Array, ...]:
        """Of EDM's noise levels [B]: the time, the factor on the images, and the deviation of the
        noise, by which a prediction of it became a score; [B] each."""
        kind, n = self.config.training.sde, self.config.model.num_scales
        if kind == "edm":
            return jnp.asarray(sigma), jnp.ones(len(sigma)), jnp.asarray(sigma)
        if kind == "vesde":  # images in [0, 1]
            own = jnp.asarray(sigma) / 2
            return self.sde.time_of_log_snr(-2 * jnp.log(own)), jnp.ones(len(sigma)), own
        alpha = jnp.asarray(1 / np.sqrt(1 + np.asarray(sigma, np.float64) ** 2), jnp.float32)
        t = jnp.asarray(c_noise, jnp.float32) / 999
        if kind == "vpsde":
            return t, alpha, self.sde.sigma(t)
        t = jnp.asarray(c_noise, jnp.float32) / (n - 1)
        level = grids.discrete_noise(self.sde)[np.rint(c_noise).astype(int)]
        return t, alpha, jnp.asarray(level / np.sqrt(1 + level**2), jnp.float32)

    def denoiser(
        self, sigma: np.ndarray, c_noise: np.ndarray
    ) -> Callable[[Any, jax.Array, jax.Array | None, jax.Array | None], jax.Array]:
        """EDM's D(x; sigma) = x - sigma noise, of weights, images, classes and augmentation."""
        t, *factors = self.told(sigma, c_noise)
        alpha, std = (factor[:, None, None, None] for factor in factors)
        size = jnp.asarray(sigma, jnp.float32)[:, None, None, None]
        in_unit = self.config.training.sde == "vesde"

        def denoised(
            params: Any, x: jax.Array, y: jax.Array | None, augment: jax.Array | None
        ) -> jax.Array:
            ours = (x + 1) / 2 if in_unit else x
            noise = -std * self.score(params, y, augment)(alpha * ours, t)
            return x - size * noise

        return denoised


def case(path: pathlib.Path) -> Case:
    """The network of a pickle, or of a rule."""
    if path.suffix == ".npz":
        z = np.load(path)
        tensors = weights_by_rule(json.loads(str(z["tensors_json"])))
        network = network_of(json.loads(str(z["config_json"])), tensors)
    else:
        network = edm.EdmFile(path).network
    return Case(path, network, config_of(network))


def config_of(network: edm_pickle.Network) -> ConfigDict:
    values = edm.config_values(network, "a network")
    return convert.described_config(values, network.inner)


def runs_of(path: pathlib.Path) -> dict[str, Any]:
    """The settings of EDM's samplers, whose trajectories are in a file, by the run's name."""
    runs: dict[str, Any] = json.loads(str(numbers(path)["meta_json"]))["runs"]
    return runs
