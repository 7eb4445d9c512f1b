"""guided-diffusion's networks (openai/guided-diffusion) as our ADM and its noisy classifier.

A `.pt` file is the bare `state_dict` of one of them. Names and shapes tell the network; the number
of heads, the layout of q, k and v, the size of the images and the schedule of the noise are not in
it, so the config says them.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import numpy as np

from interop import official, state_dicts
from interop.weights import Weights
from models import ADM, ADMClassifier

LAYERS = ("time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks", "out")
FIRST, TIME = "input_blocks.0.0.weight", "time_embed.0.weight"
GROUPS = 32  # of every norm
POOL = "out.2.positional_embedding"
WHAT = "guided-diffusion's state_dict"

IN_BLOCK = {
    "in_layers.0": "GroupNorm_0",
    "in_layers.2": "Conv_0",
    "emb_layers.1": "Dense_0",
    "out_layers.0": "GroupNorm_1",
    "out_layers.3": "Conv_1",
    "skip_connection": "Conv_2",
}
IN_ATTENTION = {"norm": "GroupNorm_0", "qkv": "qkv", "proj_out": "NIN_3"}
IN_POOL = {"qkv_proj": "qkv", "c_proj": "NIN_3"}

Tensors = dict[str, np.ndarray]


def recognises(content: Any) -> bool:
    """True if what `pth.read` returned is a bare `state_dict` of guided-diffusion."""
    return isinstance(content, dict) and all(
        any(str(name).endswith(wanted) for name in content) for wanted in (FIRST, TIME)
    )


class GuidedDiffusionFile:
    """A `.pt` file of guided-diffusion.

    Raises:
      ValueError: something else is in it than one network, or a network that is not served.
    """

    format = "guided-diffusion state_dict"
    scheduler = None

    def __init__(self, path: pathlib.Path, content: Mapping[str, Any]):
        strange = [name for name, value in content.items() if not isinstance(value, np.ndarray)]
        if strange:
            raise ValueError(f"{path}: {str(strange[0])[:40]} is no tensor")
        self.path = path
        self.unused: list[str] = []
        self.tensors: Tensors = state_dicts.stripped(content, LAYERS, "the weights")
        for name, axes in ((FIRST, 4), (TIME, 2)):
            if self.tensors.get(name, np.zeros(())).ndim != axes:
                raise ValueError(f"{path}: {name} is not there, or has not {axes} axes")
        self.num_tensors = len(self.tensors)
        arrays = self.tensors.values()
        self.types = {str(array.dtype) for array in arrays if array.dtype != np.float32}
        self.classifies = not any(name.startswith("output_blocks.") for name in self.tensors)
        refuse_others(path, self.tensors, self.classifies)

    @property
    def found(self) -> str:
        """The network in a few words."""
        return description(self.tensors, self.classifies)

    def fits(self, module: nn.Module, image_shape: official.Shape) -> bool:
        if not isinstance(module, ADM | ADMClassifier):
            return False
        if self.classifies != isinstance(module, ADMClassifier):
            return False
        if self.tensors[TIME].shape[1:] != (module.nf,):
            return False
        try:
            _check(module, image_shape, our_tensors(self.tensors, module))
        except ValueError:
            return False
        return True

    def weights(self, module: nn.Module, image_shape: official.Shape) -> Weights:
        """Raises ValueError for anything that is not the network's; names all of it."""
        wanted = ADMClassifier if self.classifies else ADM
        if not isinstance(module, wanted):
            needs = (
                "training.objective='classifier' and classifier.name='adm'"
                if self.classifies
                else "model.name='adm' and an objective of a score"
            )
            raise ValueError(
                f"{self.path} is {self.found}, and the config's network is a "
                f"{type(module).__name__}; it needs {needs}"
            )
        tensors = our_tensors(self.tensors, module)
        try:
            _check(module, image_shape, tensors)
        except ValueError as error:
            raise ValueError(f"{error}; the file is {self.found}") from error
        arrays = official.float32(WHAT, tensors)
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return Weights(flax.traverse_util.unflatten_dict(arrays, sep="."))


