"""Masks of in-painting."""

from __future__ import annotations

import math
import pathlib

import numpy as np
from PIL import Image

import controllable
from data import arrays, depth, entries, images


def make_mask(kind: str, share: float, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A mask [H, W, 1] of images of this shape: 1 is known, 0 is not.

    Args:
      kind: "half": the lower half is unknown; "box": a box in the middle; "random": single pixels;
        anything else is a picture file of the images' size, see `read_mask`.
      share: of the pixels that "box" and "random" hide.
      seed: of "random".

    Raises:
      ValueError: a file that cannot be read, of another size, or with other values; a mask that
        hides nothing, or everything.
    """
    height, width, _ = shape
    mask, what = np.ones((height, width, 1), np.float32), f"control.mask={kind!r}"
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
        mask, what = read_mask(kind, shape), f"control.mask={images.shown(kind)!r}"
    if kind in ("box", "random"):
        what += f" with control.mask_share={share:g} of {height}x{width} pixels"
    try:
        controllable.check_mask(mask, shape)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return mask


def make_mask_of_values(kind: str, share: float, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of real-valued examples of this shape, which broadcasts to it: 1 is known, 0 is not.

    Its places are those of the first axis (the entries of a vector, the times of a series) and,
    of fields, of the second one.

    Args:
      kind: "half", "box" and "random" as in `make_mask`; slices of the first axis that are known,
        as Python has them, "2:" or "0:32,96:"; or an `.npy` file of a mask.
      share, seed: as in `make_mask`.

    Raises:
      ValueError: a file that cannot be read, a mask that does not fit, slices that cannot be, or a
        mask that hides nothing, or everything.
    """
    if kind in ("half", "box", "random"):
        height, width = (shape[0], 1) if len(shape) < 3 else shape[:2]
        mask = make_mask(kind, share, seed, (height, width, 1))
        return mask.reshape(height, *[1] * (len(shape) - 1)) if len(shape) < 3 else mask
    what = f"control.mask={images.shown(kind)!r}"
    if kind.endswith(".npy") and pathlib.Path(kind).is_file():
        mask = arrays.npy_file(pathlib.Path(kind)).astype(np.float32)
    elif entries.are_slices(kind):
        mask = entries.mask_of(kind, shape, "control.mask")
    else:
        raise ValueError(
            f"{what} is none of half, box, random, nor slices of the first axis that are known "
            "('2:', '0:32,96:'), nor an .npy file"
        )
    try:
        controllable.check_mask(mask, shape)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return mask


def read_mask(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The shares of white in a picture, float32 [H, W, 1]: 1 where known, 0 where not.

    What is transparent is unknown, whatever its colour. A grey picture with no other values than 0
    and 1 is a mask as it stands.

    Raises:
      ValueError: a file that cannot be read, or a picture of another size.
    """
    try:
        return images.decoded(path, lambda picture, _: _shares_of_white(picture, shape))
    except ValueError as error:
        raise ValueError(
            f"control.mask={images.shown(path)!r} is none of half, box, random, nor a picture that "
            f"can be read as a mask of {shape[0]}x{shape[1]} pixels, black or transparent where "
            f"unknown and white where known: {error}"
        ) from error


def _shares_of_white(picture: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    height, width, _ = shape
    if picture.size != (width, height):
        raise ValueError(f"it has {picture.height}x{picture.width} pixels")
    picture.load()
    alpha = np.ones((height, width), np.float32)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = np.asarray(picture.getchannel("A"), np.float32) / 255.0
    if picture.mode not in ("1", "L", "I", "F") and not picture.mode.startswith("I;16"):
        picture = picture.convert("RGB").convert("L")
    values = np.asarray(picture, np.float32)
    if not np.isin(values, (0.0, 1.0)).all():
        values = values / (255.0 if picture.mode == "L" else depth.WHITE)
    return (alpha * values)[..., None]
