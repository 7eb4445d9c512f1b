"""The environment that JAX and XLA read when they are imported. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil

PROGRAMS = 4 * 2**30  # bytes of compiled programs that are kept

# jaxlib releases on which this empty flag was measured to speed up XLA's own convolutions on a CPU
# (benchmarks/workarounds.py). Beside oneDNN's it slows the rest.
FAST_CONVOLUTIONS = {"0.10.2": "--xla_cpu_experimental_ynn_fusion_type="}


def prepare() -> None:
    """Sets what the user has not set; to be called before JAX is imported."""
    flags = os.environ.get("XLA_FLAGS", "")
    fast = FAST_CONVOLUTIONS.get(importlib.metadata.version("jaxlib"))
    if fast and fast.rstrip("=") not in flags and convolves_itself():
        os.environ["XLA_FLAGS"] = f"{flags} {fast}".strip()
    keep_programs()
    fake = re.search(r"host_platform_device_count=(\d+)", flags)
    if fake:  # devices that share cores wait for each other in a pool of NPROC threads
        os.environ.setdefault("NPROC", str(max(2 * int(fake[1]), os.cpu_count() or 1)))


def keep_programs() -> None:
    """Has JAX keep what XLA compiles, in a folder of the user's, the oldest giving way to the new;
    JAX_COMPILATION_CACHE_DIR names another, JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing.

    Programs for a CPU are those of one kind of processor, which therefore has a folder of its own:
    a home may be that of many machines.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(RuntimeError, OSError):  # nobody knows the home, or may write there
        folder = pathlib.Path("~/.cache/score_sde").expanduser() / f"programs-{processor()}"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
            os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(PROGRAMS))


def processor() -> str:
    """A few letters that are others for another kind of processor."""
    try:
        described = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        described = ""
    kind = described.partition("\nflags")[2].partition("\n")[0]
    kind = kind or f"{platform.machine()} {platform.processor()}"
    return hashlib.sha256(kind.encode()).hexdigest()[:8]


def convolves_itself() -> bool:
    """True on a processor like the measured one where oneDNN, see `models.ops.native`, is not
    wanted or cannot be linked."""
    unwanted = os.environ.get("SCORE_SDE_NATIVE") == "0"
    unlinked = shutil.which(os.environ.get("CXX", "g++")) is None
    return platform.machine() == "x86_64" and (unwanted or unlinked)


def options_of_one_run(platform: str) -> dict[str, int | bool] | None:
    """XLA's options for a program that runs once, for less time than its optimisation would take.

    On a CPU LLVM optimises it little (at level 0 even roundings would be others), and the code
    comes from XLA's older emitters, which JAX 0.12 has no more.
    """
    if platform != "cpu":
        return None
    options: dict[str, int | bool] = {"xla_backend_optimization_level": 1}
    if has_older_emitters():
        options["xla_cpu_use_fusion_emitters"] = False
    return options


def has_older_emitters() -> bool:
    """True of a JAX whose XLA has its older emitters of CPU code still, which compile sooner."""
    return importlib.metadata.version("jax") < "0.11"