def refuse_others(path: pathlib.Path, tensors: Tensors, classifies: bool) -> None:
    """Raises ValueError for networks of guided-diffusion that are not served."""
    first, width = tensors[FIRST], tensors[TIME].shape[-1]
    reasons = {
        "it is an upsampler: its first layer takes 6 channels, of which half are a small image": (
            first.shape[1] == 6
        ),
        "its first features are narrower than its embedding's, as those of 512 x 512": (
            first.shape[0] < width
        ),
        "it changes its resolution by convolutions (resblock_updown=False)": any(
            re.search(r"\.(op|conv)\.weight$", name) for name in tensors
        ),
        "it adds its embedding (use_scale_shift_norm=False)": any(
            name.endswith("emb_layers.1.bias")
            and array.shape == tensors.get(name.replace("emb_layers.1", "in_layers.2"), first).shape
            for name, array in tensors.items()
        ),
        "it is a classifier that pools without attention": classifies and POOL not in tensors,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"{path} is a network of guided-diffusion that is not served: {reason}"
            )


def description(tensors: Tensors, classifies: bool) -> str:
    """The network in a few words, by its names and shapes."""
    width, channels = tensors[TIME].shape[-1], tensors[FIRST].shape[1]
    blocks = len({name.rpartition(".emb_layers")[0] for name in tensors if "emb_layers" in name})
    if classifies:
        classes = tensors["out.2.c_proj.bias"].shape[0] if "out.2.c_proj.bias" in tensors else "?"
        return (
            f"a noisy classifier of guided-diffusion ({classes} classes, width {width}, "
            f"{blocks} blocks)"
        )
    classes = len(tensors["label_emb.weight"]) if "label_emb.weight" in tensors else "no"
    outputs = len(tensors["out.2.bias"]) if "out.2.bias" in tensors else "?"
    return (
        f"a U-Net of guided-diffusion (width {width}, {blocks} blocks, {classes} classes, "
        f"{outputs} output channels for {channels} of images)"
    )


