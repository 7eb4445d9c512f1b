"""The environment that XLA reads when JAX is imported. Standard library only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil

# jaxlib releases on which this empty flag was measured to speed up XLA's own convolutions on a CPU
# (benchmarks/workarounds.py). Beside oneDNN's it slows the rest.
FAST_CONVOLUTIONS = {"0.10.2": "--xla_cpu_experimental_ynn_fusion_type="}


def prepare() -> None:
    """Sets what the user has not set; to be called before JAX is imported."""
    flags = os.environ.get("XLA_FLAGS", "")
    fast = FAST_CONVOLUTIONS.get(importlib.metadata.version("jaxlib"))
    if fast and fast.rstrip("=") not in flags and convolves_itself():
        os.environ["XLA_FLAGS"] = f"{flags} {fast}".strip()
    fake = re.search(r"host_platform_device_count=(\d+)", flags)
    if fake:  # devices that share cores wait for each other in a pool of NPROC threads
        os.environ.setdefault("NPROC", str(max(2 * int(fake[1]), os.cpu_count() or 1)))


def convolves_itself() -> bool:
    """True on a processor like the measured one where oneDNN, see `models.ops.native`, is not
    wanted or cannot be linked."""
    unwanted = os.environ.get("SCORE_SDE_NATIVE") == "0"
    unlinked = shutil.which(os.environ.get("CXX", "g++")) is None
    return platform.machine() == "x86_64" and (unwanted or unlinked)
