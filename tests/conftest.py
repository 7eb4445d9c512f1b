"""Environment shared by all tests. It must run before JAX is imported."""

import os
import pathlib
from collections.abc import Iterator

import pytest

os.environ.setdefault("NPROC", "8")  # fake devices need threads to meet in (at least two each)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _FLAGS:
    os.environ["XLA_FLAGS"] = f"{_FLAGS} --xla_force_host_platform_device_count=4".strip()

# Compiled programs are kept between runs, also those of the processes that tests start.
_CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


@pytest.fixture(autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """LLVM's optimisation is left out in tests so marked, which compile much and compute little.

    Their programs, and XLA's passes over them, are those that users run; only roundings differ.
    Slow tests have all of it, as have those of golden files from elsewhere. FULL_COMPILATION=1
    tests everything as users compile.
    """
    marks = {mark.name for mark in request.node.iter_markers()}
    elsewhere = "golden" in marks and os.environ.get("GOLDEN_DIR")
    full = "slow" in marks or elsewhere or os.environ.get("FULL_COMPILATION")
    if full or "quick_compilation" not in marks:
        yield
        return
    import jax  # not above: tests that need none do not wait for it

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
