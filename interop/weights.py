"""Weights that were read from a file of other people's."""

from __future__ import annotations

from typing import NamedTuple

from interop import official


class Weights(NamedTuple):
    """A training state in our parameter tree; None or 0 for parts that the file lacks."""

    params: official.Params
    ema: official.Params | None = None
    ema_rate: float = 0.0
    first_moment: official.Params | None = None
    second_moment: official.Params | None = None
    updates: int = 0  # that the moments have seen
    step: int = 0
    only_averages: bool = False  # `params` are averages, and the file has no others
