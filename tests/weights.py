"""Random weights of a network whose initialisation is not compiled."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def normal_weights(shapes: Any, std: float) -> Any:
    """Float32 draws of N(0, std^2), for a tree of what has a shape, as of `jax.eval_shape`."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.float32(std) * rng.standard_normal(leaf.shape, np.float32), shapes
    )
