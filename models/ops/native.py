"""The C++ functions of `models/ops/cpu` as foreign functions, compiled once for each machine.

XLA's CPU backend convolves at half the speed of oneDNN, and fetches an image from memory again for
each step of a normalisation. These functions call oneDNN, and keep an image in cache while it is
normalised. Where they cannot be built (another system than Linux on x86-64, no C++ compiler, no
oneDNN), or with SCORE_SDE_NATIVE=0 in the environment, XLA's own forms are used.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jaxlib
import numpy as np
from absl import logging

SOURCES = sorted(pathlib.Path(__file__).with_name("cpu").iterdir())
NORMS = ("norm", "norm_jvp", "norm_vjp", "norm_swish", "norm_swish_jvp", "norm_swish_vjp")
FUNCTIONS = ("conv", "conv_dx", "conv_dw", *NORMS)
OPTIONS = (
    *("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno"),
    *("-fopenmp", "-fPIC", "-w"),
)
CHANNELS = 16  # the fewest of any operand's last axis; shorter loops are left to XLA
_here = True  # False inside `elsewhere`


class Unavailable(Exception):
    """The machine cannot build or load the functions; the message says why."""


def build(prefix: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """The shared library, from the folder `cache` or newly compiled, with the oneDNN of `prefix`.

    Its name depends on sources, command, processor and jaxlib: a folder may serve many kinds of
    machines.

    Raises:
      Unavailable: it cannot be built, with the reason.
    """
    system = sys.platform, platform.machine()
    if system != ("linux", "x86_64"):
        raise Unavailable(f"native functions need Linux on x86-64, not {' on '.join(system)}")
    onednn = prefix / "lib" / "libdnnl.so.3"
    if not onednn.exists():
        raise Unavailable(
            f"oneDNN is not installed (there is no {onednn}): pip install -e '.[native]'"
        )
    name = os.environ.get("CXX", "g++")
    compiler = shutil.which(name)
    if compiler is None:
        raise Unavailable(f"there is no C++ compiler {name!r}; install one or set CXX")
    folders = (jax.ffi.include_dir(), prefix / "include")
    units = [str(path) for path in SOURCES if path.suffix == ".cc"]
    command = [compiler, *OPTIONS, *(f"-I{folder}" for folder in folders)]
    libraries = [str(onednn), "-lmvec", f"-Wl,-rpath,{onednn.parent}"]

    processor = pathlib.Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0]
    parts = [*command, *libraries, processor, jaxlib.__version__]
    parts += [path.read_text() for path in SOURCES]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    library = cache / f"native-{digest}.so"
    if not library.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                built = pathlib.Path(folder, library.name)
                _compile(command, units, libraries, built)
                built.replace(library)  # at once: another process may be building it too
        except subprocess.CalledProcessError as error:
            first = error.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise Unavailable(f"{compiler} failed: {first}") from error
        except OSError as error:
            raise Unavailable(f"{cache} cannot be written: {error}") from error
    return library


def _compile(
    command: Sequence[str], units: Sequence[str], libraries: Sequence[str], target: pathlib.Path
) -> None:
    """Compiles the units side by side, and links them.

    Raises:
      CalledProcessError: of the first that fails.
    """
    objects = [f"{target}.{i}.o" for i in range(len(units))]

    def run(*words: str) -> None:
        subprocess.run([*command, *words], check=True, capture_output=True)

    with concurrent.futures.ThreadPoolExecutor(len(units)) as pool:
        list(pool.map(lambda unit, target: run("-c", unit, "-o", target), units, objects))
    run("-shared", *objects, *libraries, "-o", str(target))


@functools.cache
def available() -> bool:
    """True if the functions are there; the first call builds and registers them."""
    if os.environ.get("SCORE_SDE_NATIVE") == "0":
        return False
    try:
        cache = pathlib.Path("~/.cache/score_sde/native").expanduser()
        library = ctypes.CDLL(str(build(pathlib.Path(sys.prefix), cache)))
    except (Unavailable, OSError, RuntimeError) as error:  # the last: nobody knows the home
        logging.warning("On the CPU networks will run at half their speed: %s", error)
        return False
    for name in FUNCTIONS:
        capsule = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(f"score_sde_{name}", capsule, platform="cpu")
    return True


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Inside, programs are traced as for a platform that is no CPU; on a CPU without the functions
    they are others, see `available`."""
    global _here
    before, _here = _here, False
    try:
        yield
    finally:
        _here = before


def for_cpu() -> bool:
    """True if programs are traced for the CPU."""
    return _here and jax.default_backend() == "cpu"


def takes(*operands: Any) -> bool:
    """True for operands that the functions are made for: all float32, one with many channels."""
    if not _here:
        return False
    single = all(operand.dtype == np.float32 for operand in operands)
    return single and max(operand.shape[-1] for operand in operands) >= CHANNELS and available()


def call(
    name: str, operands: Sequence[jax.Array], shapes: Sequence[tuple[int, ...]], **attributes: Any
) -> Sequence[jax.Array]:
    """The results, float32 of `shapes`, of a function of `models/ops/cpu`."""
    results = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return jax.ffi.ffi_call(f"score_sde_{name}", results)(*operands, **attributes)
