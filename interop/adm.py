"""EDM's `DhariwalUNet` as our ADM: names and layouts of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from interop import official
from models import ADM

IN_BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "Conv_0",
    "affine": "Dense_0",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
    "skip": "Conv_2",
    "norm2": "Heads_0.GroupNorm_0",
    "proj": "Heads_0.NIN_3",
}


def params(
    tensors: Mapping[str, np.ndarray], module: ADM, image_shape: official.Shape
) -> dict[str, Any]:
    """Our parameters from the tensors of a DhariwalUNet, by their names without `model.`.

    Raises:
      ValueError: names the tensors that are missing, unexpected, of the wrong shape or no numbers.
    """
    left = {name: x for name, x in tensors.items() if not name.endswith("resample_filter")}
    flat: dict[str, np.ndarray] = {}
    for source, target in _layers(module, image_shape[0]):
        for name in [name for name in left if name.startswith(f"{source}.")]:
            leaf = name.removeprefix(f"{source}.")
            for place, array in _leaves(leaf, left.pop(name), target, module):
                flat[place] = array
    flat |= left
    outputs = module.outputs * image_shape[-1]
    for place in ("Conv_1.kernel", "Conv_1.bias"):
        if place in flat and flat[place].shape[-1] == 2 * outputs:  # half of them, for a variance
            flat[place] = flat[place][..., :outputs]
    expected = {
        ".".join(place): shape
        for place, shape in official.parameter_shapes(module, image_shape).items()
    }
    official.check_shapes("DhariwalUNet", expected, {k: np.shape(x) for k, x in flat.items()})
    return flax.traverse_util.unflatten_dict(official.float32("DhariwalUNet", flat), sep=".")


def _leaves(
    leaf: str, array: np.ndarray, target: str, module: ADM
) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters of ours that a tensor of a layer is."""
    if "qkv" in target:
        for index in range(3):
            part = array[index::3]
            place = target.replace("qkv", f"NIN_{index}")
            yield (
                f"{place}.{'W' if leaf == 'weight' else 'b'}",
                (part[:, :, 0, 0].T if leaf == "weight" else part),
            )
    elif "NIN" in target:
        yield (
            f"{target}.{'W' if leaf == 'weight' else 'b'}",
            (array[:, :, 0, 0].T if leaf == "weight" else array),
        )
    elif "ClassEmbed" in target:
        yield f"{target}.embedding", np.concatenate([array.T, np.zeros_like(array.T[:1])])
    elif "GroupNorm" in target:
        yield f"{target}.{'scale' if leaf == 'weight' else leaf}", array
    elif array.ndim == 4:
        yield f"{target}.kernel", array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        kernel = array.T
        if target == "Dense_0":  # [cos, sin] there, [sin, cos] here
            kernel = np.roll(kernel, module.nf // 2, axis=0)
        yield f"{target}.kernel", kernel
    else:
        yield f"{target}.{leaf}", array


def _layers(module: ADM, size: int) -> Iterator[tuple[str, str]]:
    """The layers there, and here."""
    yield from (("map_layer0", "Dense_0"), ("map_layer1", "Dense_1"))
    yield from (("map_label", "ClassEmbed_0"), ("map_augment", "AugmentDense_0"))
    yield from (("out_norm", "GroupNorm_0"), ("out_conv", "Conv_1"))
    yield f"enc.{size}x{size}_conv", "Conv_0"
    for number, source in enumerate(_blocks(module, size)):
        for theirs, ours in IN_BLOCK.items():
            yield f"{source}.{theirs}", f"ADMBlock_{number}.{ours}"
        yield f"{source}.qkv", f"ADMBlock_{number}.Heads_0.qkv"


def _blocks(module: ADM, size: int) -> Iterator[str]:
    """The blocks there in their order."""
    levels, per_level = len(module.ch_mult), module.num_res_blocks
    for level in range(levels):
        now = size >> level
        if level > 0:
            yield f"enc.{now}x{now}_down"
        yield from (f"enc.{now}x{now}_block{k}" for k in range(per_level))
    for level in reversed(range(levels)):
        now = size >> level
        if level == levels - 1:
            yield from (f"dec.{now}x{now}_in{i}" for i in range(2))
        else:
            yield f"dec.{now}x{now}_up"
        yield from (f"dec.{now}x{now}_block{k}" for k in range(per_level + 1))
