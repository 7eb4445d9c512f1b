"""`UNet2DModel` folders of diffusers: config.json and a file of weights, to our networks and back.

The format holds two of our networks: DDPM ("DownBlock2D" and its kin), and NCSN++ with skip
pyramids at both ends ("SkipDownBlock2D"), the one of the 256 and 1024 pixel configs. All that
config.json may say beyond that is refused, never approximated.
"""

from __future__ import annotations

import collections
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import numpy as np
import safetensors.numpy

from interop import formats, official, pth
from models import DDPM, NCSNpp

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED = "diffusion_pytorch_model.bin"

Tensors = dict[str, np.ndarray]
ConfigValues = dict[str, Any]  # by dotted name, such as "model.nf"

# What a field means that config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": 8,
    "attention_legacy_order": False,
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}

# The values with which the network is one of ours; the first is what an export says.
COMMON: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DModel",),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "attention_legacy_order": (False,),
    "attn_norm_num_groups": (None,),
    "class_embed_type": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
    "norm_eps": (1e-6,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
}
OF_DDPM: dict[str, tuple[Any, ...]] = {
    **COMMON,
    "downsample_padding": (0,),
    "downsample_type": ("conv",),
    "flip_sin_to_cos": (False,),
    "freq_shift": (1,),
    "mid_block_scale_factor": (1,),
    "norm_num_groups": (32,),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}
OF_NCSNPP: dict[str, tuple[Any, ...]] = {
    **COMMON,
    "mid_block_scale_factor": (math.sqrt(2),),
    "time_embedding_type": ("fourier",),
}
# Of attention's norm in Skip blocks and of the first norm in AttnSkipUpBlock2D, at any width.
LEVEL_NORM_GROUPS = 32

_BLOCK = re.compile(r"(Attn)?(Skip)?DownBlock2D")


class Folder(NamedTuple):
    """What a folder holds; `weights` is the file that the tensors are from."""

    description: dict[str, Any]
    tensors: Tensors
    weights: pathlib.Path


def read(folder: str | os.PathLike[str]) -> Folder:
    """Reads config.json and the weights beside it, safetensors before a pickled `.bin`.

    Attention in its old names (`query`, `proj_attn`, ...) is renamed, and `time_proj.W` dropped
    where it is but a copy.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a damaged file, or one that holds something else.
    """
    folder = pathlib.Path(folder)
    try:
        description = json.loads((folder / "config.json").read_text())
        kind = description["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a diffusers model") from error
    if kind != "UNet2DModel":
        raise ValueError(f"{folder / 'config.json'} describes a {kind}, not a UNet2DModel")
    for name in (WEIGHTS, PICKLED):
        path = folder / name
        if path.is_file():
            tensors = formats.read_safetensors(path) if name == WEIGHTS else pth.read_pth(path)
            strange = [n for n, tensor in tensors.items() if not isinstance(tensor, np.ndarray)]
            if strange:
                raise ValueError(f"{path}: {strange[0]} is no tensor")
            return Folder(description, _modern(tensors, path), path)
    raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {PICKLED}")


_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _modern(tensors: Mapping[str, np.ndarray], path: pathlib.Path) -> Tensors:
    found: Tensors = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "attentions" in parts and parts[-2] in _OLD_NAMES:
            parts[-2] = _OLD_NAMES[parts[-2]]
        renamed = "time_proj.weight" if name == "time_proj.W" else ".".join(parts)
        if renamed in found and not np.array_equal(found[renamed], tensor):
            raise ValueError(f"{path}: {name} contradicts {renamed}")
        found[renamed] = tensor
    return found


