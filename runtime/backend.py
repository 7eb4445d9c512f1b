"""The environment that XLA reads when JAX is imported. Standard library only."""

from __future__ import annotations

import os
import re


def prepare() -> None:
    """Sets what the user has not set; to be called before JAX is imported."""
    flags = os.environ.get("XLA_FLAGS", "")
    fake = re.search(r"host_platform_device_count=(\d+)", flags)
    if fake:  # devices that share cores wait for each other in a pool of NPROC threads
        os.environ.setdefault("NPROC", str(max(2 * int(fake[1]), os.cpu_count() or 1)))
