"""config.json of a diffusers `UNet2DModel`, as fields of our configs and back.

The format holds two of our networks: DDPM ("DownBlock2D" and its kin), and NCSN++ with skip
pyramids at both ends ("SkipDownBlock2D"), the one of the 256 and 1024 pixel configs. Everything
else that config.json may say is refused, never approximated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from interop import official
from models import DDPM, NCSNpp

ConfigValues = dict[str, Any]  # by dotted name, such as "model.nf"

# Values of the fields that config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": 8,
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
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
# Fields that some versions of diffusers write and others warn of; an export leaves them out.
UNWRITTEN: dict[str, Any] = {"attention_legacy_order": False, "num_train_timesteps": None}
# Fields that diffusers adds to the config.json of averaged weights.
OF_AVERAGES = {
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup"),
    *("inv_gamma", "power"),
}

# Values with which the network is one of ours; an export writes the first.
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

# The fields of our networks that the format leaves no choice.
FIXED_IN_BOTH: dict[str, Any] = {"nonlinearity": "swish", "conditional": True, "num_labels": 0}
FIXED_IN_DDPM = {"resamp_with_conv": True, "scale_by_sigma": False, **FIXED_IN_BOTH}
FIXED_IN_NCSNPP = {
    "resblock_type": "biggan",
    "fir_kernel": (1, 3, 3, 1),
    "skip_rescale": True,
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "progressive_combine": "sum",
    "embedding_type": "fourier",
    "scale_by_sigma": True,
    "augment_dim": 0,
    **FIXED_IN_BOTH,
}

_BLOCK = re.compile(r"(Attn)?(Skip)?DownBlock2D")


def unknown(description: Mapping[str, Any]) -> list[str]:
    """Fields of config.json of which nothing is known, and which are not read."""
    levels = {"block_out_channels", "down_block_types", "up_block_types"}
    known = {*DEFAULTS, *UNWRITTEN, *OF_AVERAGES, *levels}
    return sorted(name for name in description if name not in known and name[:1] != "_")


class _Layout(NamedTuple):
    """The levels of a UNet2DModel, at full resolution first."""

    widths: list[int]
    blocks: int  # of each level on the way down
    down: list[re.Match[str] | None]  # the kinds of levels; None for one that is not ours
    up: list[str]

    @property
    def skip(self) -> bool:
        """True of NCSN++, False of DDPM."""
        return bool(self.down and self.down[0] and self.down[0][2])

    @property
    def attended(self) -> list[int]:
        """The levels with attention."""
        return [i for i, kind in enumerate(self.down) if kind and kind[1]]


def architecture(description: Mapping[str, Any], image_size: int | None = None) -> ConfigValues:
    """The config values of the network that config.json describes.

    Args:
      image_size: stands in for a `sample_size` that config.json leaves out.

    Raises:
      ValueError: a network that is none of ours; names every field that stands in the way.
    """
    fields = {**DEFAULTS, **UNWRITTEN, **description}
    layout = _layout(fields)
    problems = [*_problems_of_levels(fields, layout), *_problems_of_fields(fields, layout.skip)]
    size = fields["sample_size"] or image_size
    size = size[0] if isinstance(size, list) and len({*size}) == 1 else size
    if not isinstance(size, int) or not size:
        problems.append(f"sample_size is {fields['sample_size']!r}; name a --config for the size")
    if problems:
        raise ValueError(f"config.json describes no network of ours: {'; '.join(problems)}")
    assert isinstance(size, int)
    _check_widths(fields, layout)

    widths, attended = layout.widths, layout.attended
    values: ConfigValues = {
        "model.name": "ncsnpp" if layout.skip else "ddpm",
        "model.nf": widths[0],
        "model.ch_mult": tuple(width // widths[0] for width in widths),
        "model.num_res_blocks": layout.blocks,
        "model.attn_resolutions": tuple(size >> level for level in attended),
        "data.image_size": size,
        "data.num_channels": fields["in_channels"],
        "data.centered": not fields["center_input_sample"],
    }
    fixed = FIXED_IN_NCSNPP if layout.skip else FIXED_IN_DDPM
    values |= {f"model.{name}": value for name, value in fixed.items()}
    if layout.skip:
        usual = all(_usual_groups(widths[level]) == LEVEL_NORM_GROUPS for level in attended)
        values["model.fir"] = True
        values["model.attn_num_groups"] = 0 if usual else LEVEL_NORM_GROUPS
    else:
        values["model.attn_each_up_block"] = bool(attended)
    return values


def _layout(fields: Mapping[str, Any]) -> _Layout:
    try:
        return _Layout(
            [int(width) for width in fields["block_out_channels"]],
            int(fields["layers_per_block"]),
            [_BLOCK.fullmatch(kind) for kind in fields["down_block_types"]],
            list(reversed(fields["up_block_types"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"config.json: {error} is not as in a UNet2DModel") from error


def _problems_of_levels(fields: Mapping[str, Any], layout: _Layout) -> list[str]:
    """Differences of the levels from those of our networks."""
    widths, blocks, down, up = layout
    problems = []
    if not down or any(kind is None or bool(kind[2]) != layout.skip for kind in down):
        problems.append(f"down_block_types is {fields['down_block_types']}")
    elif up != [kind[0].replace("Down", "Up") for kind in down if kind]:
        problems.append(
            f"up_block_types is {fields['up_block_types']}, not the down blocks reversed"
        )
    if blocks < 1:
        problems.append(f"layers_per_block is {blocks}")
    if len(widths) != len(down) or min(widths, default=0) < 1 or any(w % widths[0] for w in widths):
        problems.append(f"block_out_channels is {widths}")
    return problems


def _problems_of_fields(fields: Mapping[str, Any], skip: bool) -> list[str]:
    """Fields with values that our networks do not know."""
    problems = [
        f"{name} is {fields[name]!r}, needed is {allowed[0]!r}"
        for name, allowed in (OF_NCSNPP if skip else OF_DDPM).items()
        if not any(_equal(fields[name], value) for value in allowed)
    ]
    channels, out_channels = fields["in_channels"], fields["out_channels"]
    width = fields["time_embedding_dim"]
    if width not in (None, 4 * _layout(fields).widths[0]):
        problems.append(f"time_embedding_dim is {width}, needed is 4 block_out_channels[0]")
    if channels != out_channels:
        problems.append(f"out_channels is {out_channels}, in_channels {channels}")
    if skip and channels != 3:
        problems.append(f"Skip blocks have 3 channels, not {channels}")
    return problems


def _check_widths(fields: Mapping[str, Any], layout: _Layout) -> None:
    """Refuses heads and groups that differ from ours at some width."""
    widths, attended, skip = layout.widths, layout.attended, layout.skip
    heads = fields["attention_head_dim"]
    if heads is not None and any(heads != widths[level] for level in [*attended, -1]):
        raise ValueError(
            f"config.json: attention_head_dim is {heads}; only attention with one head is known"
        )
    for level in attended if skip else ():
        below, width = widths[min(level + 1, len(widths) - 1)], widths[level]
        if width % LEVEL_NORM_GROUPS or below + width // 4 < LEVEL_NORM_GROUPS:
            raise ValueError(f"config.json: attention over {width} channels needs 32 norm groups")
    groups = fields["norm_num_groups"]
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
    if not isinstance(module, DDPM | NCSNpp):
        raise ValueError(f"diffusers has no {type(module).__name__}; it has DDPM and NCSNpp")
    problems = _problems_of_export(module, image_shape)
    if problems:
        raise ValueError(f"a diffusers UNet2DModel cannot hold it: {'; '.join(problems)}")

    height, _, channels = image_shape
    skip = isinstance(module, NCSNpp)
    down = [f"{'Attn' * a}{'Skip' * skip}DownBlock2D" for a in _attended(module, height)]
    return {
        **DEFAULTS,
        **{
            name: allowed[0]
            for name, allowed in (OF_NCSNPP if skip else OF_DDPM).items()
            if name not in UNWRITTEN
        },
        "attention_head_dim": None,
        "block_out_channels": _widths(module),
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


def _problems_of_export(module: DDPM | NCSNpp, image_shape: official.Shape) -> list[str]:
    """Properties of a network that a UNet2DModel cannot have."""
    fixed = FIXED_IN_NCSNPP if isinstance(module, NCSNpp) else FIXED_IN_DDPM
    problems = [
        f"{name} is {getattr(module, name)!r}, needed is {value!r}"
        for name, value in fixed.items()
        if _plain(getattr(module, name)) != value
    ]
    height, width, channels = image_shape
    if height != width:
        problems.append(f"images are {height} x {width}, not square")
    if isinstance(module, NCSNpp):
        levels = zip(_widths(module), _attended(module, height), strict=True)
        for width in {width for width, attended in levels if attended}:
            groups = module.attn_num_groups or _usual_groups(width)
            if groups != LEVEL_NORM_GROUPS:
                problems.append(f"attention over {width} channels has {groups} norm groups")
        if channels != 3:
            problems.append(f"images have {channels} channels, not 3")
    return problems


def _widths(module: DDPM | NCSNpp) -> list[int]:
    return [module.nf * multiple for multiple in module.ch_mult]


def _attended(module: DDPM | NCSNpp, height: int) -> list[bool]:
    """True for every level with attention."""
    return [(height >> level) in module.attn_resolutions for level in range(len(module.ch_mult))]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
