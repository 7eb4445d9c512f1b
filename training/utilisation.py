"""Model FLOPs utilisation: a training step's FLOPs over those that its chips could do meanwhile."""

from __future__ import annotations

from typing import Any

import jax

from runtime import chips


def seconds_at_peak(pmapped: Any, arguments: tuple[Any, ...], parts: int) -> float | None:
    """Seconds that a step would take at a chip's peak rate of products in bfloat16.

    FLOPs are those of one device, as XLA counts them in the program before compilation, where the
    body of a loop counts once: of the steps in a call, and of a batch's `parts`.

    Args:
      pmapped: a call of some steps, which is compiled for these arguments, or their shapes.
      parts: `training.accumulation`.

    Returns:
      None where the peak rate of the devices is not known, as of a CPU.
    """
    chip = chips.of_kind(jax.devices()[0].device_kind)
    if chip is None:
        return None
    cost: Any = pmapped.lower(*arguments).cost_analysis() or {}
    return parts * float(cost["flops"]) / chip.bfloat16 if "flops" in cost else None
