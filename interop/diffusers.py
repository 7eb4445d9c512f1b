"""`UNet2DModel` folders of diffusers, config.json and weights: read, written, and their tensors as
our parameters and back. `diffusers_config` knows what config.json says, `pipelines` what is beside.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import numpy as np
import safetensors.numpy

from interop import diffusers_config, formats, official, pth, state_dicts
from models import DDPM, NCSNpp
from runtime import errors, files

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
PICKLED = f"{STEM}.bin"

Tensors = dict[str, np.ndarray]


class Folder(NamedTuple):
    """The content of a folder; `weights` is the file that the tensors are from, or the index of
    several.
    """

    description: dict[str, Any]
    tensors: Tensors
    weights: pathlib.Path
    unused: list[str]  # names of other files of weights, and of unknown fields of config.json


def read(folder: str | os.PathLike[str]) -> Folder:
    """Reads config.json and the weights beside it, safetensors before a pickled `.bin`, or those of
    the `unet` in a pipeline's folder.

    Where neither is there, a variant such as `diffusion_pytorch_model.fp16.safetensors` is read, or
    the several files that an index lists. Attention in its old names (`query`, `proj_attn`, ...) is
    renamed, and `time_proj.W` dropped where it is but a copy.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a damaged file, or one that holds something else.
    """
    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file() and (folder / "unet").is_dir():
        folder /= "unet"
    description = read_json(folder / "config.json")
    kind = description.get("_class_name")
    if not isinstance(kind, str):
        raise ValueError(f"{folder / 'config.json'} does not describe a diffusers model")
    if kind != "UNet2DModel":
        raise ValueError(f"{folder / 'config.json'} describes a {kind:.60}, not a UNet2DModel")
    path, unused = _weights_file(folder)
    tensors = _read_shards(path) if path.suffix == ".json" else _read_tensors(path)
    try:
        named = state_dicts.stripped(tensors, state_dicts.DIFFUSERS, "the weights")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    unused += [f"config.json: {name}" for name in diffusers_config.unknown(description)]
    return Folder(description, _modern(named, path), path, unused)


def _read_tensors(path: pathlib.Path) -> Tensors:
    """The tensors of one file by name."""
    if path.suffix == ".safetensors":
        return formats.read_safetensors(path)
    tensors = pth.read_pth(path)
    strange = [str(n) for n, tensor in tensors.items() if not isinstance(tensor, np.ndarray)]
    if strange:
        raise ValueError(f"{path}: {strange[0]:.60} is no tensor")
    return {str(name): tensor for name, tensor in tensors.items()}


def _read_shards(path: pathlib.Path) -> Tensors:
    """The tensors of the files beside an index, `{"weight_map": {name of a tensor: file}}`."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(
            f"{path}: weights in several files are not read without the weight_map that "
            "save_pretrained writes"
        )
    tensors: Tensors = {}
    for name in sorted({str(file) for file in places.values()}):
        if pathlib.PurePath(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise ValueError(f"{path}: {name[:60]!r} is no file of weights beside it")
        if not (path.parent / name).is_file():
            raise FileNotFoundError(f"{path.parent / name} is missing, which {path.name} lists")
        shard = _read_tensors(path.parent / name)
        if shard.keys() != {tensor for tensor, file in places.items() if file == name}:
            raise ValueError(f"{path.parent / name} holds other tensors than {path.name} lists")
        tensors |= shard
    return tensors


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file of JSON; ValueError, which names the file, for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        why = errors.one_line(error, 120)
        raise ValueError(f"{path} does not describe a diffusers model: {why}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not describe a diffusers model")
    return value


def _weights_file(folder: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
    """The file of weights that is read, and the names of others that are there."""
    names = sorted(path.name for path in folder.glob(f"{STEM}*") if path.is_file())
    indices = [name for name in names if name.endswith(".index.json")]
    if indices and not {WEIGHTS, PICKLED} & {*names}:
        used = next((name for name in indices if ".safetensors." in name), indices[0])
        listed = read_json(folder / used).get("weight_map")
        kept = {used, *(listed.values() if isinstance(listed, dict) else ())}
        return folder / used, [name for name in names if name not in kept]
    usual = [name for name in (WEIGHTS, PICKLED) if name in names]
    variants = [name for name in names if name.endswith((".safetensors", ".bin"))]
    if not usual and len(variants) > 1:
        raise ValueError(
            f"{folder} has neither {WEIGHTS} nor {PICKLED}, but {', '.join(variants[:8])}; name "
            "one of them by renaming it"
        )
    if not usual and not variants:
        raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {PICKLED}")
    used = (usual or variants)[0]
    return folder / used, [name for name in variants if name != used]


_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _modern(tensors: Mapping[str, np.ndarray], path: pathlib.Path) -> Tensors:
    """The tensors under the names that diffusers has given them since."""
    modern: Tensors = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "attentions" in parts and parts[-2] in _OLD_NAMES:
            parts[-2] = _OLD_NAMES[parts[-2]]
        renamed = "time_proj.weight" if name == "time_proj.W" else ".".join(parts)
        if renamed in modern and not np.array_equal(modern[renamed], tensor):
            raise ValueError(f"{path}: {name} contradicts {renamed}")
        modern[renamed] = tensor
    return modern


def write(folder: str | os.PathLike[str], description: dict[str, Any], tensors: Tensors) -> None:
    """Writes config.json and safetensors into a new folder, which appears whole or not at all.

    Raises:
      ValueError: there is something at `folder` already.
      OSError: it could not be written.
    """
    folder = pathlib.Path(folder)
    refuse_filled(folder)
    with files.whole(folder) as partial:
        partial.mkdir()
        (partial / "config.json").write_text(json_text(description))
        save_tensors(tensors, partial, folder)


def refuse_filled(folder: pathlib.Path) -> None:
    """Raises ValueError if there is something at `folder`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty")


def json_text(value: Mapping[str, Any]) -> str:
    """A file of JSON as diffusers writes it."""
    return f"{json.dumps(value, indent=2, sort_keys=True)}\n"


def save_tensors(tensors: Tensors, folder: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the file of weights in `folder`; an OSError names what becomes of it, `target`."""
    try:
        safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # a full disk, for instance
        raise OSError(f"{target} could not be written: {error}") from error


def _modules(module: NCSNpp | DDPM, height: int) -> Iterator[tuple[str, str]]:
    """(our top-level module, its diffusers name), in the order of our calls."""
    counts: collections.Counter[str] = collections.Counter()

    def next_of(kind: str) -> str:
        counts[kind] += 1
        return f"{kind}_{counts[kind] - 1}"

    skip = isinstance(module, NCSNpp)
    block = "ResnetBlockBigGANpp" if skip else "ResnetBlockDDPM"
    attention = "AttnBlockpp" if skip else "AttnBlock"
    each = getattr(module, "attn_each_up_block", False)
    blocks, levels = module.num_res_blocks, len(module.ch_mult)
    if skip:
        yield "GaussianFourierProjection_0", "time_proj"
    yield "Dense_0", "time_embedding.linear_1"
    yield "Dense_1", "time_embedding.linear_2"
    yield next_of("Conv"), "conv_in"
    for i in range(levels):
        name = f"down_blocks.{i}"
        for j in range(blocks):
            yield next_of(block), f"{name}.resnets.{j}"
            if height >> i in module.attn_resolutions:
                yield next_of(attention), f"{name}.attentions.{j}"
        if i < levels - 1 and skip:
            yield next_of(block), f"{name}.resnet_down"
            yield f"{next_of('Combine')}/Conv_0", f"{name}.skip_conv"
        elif i < levels - 1:
            yield f"{next_of('Downsample')}/Conv_0", f"{name}.downsamplers.0.conv"
    yield next_of(block), "mid_block.resnets.0"
    yield next_of(attention), "mid_block.attentions.0"
    yield next_of(block), "mid_block.resnets.1"
    for i in range(levels):
        name, level = f"up_blocks.{i}", levels - 1 - i
        for j in range(blocks + 1):
            yield next_of(block), f"{name}.resnets.{j}"
            if height >> level in module.attn_resolutions and (each or j == blocks):
                yield next_of(attention), f"{name}.attentions.{0 if skip else j}"
        if level == 0:
            yield next_of("GroupNorm"), "conv_norm_out"
            yield next_of("Conv"), "conv_out"
        elif skip:
            yield next_of("GroupNorm"), f"{name}.skip_norm"
            yield next_of("Conv"), f"{name}.skip_conv"
            yield next_of(block), f"{name}.resnet_up"
        else:
            yield f"{next_of('Upsample')}/Conv_0", f"{name}.upsamplers.0.conv"


_INSIDE_ATTENTION = {
    "GroupNorm_0": "group_norm",
    "NIN_0": "to_q",
    "NIN_1": "to_k",
    "NIN_2": "to_v",
    "NIN_3": "to_out.0",
}
_INSIDE_BLOCK = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "time_emb_proj",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "Conv_2": "conv_shortcut",
    "NIN_0": "conv_shortcut",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "W": "weight", "bias": "bias", "b": "bias"}


class Entry(NamedTuple):
    """One tensor: its diffusers name and shape, and its path and shape in our parameter tree."""

    name: str
    torch_shape: official.Shape
    path: official.Path
    shape: official.Shape


def correspondence(module: nn.Module, image_shape: official.Shape) -> list[Entry]:
    """Every parameter of a network that the format holds.

    Raises:
      ValueError: it cannot hold it (see `diffusers_config.description`).
    """
    diffusers_config.description(module, image_shape)
    assert isinstance(module, DDPM | NCSNpp)
    prefixes = dict(_modules(module, image_shape[0]))
    entries = []
    for path, shape in official.parameter_shapes(module, image_shape).items():
        *place, leaf = path
        outer = "/".join(place) if "/".join(place) in prefixes else place[0]
        parts = [prefixes[outer]]
        if outer == place[0] and len(place) > 1:
            inside = _INSIDE_ATTENTION if "Attn" in outer else _INSIDE_BLOCK
            parts.append(inside[place[1]])
        name = ".".join([*parts, _LEAVES[leaf]])
        entries.append(Entry(name, _torch_shape(name, leaf, shape), path, shape))
    return entries


def _torch_shape(name: str, leaf: str, shape: official.Shape) -> official.Shape:
    if len(shape) == 4:
        return (shape[3], shape[2], *shape[:2])
    if len(shape) == 2:
        return (*shape[::-1], 1, 1) if "shortcut" in name else shape[::-1]
    return shape


def params_from_diffusers(
    module: nn.Module, tensors: Mapping[str, np.ndarray], image_shape: official.Shape
) -> official.Params:
    """Our parameters, float32, from the tensors of a folder (see `read`).

    Raises:
      ValueError: names the tensors that are missing, unexpected, of the wrong shape or no numbers.
    """
    entries = correspondence(module, image_shape)
    expected = {entry.name: entry.torch_shape for entry in entries}
    official.check_shapes(
        "diffusers folder", expected, {name: np.shape(tensor) for name, tensor in tensors.items()}
    )
    arrays = official.float32("diffusers folder", tensors)
    flat = {}
    for entry in entries:
        tensor = arrays[entry.name]
        if len(entry.shape) == 4:
            tensor = tensor.transpose(2, 3, 1, 0)
        elif len(entry.shape) == 2:
            tensor = tensor.reshape(entry.shape[::-1]).T
        flat[entry.path] = np.ascontiguousarray(tensor)
    return flax.traverse_util.unflatten_dict(flat)


def params_to_diffusers(
    module: nn.Module, params: official.Params, image_shape: official.Shape
) -> Tensors:
    """The tensors of a folder.

    diffusers has attention after every block of a DDPM's way up, where the official DDPM has it
    after the last one; the others are given an output of zero, so that they do nothing.

    Raises:
      ValueError: the format cannot hold the network, or the parameters are not the network's.
    """
    flat = flax.traverse_util.flatten_dict(official.params_from_jax(module, params, image_shape))
    tensors: Tensors = {}
    for entry in correspondence(module, image_shape):
        array = flat[entry.path]
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        tensors[entry.name] = np.ascontiguousarray(array.reshape(entry.torch_shape))
    if isinstance(module, DDPM):
        _add_idle_attention(module, tensors)
    return tensors


def _add_idle_attention(module: DDPM, tensors: Tensors) -> None:
    last = re.compile(rf"(up_blocks\.\d+\.attentions\.){module.num_res_blocks}(\..*)")
    for match in list(filter(None, map(last.fullmatch, tensors))):
        for block in range(module.num_res_blocks):
            name = f"{match[1]}{block}{match[2]}"
            gain = "group_norm.weight" in name
            tensors.setdefault(name, np.full_like(tensors[match[0]], float(gain)))
