"""Masks of in-painting."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, UnidentifiedImageError

import controllable


def make_mask(kind: str, share: float, seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A mask [H, W, 1] of images of this shape: 1 is known, 0 is not.

    Args:
      kind: "half": the lower half is unknown; "box": a box in the middle; "random": single pixels;
        anything else is a picture file of the images' size, black where unknown, white where known.
      share: of the pixels that "box" and "random" hide.
      seed: of "random".

    Raises:
      ValueError: a file that cannot be read, of another size, or with other values.
    """
    height, width, _ = shape
    mask = np.ones((height, width, 1), np.float32)
    if kind == "half":
        mask[height // 2 :] = 0.0
    elif kind == "box":
        sides = [max(1, round(side * math.sqrt(share))) for side in (height, width)]
        top, left = ((side - hidden) // 2 for side, hidden in zip(shape, sides, strict=False))
        mask[top : top + sides[0], left : left + sides[1]] = 0.0
    elif kind == "random":
        order = np.random.RandomState(seed).permutation(height * width)
        mask.reshape(-1)[order[: max(1, round(share * height * width))]] = 0.0
    else:
        try:
            with Image.open(kind) as picture:
                mask = np.asarray(picture.convert("L"), np.float32)[..., None] / 255.0
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(
                f"control.mask={kind!r} is none of half, box, random, nor a picture that can be "
                "read"
            ) from error
        controllable.check_mask(mask, shape)
    return mask
