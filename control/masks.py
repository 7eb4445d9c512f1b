"""Masks of in-painting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

import controllable


def make_mask(options: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """The mask [H, W, 1] that `control.mask` names: 1 is known.

    "half": the lower half is unknown. "box": a box in the middle with the share
    `control.mask_share` of the pixels; "random": as many pixels by chance, of `control.seed`.
    Anything else is a picture file of the images' size, black where unknown, white where known.

    Raises:
      ValueError: a file that cannot be read, of another size, or with other values.
    """
    height, width, _ = shape
    share = options.mask_share
    mask = np.ones((height, width, 1), np.float32)
    if options.mask == "half":
        mask[height // 2 :] = 0.0
    elif options.mask == "box":
        sides = [max(1, round(side * math.sqrt(share))) for side in (height, width)]
        top, left = ((side - hidden) // 2 for side, hidden in zip(shape, sides, strict=False))
        mask[top : top + sides[0], left : left + sides[1]] = 0.0
    elif options.mask == "random":
        order = np.random.RandomState(options.seed).permutation(height * width)
        mask.reshape(-1)[order[: max(1, round(share * height * width))]] = 0.0
    else:
        try:
            with Image.open(options.mask) as picture:
                mask = np.asarray(picture.convert("L"), np.float32)[..., None] / 255.0
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(
                f"control.mask={options.mask!r} is none of half, box, random, nor a picture that "
                "can be read"
            ) from error
        controllable.check_mask(mask, shape)
    return mask
