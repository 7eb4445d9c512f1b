"""Files of parameters alone by our own names, those of the official JAX code: Flax files, such as
its classifier of noisy CIFAR-10 images, and safetensors, such as the weights in interop/shipped."""

from __future__ import annotations

import pathlib
from typing import Any

import flax.linen as nn
import flax.traverse_util
import numpy as np

from interop import official, traits
from interop.weights import Weights
from models import CLIP, WideResNet


class FlaxParameters:
    """A tree of parameters by our names, which are those of the official code."""

    def __init__(self, path: pathlib.Path, content: dict[str, Any], form: str = "Flax parameters"):
        self.path = path
        self.format = form
        self.tree = content["params"] if set(content) == {"params"} else content
        self.unused: list[str] = []
        self.shapes = {
            place: np.shape(leaf)
            for place, leaf in flax.traverse_util.flatten_dict(self.tree).items()
        }
        self.num_tensors = len(self.shapes)
        leaves = flax.traverse_util.flatten_dict(self.tree).values()
        self.types = {str(leaf.dtype) for leaf in leaves if leaf.dtype != np.float32}

    @property
    def found(self) -> str:
        """The network in a few words."""
        return traits.words(traits.of_jax(self.shapes), self.shapes.values())

    def fits(self, module: nn.Module, image_shape: official.Shape) -> bool:
        if isinstance(module, CLIP):
            return False
        if isinstance(module, WideResNet) != ("init_conv" in self.tree):
            return False
        strip = official.without_leading_ones
        try:
            expected = official.parameter_shapes(module, image_shape)
        except ValueError:
            return False
        return {place: strip(shape) for place, shape in expected.items()} == {
            place: strip(shape) for place, shape in self.shapes.items()
        }

    def weights(self, module: nn.Module, image_shape: official.Shape) -> Weights:
        """Raises ValueError for anything that is not the network's; names all of it."""
        return Weights(official.params_from_jax(module, self.tree, image_shape, "the parameters"))


def of_safetensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> FlaxParameters:
    """The parameters of a file of safetensors with our names, "a/b/kernel"."""
    tree = flax.traverse_util.unflatten_dict(tensors, sep="/")
    return FlaxParameters(path, tree, "our own names in safetensors")
