"""EDM's `SongUNet` (Karras et al. 2022): the NCSN++ and DDPM++ of score_sde under other names.

Each of its modules is a slot of the PyTorch network's flat list, see `official`, in the order that
`_slots` tells. What score_sde does not have are vectors of classes and of augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from interop import official
from models import NCSNpp

IN_BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "Conv_0",
    "affine": "Dense_0",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
    "skip": "Conv_2",
}
QKV = ("NIN_0", "NIN_1", "NIN_2")


def state_dict(
    tensors: Mapping[str, np.ndarray], module: NCSNpp, size: int
) -> dict[str, np.ndarray]:
    """The tensors by their names in score_sde_pytorch; those that are not there keep theirs.

    Args:
      tensors: of a SongUNet, without `model.`.
      size: height of the images.
    """
    left = {name: x for name, x in tensors.items() if not name.endswith("resample_filter")}
    named: dict[str, np.ndarray] = {}

    def move(source: str, target: str) -> None:
        for name in [name for name in left if name.startswith(f"{source}.")]:
            named[f"{target}.{name.removeprefix(f'{source}.')}"] = left.pop(name)

    for slot, source in enumerate(_slots(module, size)):
        target = f"all_modules.{slot}"
        if source == "map_noise":
            # Features of ln(sigma) / 4 there, of ln(sigma) here, in EDM's preconditioning.
            named[f"{target}.W"] = left.pop("map_noise.freqs")
        elif source.endswith(":attention"):
            _attention(left, source.removesuffix(":attention"), target, named)
        elif source.endswith("aux_residual"):
            move(source, f"{target}.Conv2d_0")
        elif "block" in source or source.endswith(("_down", "_up", "in0", "in1")):
            for inside, theirs in IN_BLOCK.items():
                move(f"{source}.{inside}", f"{target}.{theirs}")
        else:
            move(source, target)
    return named | left


def _attention(
    left: dict[str, np.ndarray], source: str, target: str, named: dict[str, np.ndarray]
) -> None:
    """The attention of a block: q, k and v take turns in its channels."""
    for leaf in ("weight", "bias"):
        if f"{source}.norm2.{leaf}" in left:
            named[f"{target}.GroupNorm_0.{leaf}"] = left.pop(f"{source}.norm2.{leaf}")
    if f"{source}.qkv.weight" in left:
        weight, bias = left.pop(f"{source}.qkv.weight"), left.pop(f"{source}.qkv.bias")
        for index, layer in enumerate(QKV):
            named[f"{target}.{layer}.W"] = weight[index::3, :, 0, 0].T
            named[f"{target}.{layer}.b"] = bias[index::3]
    if f"{source}.proj.weight" in left:
        named[f"{target}.NIN_3.W"] = left.pop(f"{source}.proj.weight")[:, :, 0, 0].T
        named[f"{target}.NIN_3.b"] = left.pop(f"{source}.proj.bias")


def _slots(module: NCSNpp, size: int) -> Iterator[str]:
    """The modules of a SongUNet in the order of score_sde's slots."""
    levels = len(module.ch_mult)
    if module.embedding_type == "fourier":
        yield "map_noise"
    yield from ("map_layer0", "map_layer1", f"enc.{size}x{size}_conv")
    for level in range(levels):
        now = size >> level
        for k in range(module.num_res_blocks):
            yield f"enc.{now}x{now}_block{k}"
            if now in module.attn_resolutions:
                yield f"enc.{now}x{now}_block{k}:attention"
        if level < levels - 1:
            yield f"enc.{now // 2}x{now // 2}_down"
            if module.progressive_input == "residual":
                yield f"enc.{now // 2}x{now // 2}_aux_residual"
    for level in reversed(range(levels)):
        now = size >> level
        if level == levels - 1:
            yield from (f"dec.{now}x{now}_in{i}" for i in ("0", "0:attention", "1"))
        for k in range(module.num_res_blocks + 1):
            yield f"dec.{now}x{now}_block{k}"
        if now in module.attn_resolutions:
            yield f"dec.{now}x{now}_block{module.num_res_blocks}:attention"
        if level > 0:
            yield f"dec.{2 * now}x{2 * now}_up"
    yield from (f"dec.{size}x{size}_aux_norm", f"dec.{size}x{size}_aux_conv")


def params(
    tensors: Mapping[str, np.ndarray], module: NCSNpp, image_shape: official.Shape, log_scale: float
) -> dict[str, Any]:
    """Our parameters from the tensors of a SongUNet.

    Args:
      log_scale: the network there is told this times ln(sigma), here ln(sigma).

    Raises:
      ValueError: names the tensors that are missing, unexpected, of the wrong shape or no numbers.
    """
    named = state_dict(tensors, module, image_shape[0])
    labels, augment = {}, {}
    for name in [name for name in named if name.startswith("map_label.")]:
        labels[name] = named.pop(name)
    for name in [name for name in named if name.startswith("map_augment.")]:
        augment[name] = named.pop(name)
    if "all_modules.0.W" in named:
        named["all_modules.0.W"] = np.float32(log_scale) * named["all_modules.0.W"]
    plain = module.clone(num_labels=0, augment_dim=0)
    ours = official.params_from_torch(plain, named, image_shape, "SongUNet")
    if module.num_labels:
        weight, bias = labels["map_label.weight"], labels["map_label.bias"]
        rows = np.sqrt(np.float32(module.num_labels)) * weight.T + bias
        ours["ClassEmbed_0"] = {"embedding": np.concatenate([rows, bias[None]])}
    if module.augment_dim:
        ours["AugmentDense_0"] = {"kernel": np.ascontiguousarray(augment["map_augment.weight"].T)}
    return ours
