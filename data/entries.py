"""Some entries of an example: in words, as slices of its first axis, and told to a network."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SLICE = re.compile(r"\s*-?\d*:-?\d*\s*")


def are_slices(text: str) -> bool:
    """True of slices as `mask_of` reads them."""
    return all(map(SLICE.fullmatch, text.split(",")))


def mask_of(text: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A mask [n, 1, ...] of examples of this shape that is 1 in slices of the first axis, else 0.

    Args:
      text: slices as Python has them, separated by commas: "2:", "0:32,96:".
      what: the field of the config that has the text.

    Raises:
      ValueError: no slices, or one that has none of the places.
    """
    if not are_slices(text):
        raise ValueError(
            f"{what}={text!r} is none of slices of the first axis, such as '2:' or '0:32,96:'"
        )
    mask = np.zeros((shape[0], *[1] * (len(shape) - 1)), np.float32)
    for part in map(str.strip, text.split(",")):
        chosen = slice(*(int(n) if n else None for n in part.split(":")))
        if not len(range(shape[0])[chosen]):
            raise ValueError(f"{what}={text!r}: {part!r} is none of the {shape[0]} places")
        mask[chosen] = 1.0
    return mask


def known_of(text: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The mask of the entries that `training.known` names, None where it names none.

    Raises:
      ValueError: no slices, one of no places, or slices of all entries.
    """
    if not text:
        return None
    mask = mask_of(text, shape, "training.known")
    if mask.all():
        raise ValueError(
            f"training.known={text!r} is all of the {shape[0]} places of an example; some are to "
            "be known, and some not"
        )
    return mask


def telling(
    network: Callable[..., jax.Array], known: np.ndarray, given: jax.Array
) -> Callable[..., jax.Array]:
    """A network that sees entries `given` [B, ...], without noise, where `known` is 1.

    Its output is 0 there: it says nothing of them, and no loss of them has a gradient. What it
    learns of the other entries, by denoising score matching, is the score of p_t(unknown | known)
    (Batzolis et al. 2021, arXiv:2111.13606, theorem 1).
    """

    def told(x: jax.Array, labels: jax.Array, *more: Any, **others: Any) -> jax.Array:
        output = network(jnp.where(known > 0, given, x), labels, *more, **others)
        return jnp.where(known > 0, 0.0, output)

    return told
