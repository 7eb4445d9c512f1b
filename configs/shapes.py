"""The shape of an example, by the section `data` of a config."""

from __future__ import annotations

from typing import Any


def example_shape(section: Any) -> tuple[int, ...]:
    """`data.shape` of real-valued examples; else (H, W, C) of images, and of points (1, 1, D)."""
    if section.shape:
        return tuple(section.shape)
    return section.image_size, section.image_size, section.num_channels
