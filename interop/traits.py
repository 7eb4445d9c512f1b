"""A few numbers of a network, which tell most networks apart before they are compared in full."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import flax.linen as nn

from interop import official


class Traits(NamedTuple):
    """Properties that tell most networks apart at a glance."""

    channels: int
    nf: int
    fourier: bool
    residual_blocks: int


def words(traits: Traits, shapes: Iterable[official.Shape]) -> str:
    """A network that nothing else is known of, for messages."""
    facts = [f"{sum(map(math.prod, shapes)) / 1e6:.3g} M parameters"]
    if traits.nf:
        facts += [f"width {traits.nf}", f"{traits.channels} channels of images"]
    facts += [f"{traits.residual_blocks} residual blocks"] if traits.residual_blocks else []
    facts += ["Fourier features of noise levels"] if traits.fourier else []
    return f"a network of {', '.join(facts)}"


def of_torch(shapes: Mapping[str, official.Shape]) -> Traits:
    """The traits of an official PyTorch network, from its tensors in any order.

    The first convolution is the one of the fewest channels, that of images; of several the one with
    the least number in its name. safetensors sorts by name, all_modules.10 before all_modules.3.
    """
    kernels = [
        (shape[1], [int(digits) for digits in re.findall(r"\d+", name)], shape[0])
        for name, shape in shapes.items()
        if len(shape) == 4 and shape[2:] == (3, 3)
    ]
    channels, _, nf = min(kernels, default=(0, [], 0))
    fourier = any(name.count(".") == 2 and name.endswith(".W") for name in shapes)
    blocks = sum(name.endswith("GroupNorm_1.weight") for name in shapes)
    return Traits(channels, nf, fourier, blocks)


def of_jax(shapes: Mapping[official.Path, official.Shape]) -> Traits:
    """The traits of an official JAX network."""
    kernel = shapes.get(("Conv_0", "kernel"), (0, 0, 0, 0))
    fourier = any(place[0].startswith("GaussianFourier") for place in shapes)
    blocks = sum(place[1:] == ("GroupNorm_1", "scale") for place in shapes)
    return Traits(kernel[-2], kernel[-1], fourier, blocks)


def of_network(module: nn.Module, image_shape: official.Shape) -> Traits:
    """The traits of a network, without evaluating it."""
    nf, fourier = getattr(module, "nf", 0), getattr(module, "embedding_type", "") == "fourier"
    levels = len(getattr(module, "ch_mult", ()))
    per_level = 2 * getattr(module, "num_res_blocks", 0) + 1
    resampling = 2 * (levels - 1) if getattr(module, "resblock_type", "") == "biggan" else 0
    blocks = levels * per_level + resampling + 2 if levels else 0
    return Traits(image_shape[-1], nf, fourier, blocks)
