"""The official crops of CelebA and LSUN, as the input pipelines of score_sde make them."""

from __future__ import annotations

import numpy as np

from data import images, resize
from data.images import File, Warn, shown

FACE = (218, 178, 3)  # CelebA's pictures
MIDDLE = 140  # pixels of them that are kept


def celeba(file: File, size: int, warn: Warn = images.warn_always) -> np.ndarray:
    """The `face` in one of CelebA's pictures.

    Raises:
      ValueError: it cannot be read, or has other sides; names the file.
    """
    try:
        picture = _levels(file, warn)
    except ValueError as error:
        raise ValueError(f"{shown(file)} cannot be read: {error}") from error
    if picture.shape != FACE:
        raise ValueError(
            f"{shown(file)} has {picture.shape[0]}x{picture.shape[1]} pixels, not 218x178; celeba "
            "is of img_align_celeba.zip, the aligned and cropped pictures"
        )
    return face(picture, size)


def face(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle of a picture uint8 [218, 178, 3], in levels float32 [size, size, 3]."""
    middle = resize.centre_crop(resize.unit(picture), MIDDLE, MIDDLE)
    return resize.levels(resize.shorter_side(middle, size, "bilinear"))


def lsun(file: File, size: int, rounded: bool, warn: Warn = images.warn_always) -> np.ndarray:
    """The `square` of one of LSUN's pictures, or the middle, `unrounded`.

    Raises:
      ValueError: it cannot be read; names the file.
    """
    try:
        picture = _levels(file, warn)
    except ValueError as error:
        raise ValueError(f"{shown(file)} is no picture that can be read ({error})") from error
    return square(picture, size) if rounded else unrounded(picture, size)


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a picture uint8 [H, W, C], as uint8 [size, size, C]."""
    side = min(picture.shape[:2])
    middle = resize.centre_crop(picture, side, side)
    if side == size:
        return np.ascontiguousarray(middle)
    return resize.truncated(resize.resize(middle, size, size, "bicubic"))


def unrounded(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle of a picture uint8 [H, W, C] whose shorter side became `size` pixels, float32."""
    side = resize.shorter_side(resize.unit(picture), size, "bilinear")
    return resize.levels(resize.centre_crop(side, size, size))


def _levels(file: File, warn: Warn) -> np.ndarray:
    return images.decoded(file, lambda opened, _: np.asarray(opened.convert("RGB")), warn)