def _check(module: ADM | ADMClassifier, image_shape: official.Shape, tensors: Tensors) -> None:
    """Raises ValueError unless the network is theirs, in what shapes do not tell and in shapes."""
    groups = module.num_groups or min(module.nf * min(module.ch_mult) // 4, GROUPS)
    if groups != GROUPS:
        raise ValueError(
            f"{WHAT} is of a network whose norms have {GROUPS} groups, and the config's have "
            f"{groups}; it needs model.num_groups={GROUPS}"
        )
    if isinstance(module, ADM) and (module.embedding_type != "positional" or module.augment_dim):
        raise ValueError(
            f"{WHAT} is of a network that is told times alone, and the config's has "
            f"model.embedding_type={module.embedding_type!r}, model.augment_dim="
            f"{module.augment_dim}; it needs 'positional' and 0"
        )
    expected = {
        ".".join(place): shape
        for place, shape in official.parameter_shapes(module, image_shape).items()
    }
    official.check_shapes(WHAT, expected, {name: x.shape for name, x in tensors.items()})


def our_tensors(tensors: Tensors, module: ADM | ADMClassifier) -> Tensors:
    """The tensors by our names, in our layout; those of no layer keep their names.

    Raises:
      ValueError: channels that the heads of attention do not share.
    """
    layers = dict(_layers(module, tensors))
    ours: Tensors = {}
    for name, array in tensors.items():
        layer, _, leaf = name.rpartition(".")
        target = layers.get(layer)
        parts = {name: array} if target is None else _leaves(leaf, array, target, module)
        ours.update(parts)
    return ours


def _leaves(leaf: str, array: np.ndarray, target: str, module: ADM | ADMClassifier) -> Tensors:
    """The parameters of ours that a tensor of a layer is."""
    if leaf == "positional_embedding":
        return {f"{target}.{leaf}": array.T}
    if target.endswith("qkv"):
        return {
            f"{target.removesuffix('qkv')}NIN_{index}.{name}": part
            for index, rows in enumerate(_three(array, target, module))
            for name, part in [_of_nin(leaf, rows)]
        }
    if "NIN" in target:
        name, part = _of_nin(leaf, array)
        return {f"{target}.{name}": part}
    if "ClassEmbed" in target:
        return {f"{target}.embedding": np.concatenate([array, np.zeros_like(array[:1])])}
    if leaf == "weight" and "GroupNorm" in target:
        return {f"{target}.scale": array}
    if leaf == "weight" and array.ndim == 4:
        return {f"{target}.kernel": array.transpose(2, 3, 1, 0)}
    if leaf == "weight" and array.ndim == 2:
        kernel = array.T
        if target == "Dense_0":  # [cos, sin] there, [sin, cos] here
            kernel = np.roll(kernel, module.nf // 2, axis=0)
        return {f"{target}.kernel": kernel}
    return {f"{target}.{leaf}": array}


def _of_nin(leaf: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """A leaf of a NIN from a convolution over a sequence, [out, in, 1]."""
    return ("W", array[..., 0].T) if leaf == "weight" and array.ndim == 3 else ("b", array)


def _three(array: np.ndarray, target: str, module: ADM | ADMClassifier) -> Iterator[np.ndarray]:
    """The rows of q, of k and of v.

    They are [q, k, v] of each head, head after head, in the legacy order; in the new one, and in an
    attention pool, q of all heads, then k, then v.
    """
    if len(array) % 3:
        raise ValueError(
            f"{WHAT}: {target} has {len(array)} rows, which are not three times as many"
        )
    channels, rest = len(array) // 3, array.shape[1:]
    if target.startswith("AttentionPool") or getattr(module, "attention_order", "") == "new":
        yield from array.reshape(3, channels, *rest)
        return
    heads = module.num_heads or channels // module.head_channels
    if not heads or channels % heads:
        raise ValueError(
            f"{WHAT}: {channels} channels of attention are not shared by heads of "
            f"{module.head_channels} (head_channels), num_heads={module.num_heads}"
        )
    by_head = array.reshape(heads, 3, channels // heads, *rest)
    for index in range(3):
        yield by_head[:, index].reshape(channels, *rest)


def _layers(module: ADM | ADMClassifier, tensors: Tensors) -> Iterator[tuple[str, str]]:
    """The layers there, and here."""
    yield from (("time_embed.0", "Dense_0"), ("time_embed.2", "Dense_1"))
    yield from (("label_emb", "ClassEmbed_0"), ("input_blocks.0.0", "Conv_0"))
    yield "out.0", "GroupNorm_0"
    if isinstance(module, ADMClassifier):
        yield "out.2", "AttentionPool_0"
        yield from ((f"out.2.{layer}", f"AttentionPool_0.{IN_POOL[layer]}") for layer in IN_POOL)
    else:
        yield "out.2", "Conv_1"
    for number, place in enumerate(_blocks(module, tensors)):
        block = f"ADMBlock_{number}"
        yield from ((f"{place}.{layer}", f"{block}.{IN_BLOCK[layer]}") for layer in IN_BLOCK)
        stem, _, index = place.rpartition(".")
        beside = f"{stem}.{int(index) + 1}"  # attention, where the block has some
        for layer, ours in IN_ATTENTION.items():
            yield f"{beside}.{layer}", f"{block}.Heads_0.{ours}"


def _blocks(module: ADM | ADMClassifier, tensors: Tensors) -> Iterator[str]:
    """The residual blocks there, in the order of ours."""
    levels, count = len(module.ch_mult), 0
    for level in range(levels):
        for _ in range(module.num_res_blocks + (level > 0)):
            count += 1
            yield f"input_blocks.{count}.0"
    yield from ("middle_block.0", "middle_block.2")
    if isinstance(module, ADMClassifier):
        return
    count = 0
    for level in reversed(range(levels)):
        for number in range(module.num_res_blocks + 1):
            yield f"output_blocks.{count}.0"
            if level > 0 and number == module.num_res_blocks:
                attends = f"output_blocks.{count}.1.norm.weight" in tensors
                yield f"output_blocks.{count}.{1 + attends}"
            count += 1
