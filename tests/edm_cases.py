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
            array = z / math.sqrt(math.prod(shape[1:]))
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

    @property
    def null(self) -> int:
        """The number of the class that an image of no class has."""
        return int(self.config.model.num_labels)

    def classes(self, count: int) -> jax.Array:
        """The classes of the first images, or those of no class for a network without."""
        unknown = np.full(count, self.null, np.int32)
        return jnp.asarray(unknown if self.labels is None else self.labels[:count], jnp.int32)

    def forward(self, params: Any, y: jax.Array, augment: jax.Array) -> models.score.Network:
        """The network with its classes [B] and numbers of augmentation [B, 9], if it has any."""
        more = (y if self.null else None, augment if self.config.model.augment_dim else None)
        return lambda x, labels: self.module.apply({"params": params}, x, labels, None, *more)

    def score(self, network: models.score.Network) -> sde_lib.ScoreFn:
        return models.score_fn(
            self.sde,
            network,
            continuous=self.config.training.continuous,
            prediction=self.config.model.prediction,
            sigma_data=self.config.model.sigma_data,
        )

    @functools.cached_property
    def compiled_score(self) -> Callable[..., jax.Array]:
        """The score (x, t, classes) of two images, compiled, even where nothing else is."""

        def score(params: Any, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
            return self.score(self.forward(params, y, jnp.zeros((2, 9))))(x, t)

        program = jax.jit(score)

        def compiled(x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
            with jax.disable_jit(False):
                return program(self.params, x, t, y)

        return compiled

    def denoised(
        self, params: Any, x: jax.Array, sigma: Any, told: Any, y: jax.Array, augment: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """EDM's D(x; sigma) = x - sigma noise, and its F, the output before preconditioning."""
        t, *factors = told
        alpha, std = (factor[:, None, None, None] for factor in factors)
        in_unit = self.config.training.sde == "vesde"
        outputs: list[jax.Array] = []
        apply = self.forward(params, y, augment)

        def network(x: jax.Array, labels: jax.Array) -> jax.Array:
            outputs.append(apply(x, labels))
            return outputs[-1]

        ours = (x + 1) / 2 if in_unit else x
        noise = -std * self.score(network)(alpha * ours, t)
        return x - sigma[:, None, None, None] * noise, outputs[0] * (std if in_unit else 1)

    @functools.cached_property
    def program(self) -> Callable[..., Any]:
        """D and F, and the gradients of sum(D v) with respect to weights and x, compiled once."""

        @jax.jit
        def run(params: Any, x: jax.Array, v: jax.Array, *settings: Any) -> Any:
            def total(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
                D, F = self.denoised(params, x, *settings)
                return jnp.sum(D * v), (D, F)

            return jax.grad(total, (0, 1), has_aux=True)(params, x)

        return functools.partial(run, self.params)


def case(path: pathlib.Path) -> Case:
    """The network of a pickle, or of a rule."""
    if path.suffix == ".npz":
        z = np.load(path)
        tensors = weights_by_rule(json.loads(str(z["tensors_json"])))
        network = network_of(json.loads(str(z["config_json"])), tensors)
    else:
        network = edm.EdmFile(path).network
    return Case(path, network, config_of(network))


def same_weights(path: pathlib.Path, net: Case) -> pathlib.Path | None:
    """The file in today's layout whose network and weights one in an older layout has."""
    twin = path.with_stem(path.stem.removesuffix("_old"))
    if twin == path or not twin.exists():
        return None
    other = case(twin)
    assert other.config.to_dict() == net.config.to_dict()
    jax.tree.map(np.testing.assert_array_equal, net.params, other.params)
    return twin


def config_of(network: edm_pickle.Network) -> ConfigDict:
    values = edm.config_values(network, "a network")
    return convert.described_config(values, network.inner)


def runs_of(path: pathlib.Path) -> dict[str, Any]:
    """The settings of EDM's samplers, whose trajectories are in a file, by the run's name."""
    runs: dict[str, Any] = json.loads(str(numbers(path)["meta_json"]))["runs"]
    return runs
