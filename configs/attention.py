"""Heights of images in a U-Net, at some of which it has attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from configs.shapes import example_shape

UNETS = ("ddpm", "edm2", "ncsnpp", "unet1d")  # the networks that read model.attn_resolutions


def heights(image_size: int, ch_mult: Sequence[int]) -> tuple[int, ...]:
    """The heights of the levels of a U-Net, full resolution first: each is half of the last."""
    return tuple(image_size >> level for level in range(len(ch_mult)))


def check_attention(config: Any) -> None:
    """Refuses attention at heights that no level of the U-Net has.

    Raises:
      ValueError: says which levels there are.
    """
    model, size = config.model, example_shape(config.data)[0]
    levels = heights(size, model.ch_mult)
    absent = [height for height in model.attn_resolutions if height not in levels]
    if absent:
        raise ValueError(
            f"config.model.attn_resolutions is {model.attn_resolutions!r}, but no level of the "
            f"network has height {absent[0]}: by data.image_size={size} and "
            f"model.ch_mult={model.ch_mult!r} there are {', '.join(map(str, levels))}; valid "
            "values: some of these, or ()"
        )


def with_levels_only(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config without the heights of `attn_resolutions` that its U-Net does not have.

    In earlier runs they could be given and had no effect.
    """
    data, model = config.get("data"), config.get("model")
    if not isinstance(data, dict) or not isinstance(model, dict):
        return dict(config)
    size, factors = data.get("image_size"), model.get("ch_mult", ())
    shape = data.get("shape")
    size = shape[0] if isinstance(shape, tuple | list) and shape else size
    attended: Any = model.get("attn_resolutions")
    lists = isinstance(factors, tuple | list) and isinstance(attended, tuple | list)
    if model.get("name") not in UNETS or not isinstance(size, int) or not lists:
        return dict(config)  # what is of another type is refused where configs are checked
    levels = heights(size, factors)
    attention = type(attended)(height for height in attended if height in levels)
    return {**config, "model": {**model, "attn_resolutions": attention}}
