"""Environment shared by all tests. It must run before JAX is imported."""

import gc
import os
import pathlib
from collections.abc import Iterator

import pytest

from runtime import backend

os.environ.setdefault("NPROC", "8")  # fake devices need threads to meet in (at least two each)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _FLAGS:
    os.environ["XLA_FLAGS"] = f"{_FLAGS} --xla_force_host_platform_device_count=4".strip()

# Compiled programs are kept between runs, also those of the processes that tests start.
_CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


# LLVM's optimisation is left out, here and in the processes that tests start: most tests compile
# much and compute little. XLA's passes are those that users run; only roundings differ. Its older
# emitters of CPU code compile in half the time; JAX 0.12 has them no more.
QUICK = not os.environ.get("FULL_COMPILATION")
if QUICK:
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # lines of Python in programs
    if backend.has_older_emitters():
        # The latter: one thread for each program, whose parts are too small for more.
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] += f" {flags}"

# What is imported and traced lives on, millions of objects: Python looks through them for garbage
# seldom, and not at all at those of the imports, nor at the end. It took a tenth of all time.
gc.set_threshold(100_000, 20, 50)


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Compiles in full what computes much: slow tests, and those marked full_compilation.

    So are those of golden files from elsewhere. FULL_COMPILATION=1 compiles all as for users.
    """
    marks = {mark.name for mark in item.iter_markers()}
    elsewhere = "golden" in marks and os.environ.get("GOLDEN_DIR")
    if not QUICK or not (elsewhere or marks & {"slow", "full_compilation"}):
        return (yield)
    import jax  # not above: tests that need none do not wait for it

    name = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    jax.config.update(name.lower(), False)
    os.environ[name] = "0"
    try:
        return (yield)
    finally:
        jax.config.update(name.lower(), True)
        os.environ[name] = "1"
