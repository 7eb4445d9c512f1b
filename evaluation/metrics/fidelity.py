"""PSNR and SSIM, by scikit-image: the closeness of images to the originals they stand for."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from configs import extras

WINDOW = 7  # pixels; smaller for images with shorter sides


def psnr(images: np.ndarray, originals: np.ndarray, levels: int) -> np.ndarray:
    """Peak signal-to-noise ratio in dB [B], infinite for equal images.

    10 log10((levels - 1)^2 / mean squared error), of uint8 levels [B, H, W, C].

    Raises:
      ImportError: scikit-image is not installed.
    """
    metrics = _metrics()
    with np.errstate(divide="ignore"):
        pairs = zip(originals, images, strict=True)
        return np.array(
            [metrics.peak_signal_noise_ratio(a, b, data_range=levels - 1) for a, b in pairs]
        )


def ssim(images: np.ndarray, originals: np.ndarray, levels: int) -> np.ndarray:
    """Structural similarity [B] (Wang et al. 2004), 1 for equal images, of levels [B, H, W, C].

    Its windows are 7 x 7 uniform; in images of fewer pixels the largest odd size that fits.

    Raises:
      ImportError: scikit-image is not installed.
      ValueError: images of fewer than 3 pixels in height or width.
    """
    side = min(WINDOW, *images.shape[1:3])
    if side < 3:
        raise ValueError(f"SSIM needs 3x3 pixels or more, not {images.shape[1]}x{images.shape[2]}")
    window = side - 1 + side % 2
    similarity = functools.partial(
        _metrics().structural_similarity,
        win_size=window,
        data_range=levels - 1,
        channel_axis=-1,
    )
    return np.array([similarity(a, b) for a, b in zip(originals, images, strict=True)])


def _metrics() -> Any:
    """scikit-image's metrics, which are imported here for the first time: it takes a while."""
    extras.require("the comparison with originals", "metrics", skimage="scikit-image")
    from skimage import metrics

    return metrics