def architecture(description: Mapping[str, Any], image_size: int | None = None) -> ConfigValues:
    """The config values that say what config.json says.

    Args:
      image_size: what `sample_size` should be, where config.json leaves it out.

    Raises:
      ValueError: a network that is none of ours; names every field that stands in the way.
    """
    said = {**DEFAULTS, **description}
    try:
        widths = [int(width) for width in said["block_out_channels"]]
        blocks = int(said["layers_per_block"])
        down = [_BLOCK.fullmatch(kind) for kind in said["down_block_types"]]
        up = list(reversed(said["up_block_types"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"config.json: {error} is not as in a UNet2DModel") from error
    skip = bool(down and down[0] and down[0][2])
    problems = []
    if not down or any(block is None or bool(block[2]) != skip for block in down):
        problems.append(f"down_block_types is {said['down_block_types']}")
    elif up != [block[0].replace("Down", "Up") for block in down if block]:
        problems.append(f"up_block_types is {said['up_block_types']}, not the down blocks reversed")
    if blocks < 1:
        problems.append(f"layers_per_block is {blocks}")
    if len(widths) != len(down) or min(widths, default=0) < 1 or any(w % widths[0] for w in widths):
        problems.append(f"block_out_channels is {widths}")
    for name, allowed in (OF_NCSNPP if skip else OF_DDPM).items():
        if not any(_equal(said[name], value) for value in allowed):
            problems.append(f"{name} is {said[name]!r}, needed is {allowed[0]!r}")
    if said["in_channels"] != said["out_channels"]:
        problems.append(
            f"out_channels is {said['out_channels']}, in_channels {said['in_channels']}"
        )
    if skip and said["in_channels"] != 3:
        problems.append(f"Skip blocks have 3 channels, not {said['in_channels']}")
    size = said["sample_size"] or image_size
    size = size[0] if isinstance(size, list) and len({*size}) == 1 else size
    if not isinstance(size, int) or not size:
        problems.append(f"sample_size is {said['sample_size']!r}; name a --config for the size")
    if problems:
        raise ValueError(f"config.json describes no network of ours: {'; '.join(problems)}")
    assert isinstance(size, int)

    attended = [i for i, block in enumerate(down) if block and block[1]]
    values: ConfigValues = {
        "model.name": "ncsnpp" if skip else "ddpm",
        "model.nf": widths[0],
        "model.ch_mult": tuple(width // widths[0] for width in widths),
        "model.num_res_blocks": blocks,
        "model.attn_resolutions": tuple(size >> level for level in attended),
        "model.nonlinearity": "swish",
        "model.conditional": True,
        "model.scale_by_sigma": skip,
        "model.num_labels": 0,
        "data.image_size": size,
        "data.num_channels": said["in_channels"],
        "data.centered": not said["center_input_sample"],
    }
    if skip:
        usual = all(_usual_groups(widths[level]) == LEVEL_NORM_GROUPS for level in attended)
        values |= {
            "model.embedding_type": "fourier",
            "model.resblock_type": "biggan",
            "model.fir": True,
            "model.fir_kernel": (1, 3, 3, 1),
            "model.skip_rescale": True,
            "model.progressive": "output_skip",
            "model.progressive_input": "input_skip",
            "model.progressive_combine": "sum",
            "model.attn_num_groups": 0 if usual else LEVEL_NORM_GROUPS,
        }
    else:
        values["model.resamp_with_conv"] = True
        values["model.attn_each_up_block"] = bool(attended)
    _check_widths(said, widths, attended, skip)
    return values


def _check_widths(
    said: Mapping[str, Any], widths: list[int], attended: list[int], skip: bool
) -> None:
    """Refuses heads and groups that differ from ours at some width."""
    heads = said["attention_head_dim"]
    if heads is not None and any(heads != widths[level] for level in [*attended, -1]):
        raise ValueError(
            f"config.json: attention_head_dim is {heads}; only attention with one head is known"
        )
    for level in attended if skip else ():
        below, width = widths[min(level + 1, len(widths) - 1)], widths[level]
        if width % LEVEL_NORM_GROUPS or below + width // 4 < LEVEL_NORM_GROUPS:
            raise ValueError(f"config.json: attention over {width} channels needs 32 norm groups")
    groups = said["norm_num_groups"]
    ours = (_usual_groups(widths[0]), _usual_groups(widths[-1]))
    if skip and groups is not None and (groups, groups) != ours:
        raise ValueError(f"config.json: norm_num_groups is {groups}, needed is None")


def _usual_groups(width: int) -> int:
    """Groups of a norm over `width` channels in NCSN++."""
    return min(width // 4, 32)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(b, float) and isinstance(a, int | float):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b


def description(module: nn.Module, image_shape: official.Shape) -> dict[str, Any]:
    """config.json of a network: the inverse of `architecture`.

    Raises:
      ValueError: the format cannot hold this network; names what stands in the way.
    """
    if isinstance(module, NCSNpp):
        needed: dict[str, Any] = {
            "resblock_type": "biggan",
            "fir_kernel": (1, 3, 3, 1),
            "skip_rescale": True,
            "progressive": "output_skip",
            "progressive_input": "input_skip",
            "progressive_combine": "sum",
            "embedding_type": "fourier",
            "scale_by_sigma": True,
        }
    elif isinstance(module, DDPM):
        needed = {"resamp_with_conv": True, "scale_by_sigma": False}
    else:
        raise ValueError(f"diffusers has no {type(module).__name__}; it has DDPM and NCSNpp")
    needed |= {"nonlinearity": "swish", "conditional": True, "num_labels": 0}
    problems = [
        f"{name} is {getattr(module, name)!r}, needed is {value!r}"
        for name, value in needed.items()
        if _plain(getattr(module, name)) != value
    ]
    height, width, channels = image_shape
    levels = [(height >> i) in module.attn_resolutions for i in range(len(module.ch_mult))]
    widths = [module.nf * multiple for multiple in module.ch_mult]
    if height != width:
        problems.append(f"images are {height} x {width}, not square")
    if isinstance(module, NCSNpp):
        for attended in {w for w, level in zip(widths, levels, strict=True) if level}:
            groups = getattr(module, "attn_num_groups", 0) or _usual_groups(attended)
            if groups != LEVEL_NORM_GROUPS:
                problems.append(f"attention over {attended} channels has {groups} norm groups")
        if channels != 3:
            problems.append(f"images have {channels} channels, not 3")
    if problems:
        raise ValueError(f"a diffusers UNet2DModel cannot hold it: {'; '.join(problems)}")

    skip = isinstance(module, NCSNpp)
    down = [f"{'Attn' * level}{'Skip' * skip}DownBlock2D" for level in levels]
    fixed = OF_NCSNPP if skip else OF_DDPM
    return {
        **DEFAULTS,
        **{name: allowed[0] for name, allowed in fixed.items()},
        "attention_head_dim": None,
        "block_out_channels": widths,
        "center_input_sample": not module.centered,
        "down_block_types": down,
        "dropout": module.dropout,
        "in_channels": channels,
        "layers_per_block": module.num_res_blocks,
        "norm_num_groups": None if skip else 32,
        "out_channels": channels,
        "sample_size": height,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
    }


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


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
      ValueError: it cannot hold it (see `description`).
    """
    description(module, image_shape)
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
      ValueError: names every tensor that is missing, unexpected or of the wrong shape.
    """
    entries = correspondence(module, image_shape)
    expected = {entry.name: entry.torch_shape for entry in entries}
    official._compare(
        "diffusers folder", expected, {name: np.shape(tensor) for name, tensor in tensors.items()}
    )
    flat = {}
    for entry in entries:
        tensor = np.asarray(tensors[entry.name], np.float32)
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


def write(folder: str | os.PathLike[str], description: dict[str, Any], tensors: Tensors) -> None:
    """Writes config.json and safetensors into a new folder, which appears whole or not at all.

    Raises:
      ValueError: there is something at `folder` already.
      OSError: it could not be written.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        text = json.dumps(description, indent=2, sort_keys=True)
        (partial / "config.json").write_text(f"{text}\n")
        safetensors.numpy.save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        partial.replace(folder)
    except BaseException:
        for name in ("config.json", WEIGHTS):
            (partial / name).unlink(missing_ok=True)
        partial.rmdir()
        raise
